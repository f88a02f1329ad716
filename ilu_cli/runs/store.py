"""The folder of all runs, and how a run is found again."""

from __future__ import annotations

import functools
import json
import os
import secrets
import sys
from collections.abc import Callable
from pathlib import Path

from ilu_cli import trust
from ilu_cli.errors import UnavailableError, UsageError, near, plain
from ilu_cli.paths import as_name, problem_of_new
from ilu_cli.recipe.command import today
from ilu_cli.runs import ledger
from ilu_cli.runs.manifest import FORMAT, Manifest, check_manifest, circles, now, split_step, versions
from ilu_cli.runs.run import Run

__all__ = ["Manifest", "Run", "Store", "now", "open_run", "split_step", "versions"]


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
        found = Manifest(**ledger.unseal(data, manifest))
        found.command = today(found.command)
        check_manifest(found)
        return Run(path, found)
    except (OSError, ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        raise UnavailableError(
            f"{manifest} is damaged: {error}", hint="restore the file from a copy, or remove the folder"
        ) from error


def _check_named(text: str) -> None:
    if not text.strip():  # the beginning of every name
        raise UsageError("the name of the run is empty", hint="`ilu runs` lists the runs")


@functools.cache
def _tell_damaged(what: str) -> None:
    print(f"a run is left out: {what}", file=sys.stderr)


class Store:
    """All runs below one folder."""

    def __init__(self, root: Path | None = None) -> None:
        self.root = root or Path(os.environ.get("ILU_RUNS", "runs"))

    def create(self, command: str, label: str, out: Path | None = None) -> Run:
        """Make the folder of a new run. Nothing of an earlier run is ever overwritten.

        Raises:
            UsageError: if `out` exists and is not empty, or its name is too long.
        """
        run_id = f"{command.replace(' ', '-')}-{as_name(label)}-{secrets.token_hex(3)}"
        path = out or self.root / run_id
        if problem := problem_of_new(path):
            raise UsageError(f"{path} {problem}", hint="choose another --out")
        path.mkdir(parents=True, exist_ok=True)
        run = Run(
            path,
            Manifest(
                out.name if out else run_id,
                command,
                label=label,
                created=now(),
                versions=versions(),
                trust=trust.record(),
            ),
        )
        run.save()
        return run

    def runs(self) -> list[Run]:
        """All readable runs, the oldest first."""
        found = []
        for manifest in self.root.glob("*/manifest.json"):
            try:
                found.append(open_run(manifest.parent))
            except UnavailableError as error:
                _tell_damaged(plain(str(error)))
        for ids in circles(found):
            _tell_damaged(f"{' ← '.join([*ids, ids[0]])}: the lineage goes in a circle")
            found = [run for run in found if run.id not in ids]
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
        _check_named(text)
        path = Path(text)
        if (path / "manifest.json").is_file():
            return open_run(path)
        if (self.root / text / "manifest.json").is_file():
            return open_run(self.root / text)
        fitting = [run for run in self.runs() if run.id.startswith(text)]
        if len(fitting) > 1:
            raise UsageError(
                f"{text!r} fits {len(fitting)} runs: {', '.join(run.id for run in fitting)}", hint="add letters"
            )
        return fitting[0] if fitting else None

    def path_of(self, text: str) -> Path:
        """The folder of a run, also of one whose manifest is damaged.

        Raises:
            UnavailableError: if there is none.
        """
        _check_named(text)
        places = (Path(text), self.root / text)
        return next((p for p in places if (p / "manifest.json").is_file()), None) or self.get(text).path

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
