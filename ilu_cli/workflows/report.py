"""`ilu report`: gather a family of runs, and write what they show."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ilu_cli.care import Warned
from ilu_cli.engine.reporter import Reporter
from ilu_cli.errors import IluError, UnavailableError, UsageError
from ilu_cli.paths import as_name
from ilu_cli.report.canvas import Draw, render
from ilu_cli.report.document import to_html, to_markdown
from ilu_cli.report.family import Family, Member, read_member
from ilu_cli.report.sections import Geometry, build, paths_of
from ilu_cli.report.warnings import all_warnings
from ilu_cli.runs import ledger
from ilu_cli.runs.files import ModelRecord, cache_dir, combined, same_model, write_text
from ilu_cli.runs.lineage import NEVER, reference_lines
from ilu_cli.runs.results import Summary, read_results
from ilu_cli.runs.store import Run, Store


def find_runs(names: list[str], store: Store) -> list[Run]:
    """The runs that a report is about: those named with their ancestors, descendants and reference lines; a
    pipeline's; or without a name the latest run's whole family.

    Raises:
        UnavailableError: if there is no such run.
        UsageError: if the named runs do not go back to one original.
    """
    everything = store.runs()
    if names:
        named, whole = _named(names, store)
    else:
        newest = store.latest(lambda r: r.complete, "finished run").manifest
        named, whole = [r for r in everything if same_model(r.manifest.base, newest.base)], True
    base, never = models_of(named)
    if not all(same_model(r.manifest.base, base) or _beside(r, never) for r in named):
        raise UsageError("the runs go back to different original models", hint="make one report for each")
    by_id = {r.id: r for r in [*everything, *named]}
    wanted = {r.id for r in named} | (_ancestors(named, by_id) if names else set())
    if not whole:
        wanted = _with_descendants(wanted, everything)
    wanted |= _lines([by_id[i] for i in wanted], [base, never] if never else [base], everything)
    return [r for r in by_id.values() if r.id in wanted]


def _lines(runs: list[Run], models: list[ModelRecord], everything: list[Run]) -> set[str]:
    """The ids of the same attacks on these models."""
    attacks = [r.manifest for r in runs if r.manifest.command == "attack"]
    return {line.id for model in models for m in attacks for line in reference_lines(m, model, everything)}


def models_of(runs: Sequence[Run]) -> tuple[ModelRecord, ModelRecord | None]:
    """The original that runs go back to, and the model that never knew, if one of them names it.

    A line of the second goes back to that model itself; where there are others, they say which is the original.
    """
    never = next((r.manifest.never for r in reversed(runs) if r.manifest.never), None)
    bases = [r.manifest.base for r in runs if not _beside(r, never)]
    return (bases or [r.manifest.base for r in runs])[-1], never


def _beside(run: Run, never: ModelRecord | None) -> bool:
    """Whether a run is of the model that never knew: its line under an attack, or what was made of it."""
    return never is not None and same_model(run.manifest.base, never)


def _named(names: list[str], store: Store) -> tuple[list[Run], bool]:
    """The runs of these names; and whether a pipeline is among them, which says by itself what belongs to it."""
    found: list[Run] = []
    whole = False
    for name in names:
        if pipeline := pipeline_runs(store, name):
            found, whole = found + pipeline, True
        elif (run := store.find(name)) is not None:
            found.append(run)
        else:
            raise UnavailableError(f"there is no run or pipeline {name!r}.{store.near(name)}", hint="see `ilu runs`")
    return found, whole


def _ancestors(runs: list[Run], by_id: dict[str, Run]) -> set[str]:
    found = set()
    for r in runs:
        while r.manifest.parents and (parent := by_id.get(r.manifest.made_from[0])) is not None:
            found.add(parent.id)
            r = parent
    return found


def _with_descendants(ids: set[str], everything: list[Run]) -> set[str]:
    found = set(ids)
    for r in everything:  # oldest first, so that parents come before children
        if r.manifest.parents and r.manifest.made_from[0] in found:
            found.add(r.id)
    return found


def nodes_of(store: Store, name: str) -> list[dict[str, Any]]:
    """The nodes of a pipeline; none if there is no such pipeline."""
    path = store.root / name / "pipeline.json"
    return json.loads(path.read_text(encoding="utf-8"))["nodes"] if path.is_file() else []


def pipeline_runs(store: Store, name: str) -> list[Run]:
    """The runs of a pipeline's nodes that are done; none if there is no such pipeline."""
    found = [store.find(str(n["run"])) for n in nodes_of(store, name) if n.get("run")]
    return list({r.id: r for r in found if r is not None}.values())


def chosen_models(store: Store, names: list[str]) -> dict[str, str]:
    """The unlearned models that the named pipelines went on with (`RUN`, `RUN@40`), and what each calls its method."""
    nodes = [n for name in names for n in nodes_of(store, name) if n["command"] == "select" and n["needs"]]
    return {Path(n["result"]["subject"]).name: n["tags"]["method"] for n in nodes if n.get("result")}


def gather(names: list[str], store: Store) -> Family:
    """The family of the named runs, read from disk."""
    runs = [r for r in find_runs(names, store) if r.manifest.command in ("unlearn", "taskvec apply", "attack")]
    finished = sorted((r for r in runs if r.complete), key=lambda r: r.manifest.created)
    if not finished:
        raise UnavailableError("none of these runs is finished", hint="continue one with --resume")
    for r in finished:
        r.check("recipe.yaml", "metrics.jsonl", "eval")
    base, never = models_of(finished)
    finished = [r for r in finished if r.id != base.get("id")]  # a taught model is what all began with, and no attack
    original, unknowing = _results(base, "the original", store), _results(never, NEVER, store)
    chosen = chosen_models(store, names)
    attacked = {str(r.manifest.parents[0]["id"]) for r in finished}
    members = [read_member(r, step) for r in finished for step in (None, *map(int, r.manifest.points))]

    def reported(m: Member) -> bool:
        if chosen and m.run.manifest.command == "unlearn":
            return m.id in chosen
        return m.step is None or m.id in attacked

    unfinished = [r for r in runs if not r.complete]
    return Family(base, list(filter(reported, members)), original, unfinished, chosen, never, unknowing)


def _results(model: ModelRecord | None, called: str, store: Store) -> tuple[Path, dict[str, Summary]] | None:
    """What is known of a model beside its attacks, and where."""
    if model is None:
        return None
    if model.get("kind") == "run" and (run := store.find(str(model.get("id")))) is not None:
        return (run.results(None), found) if (found := read_results(run.results(None))) else None
    folder = cache_dir() / "eval" / (model.get("digest") or combined(model.get("weights", {})))[:16]
    ledger.check(folder, f"the results of {called}", "")
    found = read_results(folder)
    return (folder, found) if found else None


def vectors_of(family: Family, store: Store, reporter: Reporter) -> list[Geometry]:
    """Task vectors around every attack whose checkpoints are there; the first seed of each method and attack."""
    from ilu_cli.models.subject import of_run
    from ilu_cli.recipe.schema import TaskvecRecipe
    from ilu_cli.workflows.taskvec import compare as workflow

    found: dict[tuple[str, str], Geometry] = {}
    for a in family.attacks:
        if a.method in ("", NEVER) or not a.run.manifest.weights or (a.method, a.attack) in found:
            continue
        reporter.note(f"task vectors: {a.method}, {a.attack}")
        try:
            v = workflow.run(TaskvecRecipe(plane=True), of_run(a.run), store)
        except IluError as error:
            reporter.note(f"without the task vectors of {a.id}: {error}")
            continue
        groups = {k: g.as_dict()["cosines"] for k, g in v.groups().items() if k == "all" or g.norm("u") > 0}
        found[a.method, a.attack] = {
            "method": a.method,
            "attack": a.attack,
            "run": a.id,
            "points": v.plane["points"] if v.plane else [],
            "groups": groups,
            "verdict": workflow.verdict(v.grams).partition("\n")[0],
        }
    return list(found.values())


def run(
    names: list[str], store: Store, reporter: Reporter, out: Path | None = None
) -> tuple[dict[str, str], list[Warned]]:
    """Write the report.

    Returns:
        The paths of `html`, `markdown` and `figures`; and its warnings.

    Raises:
        UnavailableError: if there is nothing to report.
    """
    family = gather(names, store)
    folder = out or store.root / "reports" / as_name("-".join(names or [family.members[-1].id]))[:120]
    paths = paths_of(folder)
    pictures = Path(paths["figures"])
    pictures.mkdir(parents=True, exist_ok=True)
    vectors = vectors_of(family, store, reporter)

    def draw(figure: Draw, name: str) -> tuple[str, str]:
        return render(figure, name, pictures)

    named, warned = names[0] if len(names) == 1 and pipeline_runs(store, names[0]) else "", all_warnings(family)
    document = build(family, vectors, draw, named, warned)
    write_text(Path(paths["html"]), to_html(document))
    write_text(Path(paths["markdown"]), to_markdown(document, pictures.name))
    return paths, warned
