"""Requirements of `ilu eval`: verdicts, exit codes, and errors before a model is loaded."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import Ilu

LIMIT = ("--limit", 8)


def test_requirements_pass_or_fail_with_code_4(ilu: Ilu, tiny: Path) -> None:
    held = ilu(
        "eval", tiny, *LIMIT, "--json", "--require", "capitals.acc <= 1", "--require", "elements.acc >= chance - 1"
    )
    assert held.code == 0, held.err
    failed = ilu("eval", tiny, *LIMIT, "--require", "capitals.acc <= 1", "--require", "prose.word_perplexity < 1")
    assert failed.code == 4
    assert "1 of 2 requirements failed: prose.word_perplexity < 1" in failed.err
    assert "FAILED" in failed.out
    found = ilu("eval", tiny, *LIMIT, "--require", "capitals.acc < 0 - 1", "--json")
    assert found.code == 4
    data = json.loads(found.out)  # one object, with the results
    verdict = data["requirements"][0]
    assert (verdict["passed"], verdict["right"]) == (False, -1)
    assert verdict["values"]["capitals.acc"] == data["results"]["capitals"]["value"] == verdict["left"]


def test_a_requirement_selects_its_benchmark(ilu: Ilu, tiny: Path) -> None:
    found = ilu("eval", tiny, *LIMIT, "--bench", "capitals", "--require", "elements.acc.stderr < 1", "--json")
    assert found.code == 0, found.err
    assert list(json.loads(found.out)["results"]) == ["capitals", "elements"]


def test_requirements_compare_with_the_lineage(ilu: Ilu, tiny: Path) -> None:
    made = ilu("unlearn", "--method", "grad_ascent", "--model", tiny, "--steps", 2, "--set", "forget.batch=2",
               "--set", "forget.max_length=16", "--set", "train.lr=1e-9")  # fmt: skip
    assert made.code == 0, made.err
    require = "--require", "capitals.acc >= 0.99 * parent", "--require", "capitals.acc >= original - 0.01"
    found = ilu("eval", *LIMIT, "--bench", "capitals", *require, "--json")
    assert found.code == 0, found.err
    assert all("of parent" in str(v) or "of original" in str(v) for v in json.loads(found.out)["requirements"])
    assert ilu("eval", *LIMIT, "--alone", *require).code == 2
    refused = ilu("eval", tiny, *LIMIT, *require)
    assert (refused.code, "is no run and has none" in refused.err) == (2, True)


@pytest.mark.parametrize("flag", [True, False])
def test_a_wrong_requirement_is_refused_at_once(ilu: Ilu, flag: bool) -> None:
    if flag:
        args = ("--require", "capitls.acc < 1")
    else:
        Path("gate.yaml").write_text("command: eval\neval:\n  require:\n    - capitls.acc < 1\n")
        args = ("--recipe", "gate.yaml")
    refused = ilu("eval", "there-is-no-such-model", *args)
    assert refused.code == 2
    assert "character 1: unknown benchmark 'capitls'. Did you mean 'capitals'?" in refused.err
    assert flag or "gate.yaml:4" in refused.err


def test_an_attack_has_no_requirements(ilu: Ilu) -> None:
    refused = ilu("attack", "--set", "eval.require=[capitals.acc < 1]")
    assert (refused.code, "unknown key" in refused.err) == (2, True)
