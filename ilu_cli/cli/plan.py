"""`ilu plan`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ilu_cli.cli import console
from ilu_cli.cli.options import Given, ModelOption, RecipeArgument, shares

if TYPE_CHECKING:
    from ilu_cli.workflows.fit.fit import FitAnswer
    from ilu_cli.workflows.fit.plan import FitPlan, Planned

ConfigOption = Annotated[
    Path | None,
    typer.Option("--config", metavar="FILE", help="The model's config.json, where the model itself is not here."),
]


@shares("plugin", "trust_remote_code", "set_", "devices", "as_json")
def plan(
    recipe: RecipeArgument,
    model: ModelOption = None,
    config: ConfigOption = None,
    *,
    given: Given,
) -> None:
    """Say whether a recipe fits on some devices, and how.

    By which launch and keys, and how long it takes at the least. From the model's configuration alone, with rows of
    full length: nothing is run or downloaded but that file. Seconds are those of a roofline, with every row run anew.
    Exit code 4 if it does not fit.
    """
    from ilu_cli.errors import UsageError
    from ilu_cli.recipe.load import find, load
    from ilu_cli.recipe.schema import RECIPES
    from ilu_cli.recipe.source import read_layers

    path = find(recipe)
    command = str(read_layers(path).data.get("command"))
    if command not in ("unlearn", "attack", "eval", "suite", "pipeline"):
        raise UsageError(
            f"{recipe} is a recipe of `ilu {command}`, which is not priced", hint="unlearn, attack, or eval"
        )
    if config is not None and not config.exists():
        raise UsageError(f"--config {config}: there is no such file")
    flags = given.flags if command in ("unlearn", "pipeline") else {}
    resolved = load(RECIPES[command], path, flags, given.sets)

    run = console.command_for(command, recipe)
    named = (str(config), config) if config else None
    if model and named is None and command not in ("unlearn", "pipeline"):
        from ilu_cli.workflows.fit.plan import config_of

        named = model, config_of(model)
    show_priced(recipe, command, resolved, given.devices or "here", given, run, named)


def show_priced(
    name: str, command: str, recipe: Any, devices: str, given: Given, run: str | None = None,
    model: tuple[str, Path] | None = None,
) -> None:  # fmt: skip
    """Price a recipe on some devices, for `ilu plan` and for dry runs, and print what was found.

    Args:
        name: of the recipe, and `run` how it is run; None: as it was typed, without what asks for the price.
        model: its name and where its configuration lies; None: the recipe's.

    Raises:
        typer.Exit: 4, if it does not fit.
    """
    from ilu_cli.errors import RequirementError
    from ilu_cli.workflows.fit import plan as workflow

    run = run or console.typed(["--dry-run", "--json"], ["--devices"])
    found = workflow.plan(name, command, recipe, run, devices, model)
    if given.as_json:
        console.out_json(found.to_json())
    else:
        _show(found)
    if not found.fits:
        console.err().print(f"error: {name} does not fit on {found.fleet.label}", markup=False, soft_wrap=True)
        raise typer.Exit(RequirementError.exit_code)


def _show(found: FitPlan) -> None:
    title = f"{found.recipe} on {found.fleet.label}: {found.model}, {found.parameters / 1e9:.3g} billion parameters"
    console.out(title)
    for planned in found.jobs:
        _table(planned)
    for line in found.lines():
        console.out(line)
    console.out(
        "bytes of one device, and of one node's main memory, at the dearest moment; seconds by a roofline, with every "
        "row run anew"
    )


def _table(planned: Planned) -> None:
    """A column for each launch, and below it the keys that it takes."""
    from rich.table import Table

    job, answers = planned.job, planned.answers
    steps = "" if job.scores else f", {job.steps or '?'} steps, {planned.trained:,} weights trained"
    console.out(f"{job.name}{steps}{f', {job.times} times' if job.times > 1 else ''}")
    drawn = Table()
    drawn.add_column("GB of one device")
    for a in answers:
        name = a.launch.name.replace("-sharded", "\nsharded").replace("-offload", "\noffload")
        drawn.add_column(name, justify="right", max_width=11)
    for row in _rows(planned):
        drawn.add_row(*row)
    console.out_table(drawn)
    for a in answers:
        if a.keys:
            console.out(f"  {a.launch.name} with {' '.join(a.keys)}")


def _rows(planned: Planned) -> Iterator[list[str]]:
    """What the table says of each launch."""
    from ilu_cli.workflows.fit.jobs import UNIT
    from ilu_cli.workflows.fit.plan import told

    answers = planned.answers
    yield ["processes", *(str(a.launch.fleet.all) for a in answers)]
    yield from _bytes(answers)
    yield ["fits", *("yes" if a.fits else "no" for a in answers)]
    if main := [a.main for a in answers if a.main]:
        yield _gigabytes("main memory of a node", [m.bytes for m in main])
    yield ["a step", *(told(a.step) for a in answers)]
    yield [f"for {UNIT:,} tokens" if planned.job.scores else "in all", *(told(a.seconds) for a in answers)]


def _bytes(answers: list[FitAnswer]) -> Iterator[list[str]]:
    """What one device holds at the dearest moment, by kind, and without the keys."""
    for kind in answers[0].moment.kinds():
        parts = [a.moment.kinds()[kind] for a in answers]
        if any(parts):
            yield _gigabytes(kind, parts)
    yield _gigabytes("sum", [a.moment.bytes for a in answers])
    yield ["dearest while", *(a.moment.when for a in answers)]
    if any(a.keys for a in answers):
        yield _gigabytes("without keys", [a.unset for a in answers])


def _gigabytes(name: str, sizes: list[int]) -> list[str]:
    return [name, *(f"{size / 1e9:.1f}" for size in sizes)]
