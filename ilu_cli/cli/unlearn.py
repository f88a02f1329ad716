"""`ilu unlearn`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ilu_cli.cli import complete, console, warned
from ilu_cli.cli.options import SHARED, Flags, Given, ModelOption, Sets, shares
from ilu_cli.cli.plan import show_priced
from ilu_cli.cli.resumed import unfinished
from ilu_cli.errors import UsageError

if TYPE_CHECKING:
    from ilu_cli.runs.store import Run

DEFAULT_METHOD, DEFAULT_RECIPE = "rmu", "quickstart-repselect"
METHOD = ("objective", "retain", "regularizers", "defences", "lora")  # keys that say something about the method

RunArgument = Annotated[
    str | None,
    typer.Argument(
        help="A run (or model) to start from, as with --model; with --resume an unfinished one.",
        show_default=False,
        autocompletion=complete.runs,
    ),
]
MethodOption = Annotated[
    str | None,
    typer.Option(
        "--method",
        help="The objective; `ilu list` shows all. Default: grad_ascent with RepSelect, what holds best on the "
        f"quickstart; {DEFAULT_METHOD} where an environment, a defence or an adapter is given.",
        autocompletion=complete.methods,
    ),
    Sets(("objective", "name")),
]
EnvOption = Annotated[
    list[str] | None,
    typer.Option(
        "--irm-env",
        metavar="TASK",
        help="Add the invariance penalty over this task. Repeatable.",
        autocompletion=complete.tasks,
    ),
]
VariantOption = Annotated[
    str | None,
    typer.Option("--irm-variant", help="What the penalty is a gradient by: logit, param_scale, or grad_norm."),
]
WeightOption = Annotated[
    str | None,
    typer.Option(
        "--irm-weight",
        metavar="λ|share:SHARE",
        help="λ of the penalty; share:0.5: such that its gradient is half as long as the forget term's.",
    ),
]
BatchOption = Annotated[int | None, typer.Option("--irm-batch", help="Sequences per environment and step.")]
DefenceOption = Annotated[
    list[str] | None,
    typer.Option(
        "--defence",
        help="Add a defence, as sam; `ilu list defences` shows all. Repeatable.",
        autocompletion=complete.defences,
    ),
    Sets(("defences",), lambda names: [{"name": name} for name in names]),
]
LoraOption = Annotated[
    str | None,
    typer.Option("--lora", metavar="r=16,targets=…", help="Train an adapter: r, alpha, targets (a+b), layers (5+6)."),
]
ForgetOption = Annotated[
    str | None,
    typer.Option("--forget", help="Forget data: task, file, folder, or hub name.", autocompletion=complete.tasks),
    Sets(("forget", "data")),
]
StepsOption = Annotated[int | None, typer.Option("--steps", help="Optimiser steps."), Sets(("train", "steps"))]
RateOption = Annotated[float | None, typer.Option("--lr", help="Learning rate."), Sets(("train", "lr"))]


@shares(*SHARED)
def unlearn(
    run: RunArgument = None,
    method: MethodOption = None,
    irm_env: EnvOption = None,
    irm_variant: VariantOption = None,
    irm_weight: WeightOption = None,
    irm_batch: BatchOption = None,
    defence: DefenceOption = None,
    lora: LoraOption = None,
    model: ModelOption = None,
    forget: ForgetOption = None,
    steps: StepsOption = None,
    lr: RateOption = None,
    *,
    given: Given,
) -> None:
    """Make a model forget. Prints the new run's path as the last line of stdout."""
    from ilu_cli.recipe.load import load
    from ilu_cli.recipe.schema import UnlearnRecipe
    from ilu_cli.runs.store import Store

    store, old = Store(), None
    if given.resume:
        given.only_resume()
        old = unfinished(store, "unlearn", run)
        resolved = load(UnlearnRecipe, old.path / "recipe.yaml", {}, [])
    else:
        said = bool(irm_env or defence or lora) or any(s.split(".")[0].split("=")[0] in METHOD for s in given.sets)
        path = _recipe_path(given.recipe, method or (DEFAULT_METHOD if said else None))
        flags = given.flags | _irm_flags(path, irm_env, irm_variant, irm_weight, irm_batch) | _lora_flags(lora)
        flags |= _run_flags(run, model)
        resolved = given.sourced(load(UnlearnRecipe, path, flags, given.sets))
    if devices := given.priced():
        return show_priced(path.stem, "unlearn", resolved, devices, given)
    given.agreed(resolved)

    from ilu_cli.care.kept import kept
    from ilu_cli.cli.progress import reporter
    from ilu_cli.engine.accel import backend
    from ilu_cli.workflows import unlearn as workflow

    shown = reporter()
    plan = workflow.plan(resolved, store, recorded=old is not None, note=shown.note)
    if given.dry_run:
        return console.show_plan(plan, given.as_json)
    done = workflow.run(plan, store, shown, given.out, old)
    if not backend().main:
        return
    told = kept([done])
    warned.show(told)
    _conclude(done, given)
    warned.conclude(told, given)


def _conclude(done: Run, given: Given) -> None:
    """What was made, and what to do next."""
    changed = done.manifest.result["changed_fraction"]
    share = "an unknown share" if changed is None else f"{changed:.1%}"
    console.next_step(
        f"unlearned: {done.id}",
        [f"{share} of the weights changed; recipe, manifest and checkpoint are in {done.path}"],
        "ilu attack --task sst2   (or: ilu eval)",
    )
    if given.as_json:
        console.out_json(describe(done))
    else:
        console.out(str(done.path))


def describe(run: Any) -> dict[str, Any]:
    """A finished run as JSON."""
    m = run.manifest
    return {
        "run": m.id,
        "path": str(run.path),
        "parent": m.parents[0]["id"],
        "result": m.result,
        "data": m.data,
        "weights": m.weights,
        "recipe_sha256": m.recipe_sha256,
    }


def _recipe_path(recipe: str | None, method: str | None) -> Path:
    """The recipe that was named, or the quickstart of the method, or the default.

    Raises:
        UsageError: if the recipe or the method is unknown.
    """
    from ilu_cli import registry
    from ilu_cli.recipe.load import find, shipped

    if method is not None:
        registry.objective[method]
    if recipe is not None:
        return find(recipe)
    if method is None:
        return find(DEFAULT_RECIPE)
    return shipped().get(f"quickstart-{method}") or find("quickstart-grad_diff")


def _run_flags(run: str | None, model: str | None) -> Flags:
    """RUN as the model to start from.

    Raises:
        UsageError: if it is a method's name, or another model is named too.
    """
    from ilu_cli import registry

    if run is None:
        return {}
    if run in registry.objective:
        raise UsageError(f"{run!r}: what stands there is a run or model to start from", hint=f"--method {run}")
    if model is not None:
        raise UsageError(f"{run!r} and --model {model} both name the model to start from", hint="leave one out")
    return {"RUN": (("model", "ref"), run)}


def _lora_flags(text: str | None) -> Flags:
    """`r=16,targets=q_proj+v_proj` as recipe keys. The recipe's choice of trained weights gives way to the adapter.

    Raises:
        UsageError: if it is written otherwise.
    """
    from ilu_cli.recipe.source import parse_scalar

    if text is None:
        return {}
    pairs = [item.partition("=") for item in text.split(",")]
    if not all(equals and value for _, equals, value in pairs):
        raise UsageError(f"--lora {text}: write it as r=16,alpha=32,targets=q_proj+v_proj")
    flags: Flags = {"--lora": (("train", "params"), None)}
    for key, _, value in pairs:
        lists = key in ("targets", "layers")
        flags[f"--lora {key}"] = (
            ("lora", key),
            [parse_scalar(v) for v in value.split("+")] if lists else parse_scalar(value),
        )
    return flags


def _irm_flags(path: Path, env: list[str] | None, variant: str | None, weight: str | None, batch: int | None) -> Flags:
    """Write `--irm-*` into the recipe's irm entry, or add one.

    Raises:
        UsageError: if there is no environment to put a weight or batch on.
    """
    from ilu_cli.recipe.source import read_layers

    if env is None and variant is None and weight is None and batch is None:
        return {}
    entries = read_layers(path).data.get("regularizers") or []
    at = next((i for i, r in enumerate(entries) if isinstance(r, dict) and r.get("name") == "irm"), len(entries))
    flags: Flags = {} if entries else {"--irm-env (list)": (("regularizers",), [])}
    if at == len(entries):
        if not env:
            raise UsageError("--irm-variant, --irm-weight and --irm-batch need an --irm-env")
        flags["--irm-env (name)"] = (("regularizers", at, "name"), "irm")
    key = ("regularizers", at)
    written = {"env": env, "variant": variant, "weight": _number(weight), "batch": batch}
    return flags | {f"--irm-{name}": ((*key, name), value) for name, value in written.items() if value is not None}


def _number(text: str | None) -> float | str | None:
    """A weight as a number; what is none, as `share:0.5`, is the recipe's to judge."""
    try:
        return None if text is None else float(text)
    except ValueError:
        return text
