"""What is printed where: results on stdout, everything else on stderr."""

from __future__ import annotations

import functools
import json
import sys
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from ilu_cli.engine.reporter import Reporter


@functools.cache
def err() -> Console:
    """The console on stderr. rich is imported when something is drawn, not for `--help`."""
    from rich.console import Console

    return Console(stderr=True, highlight=False)


def out(text: str) -> None:
    """Print a result line."""
    print(text, flush=True)


def out_json(value: Any) -> None:
    """Print one JSON object."""
    print(json.dumps(value, ensure_ascii=False, allow_nan=False), flush=True)


def out_table(table: Table) -> None:
    """Print a table on stdout; wide enough for a pipe, plain without a terminal."""
    from rich.console import Console

    width = None if sys.stdout.isatty() else 140
    Console(width=width, highlight=False).print(table)


def next_step(title: str, lines: list[str], command: str) -> None:
    """The closing summary of a command on stderr, with what to do next."""
    err().print(f"[bold green]✓[/] [bold]{title}[/]")
    for line in lines:
        err().print(f"  {line}", soft_wrap=True)
    err().print(f"  next: [cyan]{command}[/]", soft_wrap=True)


def reporter() -> Reporter:
    """A progress display for a terminal, or plain lines; silent on all but the main process."""
    from ilu_cli.engine.accel import backend
    from ilu_cli.engine.reporter import Reporter

    if not backend().main:
        return Reporter()
    from ilu_cli.cli.progress import Live, Plain

    return Live() if err().is_terminal else Plain()


def plan_text(facts: dict[str, Any]) -> str:
    """What `--dry-run` prints."""
    import yaml

    lines = [yaml.safe_dump(facts["recipe"], sort_keys=False, allow_unicode=True).rstrip(), ""]
    model = facts["model"]
    lines.append(f"model       {model['ref']} ({model['kind']}), {model['parameters']:,} parameters")
    if "steps" in facts:
        lines.append(f"steps       {facts['steps']}")
        lines.append(f"trainable   {facts['trainable_parameters']:,} parameters")
        lines.append(f"memory      about {facts['peak_memory_bytes'] / 1e9:.1f} GB at the peak (estimate)")
    for d in facts["data"]:
        cut = f", {d['truncated']} cut" if d.get("truncated") else ""
        lines.append(f"data        {d['role']}: {d['name']} ({d['source']}), {d['rows']} rows{cut}")
    lines += [f"parent      {p['role']}: {p['id']} ({p['kind']})" for p in facts["parents"]]
    lines.append(f"recipe      sha256 {facts['recipe_sha256'][:16]}")
    return "\n".join(lines)


def ago(iso: str) -> str:
    """How long ago an ISO time was, in one unit."""
    from datetime import datetime

    seconds = max(0.0, time.time() - datetime.fromisoformat(iso).timestamp())
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{int(seconds // size)} {unit}"
    return f"{int(seconds)} s"
