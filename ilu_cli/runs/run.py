"""The run folder and its manifest.

    runs/<id>/{recipe.yaml, manifest.json, files.json, metrics.jsonl, checkpoint/, state/, eval/, README.md}

The manifest is rewritten atomically and says `complete` last, so a run whose manifest says so has all its files.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from ilu_cli.errors import Interrupted, UnavailableError, UsageError
from ilu_cli.runs import ledger
from ilu_cli.runs.card import card
from ilu_cli.runs.files import (
    beside_files,
    beside_hashes,
    read_json,
    weight_files,
    weight_hashes,
    write_json,
    write_text,
)
from ilu_cli.runs.lock import held, holder
from ilu_cli.runs.manifest import Manifest, now
from ilu_cli.runs.results import read_results

RESUMED = ("unlearn", "attack")


class Run:
    """A run folder."""

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path, self.manifest = path, manifest

    @property
    def id(self) -> str:
        return self.manifest.id

    @property
    def checkpoint(self) -> Path:
        """The folder of the finished model: transformers or peft load it."""
        return self.path / "checkpoint"

    def point(self, step: int | str) -> Path:
        """The checkpoint of an intermediate step."""
        return self.path / "points" / f"step-{int(step):04d}"

    @property
    def state(self) -> Path:
        return self.path / "state"

    @property
    def eval(self) -> Path:
        """The folder of results of the finished model."""
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
        """Write the manifest, atomically, with its own hash."""
        write_json(self.path / "manifest.json", ledger.seal(asdict(self.manifest)))

    @property
    def status(self) -> str:
        """`complete`; `running` while a process works in it; else `failed`, if it said so itself, or `stopped`."""
        if self.complete:
            return "complete"
        return "running" if holder(self.path) else "failed" if self.manifest.status == "failed" else "stopped"

    @property
    def resume_command(self) -> str:
        """What goes on with the run; a sum of task vectors is made again."""
        command = self.manifest.command
        return (
            f"ilu {command} {self.id} --resume"
            if command in RESUMED
            else f"ilu {command} --recipe {self.path / 'recipe.yaml'}"
        )

    @property
    def how_to_go_on(self) -> str:
        """What to do with a run that was not finished: a sum of task vectors has no states."""
        if self.manifest.command in RESUMED:
            return f"continue with `{self.resume_command}`"
        return f"make it again: it keeps no states (`ilu runs rm {self.id}` takes away what there is)"

    def finish(self) -> None:
        """Hash the checkpoint and mark the run complete. Everything else must be on disk already."""
        files = {n: ledger.entry(self.path / n) for n in ledger.files_below(self.path, ("checkpoint", "points"))}
        hashes = {name: e["sha256"] for name, e in files.items()}

        def known(folder: Path, paths: Iterable[Path]) -> dict[str, str]:
            inside = folder.relative_to(self.path).as_posix()
            return {n: hashes[f"{inside}/{n}"] for n in (p.relative_to(folder).as_posix() for p in paths)}

        self.manifest.weights = known(self.checkpoint, weight_files(self.checkpoint))
        self.manifest.beside = known(self.checkpoint, beside_files(self.checkpoint))
        steps = [folder.name.rpartition("-")[2] for folder in sorted((self.path / "points").glob("step-*"))]
        self.manifest.points = {str(int(s)): known(self.point(s), weight_files(self.point(s))) for s in steps}
        write_text(self.path / "README.md", self.card())
        small = [n for n in ledger.files_below(self.path, ledger.LISTED) if n not in files]
        ledger.write(self.path, files | {n: ledger.entry(self.path / n) for n in small})
        self.manifest.status, self.manifest.finished, self.manifest.listed = "complete", now(), True
        self.save()

    @contextmanager
    def held(self, note: Callable[[str], None]) -> Iterator[None]:
        """Work in the folder, alone. Whatever interrupts the work, the user is told how to go on.

        Raises:
            UsageError: if another process works in it, or went on with it since it was read here.
            UnavailableError: if it was removed since.
            Interrupted: if the user stops it.
        """
        self._check_as_read()
        with held(self.path, f"run {self.id}") as said:
            self._check_as_read()
            if said:
                note(said)
            try:
                yield
            except KeyboardInterrupt as error:
                begun = (self.path / "recipe.yaml").is_file()
                how = self.how_to_go_on if begun else "nothing was begun; start it again"
                raise Interrupted(f"run {self.id} was interrupted", hint=how) from error

    def _check_as_read(self) -> None:
        """Between reading a run and holding it a command may plan for minutes, and others come to it."""
        path, hint = self.path / "manifest.json", "`ilu runs` shows what there is"
        if not path.is_file():
            raise UnavailableError(f"run {self.id} was removed by another process", hint=hint)
        there, m = read_json(path), self.manifest
        if (there["status"], json.dumps(there["result"])) != (m.status, json.dumps(m.result)):
            raise UsageError(f"run {self.id} went on in another process meanwhile", hint=hint)

    def check(self, *parts: str) -> None:
        """Compare what is about to be read, files or folders of the run, with the list of a finished run.

        Runs of before there were lists are taken as they are.

        Raises:
            UnavailableError: if a file was changed, is missing, or was added.
        """
        if self.manifest.listed and not ledger.check(self.path, f"run {self.id}", *parts):
            raise UnavailableError(
                f"run {self.id}: {self.path / ledger.NAME} is missing, so nothing tells whether its files are its own",
                hint="restore the file",
            )

    def add(self, *parts: str) -> None:
        """List anew what lies at `parts` of a finished run."""
        if self.manifest.listed:
            ledger.add(self.path, *parts)

    def recipe(self) -> dict[str, Any]:
        """recipe.yaml as it was written: an idea that it names may come from a plugin that is not loaded now.

        Raises:
            UnavailableError: if it is missing.
        """
        try:
            found = yaml.safe_load((self.path / "recipe.yaml").read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise UnavailableError(f"run {self.id} has no recipe.yaml") from error
        return found or {}

    def card(self, folder: str = "checkpoint") -> str:
        """The model card as things are now; see `ilu_cli.runs.card`."""
        path = self.path / "recipe.yaml"
        recipe = path.read_text(encoding="utf-8") if path.is_file() else ""
        adapter = (self.checkpoint / "adapter_config.json").is_file()
        return card(self.manifest, recipe, read_results(self.eval), adapter=adapter, folder=folder)

    def write_card(self) -> None:
        """Write README.md anew, and list it."""
        write_text(self.path / "README.md", self.card())
        self.add("README.md")

    def missing_parent(self) -> str | None:
        """The name and place of a parent that was there and is gone; None if all are there. A look, and no hash."""
        for p in self.manifest.parents:
            signs = {"run": ("manifest.json",), "folder": ("config.json", "adapter_config.json")}.get(p["kind"], ())
            if signs and not any((Path(p["path"]) / sign).is_file() for sign in signs):
                return f"{p['id']} ({p['path']})"
        return None

    def check_parents(self, where: str) -> None:
        """Stop at once when a parent is gone: nothing that is made now would be known to come from it.

        Raises:
            UnavailableError: if one is; it names it.
        """
        if gone := self.missing_parent():
            raise UnavailableError(
                f"{where}: {gone}, which this run is made from, is gone", hint=f"put it back, and {self.how_to_go_on}"
            )

    def verify(self, step: int | None = None) -> None:
        """Compare every file of the checkpoint that decides an answer, or the weights at `step`, with the manifest.

        Raises:
            UnavailableError: if the run is not complete, has no such point, or a file is missing or was changed.
        """
        if not self.complete:
            raise UnavailableError(
                f"run {self.id} was not finished",
                hint=self.how_to_go_on,
            )
        self.check("recipe.yaml")
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
        if self.manifest.listed:
            return self.check(folder.relative_to(self.path).as_posix())
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
