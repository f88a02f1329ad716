"""The sections of a report, from a family of runs. What a run lacks is left out, and said how to add."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

import ilu_cli
from ilu_cli.care import Warned
from ilu_cli.recipe.yaml_text import write_yaml
from ilu_cli.report import figures
from ilu_cli.report.canvas import MOST, Render
from ilu_cli.report.document import Block, Code, Document, Notes, Picture, Section, Table, Text
from ilu_cli.report.family import Family, Member
from ilu_cli.report.figures import REFERENCE, UNKNOWING, Look, Panel, Series, looks
from ilu_cli.report.headline import headline, pairs
from ilu_cli.report.numbers import Estimate
from ilu_cli.report.outcomes import returned, traded
from ilu_cli.report.warnings import all_data, all_warnings
from ilu_cli.runs.lineage import NEVER

if TYPE_CHECKING:
    from ilu_cli.taskvec.plane import Placed

TERMS = {"forget": "objective", "retain": "retain"}  # the terms of a step, and the parts of the recipe that they are
TREE = 40  # runs that the lineage shows one by one


class Geometry(TypedDict):
    """The task vectors around one attack: models in their plane, cosines by group of weights, and what they say."""

    run: str
    method: str
    attack: str
    points: list[Placed]
    groups: dict[str, dict[str, float | None]]
    verdict: str


def build(
    family: Family, vectors: list[Geometry], render: Render, named: str, warned: Sequence[Warned] | None = None
) -> Document:
    """The whole report."""
    styles = looks(family.methods)
    made = max((m.run.manifest.finished or "" for m in family.members), default="")
    count = f"{len(family.members)} runs on {family.original_name}"
    meta = f"ilu {ilu_cli.__version__} · {count} · latest {made[:16].replace('T', ' ')} UTC"
    title = f"{_listed(family.methods) or 'Fine-tuning'} on {family.original_name}"
    document = Document(f"{named or 'Unlearning report'}: {title}", headline(family), meta)
    warned = all_warnings(family) if warned is None else warned
    told = [f"{w.text} ({w.id}: {w.remedy})" for w in warned]
    sections = [
        Section("Read this with care", [Notes(told, warning=True)] if warned else []),
        Section("What was done", done(family, styles, render)),
        Section("What is forgotten, and what it costs", traded(family, styles, render)),
        Section("What comes back", returned(family, styles, render)),
        Section("Training", training(family, styles, render)),
        Section("Why: task vectors", explained(vectors, render)),
        Section("What is missing, and how to add it", [Notes(m)] if (m := missing(family, vectors)) else []),
        Section("Recipes and data", provenance(family)),
    ]
    document.sections = [s for s in sections if s.blocks]
    return document


def _listed(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _counted(n: int, what: str) -> str:
    return f"{n} {what} was" if n == 1 else f"{n} {what}s were"


def done(family: Family, styles: dict[str, Look], render: Render) -> list[Block]:
    """A sentence and the lineage."""
    methods = ", ".join(f"`{m}`" for m in family.methods)
    unlearned = _counted(len(family.unlearned), "model")
    said = f"From `{family.original_name}`, {unlearned} unlearned ({methods})" if methods else (
        f"Nothing was unlearned from `{family.original_name}` yet")  # fmt: skip
    attacks = ", ".join(f"`{a}`" for a in family.attack_names)
    said += f", and {_counted(len(family.attacks), 'attack')} run ({attacks})." if attacks else "."
    rows: list[tuple[int, int | None, str, str, Look]] = [(0, None, family.original_name, "the original", REFERENCE)]
    attacked = Counter(a.parent for a in family.attacks)
    whole = len(family.members) <= TREE

    def add(parent: str, depth: int, row: int, never: bool = False) -> None:
        for m in family.members if whole else family.unlearned:
            known = any(m.parent == other.id for other in family.members)
            if m.parent == parent or (depth == 1 and not known and never == (m.method == NEVER)):
                look = styles.get(m.method, UNKNOWING if never else REFERENCE)
                what = f"{m.attack if m.is_attack else m.method}, seed {m.seed}"
                rows.append((depth, row, m.id, what if whole else f"{what}, {attacked[m.id]} attacks", look))
                add(m.id, depth + 1, len(rows) - 1)

    add("", 1, 0)
    if family.never:
        rows.append((0, None, str(family.never.get("id", "")), NEVER, UNKNOWING))
        add("", 1, len(rows) - 1, never=True)
    if len(rows) == 1:
        return [Text(said)]
    drawn = render(functools.partial(figures.tree, rows), "lineage")
    what = "run" if whole else "unlearned model"
    caption = f"Every {what} under what it started from. Colours and marks stand for the same methods in all figures."
    return [Text(said), Picture("lineage", "Lineage", caption, *drawn)]


def training(family: Family, styles: dict[str, Look], render: Render) -> list[Block]:
    """Loss terms, and D for each environment."""
    terms: dict[tuple[str, str], list[Series]] = {}
    gaps: dict[str, list[Series]] = {}
    for m in _trained(family):
        names = {key: str((m.recipe.get(part) or {}).get("name", "")) for key, part in TERMS.items()}
        for key in m.steps[0] if m.steps else {}:
            line = _line(m, key, styles[m.method])
            if key in names:
                terms.setdefault((key, f"{key}: {names[key]}"), []).append(line)
            elif key.startswith("D["):
                gaps.setdefault(key[2:-1], []).append(line)
    losses = [Panel(label, "step", "loss", series) for (_, label), series in sorted(terms.items())]
    invariance = [Panel(env, "step", f"D[{env}]", s, {"": 0.0}) for env, s in sorted(gaps.items())]
    blocks: list[Block] = []
    if losses:
        svgs = render(functools.partial(figures.curves, losses[:MOST]), "losses")
        caption = (
            "Each loss term without its weight: pale every step, dark the running median. A forget term says how far "
            "the method went by its own measure; whether it forgot is said by the benchmarks above."
        )
        blocks.append(Picture("losses", "Loss terms", caption, *svgs))
    if invariance:
        svgs = render(functools.partial(figures.curves, invariance[:MOST]), "invariance")
        caption = (
            "D = NLL − entropy is what the invariance penalty squares. At 0 the penalty is met, but flatter or sharper "
            "logits alone meet it too: it is evidence of invariance only if the environment's NLL fell with it."
        )
        blocks.append(Picture("invariance", "Invariance gap D of each environment", caption, *svgs))
    return blocks


def _line(m: Member, key: str, look: Look) -> Series:
    """What a run logged under a name, over its steps."""
    there = [s for s in m.steps if key in s]
    return Series(m.method, look, [float(s["step"]) for s in there], [Estimate(float(s[key])) for s in there])


def _trained(family: Family) -> list[Member]:
    """The unlearning runs, one of each that stands there at several steps."""
    first: dict[int, Member] = {}
    for m in family.unlearned:
        first.setdefault(id(m.run), m)
    return list(first.values())


def explained(vectors: list[Geometry], render: Render) -> list[Block]:
    """The plane and the cosines by layer."""
    return [*_planes(vectors, render), *_cosines(vectors, render)]


def _planes(vectors: list[Geometry], render: Render) -> list[Block]:
    drawn = [(f"{v['method']}, {v['attack']}", v["points"]) for v in vectors if len(v["points"]) > 2][:MOST]
    if not drawn:
        return []
    svgs = render(functools.partial(figures.plane, drawn), "plane")
    ends = [[p["explained"] for p in v["points"] if p["role"] == "attacked"] for v in vectors]
    least = min((e[-1] for e in ends if e and e[-1] is not None), default=None)
    inside = "" if least is None else f" The plane holds at least {least:.0%} of the squared length from θo to θu,ft."
    caption = (
        "θo original, θu unlearned, θft the original fine-tuned, θu,ft the unlearned fine-tuned. If the arrow from "
        "θu points back to the left, fine-tuning undoes unlearning; if it runs beside that from θo to θft, it does "
        f"not.{inside}"
    )
    return [Picture("plane", "Where fine-tuning goes", caption, *svgs)]


def _cosines(vectors: list[Geometry], render: Render) -> Iterator[Block]:
    for number, v in enumerate(vectors[:MOST], 1):
        if not v["groups"]:
            continue
        names = list(v["groups"])
        pairs_ = list(v["groups"]["all"])
        cells = [[v["groups"][g][p] for p in pairs_] for g in names]
        columns = [p.replace("·", " · ") for p in pairs_]
        svgs = render(functools.partial(figures.heat, names, columns, cells, figures.COSINE), f"cosines-{number}")
        caption = (
            "Cosines between task vectors, for all weights and for the layers that unlearning changed. Orange in "
            f"u · u→ft would be fine-tuning that walks back. {v['verdict']}."
        )
        title = f"Cosines by layer: {v['method']}, {v['attack']}"
        yield Picture(f"cosines-{number}", title, caption, *svgs)


def missing(family: Family, vectors: list[Geometry]) -> list[str]:
    """What would be in a report of this family, and the command that adds it."""
    found = []
    attacked = {a.parent for a in family.attacks}
    for m in family.unlearned:
        if m.id not in attacked:
            found.append(f"`{m.method}` was not attacked: `ilu attack {m.id} --task sst2`")
        if not m.results:
            found.append(f"`{m.method}` was not evaluated: `ilu eval {m.id}`")
        if not any(k.startswith("D[") for k in (m.steps[0] if m.steps else {})):
            plain = not m.recipe.get("regularizers")
            paired = any(base == m.method for _, base in pairs(family))
            if plain and not (paired and len(family.methods) > 1):
                found.append(f"no invariance gap D: `ilu unlearn --recipe {m.run.path}/recipe.yaml --irm-env gsm8k`")
    if family.attacks and not vectors:
        found.append("no task vectors: `ilu attack` with its checkpoints kept, then `ilu report` again")
    found += [f"{r.id} is unfinished and left out: `{r.resume_command}`" for r in family.unfinished]
    return found


def provenance(family: Family) -> list[Block]:
    """Data with sources and fingerprints, recipes, versions."""
    records: dict[str, list[str]] = {}
    for d in all_data(family):
        row = [str(d["name"]), str(d["source"]), str(d.get("rows", "–")), f"`{str(d['fingerprint'])[:12]}`"]
        records.setdefault(row[3], row)
    by_recipe: dict[str, list[Member]] = {}
    for m in family.members:
        by_recipe.setdefault(m.key(), []).append(m)
    blocks: list[Block] = [Table(["data", "source", "rows", "sha256"], list(records.values()), words=True)]
    for same in by_recipe.values():
        text = write_yaml(same[0].recipe)
        seeds = ", ".join(map(str, sorted({m.seed for m in same})))
        more = "" if len(same) == 1 else f" and {len(same) - 1} more (seeds {seeds})"
        runs = "".join(f"# {m.id}\n" for m in same) if more else ""
        title = f"{same[0].id}{more}: sha256 `{same[0].run.manifest.recipe_sha256[:12]}`"
        blocks.append(Code(title, runs + text, "yaml"))
    versions = family.members[-1].run.manifest.versions if family.members else {}
    blocks.append(Text("Versions: " + ", ".join(f"{k} {v}" for k, v in versions.items()) + "."))
    return blocks


def paths_of(folder: Path) -> dict[str, str]:
    """The files of a report."""
    found = {"html": folder / "report.html", "markdown": folder / "report.md", "figures": folder / "figures"}
    return {k: str(v) for k, v in found.items()}
