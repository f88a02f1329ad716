"""Loading models, and choosing what is trained."""

from __future__ import annotations

import fnmatch
import warnings
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.pytorch_utils import Conv1D

from ilu_cli import trust
from ilu_cli.data.sampling import seed_of
from ilu_cli.errors import IluError, UnavailableError, UsageError
from ilu_cli.models.checking import check_adapter, check_finite, check_report, check_stored
from ilu_cli.models.code import failed
from ilu_cli.models.heap import collect_as_usual
from ilu_cli.models.hold import as_if_wide
from ilu_cli.models.lower import above, shorten
from ilu_cli.models.names import name_of
from ilu_cli.models.parts import decoder_layers, parts_of
from ilu_cli.models.quiet import quiet_transformers
from ilu_cli.models.subject import Subject
from ilu_cli.recipe.specs import LoraSpec
from ilu_cli.runs.files import read_json

DEEPEST = 10_000  # layers
FAILURES = (  # what libraries raise at a load
    OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, ImportError, SafetensorError,
    StrictDataclassError, RecursionError, ArithmeticError, LookupError, AssertionError,
)  # fmt: skip


def load_model(subject: Subject, device: torch.device | str = "cpu", depth: int | None = None) -> Any:
    """Load a causal language model with float32 master weights; an adapter is merged into its base.

    With `depth` it is a model of the first so many layers; see `ilu_cli.models.lower`.

    Raises:
        UnavailableError: if the folder does not hold one, whole and of finite numbers.
    """
    collect_as_usual()  # before there is anything that would be missed
    model = _load(subject, device) if depth is None else _load_folder(subject.folder, device, depth)
    check_finite(model, subject.folder, identity_of(subject, depth))
    return model


def identity_of(subject: Subject, depth: int | None = None) -> list[Any]:
    """What tells the weights of a model that `load_model` gives, as `ilu_cli.models.parts.parts_of` takes it."""
    return [subject.digest, depth]


def _load(subject: Subject, device: torch.device | str) -> Any:
    if subject.base is None:
        return _load_folder(subject.folder, device)
    return _put_adapter(_load(subject.base, device), subject.folder).merge_and_unload().eval()


def _put_adapter(model: Any, folder: Path) -> Any:
    from peft import PeftModel

    device = "cpu" if model.device.type == "meta" else str(model.device)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it warns of what is missing, which we refuse
            adapted = PeftModel.from_pretrained(model, folder, torch_device=device)
            result = adapted.load_adapter(folder, "default", torch_device=device)  # says what is missing
    except FAILURES as error:
        raise UnavailableError(f"{folder} does not load as a peft adapter: {error}") from error
    check_adapter(folder, result)
    return adapted


def _load_folder(folder: Path, device: torch.device | str, depth: int | None = None) -> Any:
    quiet_transformers()
    _check_depth(folder)
    try:
        less = {}
        if depth is not None:
            config = AutoConfig.from_pretrained(folder, trust_remote_code=trust.remote())
            less["config"] = shorten(config, depth)
        model, report = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, output_loading_info=True, ignore_mismatched_sizes=True,
            trust_remote_code=trust.remote(), **less,
        )  # fmt: skip
    except FAILURES as error:
        raise _failed(folder, error) from error
    report["unexpected_keys"] = set(report["unexpected_keys"]) - set(above(depth, list(report["unexpected_keys"])))
    check_report(folder, report)
    return made_ready(model).to(device)


def made_ready(model: Any) -> Any:
    """Attention as the model needs it, and no dropout: unlearning compares a model with itself."""
    if getattr(model.config, "attn_logit_softcapping", None):  # which sdpa would leave out, as transformers 5.20 has it
        model.set_attn_implementation("eager")
    return model.eval()


def _check_depth(folder: Path) -> None:
    """Refuse a number of layers that would take hours to make, even without weights."""
    path = folder / "config.json"
    layers = read_json(path).get("num_hidden_layers") if path.is_file() else None
    if isinstance(layers, int) and layers > DEEPEST:
        raise UnavailableError(f"{path}: num_hidden_layers is {layers}; at most {DEEPEST} are made")


def _failed(folder: Path, error: Exception) -> IluError:
    if "CONVERSION" in str(error):  # it speaks of a table that it has logged
        error = ValueError(
            "weights that the model merges, as those of its experts, are incomplete or of different shapes"
        )
    return failed(folder, "does not load as a causal language model", error)


def load_tokenizer(folder: Path) -> Any:
    """Load the tokenizer of a model folder. Padding is on the right; its id does not matter, masks do.

    Raises:
        UnavailableError: if there is none.
    """
    quiet_transformers()
    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=trust.remote())
    except FAILURES as error:
        raise failed(folder, "has no tokenizer that loads", error) from error


def empty_model(folder: Path, depth: int | None = None) -> Any:
    """The model without its weights (on the meta device), to count and check; with `depth`, of so many layers."""
    quiet_transformers()
    _check_depth(folder)
    try:
        with torch.device("meta"):
            config = AutoConfig.from_pretrained(folder, trust_remote_code=trust.remote())
            config = config if depth is None else shorten(config, depth)
            return AutoModelForCausalLM.from_config(config, trust_remote_code=trust.remote())
    except FAILURES as error:
        raise failed(folder, "is not a causal language model", error) from error


def checked_model(subject: Subject) -> Any:
    """The model of a subject without its weights, once its files hold all that loading will look for.

    Raises:
        UnavailableError: if weights are missing or of another shape, or an adapter does not fit its base.
        UsageError: if it is a model that we cannot compute.
    """
    model = empty_model(subject.root)
    try:
        check_stored(subject.root, model)
    except FAILURES as error:
        raise _failed(subject.root, error) from error
    parts_of(model)  # refuses what we cannot compute
    adapter = subject
    while adapter.base is not None:
        _put_adapter(empty_model(subject.root), adapter.folder)
        adapter = adapter.base
    return model


def add_adapter(model: Any, spec: LoraSpec, seed: int) -> Any:
    """Put a LoRA adapter into the model, in place, and freeze all else.

    B is zero at first, so that the model is still the original one: what is cached of it before training is right.

    Returns:
        The peft model around it, which saves the adapter.

    Raises:
        UsageError: if a target names no module of the model, or the LM head; or one of the layers does not exist.
    """
    from peft import LoraConfig, get_peft_model

    depth = model.config.num_hidden_layers
    if missing := [n for n in spec.layers or [] if n >= depth]:
        raise UsageError(f"lora.layers: {missing[0]} does not exist, the model has layers 0 to {depth - 1}")
    targets: Any = "all-linear" if spec.targets == ["all-linear"] else spec.targets
    by_name = targets == "all-linear" and spec.layers is not None  # peft knows "all-linear" of whole models only
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=spec.r,
        lora_alpha=spec.alpha,
        target_modules=_linear_in(model, spec.layers or []) if by_name else targets,
        layers_to_transform=None if by_name else spec.layers,
    )
    torch.manual_seed(seed_of(seed, "lora"))  # A is drawn at random
    tied = model.get_input_embeddings().weight is model.get_output_embeddings().weight
    try:
        with as_if_wide(model):
            adapted = get_peft_model(model, config).eval()
    except ValueError as error:
        raise UsageError(f"lora.targets: {str(error).splitlines()[0]}") from error
    shared = tied and not isinstance(model.get_input_embeddings(), nn.Embedding)
    if shared or not isinstance(model.get_output_embeddings(), nn.Linear):
        raise UsageError(
            "lora.targets: the LM head, and embeddings that are the LM head too, take no adapter",
            hint="leave them out of lora.targets",
        )
    return adapted


def _linear_in(model: nn.Module, numbers: list[int]) -> list[str]:
    """The names of all linear modules in some layers."""
    layers = decoder_layers(model)
    inside = [name_of(model, layers[n]) for n in numbers]
    return [
        name
        for prefix, n in zip(inside, numbers)
        for name, module in layers[n].named_modules(prefix=prefix)
        if isinstance(module, (nn.Linear, Conv1D))
    ]


def trained_params(
    model: nn.Module, patterns: list[str] | None, adapted: bool, key: str = "train.params"
) -> dict[str, nn.Parameter]:
    """What is trained, by name: the adapter if there is one, else the parameters that match. `key` has the patterns.

    Raises:
        UsageError: if a pattern matches nothing.
    """
    if adapted:
        return {name: p for name, p in model.named_parameters() if p.requires_grad}
    return select_params(model, patterns, key)


def select_params(model: nn.Module, patterns: list[str] | None, key: str) -> dict[str, nn.Parameter]:
    """Make the parameters that match trainable and freeze the others.

    Raises:
        UsageError: if a pattern matches nothing.
    """
    named = dict(model.named_parameters())
    chosen = set(named) if patterns is None else set()
    for pattern in patterns or []:
        matching = fnmatch.filter(named, pattern)
        if not matching:
            example = next((n for n in named if "down_proj" in n), next(iter(named)))
            raise UsageError(
                f"{key}: {pattern!r} matches no weight",
                hint=f"names look like {example!r}; the recipe may be made for another model",
            )
        chosen.update(matching)
    for name, p in named.items():
        p.requires_grad_(name in chosen)
    return {name: p for name, p in named.items() if name in chosen}
