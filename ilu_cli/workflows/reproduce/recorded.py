"""What is known of a run that is to be made again: its folder, or a model card beside its weights."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from ilu_cli.errors import UnavailableError, UsageError
from ilu_cli.models.subject import Subject, from_record, of_run
from ilu_cli.runs.card import read_record
from ilu_cli.runs.files import ModelRecord, beside_hashes, same_model, weight_hashes
from ilu_cli.runs.store import Manifest, Run, Store, split_step
from ilu_cli.taskvec.delta import Checkpoint, open_checkpoint


@dataclass(frozen=True)
class Recorded:
    """A finished run, checked, and where its parts lie. `run` is its folder, if there is one."""

    manifest: Manifest
    recipe: Path
    metrics: Path
    eval: Path
    model: Path
    run: Run | None = None
    base: Subject | None = field(default=None, compare=False)

    def checkpoint(self) -> Checkpoint:
        """Its weights."""
        m = self.manifest
        if self.run is not None:
            return open_checkpoint(of_run(self.run))
        return open_checkpoint(Subject(m.id, "folder", self.model, m.weights, m.beside, base=self.base))


def recorded(text: str, store: Store) -> Recorded:
    """The run (id, prefix, path), or the folder that a pushed model was downloaded into.

    Raises:
        UsageError: if it is a pipeline, whose runs are made again one by one.
        UnavailableError: if there is none, it is not finished, or its files are not its own.
    """
    for folder in (Path(text), store.root / text):
        if (folder / "pipeline.json").is_file():
            raise UsageError(f"{text} is a pipeline", hint=_nodes(folder))
    path = Path(text)
    if (path / "README.md").is_file() and not (path / "manifest.json").exists():
        return _of_card(path)
    return of_finished(store.get(text))


def of_finished(run: Run) -> Recorded:
    """A run folder, whose files are checked.

    Raises:
        UnavailableError: if it is not finished, or a file is not its own.
    """
    if not run.complete:
        raise UnavailableError(f"run {run.id} was not finished", hint=run.how_to_go_on)
    run.check("recipe.yaml", "metrics.jsonl", "eval")
    if run.manifest.weights:
        run.verify()
    p = run.path
    return Recorded(run.manifest, p / "recipe.yaml", p / "metrics.jsonl", run.eval, run.checkpoint, run)


def _of_card(folder: Path) -> Recorded:
    """A downloaded model: its card tells what it was made from, its weights must be those of the card."""
    card, recipe = folder / "README.md", folder / "recipe.yaml"
    try:
        manifest = Manifest(**read_record(card), status="complete")
    except TypeError as error:
        raise UnavailableError(f"{card} was written by another version of ilu: {error}") from error
    if not recipe.is_file():
        raise UnavailableError(f"{folder} has no recipe.yaml", hint="download the whole repository")
    hashes = weight_hashes(folder) | beside_hashes(folder)
    for name, expected in (manifest.weights | manifest.beside).items():
        if hashes.get(name) != expected:
            how = "was changed or damaged" if name in hashes else "is missing"
            raise UnavailableError(f"{folder / name} {how}: it is not what the card says", hint="download it again")
    nothing = folder / "(not recorded)"
    return Recorded(manifest, recipe, nothing, nothing, folder)


def _nodes(folder: Path) -> str:
    from ilu_cli.runs.files import read_json

    runs = dict.fromkeys(n["run"] for n in read_json(folder / "pipeline.json").get("nodes", []) if n.get("run"))
    return "make its runs again one by one: " + ("; ".join(f"ilu reproduce {r}" for r in runs) or "it has none yet")


def parent_of_record(record: ModelRecord, was: Recorded, given: list[Subject], store: Store) -> Subject:
    """The model that a record of a parent means, by its hashes: named, in its place, or a run of the workspace.

    Raises:
        UnavailableError: if it is not to be had.
    """
    from ilu_cli.models.subject import find_model

    if found := next((s for s in given if same_model(record, s.record(record["role"]))), None):
        return found
    problem = ""
    try:
        if was.run is not None:
            revision = was.manifest.base.get("revision") if was.manifest.base.get("id") == record["id"] else None
            return from_record({"revision": revision, **record}, was.run)
        if record["kind"] in ("builtin", "hub"):
            found = find_model(record["id"], was.manifest.base.get("revision"))
            if same_model(record, found.record(record["role"])):
                return found
            problem = f"{record['id']} is not what it was"
    except UnavailableError as error:
        problem = str(error)
    for run in store.runs():
        if run.complete and (found := _in(run, record)):
            return found
    weights = ", ".join(f"{name} {sha[:12]}…" for name, sha in list(record["weights"].items())[:2])
    raise UnavailableError(
        f"the {record['role']} {record['id']} ({weights}) of {was.manifest.id} is not to be had"
        + (f": {problem}" if problem else ""),
        hint="--parent names the run or model that it is now; a run can be made again first, with `ilu reproduce`",
    )


def _in(run: Run, record: ModelRecord) -> Subject | None:
    """The model of a run, or of a step of it, that is the recorded one."""
    m, (_, step) = run.manifest, split_step(record["id"])
    if m.weights and m.weights == record["weights"] and (m.digest or "") == (record.get("digest") or m.digest or ""):
        return of_run(run)
    if step is not None and m.points.get(str(step)) == record["weights"]:
        return of_run(run, step)
    return None
