"""Runs ilu in the processes of one launch: command after command with the model sharded, then with it replicated.

    accelerate launch … tests/launched.py COMMANDS.json

COMMANDS.json: {"sharded": {name: arguments}, "replicated": {…}}. The command `stopped` gets a signal after its second
step, on its last process only, and the checkpoint of `bf16` is written as several files. `filled-RANK.json`: how many
batches of two rows each process ran to fill its reference caches, by command; `whole`, the commands that loaded a whole
model; `bytes`, of the weights that it has of the model that was spread last, by command. The two kinds keep what they
computed in folders of their own.
"""

from __future__ import annotations

import faulthandler
import functools
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from ilu_cli.cli.app import main
from ilu_cli.engine import loading, reference
from ilu_cli.engine.accel import SHARDED, Backend, backend
from ilu_cli.engine.loop import StepLog
from ilu_cli.engine.reporter import Reporter
from ilu_cli.models import save
from ilu_cli.models.load import load_model
from ilu_cli.models.sharded import mine

SECONDS = 150  # for one command, on a machine with much other work


def stop_at_two(self: Any, log: StepLog) -> None:
    if log.step == 2 and backend().rank == backend().world - 1:
        os.kill(os.getpid(), signal.SIGTERM)


def run(name: str, args: list[str]) -> int:
    """A command as if it had been typed; its exit code."""
    sys.argv = ["ilu", *args]
    step = Reporter.step
    Reporter.step = stop_at_two if name == "stopped" else step  # type: ignore[method-assign]
    try:
        main()
    except SystemExit as end:
        return int(end.code or 0)
    finally:
        Reporter.step = step  # type: ignore[method-assign]
    return 0


filled: dict[str, int] = {}
whole: list[str] = []
parts: dict[str, int] = {}
of_each, spread = reference._of_each, Backend.spread


def counted(name: str, *args: Any) -> Any:
    filled[name] = filled.get(name, 0) + 1
    return of_each(*args)


def noted(name: str, *args: Any) -> Any:
    whole.append(name)
    return load_model(*args)


def weighed(name: str, *args: Any) -> Any:
    model = spread(backend(), *args)
    parts[name] = sum(mine(p).nbytes for p in model.parameters())
    return model


if __name__ == "__main__":
    reference.CACHE_BATCH = 2
    for kind, commands in json.loads(Path(sys.argv[1]).read_text()).items():
        os.environ[SHARDED] = "true" if kind == "sharded" else "false"
        os.environ["ILU_CACHE"] += "" if kind == "sharded" else f"-{kind}"
        backend.cache_clear()
        assert (backend().mesh is not None) == (kind == "sharded") and backend().world == 2
        for name, args in commands.items():
            reference._of_each = functools.partial(counted, f"{kind} {name}")
            vars(loading)["load_model"] = functools.partial(noted, f"{kind} {name}")
            vars(backend())["spread"] = functools.partial(weighed, f"{kind} {name}")
            save.LARGEST = 20_000 if name == "bf16" else 5 * 10**9
            faulthandler.dump_traceback_later(SECONDS, exit=True)
            with Path(f"said-{backend().rank}").open("a") as said:  # what both print may run into one another
                said.write(f"{kind} {name}: {run(name, args)}\n")
    Path(f"filled-{backend().rank}.json").write_text(json.dumps(filled | {"whole": whole, "bytes": parts}))
