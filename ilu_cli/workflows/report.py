"""`ilu report`: gather a family of runs, and write what they show."""

from __future__ import annotations

import json
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
from ilu_cli.runs.files import cache_dir, combined, same_model, write_text
from ilu_cli.runs.lineage import reference_lines
from ilu_cli.runs.results import read_results
from ilu_cli.runs.store import Run, Store


def find_runs(names: list[str], store: Store) -> list[Run]:
    """The runs that a report is about: those named with their ancestors, descendants and reference lines; a
    pipeline's; or without a name the latest run's whole family.

    Raises:
        UnavailableError: if there is no such run.
        UsageError: if the named runs do not go back to one original.
    """
    everything = store.runs()
    if not names:
        newest = store.latest(lambda r: r.complete, "finished run")
        return [r for r in everything if same_model(r.manifest.base, newest.manifest.base)]
    named, whole = _named(names, store)
    base = named[0].manifest.base
    if not all(same_model(r.manifest.base, base) for r in named):
        raise UsageError("the runs go back to different original models", hint="make one report for each")
    by_id = {r.id: r for r in [*everything, *named]}
    wanted = {r.id for r in named} | _ancestors(named, by_id)
    if not whole:
        wanted = _with_descendants(wanted, everything)
    attacks = [by_id[i].manifest for i in wanted if by_id[i].manifest.command == "attack"]
    wanted |= {r.id for m in attacks for r in reference_lines(m, base, everything)}
    return [r for r in by_id.values() if r.id in wanted]


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
    base = finished[-1].manifest.base
    folder = cache_dir() / "eval" / (base.get("digest") or combined(base.get("weights", {})))[:16]
    ledger.check(folder, "the results of the original", "")
    results = read_results(folder)
    original = (folder, results) if results else None
    chosen = chosen_models(store, names)
    attacked = {str(r.manifest.parents[0]["id"]) for r in finished}
    members = [read_member(r, step) for r in finished for step in (None, *map(int, r.manifest.points))]

    def reported(m: Member) -> bool:
        if chosen and m.run.manifest.command == "unlearn":
            return m.id in chosen
        return m.step is None or m.id in attacked

    return Family(base, list(filter(reported, members)), original, [r for r in runs if not r.complete], chosen)


def vectors_of(family: Family, store: Store, reporter: Reporter) -> list[Geometry]:
    """Task vectors around every attack whose checkpoints are there; the first seed of each method and attack."""
    from ilu_cli.models.subject import of_run
    from ilu_cli.recipe.schema import TaskvecRecipe
    from ilu_cli.workflows.taskvec import compare as workflow

    found: dict[tuple[str, str], Geometry] = {}
    for a in family.attacks:
        if a.method == "" or not a.run.manifest.weights or (a.method, a.attack) in found:
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
