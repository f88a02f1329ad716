"""One malformed input, and how what a command says to it is judged."""

from __future__ import annotations

import os
import re
import resource
import shutil
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench import ATTACK, Bench, Ended, limit_memory

SECONDS, BYTES = 10, 1 << 30  # of processor time, and beyond what the process has when the command begins
WALL = 120
REMEDIES = ("hint:", "Try '", "Did you mean")


@dataclass
class Input:
    """A command line with files to write first. `says` must be in the message; `codes` are the exit codes allowed.

    `{place}` in an argument is the workspace, `{model}` a sound model. `make` changes the workspace in other ways.
    """

    name: str
    args: list[str]
    files: dict[str, str | bytes] = field(default_factory=dict)
    codes: tuple[int, ...] = (2,)
    says: str = ""
    make: Callable[[Path], Any] | None = None


class Judge:
    """A workspace in a process that has imported and run everything once, so that a fork begins at once."""

    def __init__(self, root: Path) -> None:
        self.bench = Bench(root)
        self.bench.prepare()
        self.place = self.bench.place
        self._warm()

    def _warm(self) -> None:
        """Import what commands import when they run, and fill the cache of encoded rows."""
        import importlib

        for name in ("lm_eval.api.task", "peft", "pyarrow.parquet", "datasets", "ilu_cli.harness.load",
                     "transformers.models.llama.modeling_llama", "ilu_cli.workflows.report", "ilu_cli.workflows.compare",
                     "ilu_cli.workflows.taskvec.compare", "ilu_cli.workflows.taskvec.apply", "ilu_cli.cli.progress",
                     "ilu_cli.workflows.push", "ilu_cli.workflows.pipeline.execute", "ilu_cli.workflows.evaluate",
                     "ilu_cli.workflows.attack.run", "ilu_cli.workflows.unlearn", "rich.table", "rich.tree"):  # fmt: skip
            importlib.import_module(name)
        from ilu_cli.models.load import empty_model, load_tokenizer
        from ilu_cli.recipe.harness import harness_names
        from ilu_cli.recipe.schema import RECIPES, json_schema, schema

        harness_names()
        for command, kind in RECIPES.items():
            schema(kind)
            json_schema(command)

        empty_model(self.bench.model)
        load_tokenizer(self.bench.model)
        for args in (self.bench.unlearn("--dry-run"), ["attack", "runs/u", *ATTACK, "--dry-run"]):
            done = self.bench.run(args)
            assert done.code == 0, done.text

    def tried(self, inputs: Iterable[Input]) -> Iterator[tuple[Input, Ended, str]]:
        """Each input, how the command ended, and what is wrong with that ("" if it held)."""
        for given in inputs:
            yield given, *self.one(given)

    def one(self, given: Input) -> tuple[Ended, str]:
        undo = self._write(given)
        before = self._runs()
        words = [a.replace("{place}", str(self.place)).replace("{model}", str(self.bench.model)) for a in given.args]
        began = time.monotonic()
        pid, log = self.bench.start(words, _limits)
        done, used = _ended(pid, log)
        wrong = judged(given, done, used, time.monotonic() - began)
        if not wrong and self._runs() != before:
            wrong = "runs were changed"
        log.unlink(missing_ok=True)
        self._undo(undo)
        return done, wrong

    def _write(self, given: Input) -> bool:
        for name, content in given.files.items():
            path = self.place / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content.encode("utf-8", "surrogatepass") if isinstance(content, str) else content)
        if given.make:
            given.make(self.place)
        return bool(given.make) or any(name.startswith("runs/") for name in given.files)

    def _undo(self, whole: bool) -> None:
        for path in self.place.iterdir():
            if path.name == "cache" or (path.name == "runs" and not whole):
                continue
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        if whole:
            shutil.copytree(self.bench.clean / "runs", self.place / "runs", symlinks=True)

    def _runs(self) -> dict[str, tuple[int, int]]:
        """Size and time of every file of every run."""
        found = (p for p in (self.place / "runs").rglob("*") if p.is_file())
        return {str(p): (p.stat().st_size, p.stat().st_mtime_ns) for p in found if p.name != ".files.lock"}


def _limits() -> None:
    limit_memory(BYTES)
    resource.setrlimit(resource.RLIMIT_CPU, (4 * SECONDS, 4 * SECONDS))
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)


def _ended(pid: int, log: Path) -> tuple[Ended, float]:
    until = time.monotonic() + WALL
    while (found := os.wait4(pid, os.WNOHANG))[0] == 0:
        if time.monotonic() > until:
            os.kill(pid, signal.SIGKILL)
        time.sleep(0.002)
    text = log.read_text(errors="replace") if log.exists() else ""
    return Ended(os.waitstatus_to_exitcode(found[1]), text), found[2].ru_utime + found[2].ru_stime


def judged(given: Input, done: Ended, used: float, wall: float) -> str:
    """What is wrong with how a command took a malformed input; "" if nothing is."""
    errors = sum(line.startswith("error: ") or "╭─ Error" in line for line in done.text.splitlines())
    if done.code not in given.codes:
        return f"exit {done.code}, not {given.codes}"
    if "Traceback" in done.text or re.search(r"unexpected [A-Z]\w*:?", done.text):
        return "a traceback, or something unexpected"
    if done.code and errors != 1:
        return f"{errors} messages"
    if done.code and not any(word in done.text for word in REMEDIES):
        return "no remedy"
    if given.says not in " ".join(done.text.split()) and given.says not in done.text:
        return f"does not say {given.says!r}"
    if "\x1b" in done.text or "\x07" in done.text:
        return "control characters in the message"
    if used > SECONDS or wall > WALL:
        return f"took {used:.1f} s"
    return ""
