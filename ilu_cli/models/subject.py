"""What a command works on: a run, a built-in model, a folder, or a hub name. Nothing here imports torch."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ilu_cli.data.root import HUB_NAME, data_root
from ilu_cli.errors import UnavailableError, near
from ilu_cli.models import builtin
from ilu_cli.runs.files import combined, weight_hashes
from ilu_cli.runs.store import Run, Store, open_run, split_step


@dataclass(frozen=True)
class Subject:
    """A model on disk. `folder` holds config, weights and tokenizer; `weights` are verified sha256 by file.

    If `base` is set, `folder` holds a peft adapter of it. With `step`, it is a run's model as it was at that step.
    """

    label: str
    kind: str
    folder: Path
    weights: dict[str, str]
    run: Run | None = None
    base: Subject | None = None
    step: int | None = None

    @property
    def results(self) -> Path | None:
        """Where the results of a run's model are kept; None for other models."""
        return self.run.results(self.step) if self.run else None

    @property
    def digest(self) -> str:
        """One hash for all weights."""
        return combined(self.weights | ({"base": self.base.digest} if self.base else {}))

    @property
    def root(self) -> Path:
        """The folder with the configuration of the whole model."""
        return self.base.root if self.base else self.folder

    def record(self, role: str) -> dict[str, Any]:
        """How a manifest names this subject as a parent."""
        return {
            "role": role,
            "kind": self.kind,
            "id": self.label,
            "path": str((self.run.path if self.run else self.folder).absolute()),
            "weights": self.weights,
        }


def of_run(run: Run, step: int | None = None) -> Subject:
    """The model of a finished run, or as it was at a step that was kept (`train.points`); verified.

    Raises:
        UnavailableError: if the run is unfinished or its weights are not what its manifest says.
    """
    run.verify(step)
    folder = run.checkpoint if step is None else run.point(step)
    weights = run.manifest.weights if step is None else run.manifest.points[str(step)]
    base = from_record(run.manifest.parents[0], run) if is_adapter(folder) else None
    return Subject(run.id if step is None else f"{run.id}@{step}", "run", folder, dict(weights), run, base, step)


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds a peft adapter."""
    return (folder / "adapter_config.json").is_file()


def find_subject(text: str, store: Store, revision: str | None = None) -> Subject:
    """Find a run (id, unique prefix, path; `@STEP` for a kept step), a built-in model, a folder, or a hub model.

    Raises:
        UnavailableError: if there is none, or it is damaged.
    """
    for whole, at in dict.fromkeys([(text, None), split_step(text)]):
        if run := store.find(whole):
            return of_run(run, at)
    return find_model(text, revision, hint=store.near(text))


def find_model(text: str, revision: str | None = None, hint: str = "") -> Subject:
    """Find a model that is no run; see `find_subject`."""
    path, mirrored = Path(text), in_mirror(text)
    if text in builtin.MODELS:
        folder, kind = builtin.materialize(text), "builtin"
    elif path.is_dir():
        folder, kind = path, "folder"
    elif mirrored:
        folder, kind = mirrored, "folder"
    elif HUB_NAME.fullmatch(text) and not path.parent.is_dir():
        folder, kind = _snapshot(text, revision), "hub"
    else:
        hint = hint or near(text, builtin.MODELS)
        raise UnavailableError(f"there is no run, model or folder {text!r}.{hint}", hint="`ilu runs` lists the runs")
    base = None
    if is_adapter(folder):
        config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        base = find_model(config["base_model_name_or_path"], config.get("revision"))
    elif not (folder / "config.json").is_file():
        raise UnavailableError(f"{folder} is neither a run (manifest.json) nor a model (config.json)")
    weights = weight_hashes(folder)
    if not weights:
        raise UnavailableError(f"{folder} has no *.safetensors weights")
    return Subject(text, kind, folder, weights, base=base)


def in_mirror(name: str) -> Path | None:
    """The folder of a hub model under the data root, if it is there."""
    root = data_root()
    folder = root / name if root and HUB_NAME.fullmatch(name) else None
    return folder if folder and any((folder / f).is_file() for f in ("config.json", "adapter_config.json")) else None


def original_of(subject: Subject) -> Subject:
    """Follow the lineage to the model that everything began with, and check that it is unchanged.

    Raises:
        UnavailableError: if the original is gone or was changed.
    """
    if subject.run is None:
        return subject
    return from_record(subject.run.manifest.base, subject.run)


def parent_of(subject: Subject) -> Subject | None:
    """The model that `subject` was made from; None for an original."""
    return from_record(subject.run.manifest.parents[0], subject.run) if subject.run else None


def lineage(subject: Subject) -> list[Subject]:
    """The chain from the original model down to `subject`."""
    chain = [subject]
    while (parent := parent_of(chain[0])) is not None:
        chain.insert(0, parent)
    return chain


def from_record(record: dict[str, Any], child: Run) -> Subject:
    """Find the subject that the manifest of `child` names. A run may have moved together with its child.

    Raises:
        UnavailableError: if it is gone, or its weights differ from those recorded.
    """
    path = Path(record["path"])
    if record["kind"] == "run":
        name, step = split_step(record["id"])
        sibling = child.path.parent / name
        found = of_run(open_run(path if (path / "manifest.json").is_file() else sibling), step)
    elif record["kind"] == "folder":
        found = find_model(record["path"])
    else:
        found = find_model(record["id"], record.get("revision"))
    if found.weights != record["weights"]:
        raise UnavailableError(f"{record['role']} {record['id']} ({found.folder}) has changed since it was used")
    return found


def _snapshot(name: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download

    patterns = ["*.json", "*.safetensors", "*.jinja", "tokenizer*", "*.model", "merges.txt", "vocab.*"]
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=patterns))
    except Exception as error:  # the hub client raises its own errors, httpx's and OSError
        raise UnavailableError(
            f"the model {name!r} cannot be had from the hub: {type(error).__name__}: {str(error).splitlines()[0]}",
            hint="check the name, the network, and access rights; or give a local folder",
        ) from error
