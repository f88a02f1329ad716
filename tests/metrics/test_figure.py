"""What a collapsed model scores is infinite: never an error, never a NaN, and no JSON that others cannot read."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import Ilu, present
from families import family_model, family_tokenizer

from ilu_cli.benchmarks import perplexity
from ilu_cli.benchmarks.coherence import Coherence
from ilu_cli.care.measured import collapsed
from ilu_cli.errors import UnavailableError
from ilu_cli.harness.task import HarnessTask
from ilu_cli.metrics.figure import number, shown, strict, value_of
from ilu_cli.recipe.requirement import parse
from ilu_cli.report.numbers import of_runs, of_seeds, of_summary
from ilu_cli.report.points import Reading, Source
from ilu_cli.runs.card import _results
from ilu_cli.runs.files import write_json
from ilu_cli.runs.results import Summary
from ilu_cli.workflows.pipeline.figures import interval
from ilu_cli.workflows.pipeline.table import utility
from ilu_cli.workflows.pipeline.worker import nearest

LOST = [{"value": 8000.0, "weight": 10}, {"value": 9000.0, "weight": 10}]  # e^850 is beyond a double
FINE = [{"value": 20.0, "weight": 10}, {"value": 30.0, "weight": 10}]


def summary(rows: list[dict[str, Any]]) -> Summary:
    return Summary.read({"metric": "word_perplexity", "role": "utility", "n": 2, "benchmark": "prose",
                         **number(*perplexity(rows)), "data": {"source": "builtin"}})  # fmt: skip


def test_a_perplexity_and_its_error_by_hand() -> None:
    value, error = perplexity(FINE)
    assert value == pytest.approx(math.exp(50 / 20))
    # ratio 2.5; residuals 20 − 25 and 30 − 25; Σ² n/(n−1) = 100, over Σ weight
    assert error == pytest.approx(math.exp(2.5) * 10 / 20)
    assert perplexity([FINE[0]])[0] == pytest.approx(math.exp(2))
    assert math.isnan(perplexity([FINE[0]])[1])


def test_beyond_a_double_it_is_infinite_and_json_says_null() -> None:
    value, error = perplexity(LOST)
    assert math.isinf(value)
    assert math.isnan(error)
    kept = number(value, error)
    assert kept == {"value": None, "stderr": None, "infinite": True}
    assert value_of(kept) == math.inf
    assert value_of(number(2.0, math.nan)) == 2.0
    assert number(1e300, math.inf) == {"value": 1e300, "stderr": None}
    edge = perplexity([{"value": 7097.0, "weight": 10}, {"value": 7097.0, "weight": 10}])
    assert edge[0] == pytest.approx(math.exp(709.7))
    assert json.loads(json.dumps(strict({"a": [math.inf, 1.5, -math.inf]}), allow_nan=False)) == {
        "a": [None, 1.5, None]
    }
    with pytest.raises(ValueError, match="not JSON compliant"):
        json.dumps(strict(math.nan), allow_nan=False)
    assert (shown(math.inf), shown(12.3456), shown(4.5e250)) == ("∞", "12.346", "4.5e+250")


def test_lm_evals_own_aggregates_are_infinite_too() -> None:
    task = HarnessTask("x")
    task.metric, task.measure = "perplexity", "perplexity,none"
    rows = [{"metrics": {"perplexity,none": -900.0}}]

    def of(name: str) -> tuple[float, float]:
        from lm_eval.api.metrics import perplexity as theirs
        from lm_eval.api.metrics import weighted_perplexity

        found = {"perplexity": theirs, "word_perplexity": weighted_perplexity}[name]
        task.metric = name
        task.__dict__["tasks"] = {"x": SimpleNamespace(aggregation=lambda: {name: found})}
        return task.summarise(rows if name == "perplexity" else LOST)

    assert [of(n)[0] for n in ("perplexity", "word_perplexity")] == [math.inf, math.inf]
    rows[0]["metrics"]["perplexity,none"] = -2.0
    assert of("perplexity")[0] == pytest.approx(math.exp(2))


def test_coherence_tells_the_perplexity_of_a_collapsed_model() -> None:
    rows = [{"metric": "ppl", **r} for r in LOST] + [{"metric": "original_ppl", **r} for r in FINE]
    also = Coherence().also(rows)
    assert also["ppl"]["infinite"]
    assert also["original_ppl"]["value"] == pytest.approx(math.exp(2.5))


@pytest.mark.parametrize(
    ("text", "passed"),
    [
        ("prose.ppl <= 300", False),
        ("prose.ppl < 300 * original", False),
        ("prose.ppl >= 300", True),
        ("prose.ppl - prose.ppl <= 1", False),
        ("prose.ppl <= prose.ppl", False),
        ("0 * prose.ppl <= 1", False),
    ],
)
def test_requirements_on_an_infinite_number(text: str, passed: bool) -> None:
    found = parse(text, {"prose": ["ppl"]}).check(lambda n: 50.0 if n.stage else math.inf)
    assert found["passed"] is passed


def test_intervals_warnings_tables_and_matching_know_infinity(tmp_path: Path) -> None:
    lost, fine = summary(LOST), summary(FINE)
    assert (of_summary(lost).value, of_summary(lost).low, of_summary(lost).high) == (math.inf, None, None)
    assert of_runs([lost, fine]) == of_seeds([math.inf, 1.0])
    assert (of_runs([lost, fine]).value, of_runs([lost, fine]).low) == (math.inf, None)
    points = [Reading(0, [Source(s, tmp_path, (seed,)) for seed in (0, 1)]) for s in (lost, fine)]
    assert points[0].minus(points[1]) is None
    assert "a perplexity of ∞, the original with 12.2" in present(collapsed("It", lost, fine)).text
    assert collapsed("It", fine, lost) is None
    assert interval([math.inf, 2.0], [0.1]) == {
        "mean": None, "low": None, "high": None, "values": [None, 2.0], "error": None,
        "how": "none: infinite for 1 of 2 seeds"
    }  # fmt: skip
    models = [{"weights": {"w": w}, "eval": {"prose": s.to_json()}} for w, s in (("a", lost), ("b", fine))]
    write_json(tmp_path / "x.json", utility(models))
    assert "| ∞ | – | 2 |" in _results({"prose": lost})
    assert nearest({5: fine, 10: lost}, 20.0) == 5
    with pytest.raises(UnavailableError, match="utility of all steps"):
        nearest({5: lost, 10: lost}, 20.0)


def test_a_collapsed_model_is_evaluated_and_fails_its_requirement(ilu: Ilu, tmp_path: Path) -> None:
    model = family_model("llama")
    with torch.no_grad():
        model.lm_head.weight.mul_(1e4)
    model.save_pretrained(tmp_path / "m")
    family_tokenizer().save_pretrained(tmp_path / "m")
    args = ["eval", tmp_path / "m", "--bench", "prose", "--limit", 2, "--require", "prose.word_perplexity <= 300"]
    done = ilu(*args, "--json")
    assert done.code == 4, done.err
    found = json.loads(done.out, parse_constant=lambda x: pytest.fail(f"{x} is not JSON"))
    assert found["results"]["prose"] | {"value": None, "stderr": None, "infinite": True} == found["results"]["prose"]
    assert found["requirements"][0]["passed"] is False
    done = ilu(*args)
    assert done.code == 4
    assert "∞" in done.out
    assert "1 of 1 requirements failed: prose.word_perplexity <= 300" in done.err


def test_a_finite_number_is_kept_with_its_error_if_that_is_known() -> None:
    assert number(0.5, 0.25) == {"value": 0.5, "stderr": 0.25}
    assert number(0.5, math.nan) == {"value": 0.5, "stderr": None}
    assert [shown(v) for v in (999_999.5, 1e6, -1e6, -2.5)] == ["999999.500", "1e+06", "-1e+06", "-2.500"]
