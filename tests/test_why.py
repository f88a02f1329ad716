"""What docs/why.py computes of runs and their attacks, by hand, and the page that is written from it."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import RMU, Ilu
from safetensors.torch import load_file
from scipy.stats import spearmanr

from ilu_cli.runs.store import Store
from ilu_cli.taskvec.angles import Grams

DOCS = Path(__file__).parent.parent / "docs"
SMALL = [x for kind in ("forget", "retain") for key in ("batch=4", "max_length=24") for x in ("--set", f"{kind}.{key}")]


@pytest.fixture
def why(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(DOCS))
    monkeypatch.delitem(sys.modules, "why", raising=False)
    import why

    return why


def gram(f: list[float], a: list[float]) -> torch.Tensor:
    both = torch.tensor([f, a], dtype=torch.float64)
    return both @ both.T


def test_how_an_attack_lies_to_unlearning_by_hand(why: Any) -> None:
    """τ_f = (3, 4 | 1) and τ_a = (−3, 0 | 2) in two matrices: ⟨τ_a, τ_f⟩ = −9 + 2 = −7, squares 26 and 13.

    By matrix the cosines with −τ_f are 3/5 and −1, weighted by 25 and 1.
    """
    found = why.vectors(Grams(["u", "u→ft"], {"one": gram([3, 4], [-3, 0]), "two": gram([1], [2])}))
    assert found["norm"] == pytest.approx(math.sqrt(26))
    assert found["cosine"] == pytest.approx(7 / math.sqrt(26 * 13))
    assert found["undone"] == pytest.approx(7 / 26)
    assert found["by_matrix"] == pytest.approx((25 * 3 / 5 - 1) / 26)
    still = why.vectors(Grams(["u", "u→ft"], {"one": gram([3, 4], [0, 0])}))
    assert (still["cosine"], still["undone"], still["by_matrix"]) == (None, 0, 0)


def test_what_is_left_on_the_way_by_hand(why: Any) -> None:
    """FQ .8, .8, .4, .2 at 0, .5, .75, 1: of the drop .6 are left 1, 1, 1/3, 0; midway (.5) at .5 + .25 · .3 / .4."""
    ts, fq = [0, 0.5, 0.75, 1], [0.8, 0.8, 0.4, 0.2]
    assert why.area(ts, fq) == pytest.approx(0.5 + 0.25 * (1 + 1 / 3) / 2 + 0.25 / 6)
    assert why.half(ts, fq) == pytest.approx(0.6875)
    assert (why.area([0, 1], [0.8, 0.2]), why.half([0, 1], [0.8, 0.2])) == pytest.approx((0.5, 0.5))
    assert (why.area([0, 1], [0.2, 0.2]), why.half([0, 1], [0.2, 0.3])) == (None, None)


def test_ranks_and_their_orders_by_hand(why: Any) -> None:
    """Of six orders of three values, two have |ρ| = 1; of any of two measures that differ, all but none have 1 or ½."""
    assert why.spearman([1, 5, 7], [2, 3, 9]) == pytest.approx(1)
    assert why.spearman([1, 1, 1], [2, 3, 9]) is None
    x, y = [3.0, 1, 1, 8, 2], [1.0, 0, 2, 9, 9]
    assert why.spearman(x, y) == pytest.approx(float(spearmanr(x, y).statistic))
    found = why.permuted({"up": [1, 5, 7], "mixed": [1, 9, 4], "even": [2, 2, 2]}, [2, 3, 9])
    assert set(found) == {"up", "mixed"}
    assert (found["up"]["rho"], found["up"]["p"]) == pytest.approx((1, 2 / 6))
    assert (found["mixed"]["rho"], found["mixed"]["p"]) == pytest.approx((0.5, 1))
    # |ρ| with `up` and `mixed` over the six orders: (1, ½) (½, 1) (½, ½) (½, ½) (½, 1) (1, ½)
    assert (found["up"]["family"], found["mixed"]["family"]) == pytest.approx((4 / 6, 1))


def test_more_rows_than_are_gone_through_draw_orders(why: Any) -> None:
    rng = np.random.default_rng(1)
    y = rng.standard_normal(12)
    found = why.permuted({"x": (x := y + rng.standard_normal(12))}, y)["x"]
    assert found["p"] == found["family"]
    assert found["p"] == pytest.approx(float(spearmanr(x, y).pvalue), abs=0.02)
    assert found == why.permuted({"x": x}, y)["x"]


def test_rows_without_a_measure_are_left_out_by_name(why: Any) -> None:
    rows = [{"run": c, "recovery": n, "norm": n, "depth": None if c == "b" else -n} for n, c in enumerate("abcd")]
    found = why.together(rows)
    assert (found["n"], found["left_out"]) == (3, ["b"])
    assert {m: c["rho"] for m, c in found["measures"].items()} == pytest.approx({"norm": 1, "depth": -1})


def test_the_tables_of_the_page_are_those_of_what_is_kept(why: Any) -> None:
    text = why.PAGE.read_text(encoding="utf-8")
    assert why.page(text, json.loads(why.KEPT.read_text(encoding="utf-8"))) == text, "run `python docs/why.py page`"


def weights(folder: Path) -> dict[str, Any]:
    return {n: t.double().numpy() for n, t in load_file(folder / "model.safetensors").items()}


@pytest.mark.slow
def test_runs_are_measured_once(why: Any, tiny: Path, ilu: Ilu, tmp_path: Path, monkeypatch: Any) -> None:
    """An unlearning of a tiny model, one attack that keeps weights and one that does not, and a look at the way."""
    assert ilu("unlearn", *RMU, *SMALL, "--model", str(tiny), "--steps", "4").code == 0
    only = ["--no-reference", "--set", "eval.benchmarks=[capitals]", "--set", "eval.limit=4"]
    train = ["--steps", "2", "--set", "attack.batch=2", "--set", "attack.max_length=16", *only]
    for args in (
        ["--kind", "relearn_benign", *train, "--set", "keep=final"],
        ["--task", "elements", *train, "--set", "attack.test_rows=2", "--set", "keep=none"],
        ["--kind", "interpolate", "--set", "attack.ts=[0.5,1.0]", *only],
        ["--kind", "patch", *only],
    ):
        run = next(r for r in Store().runs() if r.manifest.command == "unlearn")
        done = ilu("attack", run.id, *args)
        assert done.code == 0, done.err
    found = {r["kind"]: r for r in why.rows(Store(), [])}
    assert set(found) == {"relearn_benign", "finetune"}
    near, other = found["relearn_benign"], found["finetune"]
    assert other["cosine"] is None and other["norm"] == pytest.approx(near["norm"])
    assert near["recovery"] == near["before"] - near["worst"]
    assert near["depth"] == other["depth"] and near["depth"] is not None

    kept = next(r for r in Store().runs() if r.manifest.result.get("kind") == "relearn_benign")
    o, u, a = (weights(folder) for folder in (tiny, run.checkpoint, kept.checkpoint))
    f, back = (np.concatenate([(p[n] - q[n]).ravel() for n in sorted(o)]) for p, q in ((u, o), (a, u)))
    assert near["norm"] == pytest.approx(np.linalg.norm(f))
    assert near["undone"] == pytest.approx(-(f @ back) / (f @ f), abs=1e-9)
    squares = {n: np.linalg.svd(u[n] - o[n])[1] ** 2 for n in o if o[n].ndim == 2 and (u[n] != o[n]).any()}
    total = sum(s.sum() for s in squares.values())
    assert near["first"] == pytest.approx(sum(s[0] for s in squares.values()) / total, rel=1e-4)

    monkeypatch.setattr(why, "pair", None)  # nothing is measured again
    assert {r["kind"]: r for r in why.rows(Store(), list(found.values()))} == found
