"""Runs ilu in the processes of one launch, command after command, and keeps what each process says.

    accelerate launch … tests/said.py COMMANDS.json

COMMANDS.json: {"together": {name: arguments}, "alone": {…}}, the second what the first process does by itself. Each
process writes `RANK.NAME.json`: its exit code, and what it wrote to stdout and stderr. The first writes files slowly.
"""

from __future__ import annotations

import contextlib
import faulthandler
import io
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from accelerate.state import AcceleratorState

from ilu_cli.cli.app import main
from ilu_cli.engine.accel import backend
from ilu_cli.workflows import evaluate

RANK, SECONDS = os.environ.get("RANK", "0"), 150
write = vars(evaluate)["write_text"]


def slow(*args: Any) -> None:
    if RANK == "0":
        time.sleep(1)
    write(*args)


def run(name: str, args: list[str]) -> None:
    sys.argv, out, err, code = ["ilu", *args], io.StringIO(), io.StringIO(), 0
    faulthandler.dump_traceback_later(SECONDS, exit=True)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            main()
    except SystemExit as end:
        code = int(end.code or 0)
    said = {"code": code, "out": out.getvalue(), "err": err.getvalue()}
    Path(f"{RANK}.{name}.json").write_text(json.dumps(said))


if __name__ == "__main__":
    vars(evaluate)["write_text"] = slow
    for kind, commands in json.loads(Path(sys.argv[1]).read_text()).items():
        if kind == "alone":  # in a process that has done nothing before
            backend.cache_clear()
            AcceleratorState._reset_state(True)
        for each, line in commands.items():
            run(each, line)
