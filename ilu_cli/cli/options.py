"""Options that several commands share, and how flags become recipe keys."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

import typer

from ilu_cli.cli import complete
from ilu_cli.cli.around import (
    ALLOWED,
    DataRootOption,
    PluginOption,
    ThreadsOption,
    TrustCodeOption,
    TrustRemoteOption,
)
from ilu_cli.errors import RunFailed, UsageError

if TYPE_CHECKING:
    from ilu_cli.recipe.grid import AnyRecipe
    from ilu_cli.recipe.source import Key

R = TypeVar("R", bound="AnyRecipe")
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
    typer.Option(
        "--out",
        help="Folder of what is made (default: a new one in ILU_RUNS, or ./runs; of a report in its reports/).",
        callback=_new,
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Resolve, check and price; run nothing.")]
StrictOption = Annotated[
    bool,
    typer.Option("--strict", help="Exit with code 4 if there are warnings (`ilu list warnings`); results are kept."),
]
ResumeOption = Annotated[bool, typer.Option("--resume", help="Continue an unfinished run (default: the latest).")]


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
    source: Literal["builtin", "hub"] | None = None
    devices: str | None = None

    def priced(self) -> str | None:
        """The devices that a recipe is to be priced on instead of being run, if any.

        Raises:
            UsageError: if it is to be run.
        """
        if self.devices and not self.dry_run:
            raise UsageError(f"--devices {self.devices} prices and runs nothing", hint="add --dry-run")
        return self.devices

    def sourced(self, recipe: R) -> R:
        """The recipe with the `--source` that was given."""
        from ilu_cli.recipe.sourced import sourced

        return sourced(recipe, self.source) if self.source else recipe

    def agreed(self, recipe: R) -> R:
        """The recipe, once all processes of a launch have been given it, and all are to do it or all to plan it."""
        from ilu_cli.engine.peers import agree
        from ilu_cli.recipe.source import flat
        from ilu_cli.runs.store import versions

        packages = {f"version of {name}": version for name, version in versions().items()}
        asked = {"--dry-run": self.dry_run, "--resume": self.resume}
        agree(type(recipe).__name__, asked | packages | flat(recipe.model_dump(mode="json")))
        return recipe

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


ModelOption = Annotated[
    str | None,
    typer.Option(
        "--model", help="Built-in name, folder, hub name, or run, in place of the recipe's.",
        autocompletion=complete.models,
    ),
    Sets(("model", "ref")),
]  # fmt: skip
DevicesOption = Annotated[
    str | None,
    typer.Option(
        "--devices", show_default=False,
        help="Say whether it fits on 8xH100-80GB, 2x8xH100-80GB (two nodes), 1x(80GB,990TFLOPS,3.3TB/s), "
        "1x(CPU,16GB,1TFLOPS,0.1TB/s), or here: this machine.",
    ),
]  # fmt: skip
SeedOption = Annotated[int | None, typer.Option("--seed", help="Seed of every random stream."), Sets(("seed",))]
TrackOption = Annotated[
    list[str] | None,
    typer.Option(
        "--track", help="Report steps to tensorboard, wandb, or mlflow. Repeatable.", autocompletion=complete.trackers
    ),
    Sets(("track",)),
]
SourceOption = Annotated[
    Literal["builtin", "hub"] | None,
    typer.Option(
        "--source", show_default=False,
        help="Where tasks that name no source come from: their built-in stand-ins (as with the built-in model), or the "
        "data root and the hub (as with any other).",
    ),
]  # fmt: skip
SHARED: dict[str, tuple[Any, Any]] = {
    "source": (SourceOption, None),
    "seed": (SeedOption, None),
    "track": (TrackOption, None),
    "data_root": (DataRootOption, None),
    "plugin": (PluginOption, None),
    "trust_remote_code": (TrustRemoteOption, False),
    "trust_code": (TrustCodeOption, None),
    "threads": (ThreadsOption, None),
    "recipe": (RecipeOption, None),
    "set_": (SetOption, None),
    "out": (OutOption, None),
    "dry_run": (DryRunOption, False),
    "devices": (DevicesOption, None),
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
        values.get("source"),
        values.get("devices"),
    )
