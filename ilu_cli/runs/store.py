"""The run folder and its manifest, and how a run is found again.

    runs/<id>/{recipe.yaml, manifest.json, metrics.jsonl, checkpoint/, state/, eval/, README.md}

The manifest is rewritten atomically and says `complete` last, so a run whose manifest says so has all its files.
"""

from __future__ import annotations

import json
import os
import re
import secrets
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from ilu_cli.errors import UnavailableError, UsageError, near
from ilu_cli.runs.card import card
from ilu_cli.runs.files import beside_hashes, digest_of, weight_hashes, write_json, write_text
from ilu_cli.runs.results import Data, read_results

FORMAT = 1
PACKAGES = ("ilu", "torch", "transformers", "accelerate", "datasets", "safetensors")


@dataclass
class Manifest:
    """What a run was made from. `recipe_sha256` is that of its recipe.yaml, with all that was left open filled in, and
    `asked_sha256` that of the recipe as it was asked for. `parents` are `{role, kind, id, path, weights, digest}`.

    `weights` maps file name to sha256, and `beside` the other files of the checkpoint that decide an answer.
    `inputs` are the files and hub datasets that it read (`ilu_cli.workflows.needs.inputs`). `points` are the weights at
    the intermediate steps that were kept, by step.
    """

    id: str
    command: str
    status: str = "running"
    label: str = ""
    created: str = ""
    finished: str | None = None
    format: int = FORMAT
    recipe_sha256: str = ""
    asked_sha256: str = ""
    base: dict[str, Any] = field(default_factory=dict)
    parents: list[dict[str, Any]] = field(default_factory=list)
    data: list[Data] = field(default_factory=list)
    inputs: list[str] = field(default_factory=list)
    weights: dict[str, str] = field(default_factory=dict)
    beside: dict[str, str] = field(default_factory=dict)
    points: dict[str, dict[str, str]] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    seed: int = 0
    world_size: int = 1
    precision: str = ""
    result: dict[str, Any] = field(default_factory=dict)

    @property
    def digest(self) -> str | None:
        """One hash of everything that decides the model's answers; None for a run that recorded its weights only."""
        base = self.parents[0].get("digest") if "adapter_config.json" in self.beside else None
        return digest_of(self.weights, self.beside, base) if self.beside else None

    @property
    def made_from(self) -> list[str]:
        """The ids of the runs and models among the parents; of a kept step, `RUN@40`, that of its run."""
        return [split_step(p["id"])[0] if p["kind"] == "run" else str(p["id"]) for p in self.parents]


class Run:
    """A run folder."""

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path, self.manifest = path, manifest

    @property
    def id(self) -> str:
        return self.manifest.id

    @property
    def checkpoint(self) -> Path:
        return self.path / "checkpoint"

    def point(self, step: int | str) -> Path:
        """The checkpoint of an intermediate step."""
        return self.path / "points" / f"step-{int(step):04d}"

    @property
    def state(self) -> Path:
        return self.path / "state"

    @property
    def eval(self) -> Path:
        return self.path / "eval"

    def results(self, step: int | None = None) -> Path:
        """Where the results of its model are kept, or of the model as it was at a step."""
        return self.eval if step is None else self.eval / f"step-{step:04d}"

    @property
    def complete(self) -> bool:
        return self.manifest.status == "complete"

    @property
    def has_model(self) -> bool:
        """Whether it is finished and kept a checkpoint, which can be evaluated, attacked and compared."""
        return self.complete and bool(self.manifest.weights)

    def save(self) -> None:
        """Write the manifest, atomically."""
        write_json(self.path / "manifest.json", asdict(self.manifest))

    def finish(self) -> None:
        """Hash the checkpoint and mark the run complete. Everything else must be on disk already."""
        self.manifest.weights = weight_hashes(self.checkpoint)
        self.manifest.beside = beside_hashes(self.checkpoint)
        steps = [folder.name.rpartition("-")[2] for folder in sorted((self.path / "points").glob("step-*"))]
        self.manifest.points = {str(int(step)): weight_hashes(self.point(step)) for step in steps}
        self.write_card()
        self.manifest.status, self.manifest.finished = "complete", now()
        self.save()

    def card(self, folder: str = "checkpoint") -> str:
        """The model card as things are now; see `ilu_cli.runs.card`."""
        path = self.path / "recipe.yaml"
        recipe = path.read_text(encoding="utf-8") if path.is_file() else ""
        adapter = (self.checkpoint / "adapter_config.json").is_file()
        return card(self.manifest, recipe, read_results(self.eval), adapter=adapter, folder=folder)

    def write_card(self) -> None:
        """Write README.md, atomically."""
        write_text(self.path / "README.md", self.card())

    def verify(self, step: int | None = None) -> None:
        """Compare every file of the checkpoint that decides an answer, or the weights at `step`, with the manifest.

        Raises:
            UnavailableError: if the run is not complete, has no such point, or a file is missing or was changed.
        """
        if not self.complete:
            raise UnavailableError(
                f"run {self.id} was not finished",
                hint=f"continue it with `ilu {self.manifest.command} {self.id} --resume`",
            )
        folder, recorded = self.checkpoint, self.manifest.weights
        if step is not None:
            known = ", ".join(self.manifest.points) or "none"
            if str(step) not in self.manifest.points:
                raise UnavailableError(f"run {self.id} kept no checkpoint of step {step}", hint=f"kept steps: {known}")
            folder, recorded = self.point(step), self.manifest.points[str(step)]
        if not recorded:
            raise UnavailableError(
                f"run {self.id} kept no checkpoint, so it is no model that could be evaluated or attacked",
                hint="name its parent; or, if it changed weights, make it again with --set keep=final",
            )
        found = weight_hashes(folder)
        if step is None:
            recorded, found = recorded | self.manifest.beside, found | beside_hashes(folder)
        for name, expected in recorded.items():
            if name not in found:
                raise UnavailableError(f"run {self.id}: {folder / name} is missing")
            if found[name] != expected:
                raise UnavailableError(
                    f"run {self.id}: {folder / name} was changed or damaged: its sha256 is "
                    f"{found[name][:12]}…, the manifest says {expected[:12]}…",
                    hint="restore the file; or copy the folder and name the copy, which is a model of its own",
                )
        if added := sorted(set(found) - set(recorded)) if self.manifest.beside else []:
            raise UnavailableError(f"run {self.id}: {folder / added[0]} is not the run's", hint="take the file away")


def split_step(text: str) -> tuple[str, int | None]:
    """`RUN@40` as RUN and 40."""
    found = re.fullmatch(r"(.+)@(\d+)", text)
    return (found[1], int(found[2])) if found else (text, None)


def now() -> str:
    """The time as UTC in ISO format."""
    return datetime.now(timezone.utc).isoformat(timespec="microseconds")


def versions() -> dict[str, str]:
    """Versions of the packages a result depends on."""
    from importlib import metadata

    found = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def open_run(path: Path) -> Run:
    """Open a run folder.

    Raises:
        UnavailableError: if the folder is no run, or its manifest cannot be read.
    """
    manifest = path / "manifest.json"
    if not manifest.is_file():
        raise UnavailableError(f"{path} is no run: it has no manifest.json", hint="`ilu runs` lists the runs")
    try:
        data = json.loads(manifest.read_text(encoding="utf-8"))
        if data["format"] != FORMAT:
            raise UnavailableError(f"{manifest} has format {data['format']}; this version of ilu reads {FORMAT}")
        return Run(path, Manifest(**data))
    except (OSError, UnicodeDecodeError, ValueError, TypeError, KeyError) as error:
        raise UnavailableError(f"{manifest} is damaged: {error}") from error


class Store:
    """All runs below one folder."""

    def __init__(self, root: Path | None = None) -> None:
        self.root = root or Path(os.environ.get("ILU_RUNS", "runs"))

    def create(self, command: str, label: str, out: Path | None = None) -> Run:
        """Make the folder of a new run. Nothing of an earlier run is ever overwritten.

        Raises:
            UsageError: if `out` exists and is not empty.
        """
        run_id = f"{command}-{label}-{secrets.token_hex(3)}"
        path = out or self.root / run_id
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise UsageError(f"{path} exists and is not empty", hint="choose another --out")
        path.mkdir(parents=True, exist_ok=True)
        run = Run(path, Manifest(out.name if out else run_id, command, label=label, created=now(), versions=versions()))
        run.save()
        return run

    def runs(self) -> list[Run]:
        """All readable runs, the oldest first."""
        found = []
        for manifest in self.root.glob("*/manifest.json"):
            try:
                found.append(open_run(manifest.parent))
            except UnavailableError:
                continue
        return sorted(found, key=lambda run: run.manifest.created)

    def latest(self, suitable: Callable[[Run], bool], what: str) -> Run:
        """The newest run that is suitable.

        Raises:
            UnavailableError: if there is none.
        """
        for run in reversed(self.runs()):
            if suitable(run):
                return run
        raise UnavailableError(f"there is no {what} in {self.root}", hint="name a RUN or a model, or run `ilu unlearn`")

    def find(self, text: str) -> Run | None:
        """Find a run by id, unique prefix of an id, or path; None if `text` names none.

        Raises:
            UsageError: if the prefix fits several runs.
            UnavailableError: if the folder is there and is no sound run.
        """
        path = Path(text)
        if (path / "manifest.json").is_file():
            return open_run(path)
        if (self.root / text / "manifest.json").is_file():
            return open_run(self.root / text)
        fitting = [run for run in self.runs() if run.id.startswith(text)]
        if len(fitting) > 1:
            raise UsageError(f"{text!r} fits {len(fitting)} runs: {', '.join(run.id for run in fitting)}")
        return fitting[0] if fitting else None

    def get(self, text: str) -> Run:
        """Find a run as `find` does.

        Raises:
            UnavailableError: if there is none.
        """
        found = self.find(text)
        if found is None:
            raise UnavailableError(f"there is no run {text!r}.{self.near(text)}", hint="`ilu runs` lists the runs")
        return found

    def ids(self) -> list[str]:
        """The names of the run folders, without reading their manifests."""
        return sorted(path.parent.name for path in self.root.glob("*/manifest.json"))

    def near(self, text: str) -> str:
        """A hint with the nearest run id."""
        return near(text, [run.id for run in self.runs()])
