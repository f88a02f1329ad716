"""Options that several commands share, and how flags become recipe keys."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ilu_cli import trust
from ilu_cli.cli import complete
from ilu_cli.errors import RunFailed, UsageError

if TYPE_CHECKING:
    from ilu_cli.recipe.source import Key
    from ilu_cli.runs.store import Run, Store

RecipeOption = Annotated[
    str | None,
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
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Set any recipe key, e.g. train.lr=1e-4. Repeatable."),
]


def _new(folder: Path | None) -> Path | None:
    """What cannot be made is refused before anything runs, in dry runs too."""
    from ilu_cli.paths import problem_of_new

    if folder is not None and (problem := problem_of_new(folder)):
        raise UsageError(f"--out {folder} {problem}", hint="choose another --out")
    return folder


OutOption = Annotated[
    Path | None,
    typer.Option("--out", help="Folder of the new run (default: ILU_RUNS, or ./runs, and a new id).", callback=_new),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Resolve, check and price; run nothing.")]
StrictOption = Annotated[
    bool,
    typer.Option("--strict", help="Exit with code 4 if there are warnings (`ilu list warnings`); results are kept."),
]
ResumeOption = Annotated[bool, typer.Option("--resume", help="Continue an unfinished run (default: the latest).")]


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
    import os

    ctx.call_on_close(lambda: os.environ.pop(name, None))
    os.environ.pop(name, None)
    os.environ |= {name: value} if value else {}


ALLOWED = ("--data-root", "--plugin", "--trust-remote-code", "--trust-code")  # whose data and code, not what is done


def _trust_remote(ctx: typer.Context, given: bool) -> bool:
    _said(ctx, trust.REMOTE, "1" if given else None)
    return given


def _trust_code(ctx: typer.Context, files: list[Path] | None) -> list[Path] | None:
    import os

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
Flags = dict[str, "tuple[Key, Any]"]


@dataclass(frozen=True)
class Sets:
    """Marks a flag that is written into the recipe at `key`, if it is given: as it is, or as `form` makes of it."""

    key: Key
    form: Callable[[Any], Any] = lambda value: value


@dataclass(frozen=True)
class Given:
    """What was given on the command line, as the parser knows it.

    `options` are the flags as they are written, of this command and of the shared ones; `flags` those that the recipe
    gets (`Sets`), in the order in which the command declares them. The others are the shared options themselves.
    """

    options: list[str]
    flags: Flags
    recipe: str | None = None
    sets: list[str] = field(default_factory=list)
    out: Path | None = None
    dry_run: bool = False
    as_json: bool = False
    resume: bool = False
    strict: bool = False
    plugins: list[Path] = field(default_factory=list)

    def besides(self, *allowed: str) -> list[str]:
        """The options that were given and are none of these."""
        return [name for name in self.options if name not in allowed]

    def only_resume(self) -> None:
        """Refuse options that a resumed run would ignore: its recipe is fixed.

        Raises:
            UsageError: if one is given.
        """
        if ignored := self.besides("--resume", "--json", "--strict", *ALLOWED):
            raise UsageError(f"--resume continues a run with its own recipe; {', '.join(ignored)} cannot change it")


SeedOption = Annotated[int | None, typer.Option("--seed", help="Seed of every random stream."), Sets(("seed",))]
TrackOption = Annotated[
    list[str] | None,
    typer.Option(
        "--track", help="Report steps to tensorboard, wandb, or mlflow. Repeatable.", autocompletion=complete.trackers
    ),
    Sets(("track",)),
]
SHARED: dict[str, tuple[Any, Any]] = {
    "seed": (SeedOption, None),
    "track": (TrackOption, None),
    "data_root": (DataRootOption, None),
    "plugin": (PluginOption, None),
    "trust_remote_code": (TrustRemoteOption, False),
    "trust_code": (TrustCodeOption, None),
    "recipe": (RecipeOption, None),
    "set_": (SetOption, None),
    "out": (OutOption, None),
    "dry_run": (DryRunOption, False),
    "as_json": (JsonOption, False),
    "resume": (ResumeOption, False),
    "strict": (StrictOption, False),
}


def shares(*names: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Give a command the shared options of these names, and call it with what was given as `given`.

    A flag is declared once, in the signature; what was given, and where it goes, is read from there.
    """

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        own = [p for p in inspect.signature(function, eval_str=True).parameters.values() if p.name != "given"]
        kind = inspect.Parameter.KEYWORD_ONLY
        extra = [inspect.Parameter(n, kind, default=SHARED[n][1], annotation=SHARED[n][0]) for n in names]
        context = inspect.Parameter("context", kind, annotation=typer.Context)
        parameters = [context, *(p.replace(kind=kind) for p in own), *extra]
        keys = {
            p.name: mark
            for p in parameters
            for mark in getattr(p.annotation, "__metadata__", ())
            if isinstance(mark, Sets)
        }

        def command(context: typer.Context, **values: Any) -> Any:
            line = _given(context, keys, values)
            try:
                return function(**{p.name: values[p.name] for p in own}, given=line)
            except SystemExit as end:  # nothing of ours ends the process here
                said = f"the code of a plug-in or a model ended the run by itself (exit code {end.code})"
                raise RunFailed(said, hint="take `sys.exit` out of that code") from end

        command.__doc__, command.__name__ = function.__doc__, function.__name__
        vars(command)["__signature__"] = inspect.Signature(parameters)
        command.__annotations__ = {}
        return command

    return decorate


def _given(context: typer.Context, keys: dict[str, Sets], values: dict[str, Any]) -> Given:
    from_line = {}
    for parameter in context.command.params:
        source = context.get_parameter_source(str(parameter.name))
        if parameter.param_type_name == "option" and source is not None and source.name == "COMMANDLINE":
            negated = values[str(parameter.name)] is False
            from_line[parameter.name] = (parameter.secondary_opts if negated else parameter.opts)[0]
    return Given(
        list(from_line.values()),
        {from_line[n]: (mark.key, mark.form(values[n])) for n, mark in keys.items() if n in from_line},
        values.get("recipe"),
        values.get("set_") or [],
        values.get("out"),
        values.get("dry_run", False),
        values.get("as_json", False),
        values.get("resume", False),
        values.get("strict", False),
        values.get("plugin") or [],
    )


def _begun(run: Run) -> bool:
    return run.status in ("stopped", "failed") and (run.path / "recipe.yaml").is_file()


def unfinished(store: Store, command: str, text: str | None) -> Run:
    """The run that `--resume` continues: the one named, or the latest that is not finished.

    Raises:
        UsageError: if the named run is finished or of another command.
        UnavailableError: if there is none.
    """
    from ilu_cli.runs.lock import refuse_held

    if text is None:
        what = f"unfinished {command} run that no process works in"
        found = store.latest(lambda r: r.manifest.command == command and _begun(r), what)
    else:
        found = store.get(text)
        refuse_held(found.path, f"run {found.id}")
    if found.manifest.command != command:
        raise UsageError(f"{found.id} is a run of `ilu {found.manifest.command}`")
    if found.complete:
        raise UsageError(f"{found.id} is finished; there is nothing to resume")
    if not (found.path / "recipe.yaml").is_file():
        raise UsageError(f"{found.id} stopped before it began", hint="start it again without --resume")
    trust.check_same(found.manifest.trust, f"run {found.id}")
    return found
