"""Names of runs, models, tasks and files that are empty, odd, or lead elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from malformed.judge import Input

ODD = [
    "",
    " ",
    "..",
    ".",
    "/",
    "nobody",
    "../../etc",
    "[/red]x",
    "\x1b[31mx",
    "a\nb",
    "n" * 300,
    "a/b/c/d",
    "~",
    "*",
    "u@",
    "u@x",
    "u@99",
    "@5",
    "u@-1",
    "\u202eabc",
    "-",
]
COMMANDS = {
    "runs show": ["runs", "show", "{}"], "runs rm": ["runs", "rm", "{}", "--yes"], "runs diff": ["runs", "diff", "u", "{}"], "runs verify": ["runs", "verify", "{}"],
    "eval": ["eval", "{}", "--limit", "4"], "attack": ["attack", "{}", "--task", "elements", "--dry-run"], "taskvec": ["taskvec", "{}"],
    "compare": ["compare", "u", "--with", "{}"], "unlearn --resume": ["unlearn", "{}", "--resume"], "report": ["report", "{}"],
}  # fmt: skip
FLAGS = {
    "--model": ["unlearn", "--dry-run", "--model={}"], "--method": ["unlearn", "--dry-run", "--model={model}", "--method={}"], "--forget": ["unlearn", "--dry-run", "--model={model}", "--forget={}"],
    "--irm-env": ["unlearn", "--dry-run", "--model={model}", "--irm-env={}"], "--recipe": ["unlearn", "--dry-run", "--recipe={}"], "--task": ["attack", "runs/u", "--dry-run", "--task={}"],
    "--kind": ["attack", "runs/u", "--dry-run", "--kind={}"], "--suite": ["attack", "runs/u", "--dry-run", "--suite={}"], "--bench": ["eval", "runs/u", "--bench={}"],
}  # fmt: skip


def inputs() -> Iterator[Input]:
    for command, args in COMMANDS.items():
        for name in ODD:
            if name == "-" and command != "eval":
                continue
            yield Input(f"{command} {name[:20]!r}", [*(name if a == "{}" else a for a in args)], codes=(2, 3))
    for flag, args in FLAGS.items():
        for name in ("", " ", "nobody", "[/red]x", "\x1b[31mx", "a\nb", "n" * 300, "..", "/dev/null"):
            if (flag, name) in (("--model", ".."),):
                continue
            yield Input(f"{flag} {name[:20]!r}", [a.replace("{}", name) for a in args], codes=(2, 3))

    def linked(place: Path) -> None:
        (place / "elsewhere").mkdir()
        (place / "runs/linked").symlink_to(place / "elsewhere")

    yield Input("a link to no run", ["runs", "rm", "linked", "--yes"], codes=(3,), make=linked)
