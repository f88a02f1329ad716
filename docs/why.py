"""Why does a method hold? Measure unlearned runs and their attacks, and how each measure goes with what came back.

    ILU_RUNS=folder python docs/why.py          # docs/study/why.json, and the tables of docs/why.md
    python docs/why.py page                     # the tables alone, from docs/study/why.json

Every finished attack by training on an unlearned run is a row; what needs its weights is left out if it kept none. An
`interpolate` and a `patch` of the same run add what they found. Pairs of checkpoints that are in the file already, by
their hashes, are not measured again, so that it may be stopped at any time. `docs/why.sh` makes such runs.
"""

from __future__ import annotations

import itertools
import json
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import rankdata

from ilu_cli import registry
from ilu_cli.data.sampling import seed_of
from ilu_cli.models.names import stored_layer
from ilu_cli.models.subject import of_run
from ilu_cli.runs.files import write_json
from ilu_cli.runs.results import AttackResult
from ilu_cli.runs.store import Run, Store
from ilu_cli.taskvec.angles import Gram, Grams, measure
from ilu_cli.taskvec.delta import Checkpoint, common_names, open_checkpoint
from ilu_cli.taskvec.stream import Difference
from ilu_cli.taskvec.subspace import Overlap, by_layer, effective_rank, overlap, spectrum
from ilu_cli.workflows.taskvec.roles import UNLEARNS, find_roles

HERE = Path(__file__).parent
KEPT, PAGE = HERE / "study" / "why.json", HERE / "why.md"
BEGIN, END = "<!-- what docs/why.py wrote -->\n", "<!-- so far -->\n"
KEY = ("unlearned", "attacked", "attack")  # hashes of both checkpoints, and of the attack's recipe
DIRECTIONS = 8
EXACT, DRAWN = 8, 20_000  # rows up to which all permutations are gone through; else so many are drawn
MEASURES = {  # key → (column, digits, what it is), those that are known before the attack first
    "before": ("FQ before", 3, "FQ before the attack"),
    "norm": ("‖τ_f‖", 2, "length of what unlearning added"),
    "first": ("σ₁²", 3, "share of ‖τ_f‖² in the first singular direction of each matrix"),
    "rank": ("rank", 1, "effective rank of τ_f, mean over matrices weighted by ‖τ_f‖²"),
    "depth": ("depth", 3, "`patch`: FQ of the original with the unlearned model's states, mean over layers"),
    "area": ("area", 3, "`interpolate`: forgetting that is left on the way to the original, mean over the way"),
    "half": ("half", 3, "`interpolate`: t at which half has come back"),
    "cosine": ("cos", 4, "cos(τ_a, −τ_f)"),
    "by_matrix": ("cos by matrix", 4, "mean over matrices of cos(τ_a, −τ_f), weighted by ‖τ_f‖²"),
    "undone": ("undone", 4, "share of ‖τ_f‖ that the attack undoes, −⟨τ_a, τ_f⟩ / ‖τ_f‖²"),
    "energy": ("energy", 4, "share of ‖τ_a‖² inside the first 8 directions of τ_f, left and right"),
    "spans": ("spans", 3, "mean cos² of the principal angles between the first 8 left directions of τ_a and τ_f"),
}


# What a pair of task vectors is


def vectors(grams: Grams) -> dict[str, float | None]:
    """How τ_a (`u→ft`) lies to τ_f (`u`), from their inner products by weight."""
    total, f, a = grams.total(), "u", "u→ft"
    square = total.inner(f, f)
    found = {"norm": total.norm(f), "cosine": _minus(total.cosine(f, a)), "undone": -total.inner(f, a) / square}
    parts = [Gram(grams.names, g) for g in grams.by_weight.values()]
    cosines = [(g.inner(f, f), g.cosine(f, a)) for g in parts]
    return found | {"by_matrix": _minus(mean([(w, c or 0.0) for w, c in cosines]))}  # what is not moved is not undone


def _minus(x: float | None) -> float | None:
    return None if x is None else -x


def mean(weighted: Sequence[tuple[float, float]]) -> float | None:
    """Σ wx / Σw of pairs (w, x); None without weight."""
    total = sum(w for w, _ in weighted)
    return sum(w * x for w, x in weighted) / total if total else None


def spans(found: Sequence[Overlap]) -> float | None:
    """φ = ‖U_aᵀU_f‖²/min(k_a, k_f) (arXiv 2106.09685, eq. 4) = mean cos² of the angles, over matrices by ‖τ_f‖²."""
    squares = [(o.norm_u**2, [math.cos(math.radians(x)) ** 2 for x in o.angles]) for o in found]
    return mean([(w, sum(c) / len(c)) for w, c in squares if c])


def shapes(
    checkpoints: tuple[Checkpoint, Checkpoint], attacked: Checkpoint | None, names: Sequence[str]
) -> dict[str, float | None]:
    """Ranks of τ_f by matrix of the decoder's layers, and how much of τ_a lies in its directions."""
    firsts, ranks, both = [], [], []
    original, unlearned = checkpoints
    for name in names:
        f = Difference.of(original.weight(name), unlearned.weight(name))
        if len(original.shape(name)) != 2 or stored_layer(name) is None:
            continue
        sizes = spectrum(f)
        if (rank := effective_rank(sizes)) is None:
            continue
        square = float(sizes @ sizes)
        firsts.append((square, float(sizes[0]) ** 2 / square))
        ranks.append((square, rank))
        a = Difference.of(unlearned.weight(name), attacked.weight(name)) if attacked else None
        if a is not None and (a.dense or a.low_rank) and (one := overlap(name, f, a, DIRECTIONS, 0)):
            both.append(one)
    found = {"first": mean(firsts), "rank": mean(ranks)}
    whole = by_layer(both)["all"] if both else None
    return found | {
        "energy": whole.both if whole else None,
        "chance": whole.chance[2] if whole else None,
        "spans": spans(both),
    }


# What a way between weights, and what its layers hold


def area(ts: Sequence[float], fq: Sequence[float]) -> float | None:
    """∫ (FQ(t) − FQ(1)) / (FQ(0) − FQ(1)) dt by trapezes, t from 0, unlearned, to 1, the original; None if FQ is even.

    1: all forgetting is left until the end, ½: it goes in proportion, 0: the first step undoes it.
    """
    drop = fq[0] - fq[-1]
    return float(np.trapezoid([(y - fq[-1]) / drop for y in fq], ts)) if drop > 0 else None


def half(ts: Sequence[float], fq: Sequence[float]) -> float | None:
    """The first t at which FQ is midway between its ends, linear between points; None if it never falls."""
    middle = (fq[0] + fq[-1]) / 2
    if fq[0] <= fq[-1]:
        return None
    for (t, y), (t1, y1) in itertools.pairwise(zip(ts, fq)):
        if y >= middle > y1 or (y > middle >= y1):
            return t + (t1 - t) * (y - middle) / (y - y1)
    return None


def barrier(result: AttackResult) -> dict[str, float | None]:
    """Of an `interpolate` that went up to the original."""
    at = {f.strength: f.value for f in result.fq}
    ts = sorted(at)
    if not ts or (ts[0], ts[-1]) != (0.0, 1.0):
        return {"area": None, "half": None}
    fq = [at[t] for t in ts]
    return {"area": area(ts, fq), "half": half(ts, fq)}


# The runs


def rows(store: Store, known: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """A row for each attack by training on an unlearned run; measured now if `known` has none of these checkpoints."""
    runs = [r for r in store.runs() if r.complete]
    unlearned = {r.id: r for r in runs if r.manifest.command in UNLEARNS}
    attacks = [r for r in runs if r.manifest.command == "attack" and r.manifest.parents[0]["id"] in unlearned]
    for run in attacks:
        kind = run.manifest.result["kind"]
        if registry.attack[kind].declared.access != "training":
            continue
        parent = unlearned[run.manifest.parents[0]["id"]]
        key = dict(zip(KEY, (parent.manifest.digest, run.manifest.digest, run.manifest.recipe_sha256)))
        found = next((r for r in known if key_of(r) == key_of(key)), None)
        if found is None:
            print(f"measuring {run.id}", file=sys.stderr, flush=True)
            found = {"run": parent.id, "seed": parent.manifest.seed, "kind": kind, **key, **pair(run, store)}
        looked = [r for r in attacks if r.manifest.parents[0]["id"] == parent.id]
        yield found | returned(run) | looks(looked)


def key_of(row: dict[str, Any]) -> tuple[Any, ...]:
    """What tells a row from all others."""
    return tuple(row[k] for k in KEY)


def returned(run: Run) -> dict[str, float]:
    """What an attack brought back: FQ before − the lowest FQ after."""
    result = AttackResult.read(run.manifest.result)
    before = next(f.value for f in result.fq if f.strength == result.unattacked)
    worst = min(f.value for f in result.fq if f.strength != result.unattacked)
    return {"before": before, "worst": worst, "recovery": before - worst}


def looks(attacks: Sequence[Run]) -> dict[str, float | None]:
    """What the newest `interpolate` and `patch` on a run found."""
    newest = {r.manifest.result["kind"]: AttackResult.read(r.manifest.result) for r in attacks}
    depth = newest["patch"].ra if "patch" in newest else None
    way = barrier(newest["interpolate"]) if "interpolate" in newest else {"area": None, "half": None}
    return {"depth": depth, **way}


def pair(run: Run, store: Store) -> dict[str, float | None]:
    """What is measured on the checkpoints of an attack, of its subject and of the original."""
    parent = next(r for r in store.runs() if r.id == run.manifest.parents[0]["id"])
    roles = find_roles(of_run(run if run.manifest.weights else parent), store).by_name
    original, unlearned = (open_checkpoint(roles[name]) for name in ("original", "unlearned"))
    attacked = open_checkpoint(roles["attacked"]) if run.manifest.weights else None
    opened = {"original": original, "unlearned": unlearned} | ({"attacked": attacked} if attacked else {})
    names = common_names(list(opened.values()), None)
    ends = {"u": ("original", "unlearned")}
    found: dict[str, float | None]
    if attacked:
        found = vectors(measure(opened, ends | {"u→ft": ("unlearned", "attacked")}, names))
    else:
        found = {
            "norm": measure(opened, ends, names).total().norm("u"),
            "cosine": None,
            "undone": None,
            "by_matrix": None,
        }
    return found | shapes((original, unlearned), attacked, names)


# How measures go together


def spearman(x: Sequence[float], y: Sequence[float]) -> float | None:
    """The rank correlation, ties at their mean rank; None if one of the two is the same everywhere."""
    a, b = (rankdata(v) - (len(v) + 1) / 2 for v in (x, y))
    size = math.sqrt(float(a @ a) * float(b @ b))
    return float(a @ b) / size if size else None


def permuted(x: dict[str, Sequence[float]], y: Sequence[float]) -> dict[str, dict[str, float]]:
    """By measure ρ with y; p, the share of orders of y whose |ρ| is as large; and `family`, the same of any measure's.

    All orders up to `EXACT` rows, else `DRAWN` of them and the one that is. `family` is Westfall and Young's max-T: p
    that counts how many measures were looked at. Measures that are the same everywhere are left out.
    """
    real = {name: rho for name, v in x.items() if (rho := spearman(v, y)) is not None}
    if not real:
        return {}
    n = len(y)
    ranks = np.array([rankdata(x[name]) - (n + 1) / 2 for name in real])
    ranks /= np.linalg.norm(ranks, axis=1, keepdims=True)
    target = rankdata(y) - (n + 1) / 2
    target /= np.linalg.norm(target)
    if n <= EXACT:
        orders = np.array(list(itertools.permutations(range(n))))
    else:
        rng = np.random.default_rng(seed_of(0, "why"))
        orders = np.array([np.arange(n), *(rng.permutation(n) for _ in range(DRAWN))])
    found = np.abs(target[orders] @ ranks.T) + 1e-12  # [orders, measures]
    largest = found.max(1)
    return {
        name: {
            "rho": rho,
            "p": float((found[:, i] >= abs(rho)).mean()),
            "family": float((largest >= abs(rho)).mean()),
        }
        for i, (name, rho) in enumerate(real.items())
    }


def together(found: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Of the rows of one attack that have all measures which any of them has: n and the correlations with recovery."""
    some = [m for m in MEASURES if any(r.get(m) is not None for r in found)]
    whole = [r for r in found if all(r.get(m) is not None for m in some)]
    correlations = permuted({m: [r[m] for r in whole] for m in some}, [r["recovery"] for r in whole]) if whole else {}
    return {"n": len(whole), "left_out": [r["run"] for r in found if r not in whole], "measures": correlations}


# The page


def tables(kept: dict[str, Any]) -> str:
    """The rows and the correlations of each attack."""
    out = []
    for kind in sorted({r["kind"] for r in kept["rows"]}):
        found = sorted((r for r in kept["rows"] if r["kind"] == kind), key=lambda r: r["recovery"])
        out += [f"\n### `{kind}`\n"]
        out += ["| run | " + " | ".join(c for c, _, _ in MEASURES.values()) + " | worst FQ | recovery |"]
        out += ["|---" * (len(MEASURES) + 3) + "|"]
        for r in found:
            cells = [shown(r.get(m), digits) for m, (_, digits, _) in MEASURES.items()]
            out += [f"| {r['run']} | {' | '.join(cells)} | {r['worst']:.3f} | {r['recovery']:.3f} |"]
        known = kept["correlations"][kind]
        if not known["measures"]:
            out += [f"\nn = {known['n']}: too few runs for a correlation."]
            continue
        out += [f"\nWith recovery, over n = {known['n']} runs:\n", "| | ρ | p | p of any |", "|---|---|---|---|"]
        for m, c in known["measures"].items():
            out += [f"| {MEASURES[m][0]}: {MEASURES[m][2]} | {c['rho']:+.2f} | {c['p']:.3f} | {c['family']:.3f} |"]
        if known["left_out"]:
            out += [f"\nWithout a measure, and so left out: {', '.join(known['left_out'])}."]
    return "\n".join(out) + "\n"


def shown(x: float | None, digits: int) -> str:
    """A number of a table."""
    return "" if x is None else f"{x:.{digits}f}"


def page(text: str, kept: dict[str, Any]) -> str:
    """The page with these tables in place of those that it has."""
    head, _, rest = text.partition(BEGIN)
    return head + BEGIN + tables(kept) + END + rest.partition(END)[2]


def main(find: Callable[[], Store] = Store) -> None:
    kept = json.loads(KEPT.read_text(encoding="utf-8")) if KEPT.is_file() else {"rows": []}
    if sys.argv[1:] != ["page"]:
        found, known = [], kept["rows"]
        for row in rows(find(), known):
            found.append(row)
            kept["rows"] = [*found, *(r for r in known if key_of(r) not in map(key_of, found))]
            write_json(KEPT, kept)
        kept["rows"] = found
        kinds = {r["kind"] for r in found}
        kept["correlations"] = {k: together([r for r in found if r["kind"] == k]) for k in sorted(kinds)}
        write_json(KEPT, kept)
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8"), kept), encoding="utf-8")


if __name__ == "__main__":
    main()
