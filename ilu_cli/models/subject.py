"""What a command works on: a run, a built-in model, a folder, or a hub name. Nothing here imports torch."""

from __future__ import annotations

import functools
import sys
from dataclasses import dataclass
from pathlib import Path

from ilu_cli import trust
from ilu_cli.errors import UnavailableError, near
from ilu_cli.models import builtin
from ilu_cli.models.code import check_code
from ilu_cli.models.mirror import check_revision, in_mirror
from ilu_cli.paths import is_hub_name
from ilu_cli.runs.files import ModelRecord, beside_hashes, digest_of, read_json, same_model, stray_files, weight_hashes
from ilu_cli.runs.store import Run, Store, open_run, split_step


@dataclass(frozen=True)
class Subject:
    """A model on disk. `folder` holds config, weights and tokenizer; `weights` are verified sha256 by file, and
    `beside` those of the other files that decide an answer.

    If `base` is set, `folder` holds a peft adapter of it. With `step`, it is a run's model as it was at that step.
    """

    label: str
    kind: str
    folder: Path
    weights: dict[str, str]
    beside: dict[str, str]
    run: Run | None = None
    base: Subject | None = None
    step: int | None = None

    @property
    def results(self) -> Path | None:
        """Where the results of a run's model are kept; None for other models."""
        return self.run.results(self.step) if self.run else None

    @property
    def digest(self) -> str:
        """One hash of everything that decides an answer."""
        return digest_of(self.weights, self.beside, self.base.digest if self.base else None)

    @property
    def root(self) -> Path:
        """The folder with the configuration of the whole model."""
        return self.base.root if self.base else self.folder

    def record(self, role: str) -> ModelRecord:
        """How a manifest names this subject as a parent."""
        return {
            "role": role,
            "kind": self.kind,
            "id": self.label,
            "path": str((self.run.path if self.run else self.folder).absolute()),
            "weights": self.weights,
            "digest": self.digest,
        }


def of_run(run: Run, step: int | None = None) -> Subject:
    """The model of a finished run, or as it was at a step that was kept (`train.points`); verified.

    Raises:
        UnavailableError: if the run is unfinished or its files are not what its manifest says.
    """
    trust.check_again(run.manifest.trust, f"run {run.id}")
    run.verify(step)
    folder = run.checkpoint if step is None else run.point(step)
    weights = run.manifest.weights if step is None else run.manifest.points[str(step)]
    base = from_record(run.manifest.parents[0], run) if is_adapter(folder) else None
    tell_stray(folder)
    label = run.id if step is None else f"{run.id}@{step}"
    return Subject(label, "run", folder, dict(weights), beside_hashes(folder), run, base, step)


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds a peft adapter."""
    return (folder / "adapter_config.json").is_file()


def find_subject(text: str, store: Store, revision: str | None = None) -> Subject:
    """Find a run (id, unique prefix, path; `@STEP` for a kept step), a built-in model, a folder, or a hub model.

    Raises:
        UnavailableError: if there is none, it is damaged, or a mirror that may be of another revision.
        UsageError: if a revision is named of what is not the hub's.
    """
    for whole, at in dict.fromkeys([(text, None), split_step(text)]):
        if run := store.find(whole):
            return _at(revision, of_run(run, at))
    return _at(revision, find_model(text, revision, hint=store.near(text)))


def _at(revision: str | None, found: Subject) -> Subject:
    mirrored = found.kind == "folder" and found.folder == in_mirror(found.label)
    check_revision(found.label, found.kind, found.folder, revision, mirrored=mirrored)
    return found


def find_model(text: str, revision: str | None = None, hint: str = "") -> Subject:
    """Find a model that is no run; see `find_subject`."""
    path, mirrored, weights = Path(text), in_mirror(text), dict[str, str]()
    if text in builtin.MODELS:
        kind, (folder, weights) = "builtin", builtin.materialize(text)
    elif path.is_dir():
        folder, kind = path, "folder"
    elif mirrored:
        folder, kind = mirrored, "folder"
    elif is_hub_name(text) and not path.parent.is_dir():
        folder, kind = _snapshot(text, revision), "hub"
    else:
        hint = hint or near(text, builtin.MODELS)
        raise UnavailableError(f"there is no run, model or folder {text!r}.{hint}", hint="`ilu runs` lists the runs")
    base = None
    if is_adapter(folder):
        _check_bases(folder)
        said = read_json(folder / "adapter_config.json").get("revision")
        base = find_model(base_of(folder), said if isinstance(said, str) else None)
    elif not (folder / "config.json").is_file():
        raise UnavailableError(f"{folder} is neither a run (manifest.json) nor a model (config.json)")
    check_code(folder)
    weights = weights or _weights_of(folder, "peft" if base else "transformers")
    tell_stray(folder)
    return Subject(text, kind, folder, weights, beside_hashes(folder), base=base)


def _weights_of(folder: Path, reader: str) -> dict[str, str]:
    """The hashes of the weights in a folder; none at all are refused."""
    weights = weight_hashes(folder)
    if not weights:
        lies = ", ".join(sorted(p.name for p in (*folder.glob("*.bin"), *folder.glob("*.safetensors"))))
        raise UnavailableError(
            f"{folder} has no *.safetensors weights that {reader} reads" + (f", only {lies}" if lies else ""),
            hint="save the model anew with save_pretrained, which writes safetensors" if lies else None,
        )
    return weights


def _check_bases(folder: Path) -> None:
    """Refuse adapters that are each other's base.

    Raises:
        UnavailableError: if there is a circle, or one names no base.
    """
    seen: list[Path] = []
    at = folder
    while is_adapter(at):
        if at.resolve() in seen:
            raise UnavailableError(
                f"the adapter {folder} is its own base, by way of {at}", hint="name the model in adapter_config.json"
            )
        seen.append(at.resolve())
        at = Path(base_of(at))


def base_of(folder: Path) -> str:
    """The base that an adapter names; a path is meant as it stands, or else as seen from the adapter's folder.

    Raises:
        UnavailableError: if it names none, or itself.
    """
    config = folder / "adapter_config.json"
    name = read_json(config).get("base_model_name_or_path")
    if not isinstance(name, str) or not name:
        raise UnavailableError(
            f"{config} names no base model (base_model_name_or_path: {name})", hint="write its path or hub name there"
        )
    beside = folder / name
    found = str(beside) if not Path(name).is_dir() and beside.is_dir() else name
    if Path(found).is_dir() and Path(found).samefile(folder):
        raise UnavailableError(f"{config} names its own folder as the base model")
    return found


@functools.cache
def tell_stray(folder: Path) -> None:
    """Say once which files in a folder look like weights and are not read."""
    if stray := stray_files(folder):
        print(f"{folder}: {', '.join(stray)} not read: transformers takes other files", file=sys.stderr)


def original_of(subject: Subject) -> Subject:
    """Follow the lineage to the model that everything began with, and check that it is unchanged.

    Raises:
        UnavailableError: if the original is gone or was changed.
    """
    if subject.run is None:
        return subject
    return from_record(subject.run.manifest.base, subject.run)


def never_of(subject: Subject) -> Subject | None:
    """The model that never knew what the lineage forgets, if a recipe named one (`model.never`).

    Raises:
        UnavailableError: if it is gone or was changed.
    """
    record = subject.run.manifest.never if subject.run else None
    return from_record(record, subject.run) if record and subject.run else None


def is_builtin(subject: Subject) -> bool:
    """Whether a model is a built-in one, or descends from one.

    Raises:
        UnavailableError: if what it descends from is gone or was changed.
    """
    if subject.run is None:
        return is_builtin(subject.base) if subject.base else subject.kind == "builtin"
    base = subject.run.manifest.base
    return base["kind"] == "builtin" or (base["kind"] == "run" and is_builtin(from_record(base, subject.run)))


def parent_of(subject: Subject) -> Subject | None:
    """The model that `subject` was made from; None for an original."""
    return from_record(subject.run.manifest.parents[0], subject.run) if subject.run else None


def lineage(subject: Subject) -> list[Subject]:
    """The chain from the original model down to `subject`."""
    chain = [subject]
    while (parent := parent_of(chain[0])) is not None:
        chain.insert(0, parent)
    return chain


def from_record(record: ModelRecord, child: Run) -> Subject:
    """Find the subject that the manifest of `child` names. A run may have moved together with its child.

    Raises:
        UnavailableError: if it is gone, or is not what was recorded.
    """
    trust.check_again(child.manifest.trust, f"run {child.id}")
    _check_circle(child)
    step, places = split_step(record["id"])[1], _places(record, child)
    path = next((p for p in places if p.is_dir()), None)
    if path is None and record["kind"] in ("run", "folder"):
        raise UnavailableError(
            f"the {record['role']} of run {child.id} is gone: there is no {' or '.join(map(str, places))} any more",
            hint="put it back; `ilu eval --alone` looks at a run without it, unless the run is an adapter",
        )
    if path and record["kind"] == "run":
        found = of_run(open_run(path), step)
    elif path and record["kind"] == "folder":
        found = find_model(record["path"])
    else:
        found = find_model(record["id"], record.get("revision"))
    if not same_model(record, found.record(record["role"])):
        what = (
            "has" if found.weights != record["weights"] else "has the same weights, but its configuration or tokenizer"
        )
        raise UnavailableError(f"{record['role']} {record['id']} ({found.folder}) {what} changed since it was used")
    return found


def _places(record: ModelRecord, child: Run) -> list[Path]:
    """Where a parent of a run lies: where it lay, or beside the run."""
    beside = [child.path.parent / split_step(record["id"])[0]] if record["kind"] == "run" else []
    return [Path(record["path"]), *beside]


def _check_circle(run: Run) -> None:
    """Follow the manifests upwards.

    Raises:
        UnavailableError: if a run descends from itself.
    """
    seen: list[Path] = []
    at: Run | None = run
    while at is not None:
        if at.path.resolve() in seen:
            raise UnavailableError(
                f"run {run.id} descends from itself: the lineage goes in a circle through {at.id}",
                hint="restore the manifests from a copy, or remove these runs",
            )
        seen.append(at.path.resolve())
        parents = [p for p in at.manifest.parents[:1] if p["kind"] == "run"]
        path = next((p for r in parents for p in _places(r, at) if (p / "manifest.json").is_file()), None)
        at = open_run(path) if path else None


def _snapshot(name: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download

    patterns = ["*.json", "*.safetensors", "*.jinja", "tokenizer*", "*.model", "merges.txt", "vocab.*"]
    patterns += ["*.py"] if trust.remote() else []
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=patterns))
    except Exception as error:  # the hub client raises its own errors, httpx's and OSError
        raise UnavailableError(
            f"the model {name!r} cannot be had from the hub: {type(error).__name__}: {str(error).splitlines()[0]}",
            hint="check the name, the network, and access rights; or give a local folder",
        ) from error
