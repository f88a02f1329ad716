"""Options that several commands share, and how flags become recipe keys."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from ilu_cli.cli import complete
from ilu_cli.errors import UsageError

if TYPE_CHECKING:
    from ilu_cli.recipe.source import Key
    from ilu_cli.runs.store import Run, Store

RecipeOption = Annotated[
    Optional[str],  # noqa: UP045  (typer reads the annotation)
    typer.Option(
        "--recipe", help="A shipped recipe's name, or a YAML file.", show_default=False, autocompletion=complete.recipes
    ),
]
RecipeArgument = Annotated[
    str,
    typer.Argument(
        help="A shipped recipe's name, or a YAML file.", show_default=False, autocompletion=complete.recipes
    ),
]
SetOption = Annotated[
    Optional[list[str]],  # noqa: UP045
    typer.Option("--set", metavar="KEY=VALUE", help="Set any recipe key, e.g. train.lr=1e-4. Repeatable."),
]
OutOption = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Option("--out", help="Folder of the new run (default: ILU_RUNS, or ./runs, and a new id)."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Resolve, check and price; run nothing.")]
ResumeOption = Annotated[bool, typer.Option("--resume", help="Continue an unfinished run (default: the latest).")]
SeedOption = Annotated[Optional[int], typer.Option("--seed", help="Seed of every random stream.")]  # noqa: UP045

TrackOption = Annotated[
    Optional[list[str]],  # noqa: UP045
    typer.Option(
        "--track", help="Report steps to tensorboard, wandb, or mlflow. Repeatable.", autocompletion=complete.trackers
    ),
]


def _use_data_root(ctx: typer.Context, folder: Path | None) -> Path | None:
    """Put the data root where everything finds it, ILU_DATA, for as long as this command runs."""
    import os

    from ilu_cli.data.root import checked_root

    before = os.environ.get("ILU_DATA")

    def restore() -> None:
        os.environ.pop("ILU_DATA", None)
        os.environ |= {} if before is None else {"ILU_DATA": before}

    if folder is not None:
        root = checked_root(folder, make=ctx.info_name == "fetch")
        ctx.call_on_close(restore)
        os.environ["ILU_DATA"] = str(root)
    return folder


DataRootOption = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Option(
        "--data-root", envvar="ILU_DATA", metavar="DIR", callback=_use_data_root, is_eager=True, show_default=False,
        help="A folder that mirrors datasets and models; what it holds is taken from it.",
    ),
]  # fmt: skip


def _load_plugins(paths: list[Path] | None) -> list[Path] | None:
    from ilu_cli.registry import load_plugin

    for path in paths or []:
        load_plugin(path)
    return paths


PluginOption = Annotated[
    Optional[list[Path]],  # noqa: UP045
    typer.Option(
        "--plugin", envvar="ILU_PLUGINS", metavar="FILE.py", callback=_load_plugins, is_eager=True,
        help="Import a file that defines methods, tasks, attacks. Repeatable.",
    ),
]  # fmt: skip

Flags = dict[str, "tuple[Key, Any]"]


def given(**flags: tuple[Key, Any]) -> Flags:
    """Keep the flags that were given: `given(lr=(("train", "lr"), 1e-4))` → `{"--lr": ...}`."""
    return {f"--{name.replace('_', '-')}": kv for name, kv in flags.items() if kv[1] is not None}


def unfinished(store: Store, command: str, text: str | None) -> Run:
    """The run that `--resume` continues: the one named, or the latest that is not finished.

    Raises:
        UsageError: if the named run is finished or of another command.
        UnavailableError: if there is none.
    """
    if text is None:
        found = store.latest(lambda r: r.manifest.command == command and not r.complete, f"unfinished {command} run")
    else:
        found = store.get(text)
    if found.manifest.command != command:
        raise UsageError(f"{found.id} is a run of `ilu {found.manifest.command}`")
    if found.complete:
        raise UsageError(f"{found.id} is finished; there is nothing to resume")
    if not (found.path / "recipe.yaml").is_file():
        raise UsageError(f"{found.id} stopped before it began", hint="start it again without --resume")
    return found


def only_resume(**others: Any) -> None:
    """Refuse options that a resumed run would ignore: its recipe is fixed.

    Raises:
        UsageError: if one is given.
    """
    ignored = [f"--{name.replace('_', '-')}" for name, value in others.items() if value]
    if ignored:
        raise UsageError(f"--resume continues a run with its own recipe; {', '.join(ignored)} cannot change it")
