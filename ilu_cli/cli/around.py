"""Options of what is around a command: whose data and code it may take, and how it computes; not what is done."""

from __future__ import annotations

import functools
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from ilu_cli import trust
from ilu_cli.errors import UsageError

THREADS = "OMP_NUM_THREADS"


def _use_data_root(ctx: typer.Context, folder: Path | None) -> Path | None:
    """Put the data root where everything finds it, ILU_DATA, for as long as this command runs."""
    from ilu_cli.data.root import checked_root

    if folder is not None:
        root = checked_root(folder, make=ctx.info_name == "fetch")
        ctx.call_on_close(functools.partial(_put, "ILU_DATA", os.environ.get("ILU_DATA")))
        os.environ["ILU_DATA"] = str(root)
    return folder


DataRootOption = Annotated[
    Path | None,
    typer.Option(
        "--data-root", envvar="ILU_DATA", metavar="DIR", callback=_use_data_root, is_eager=True, show_default=False,
        help="A folder that mirrors datasets and models; what it holds is taken from it.",
    ),
]  # fmt: skip


def _load_plugins(paths: list[Path] | None) -> list[Path] | None:
    from ilu_cli.registry import load_plugin

    trust.RAN.clear()
    for path in paths or []:
        load_plugin(path)
    return paths


PluginOption = Annotated[
    list[Path] | None,
    typer.Option(
        "--plugin", envvar="ILU_PLUGINS", metavar="FILE.py", callback=_load_plugins, is_eager=True,
        help="Import a file that defines methods, tasks, attacks. Repeatable.",
    ),
]  # fmt: skip


def _said(ctx: typer.Context, name: str, value: str | None) -> None:
    """Put what was said where everything finds it, for as long as this command runs; else nothing is said."""
    ctx.call_on_close(lambda: _put(name, None))
    _put(name, value)


def _use_threads(ctx: typer.Context, number: int | None) -> int | None:
    """Let OpenMP, and torch where it is loaded already, take so many threads for as long as this command runs."""
    before, torch = os.environ.get(THREADS), sys.modules.get("torch")
    if number is None:
        return None
    if torch is not None:
        ctx.call_on_close(functools.partial(torch.set_num_threads, torch.get_num_threads()))
        torch.set_num_threads(number)
    ctx.call_on_close(functools.partial(_put, THREADS, before))
    _put(THREADS, str(number))
    return number


def _put(name: str, value: str | None) -> None:
    os.environ.pop(name, None)
    os.environ |= {} if value is None else {name: value}


ThreadsOption = Annotated[
    int | None,
    typer.Option(
        "--threads", min=1, callback=_use_threads, is_eager=True, show_default=False,
        help="Threads of a process (default: OMP_NUM_THREADS, or as many as there are cores).",
    ),
]  # fmt: skip
AROUND = ("data_root", "plugin", "trust_remote_code", "trust_code", "threads")
"""The options of this file, as `shares` takes them: whose data and code, and how it is computed; not what is done."""
ALLOWED = ("--data-root", "--plugin", "--trust-remote-code", "--trust-code", "--threads")


def _trust_remote(ctx: typer.Context, given: bool) -> bool:
    _said(ctx, trust.REMOTE, "1" if given else None)
    return given


def _trust_code(ctx: typer.Context, files: list[Path] | None) -> list[Path] | None:
    if lost := next((f for f in files or [] if not f.is_file()), None):
        raise UsageError(f"--trust-code {lost}: there is no such file")
    _said(ctx, trust.FILES, os.pathsep.join(str(f.absolute()) for f in files or []))
    return files


TrustRemoteOption = Annotated[
    bool,
    typer.Option(
        "--trust-remote-code", callback=_trust_remote, is_eager=True,
        help="Run Python code that a model brings along. For this command only; recorded.",
    ),
]  # fmt: skip
TrustCodeOption = Annotated[
    list[Path] | None,
    typer.Option(
        "--trust-code", metavar="FILE", callback=_trust_code, is_eager=True,
        help="Take this task file though it runs code. For this command only; recorded. Repeatable.",
    ),
]  # fmt: skip
