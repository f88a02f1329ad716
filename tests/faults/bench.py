"""A small workspace that faults are put into, and commands in forks of a process that has imported everything."""

from __future__ import annotations

import hashlib
import importlib
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

TESTS = Path(__file__).parents[1]
sys.path[:0] = [str(TESTS)]

TRAIN = 'train.params=["model.layers.[01].mlp.down_proj.weight"]'
SMALL = [f"{part}.{key}" for part in ("forget", "retain") for key in ("batch=4", "max_length=24")]
ATTACK = ["--task", "elements", "--steps", "4", "--set", "attack.batch=4", "--set", "eval.limit=6"]


COMPARE = ["compare", "runs/u", "--with", "runs/a", "--limit", "6"]


def sets(*pairs: str) -> list[str]:
    return [word for pair in pairs for word in ("--set", pair)]


def limit_memory(more: int) -> None:
    """This process may take so many bytes more of address space than it has now."""
    import resource  # which Windows lacks

    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + more, now + more))


@dataclass
class Ended:
    """How a command ended."""

    code: int
    text: str

    @property
    def told(self) -> bool:
        """Whether it spoke as documented: no traceback, nothing unexpected."""
        return "Traceback" not in self.text and "unexpected" not in self.text

    def refused(self, *codes: int) -> bool:
        return self.told and self.code in codes and "error: " in self.text


class Case(NamedTuple):
    """One fault, what was said, and whether it held."""

    name: str
    held: bool
    ended: Ended | None = None


class Bench:
    """A folder with a tiny model, a finished unlearning run and attacks on it and its original, evaluated."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.model, self.clean, self.place = root / "tiny", root / "clean", root / "place"

    def unlearn(self, *more: str, steps: int = 4) -> list[str]:
        return ["unlearn", "--method", "rmu", *sets("objective.layer=1", TRAIN, *SMALL), "--model", str(self.model),
                "--steps", str(steps), *more]  # fmt: skip

    def prepare(self) -> None:
        import conftest

        from ilu_cli.cli.app import app

        conftest.command_of(app)  # which takes longer than most commands that are refused
        tokenizer = conftest.tiny_tokenizer()
        conftest.tiny_model(len(tokenizer), spread=0.05).save_pretrained(self.model)
        tokenizer.save_pretrained(self.model)
        self.place.mkdir()
        for args in (
            self.unlearn("--out", "runs/u"),
            ["attack", "runs/u", *ATTACK, "--out", "runs/a"],
            ["eval", "runs/u", "--limit", "6"],
            COMPARE,
        ):
            done = self.run(args)
            assert done.code == 0, done.text
            for name in (self.root / "imported").read_text().split():  # what a fork without rights could not read
                with suppress(Exception):
                    importlib.import_module(name)
        shutil.copytree(self.place, self.clean)

    def reset(self) -> None:
        """The workspace as it was."""
        shutil.rmtree(self.place, ignore_errors=True)
        shutil.copytree(self.clean, self.place)

    def start(self, args: list[str], before: Callable[[], None] | None = None) -> tuple[int, Path]:
        """Fork, and run a command there; the pid, and where its output goes."""
        log = self.root / f"log-{time.monotonic_ns()}"
        if pid := os.fork():
            return pid, log
        try:
            out = os.open(log, os.O_WRONLY | os.O_CREAT)
            os.dup2(out, 1)
            os.dup2(out, 2)
            os.chdir(self.place)
            os.environ |= {"ILU_RUNS": str(self.place / "runs"), "ILU_CACHE": str(self.place / "cache")}
            os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
            sys.argv = ["ilu", *args]
            sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
            import torch
            import typer.main
            from conftest import command_of

            torch.set_num_threads(1)
            typer.main.get_command = command_of
            from ilu_cli.cli.app import main

            if before is not None:
                before()
            main()
        except SystemExit as stop:
            with suppress(OSError):
                (self.root / "imported").write_text(" ".join(sys.modules))
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(stop.code if isinstance(stop.code, int) else 1)
        except BaseException:
            import traceback

            traceback.print_exc()
            sys.stderr.flush()
        finally:
            os._exit(99)

    def wait(self, pid: int, log: Path, limit: float = 120) -> Ended:
        until = time.monotonic() + limit
        while (found := os.waitpid(pid, os.WNOHANG))[0] == 0:
            if time.monotonic() > until:
                os.kill(pid, signal.SIGKILL)
            time.sleep(0.005)
        return Ended(os.waitstatus_to_exitcode(found[1]), log.read_text(errors="replace") if log.exists() else "")

    def run(self, args: list[str], before: Callable[[], None] | None = None) -> Ended:
        return self.wait(*self.start(args, before))

    def killed(self, args: list[str], after: float, number: int = signal.SIGKILL) -> Ended:
        """Run a command and send it a signal after some seconds."""
        pid, log = self.start(args)
        time.sleep(after)
        os.kill(pid, number)
        return self.wait(pid, log)


def hash_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
