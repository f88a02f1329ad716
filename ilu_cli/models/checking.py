"""Nothing missing, nothing random: what a folder of weights holds against what its model expects."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ilu_cli import trust
from ilu_cli.errors import UnavailableError, tell
from ilu_cli.models.kept import source_of, told
from ilu_cli.runs.files import tensors_in

SHOWN = 3  # names that a message lists


def check_report(folder: Path, report: dict[str, Any]) -> None:
    """Judge what transformers says of a load: `missing_keys`, `unexpected_keys` and `mismatched_keys`.

    It has left out of them what is tied, what is computed, and what old checkpoints hold beside the weights (rotary
    frequencies, causal masks). What is missing or of another shape would be drawn at random.

    Raises:
        UnavailableError: if a weight is missing or has another shape.
    """
    missing, unexpected = sorted(report["missing_keys"]), sorted(report["unexpected_keys"])
    if reshaped := sorted(report["mismatched_keys"]):
        name, stored, wanted = reshaped[0]
        raise UnavailableError(
            f"{folder} has {len(reshaped)} weights of another shape than its config.json says: {name} is "
            f"{list(stored)}, not {list(wanted)}",
            hint="config.json and weights are of different models, or the vocabulary was resized",
        )
    if missing:
        beside = f"; it has {_some(unexpected)} instead, which this model does not" if unexpected else ""
        raise UnavailableError(
            f"{folder} lacks {len(missing)} weights of its model, which would be drawn at random: "
            f"{_some(missing)}{beside}",
            hint="other names come from a wrapped model (torch.compile, a trainer): save the model itself"
            if unexpected
            else "a file is incomplete or a shard is lost: copy, download or save the model again",
        )
    if unexpected:
        tell(f"{folder} holds {len(unexpected)} weights that its model does not have, not read: {_some(unexpected)}")


def check_stored(folder: Path, empty: nn.Module) -> None:
    """Compare the names and shapes in the files with the model's, as loading would, without reading a weight.

    transformers loads stand-ins without data, so that its own rules hold: renamed, merged and split weights, ties.
    The files of a quantised model are looked at when they are read.

    Args:
        folder: of the model.
        empty: the model on the meta device, made from the folder's configuration.

    Raises:
        UnavailableError: if weights are missing or of another shape, or a file is damaged.
    """
    model: Any = empty
    if getattr(model.config, "quantization_config", None) is not None:
        return
    stored = {name: t["shape"] for name, t in tensors_in(folder).items()}

    def report() -> Any:
        standing_in = {name: torch.empty(shape, device="meta") for name, shape in stored.items()}
        _, found = type(model).from_pretrained(
            None, config=model.config, state_dict=standing_in, device_map={"": "meta"}, dtype=torch.float32,
            output_loading_info=True, ignore_mismatched_sizes=True, trust_remote_code=trust.remote(),
        )  # fmt: skip
        return {kind: sorted(found[kind]) for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")}

    config = {k: v for k, v in model.config.to_dict().items() if k != "_name_or_path"}
    check_report(folder, told(source_of(model, ["stored", str(config), stored]), report))


def check_adapter(folder: Path, result: Any) -> None:
    """Judge what peft says of loading an adapter.

    Raises:
        UnavailableError: if weights of the adapter are missing, or there are others.
    """
    missing, unexpected = sorted(result.missing_keys), sorted(result.unexpected_keys)
    if missing or unexpected:
        lost = f"{len(missing)} of its weights are missing ({_some(missing)})" if missing else ""
        other = f"{len(unexpected)} name no weight of the model ({_some(unexpected)})" if unexpected else ""
        raise UnavailableError(
            f"the adapter {folder} does not fit its base: {', and '.join(filter(None, (lost, other)))}",
            hint="is base_model_name_or_path the model it was trained on, saved under the same names?",
        )


@torch.no_grad()
def check_finite(model: Any, folder: Path, identity: list[Any] | None = None) -> None:
    """Look at every weight, and at what the model says to a few tokens; once, if `identity` tells the weights.

    Raises:
        UnavailableError: if a weight is infinite or not a number, the model does not run, or logits are not numbers.
    """
    told(source_of(model, identity and ["finite", *identity]), lambda: _finite(model, folder))


def _finite(model: Any, folder: Path) -> None:
    weights = dict(model.named_parameters())
    sums = torch.stack([p.sum(dtype=torch.float32) for p in weights.values()])  # no copy of a weight, and one wait
    odd = [n for n, bad in zip(weights, (~sums.isfinite()).tolist()) if bad and not weights[n].isfinite().all()]
    if odd:
        raise not_numbers(folder, odd)
    ids = torch.arange(1, 5, device=sums.device)[None].remainder(model.get_input_embeddings().weight.shape[0])
    try:
        logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # whatever a model raises whose configuration contradicts itself
        what = f"{type(error).__name__}: {error}"
        raise UnavailableError(f"{folder} loads, but transformers cannot run it: {what}") from error
    if logits.isnan().any() or logits.isposinf().any():
        raise UnavailableError(f"{folder} has finite weights, but its logits are infinite or not numbers")


def not_numbers(folder: Path, names: list[str]) -> UnavailableError:
    """What is said of weights with such entries."""
    return UnavailableError(
        f"{folder} has {len(names)} weights with entries that are infinite or not numbers: {_some(names)}",
        hint="its training diverged, or a type too small for it was chosen when it was saved",
    )


def own_names(folder: Path, empty: nn.Module, stored: Iterable[str]) -> dict[str, str]:
    """The stored names that hold weights of the model, with the name that each of them has by transformers' rules.

    A weight that the model merges from several in the files keeps the name of its part. Names of what is not of the
    model (masks, rotary frequencies) are left out. A file that transformers has written has all names as they are.
    """
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightRenaming, rename_source_key

    model: Any = empty
    rules = get_model_conversion_mapping(model)
    renamings = [r for r in rules if isinstance(r, WeightRenaming)]
    merging = [r for r in rules if not isinstance(r, WeightRenaming)]
    known, found = dict.fromkeys(model.state_dict(), True), {}
    for name in stored:
        own, pattern = rename_source_key(name, renamings, merging, model.base_model_prefix, known)
        if own not in known and name in known:
            own, pattern = name, None
        if own in known:
            found[name] = own if pattern is None else rename_source_key(name, renamings, [])[0]
    return found


def _some(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
