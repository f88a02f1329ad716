"""How many files of the package lie between a command line and its table.

    python docs/bench/street.py attack --task sst2 RUN

A file counts if it stands on the call stack at one of the moments that the table is made of: the recipe is parsed, the
rows of the task are made, the checkpoint is loaded, the model runs for a loss or a score, the gradient is taken, the
optimiser steps, the table is printed. These are the files to open to follow the command to each of them. Not counted: a
stack through one of `CHECKS`, which look at data and model beforehand; how a benchmark comes by its own questions; and
what is called and returns between the moments (hashes, locks, metrics, progress). All files in which any function ran
are counted beside.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import FrameType
from typing import Any

import ilu_cli

ROOT = f"{Path(ilu_cli.__file__).parent}/"
CHECKS = {
    "engine/parity.py", "models/checking.py", "models/kept.py", "models/logits.py", "workflows/attack/rehearsal.py",
}  # fmt: skip
MOMENTS = {
    ("yaml/__init__.py", "load"): "the recipe is parsed",
    ("/ilu_cli/tasks/", "generate"): "the rows of the task are made",
    ("transformers/modeling_utils.py", "from_pretrained"): "the checkpoint is loaded",
    ("/modeling_", "forward"): "the model runs",
    ("torch/autograd/__init__.py", "backward"): "the gradient is taken",
    ("torch/autograd/__init__.py", "grad"): "the gradient is taken",
    ("torch/optim/adam", "step"): "the optimiser steps",
    ("rich/console.py", "print"): "a table is printed",
}


def stack_of(frame: FrameType | None) -> list[str] | None:
    """The files of the package from the command line to here; None while a module is being imported."""
    found: list[str] = []
    while frame is not None:
        name = frame.f_code.co_filename
        if name.startswith(ROOT):
            if frame.f_code.co_name == "<module>":
                return None
            found.append(name[len(ROOT) :])
        frame = frame.f_back
    return found[::-1]


def main() -> None:
    from ilu_cli.cli.app import main as command

    moments: dict[str, set[str]] = {}
    entered: set[str] = set()

    def watch(frame: FrameType, event: str, arg: Any) -> None:
        if event != "call":
            return
        file, name = frame.f_code.co_filename, frame.f_code.co_name
        if file.startswith(ROOT) and not name.startswith("<") and stack_of(frame):
            entered.add(file[len(ROOT) :])
        what = next((m for (part, function), m in MOMENTS.items() if name == function and part in file), None)
        if what is None or (what == "the recipe is parsed" and what in moments):
            return
        if name == "print" and not any(type(o).__name__ == "Table" for o in frame.f_locals.get("objects", ())):
            return
        if (stack := stack_of(frame)) and not CHECKS & set(stack):
            moments.setdefault(what, set()).update(stack)

    sys.setprofile(watch)
    try:
        command()
    except SystemExit:
        pass
    finally:
        sys.setprofile(None)
    for what, files in moments.items():
        print(f"{what}: {len(files)}", file=sys.stderr)
    street = sorted(set().union(*moments.values()))
    print(f"{len(street)} files of {len(entered)} that ran: {', '.join(street)}", file=sys.stderr)


if __name__ == "__main__":
    main()
