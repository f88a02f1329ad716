"""`ilu compare`: which arm forgets more, at what utility, with intervals over seeds and samples."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypedDict

import numpy as np

from ilu_cli.benchmarks import by_metric
from ilu_cli.care import once
from ilu_cli.care.kept import kept
from ilu_cli.engine.reporter import Reporter
from ilu_cli.errors import UsageError
from ilu_cli.metrics.crossed import Rows, compare
from ilu_cli.models.subject import of_run
from ilu_cli.recipe.schema import EvalRecipe
from ilu_cli.runs.results import AttackResult, Row, own_rows, read_rows, rows_file
from ilu_cli.runs.store import Run, split_step
from ilu_cli.workflows.attack.seen import unlearning_recipes
from ilu_cli.workflows.evaluate import Evaluation, results_folder
from ilu_cli.workflows.settle import fitting, forgotten_by
from ilu_cli.workflows.warned import unmatched


@dataclass(frozen=True)
class Arm:
    """Runs of one recipe that differ in their seeds."""

    label: str
    runs: list[Run]


@dataclass(frozen=True)
class Measured:
    """One number on every run of an arm. `sign` is 1 if a good run has a high value, −1 if a low one, 0 if unsaid."""

    name: str
    role: str
    sign: int
    relative: bool
    rows: list[Rows]


class Gap(TypedDict):
    """Arm b against arm a in one number: `difference` = b − a, of a `relative` one b / a − 1, with its interval."""

    name: str
    role: str
    sign: int
    relative: bool
    a: float | None
    b: float | None
    difference: float | None
    low: float | None
    high: float | None
    p: float | None
    freedom: float | None
    n: int
    paired: bool


class Comparison(TypedDict):
    """Two arms by their labels, in all their numbers and in words."""

    a: str
    b: str
    numbers: list[Gap]
    sentence: str


class Described(TypedDict):
    """An arm as JSON."""

    label: str
    runs: list[str]
    seeds: list[int]


class Compared(TypedDict):
    """What `ilu compare --json` prints."""

    arms: list[Described]
    comparisons: list[Comparison]
    margin: float
    warnings: list[Row]


def arms_of(runs: Sequence[Run], others: Sequence[Run]) -> list[Arm]:
    """Two arms as given, or without `others` the runs grouped by recipe, its seed left out, and by original model.

    Raises:
        UsageError: if a run stands twice, or there is only one arm.
    """
    ids = [str(r.path.resolve()) for r in (*runs, *others)]
    if len(set(ids)) < len(ids):
        raise UsageError("a run is named twice")
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault("" if others else _identity(run), []).append(run)
    found = [*groups.values(), *([list(others)] if others else [])]
    if len(found) < 2:
        hint = "name runs of two recipes, or part them yourself: ilu compare A1 A2 --with B1 B2"
        raise UsageError("these runs have one recipe and are one arm", hint=hint)
    labels = [group[0].manifest.label for group in found]
    return [
        Arm(label if labels.count(label) == 1 and label else group[0].id, group) for label, group in zip(labels, found)
    ]


def _identity(run: Run) -> str:
    recipe = run.recipe()
    recipe.pop("seed", None)
    if run.manifest.command == "attack":  # seeds of the unlearning count as seeds too
        recipe["parent"] = run.manifest.parents[0]["id"] if run.manifest.parents[0]["kind"] != "run" else _parent(run)
    return json.dumps([recipe, run.manifest.base.get("weights")], sort_keys=True, default=str)


def _parent(run: Run) -> str:
    from ilu_cli.models.subject import from_record

    record = run.manifest.parents[0]
    parent, (_, step) = from_record(record, run).run, split_step(record["id"])
    return record["id"] if parent is None else _identity(parent) + ("" if step is None else f"@{step}")


def run(recipe: EvalRecipe, arms: list[Arm], margin: float, reporter: Reporter) -> Compared:
    """Evaluate what is missing, and compare every arm with the first.

    Args:
        margin: how far utility may differ and still count as the same, in the metric's unit or relative.
    """
    forgotten = [d for arm in arms for r in arm.runs for d in forgotten_by(unlearning_recipes(of_run(r)))]
    evaluation = Evaluation(fitting(recipe.eval, forgotten), reporter)
    measured = [_measure(evaluation, arm) for arm in arms]
    comparisons: list[Comparison] = []
    for arm, numbers in zip(arms[1:], measured[1:]):
        theirs = {m.name: m for m in numbers}
        rows = [_compared(a, theirs[a.name]) for a in measured[0] if a.name in theirs]
        said = sentence(arms[0].label, arm.label, rows, margin, min(len(arms[0].runs), len(arm.runs)))
        comparisons.append({"a": arms[0].label, "b": arm.label, "numbers": rows, "sentence": said})
    described: list[Described] = [
        {"label": a.label, "runs": [r.id for r in a.runs], "seeds": [r.manifest.seed for r in a.runs]} for a in arms
    ]
    told = once([*kept(r for a in arms for r in a.runs), *unmatched(comparisons, margin)])
    warnings = [w.to_json() for w in told]
    return {"arms": described, "comparisons": comparisons, "margin": margin, "warnings": warnings}


def _measure(evaluation: Evaluation, arm: Arm) -> list[Measured]:
    """All numbers that are means over rows, and RA if the runs are attacks, as far as every run of the arm has them."""
    known: dict[str, Measured] = {}
    for run in arm.runs:
        run.check("eval")
        for m in (*_of_summaries(run, evaluation), *_resilience(run, evaluation)):
            known[m.name] = replace(m, rows=[*(known[m.name].rows if m.name in known else []), *m.rows])
    for m in known.values():
        if len(m.rows) < len(arm.runs):
            why = "some runs have no such number" if m.rows else "it is no mean of its rows"
            evaluation.reporter.note(f"{m.name} of {arm.label} is not compared: {why}")
    return [m for m in known.values() if len(m.rows) == len(arm.runs)]


def _of_summaries(run: Run, evaluation: Evaluation) -> Iterator[Measured]:
    """The numbers of a run's results and those beside them; one that is no mean of its rows comes without rows."""
    subject = of_run(run)
    for name, summary in evaluation.subject(subject).items():
        rows = read_rows(rows_file(results_folder(subject), name), needed=True)
        good = (1 if evaluation.benchmarks[name].up else -1) * (-1 if summary.role == "forget" else 1)
        for metric, group in by_metric(rows).items():
            number = summary.also[metric] if metric else summary
            relative = number.kind == "loss"
            mine = _rows(group, summary.data["fingerprint"], number.kind == "share")
            same = math.isclose(_shown(mine.estimate, relative), number.value, rel_tol=1e-6, abs_tol=1e-9)
            sign = 0 if metric else good
            yield Measured(f"{name}.{metric or summary.metric}", summary.role, sign, relative, [mine] if same else [])


def _shown(estimate: float, relative: bool) -> float:
    """A perplexity is the exponential of its rows' ratio, that of a collapsed model infinite."""
    with np.errstate(over="ignore"):
        return float(np.exp(estimate)) if relative else estimate


def _rows(rows: list[Row], items: str, share: bool) -> Rows:
    values, weights = ([r.get(key, 1) for r in rows] for key in ("value", "weight"))
    return Rows(f"{items}:{len(rows)}", np.array(values, float), np.array(weights, float), share)


def _resilience(run: Run, evaluation: Evaluation) -> Iterator[Measured]:
    """RA of an attack per question: 1 − the mean of `value` over the marks that RA is defined by."""
    if run.manifest.command != "attack":
        return
    result = AttackResult.read(run.manifest.result)
    for name, bench in evaluation.benchmarks.items():
        points = [p for p in result.points if p.strength in result.marks and name in p.eval]
        if bench.role != "forget" or bench.kind != "share" or not points or len(points) < len(result.marks):
            continue
        files = [rows_file(run.eval / p.name, name) for p in points]
        values = np.array([[r["value"] for r in own_rows(read_rows(f, needed=True))] for f in files])
        asked = [p.eval[name].data["fingerprint"] for p in points]
        items = f"RA:{'+'.join(asked)}:{values.shape[1]}"
        rows = Rows(items, 1 - values.mean(0), np.ones(values.shape[1]), True)
        yield Measured(f"{name}.RA", "robust", 1, False, [rows])


@np.errstate(over="ignore")  # so may a change of perplexity be
def _compared(a: Measured, b: Measured) -> Gap:
    """Arm b against arm a. A perplexity's difference is that of its logarithm, shown as a relative change.

    Raises:
        UsageError: if runs of one arm answered different questions.
    """
    try:
        d = compare(a.rows, b.rows)
    except ValueError as error:
        hint = "attack and evaluate all of them with the same eval.limit and benchmarks"
        raise UsageError(f"{a.name}: {error}", hint=hint) from error
    values = [float(np.mean([r.estimate for r in m.rows])) for m in (a, b)]
    found = [np.expm1(x) if a.relative and x is not None else x for x in (d.value, d.low, d.high)]
    difference, low, high = map(_finite, found)
    return {
        "name": a.name, "role": a.role, "sign": a.sign, "relative": a.relative,
        "a": _finite(_shown(values[0], a.relative)), "b": _finite(_shown(values[1], a.relative)),
        "difference": difference, "low": low, "high": high, "p": d.p, "freedom": _finite(d.freedom),
        "n": len(a.rows[0].values), "paired": a.rows[0].items == b.rows[0].items,
    }  # fmt: skip


def _finite(value: float | None) -> float | None:
    """JSON knows no infinity."""
    return None if value is None or not np.isfinite(value) else float(value)


def sentence(a: str, b: str, rows: list[Gap], margin: float, seeds: int) -> str:
    """What the numbers say, in words: each forget benchmark, each RA, then utility."""
    parts = []
    for r in rows:
        if r["role"] not in ("forget", "robust") or not r["sign"]:
            continue
        verb = "forgets more than" if r["role"] == "forget" else "keeps more forgotten under attack than"
        parts.append(_clause(a, b, r, verb))
    utility = [r for r in rows if r["role"] == "utility" and r["sign"]]
    tail = "" if seeds > 1 else "; one seed, so nothing is said of others"
    return "; ".join([*parts, _utility(b, utility, margin)]) + tail


def _clause(a: str, b: str, r: Gap, verb: str) -> str:
    """`A forgets more than B on capitals.acc: +0.11 [0.06, 0.16], p<0.01`, the winner first."""
    if (known := _gain(r)) is None:
        return f"nothing can be said of {r['name']}: its difference has no interval"
    better, low, high = known
    if low <= 0 <= high:
        return f"no difference seen between {b} and {a} on {r['name']}: {_interval(r)}, {_p(r['p'])}"
    first, second, sign = (b, a, r["sign"]) if better > 0 else (a, b, -r["sign"])
    return f"{first} {verb} {second} on {r['name']}: {_interval(r, sign)}, {_p(r['p'])}"


def _gain(r: Gap) -> tuple[float, float, float] | None:
    """The difference with its interval, positive where b is better; None without an interval."""
    if r["difference"] is None or r["low"] is None or r["high"] is None:
        return None
    low, high = sorted((r["sign"] * r["low"], r["sign"] * r["high"]))
    return r["sign"] * r["difference"], low, high


def _interval(r: Gap, sign: int = 1) -> str:
    """The difference as the table has it, of a perplexity in percent; or times `sign`."""
    value, *ends = (sign * (x or 0.0) for x in (r["difference"], r["low"], r["high"]))
    form = "{:+.1%} [{:.1%}, {:.1%}]" if r["relative"] else "{:+.2f} [{:.2f}, {:.2f}]"
    return form.format(value, *sorted(ends))


def _p(p: float | None) -> str:
    if p is None:
        return "p not known"
    return "p<0.001" if p < 0.001 else "p<0.01" if p < 0.01 else f"p={p:.2f}"


def _utility(b: str, rows: list[Gap], margin: float) -> str:
    """The same if every interval lies within the margin; else what is lower, higher or open."""
    if not rows:
        return "utility was not measured"
    said = []
    for r in rows:
        if (known := _gain(r)) is None:
            said.append(f"utility not settled ({r['name']} has no interval)")
            continue
        _, low, high = known
        if -margin <= low and high <= margin:
            continue
        word = f"higher utility of {b}" if low > 0 else f"lower utility of {b}" if high < 0 else "utility not settled"
        said.append(f"{word} ({r['name']} {_interval(r)})")
    return ", ".join(said) if said else "same utility"
