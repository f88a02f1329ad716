"""lm-eval's tasks as objects, with their data from the data root or the hub."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lm_eval.api.task import ConfigurableTask
from lm_eval.tasks import TaskManager
from lm_eval.tasks._yaml_loader import load_yaml

from ilu_cli import trust
from ilu_cli.data.hub import cache_only_if_silent
from ilu_cli.data.read import library, read
from ilu_cli.data.root import in_root
from ilu_cli.errors import UnavailableError, UsageError
from ilu_cli.harness.sandbox import sandbox
from ilu_cli.recipe.harness import harness_names
from ilu_cli.recipe.taskfile import data_files, refusal
from ilu_cli.runs.files import cache_dir, sha256

SPLITS = ("training_split", "validation_split", "test_split", "fewshot_split")
LOCAL = ("json", "csv", "parquet", "text", "arrow")  # builders of `datasets` that read files of the task's own

logging.getLogger("lm_eval").setLevel(logging.ERROR)


def load_tasks(name: str, *, own: bool = False) -> dict[str, ConfigurableTask]:
    """The task of this name or YAML file, or the members of the group or tag, by name.

    `own`: the file stands beside a module that was imported, ours or a plug-in's, so that its code runs already.

    Raises:
        UnavailableError: if a dataset cannot be had.
        UsageError: if it is a kind of task that is not supported, or runs code that nobody named.
    """
    sandbox()
    path = Path(name)
    if path.suffix == ".yaml" and not own and (why := refusal(path)):
        raise UsageError(why)
    leaves = [(path.stem, path, {})] if path.suffix == ".yaml" else _leaves(name, {}, {})
    return {leaf: _task(leaf, file, overrides) for leaf, file, overrides in leaves}


def _leaves(name: str, index: dict[str, Any], overrides: dict[str, Any]) -> Iterator[tuple[str, Path, dict[str, Any]]]:
    """(name, YAML file, keys that a group changes) of every task under a name."""
    if name not in index:
        index.update(TaskManager(include_path=str(harness_names()[name]), include_defaults=False).task_index)
    entry = index[name]
    if entry.kind.name == "TAG":
        for member in sorted(entry.tags):
            yield from _leaves(member, index, overrides)
    elif entry.kind.name == "GROUP":
        if any(m.get("weight_by_size") is False for m in entry.cfg.get("aggregate_metric_list") or []):
            raise UsageError(f"{name} weighs its tasks equally, which ilu does not; name its tasks one by one")
        for member in entry.cfg["task"]:
            keys = {"task": member} if isinstance(member, str) else dict(member)
            inner = keys.pop("task", None) or keys.pop("group")
            yield from _leaves(inner, index, overrides | keys)
    elif entry.kind.name == "TASK":
        yield name, entry.yaml_path, overrides
    else:
        raise UsageError(f"{name} is a Python class of lm-eval", hint="run it with `python -m ilu_cli.harness`")


def _task(name: str, file: Path, overrides: dict[str, Any]) -> ConfigurableTask:
    config = {k: v for k, v in load_yaml(file).items() if k not in ("tag", "group", "task_list")} | overrides
    _check_code(name, config)
    meta = config.get("metadata")
    config["metadata"] = meta if isinstance(meta, dict) else {}
    if "custom_dataset" not in config:
        where = {key: config.get(key) for key in ("dataset_path", "dataset_name", "dataset_kwargs", *SPLITS)}
        config["custom_dataset"] = lambda **_: _dataset(name, where)
    return ConfigurableTask(config=config)


def _check_code(name: str, config: dict[str, Any]) -> None:
    """Metrics that are no metric of lm-eval's are code from the hub; and tasks may run what the model writes.

    Raises:
        UsageError: if so, and it is not allowed.
    """
    if config.get("unsafe_code"):
        raise UsageError(
            f"{name} runs the code that a model writes, which ilu does not",
            hint="`python -m ilu_cli.harness --confirm_run_unsafe_code` runs it, best in a container",
        )
    for entry in config.get("metric_list") or []:
        said = entry if isinstance(entry, dict) else {}
        metric = said.get("metric")
        if isinstance(metric, str) and not trust.remote() and (said.get("hf_evaluate") or not _is_metric(metric)):
            raise UsageError(
                f"{name}: the metric {metric!r} is none of lm-eval's; the library `evaluate` would run its code from "
                "the hub or from a folder",
                hint="--trust-remote-code lets it",
            )


def _is_metric(name: str) -> bool:
    """Whether lm-eval itself knows the metric."""
    import lm_eval.api.metrics  # noqa: F401  (registers them)
    from lm_eval.api.registry import metric_registry

    return name in metric_registry


def _dataset(name: str, where: dict[str, Any]) -> Any:
    """The splits of a task's dataset: from a mirror in the data root, from files, or from the hub.

    Raises:
        UnavailableError: if it cannot be had; at once if the hub is out of reach.
    """
    path, config = where["dataset_path"], where["dataset_name"]
    splits = {s for s in (where[key] for key in SPLITS) if s}
    found = {split: in_root([path], config, split) for split in splits}
    if all(found.values()):
        return {split: library().Dataset.from_list(list(read(f, {}))) for split, f in found.items() if f}
    if path not in LOCAL and not Path(path).exists():
        _check_builder(name, path)
        cache_only_if_silent()
    kwargs = dict(where["dataset_kwargs"] or {})
    kwargs.pop("trust_remote_code", None)
    try:
        return library().load_dataset(path, name=config, **kwargs, **_own_cache(path, kwargs), trust_remote_code=False)
    except Exception as error:  # datasets, the hub client and httpx each raise their own
        raise _not_had(name, where, error) from error


def _not_had(name: str, where: dict[str, Any], error: Exception) -> UnavailableError:
    path, config = where["dataset_path"], where["dataset_name"]
    said = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
    if path in LOCAL:
        why = "one of them is empty" if isinstance(error, StopIteration) else said
        hint = f"see its dataset_kwargs: {where['dataset_kwargs']}"
        return UnavailableError(f"the data files of {name} cannot be read: {why}", hint=hint)
    return UnavailableError(
        f"the dataset {path!r} ({config or 'default'}) of {name} cannot be had: {said}",
        hint=f"check the network and access rights; or mirror it as {path}/ under --data-root",
    )


def _check_builder(name: str, path: str) -> None:
    """Of the kinds of files and databases that `datasets` reads, only plain files are read.

    Raises:
        UsageError: if it is another kind, as `sql` or `pandas`.
    """
    from datasets.packaged_modules import _PACKAGED_DATASETS_MODULES

    if path in _PACKAGED_DATASETS_MODULES:
        raise UsageError(f"{name}: dataset_path: {path!r} is no dataset, and of files only {', '.join(LOCAL)} are read")


def _own_cache(path: str, kwargs: dict[str, Any]) -> dict[str, str]:
    """For files of the user's own, a cache by what is in them: that of `datasets` goes by name and time."""
    hashes = [sha256(f) for f in data_files(path, kwargs)]
    digest = hashlib.sha256("".join(hashes).encode()).hexdigest()
    return {"cache_dir": str(cache_dir() / "datasets" / digest[:16])} if hashes else {}
