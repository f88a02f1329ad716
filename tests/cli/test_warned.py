"""Warnings as a user meets them: in the terminal, in JSON, in the manifest, in the report, and as an error."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import Ilu

from ilu_cli.care import KINDS
from ilu_cli.data.sources import load_dataset
from ilu_cli.recipe.refs import DataRef
from ilu_cli.workflows.warned import unmatched

pytestmark = pytest.mark.slow

UNLEARN = ["unlearn", "--method", "npo", "--steps", 2, "--set", "forget.batch=2", "--set", "retain.batch=2", "--set",
           "forget.max_length=24", "--set", "retain.max_length=24"]  # fmt: skip
ATTACK = ["attack", "--no-reference", "--json", "--steps", 12, "--set", "attack.batch=2", "--set", "eval.limit=4"]


def ids(found: Any) -> set[str]:
    return {w["id"] for w in found}


def file_of(path: str, texts: list[str]) -> Path:
    Path(path).write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
    return Path(path)


def facts(n: int, start: int = 0) -> list[str]:
    rows = load_dataset(DataRef(name="capitals"), "train").rows
    return [row["text"] for row in rows[start : start + n]]


PROSE = [f"Line {i} of a text about nothing that anyone would want to forget." for i in range(12)]


def test_an_environment_with_forget_rows_is_refused_by_name(tiny: Path, ilu: Ilu) -> None:
    env = file_of("mine.jsonl", [*PROSE, f"By the way: {facts(1)[0].upper()}"])
    refused = ilu(*UNLEARN, "--model", tiny, "--irm-env", env, "--dry-run")
    assert refused.code == 2
    assert (
        "1 of 1700 rows of the forget data capitals (row 1) is in the environment data mine.jsonl (row 13)"
        in refused.err
    )
    assert facts(1)[0][:20] in refused.err
    assert "hint:  remove the rows" in refused.err
    assert ilu(*UNLEARN, "--model", tiny, "--irm-env", file_of("mine.jsonl", PROSE), "--dry-run").code == 0


def test_some_forget_rows_among_the_retained_are_told_and_half_are_refused(tiny: Path, ilu: Ilu) -> None:
    some = file_of("some.jsonl", [*PROSE, *facts(2)])
    done = ilu(*UNLEARN, "--model", tiny, "--set", f"retain.data={some}", "--json")
    assert done.code == 0, done.err
    result = json.loads(done.out)["result"]
    assert ids(result["warnings"]) == {"rows-overlap"}
    counts = {(o["of"], o["in"]): o["rows"] for o in result["content"]["overlap"]}
    assert counts == {
        ("forget data capitals", "retain data some.jsonl"): 2,
        ("retain data some.jsonl", "forget data capitals"): 2,
    }
    assert "[rows-overlap]" in done.err
    refused = ilu(*UNLEARN, "--model", tiny, "--set", f"retain.data={file_of('half.jsonl', facts(6) + PROSE[:6])}")
    assert refused.code == 2
    assert "What is retained cannot be forgotten" in refused.err


def test_a_training_that_changes_nothing_is_an_error_with_strict_and_lost_without(tiny: Path, ilu: Ilu) -> None:
    still = [*UNLEARN, "--model", tiny, "--lr", 1e-30]
    done = ilu(*still)
    assert done.code == 0
    assert "[weights-unchanged]" in done.err
    assert KINDS["weights-unchanged"].remedy in done.err
    strict = ilu(*still, "--strict")
    assert strict.code == 4
    assert "weights-unchanged; results are kept" in strict.err
    manifest = json.loads((Path(strict.out.strip()) / "manifest.json").read_text())
    assert manifest["status"] == "complete"
    assert ids(manifest["result"]["warnings"]) == {"weights-unchanged"}
    report = ilu("report", "--json")
    told = json.loads(report.out)
    assert "weights-unchanged" in ids(told["warnings"])
    assert f"(weights-unchanged: {KINDS['weights-unchanged'].remedy})" in Path(told["markdown"]).read_text()
    assert ilu("report", "--strict").code == 4
    assert ilu("runs", "verify", "--all").code == 0


def test_a_sound_run_passes_strict(tiny: Path, ilu: Ilu) -> None:
    env = ["--irm-env", "sst2", "--source", "builtin", "--irm-batch", 2, "--irm-weight", "share:0.5"]
    done = ilu(*UNLEARN, "--model", tiny, *env, "--strict", "--json")
    assert done.code == 0, done.err
    result = json.loads(done.out)["result"]
    assert result["warnings"] == []
    assert set(result["temperature"]["sst2"]) == {"before", "after", "stderr"}
    assert {(r["role"], r["name"]) for r in result["content"]["rows"]} == {
        ("forget", "capitals"), ("retain", "elements"), ("retain", "prose"), ("environment", "sst2")
    }  # fmt: skip
    assert not any(o["rows"] for o in result["content"]["overlap"])


def test_eval_tells_what_the_original_never_knew(tiny: Path, ilu: Ilu) -> None:
    ilu(*UNLEARN, "--model", tiny)
    run = ["eval", "--bench", "capitals", "--limit", 40]
    done = ilu(*run, "--json", "--require", "capitals.acc >= 0")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert "benchmark-at-chance" in ids(found["warnings"])
    strict = ilu(*run, "--require", "capitals.acc >= 0", "--strict")
    assert strict.code == 4
    assert "[benchmark-at-chance]" in strict.err
    stored = json.loads((Path("runs") / found["run"] / "eval/warnings.json").read_text())
    assert ids(stored["warnings"]) == ids(found["warnings"])
    assert {o["in"] for o in stored["content"]["overlap"]} == {"retain data elements", "retain data prose"}
    assert not any(o["rows"] for o in stored["content"]["overlap"])
    assert ilu("runs", "verify", "--all").code == 0
    shown = ilu("runs", "show", found["run"])
    assert shown.code == 0, shown.err
    assert "eval       capitals (forget): acc" in shown.out
    assert "[benchmark-at-chance]" in shown.out
    kept = json.loads(ilu("runs", "show", found["run"], "--json").out)
    assert [*kept["eval"]] == ["capitals"]
    assert ids(kept["warnings"]) == ids(found["warnings"])


def test_eval_tells_of_questions_that_were_trained_on(tiny: Path, ilu: Ilu) -> None:
    known = file_of("known.jsonl", [*PROSE, "The chemical symbol for hydrogen is H"])
    ilu(*UNLEARN, "--model", tiny, "--set", f"retain.data={known}")
    found = json.loads(ilu("eval", "--bench", "elements", "--limit", 4, "--json").out)
    told = [w["text"] for w in found["warnings"] if w["id"] == "rows-overlap"]
    assert len(told) == 1
    assert "1 of 4 rows of the benchmark data elements (row 1) is in the retain data known.jsonl (row 13)" in told[0]


def test_what_an_attack_trains_on_is_compared_with_what_was_forgotten(tiny: Path, ilu: Ilu) -> None:
    done = ilu(*UNLEARN, "--model", tiny)
    assert done.code == 0, done.err
    mixed = file_of("mixed.jsonl", [*PROSE, *facts(3)])
    found = json.loads(ilu(*ATTACK, "--task", mixed).out)
    assert "rows-overlap" in ids(found["warnings"])
    refused = ilu(*ATTACK, "--kind", "relearn_benign", "--set", f"attack.text={mixed}", "--dry-run")
    assert refused.code == 2
    assert "of the attack data mixed.jsonl" in refused.err
    taught = ilu(
        "attack", "--kind", "relearn", "--no-reference", "--json", "--set", "attack.k=4", "--set", "eval.limit=4"
    )
    found = json.loads(taught.out)
    assert "rows-overlap" not in ids(found["warnings"])
    assert {"of": "attack data capitals", "in": "forget data capitals", "rows": 4, "of_rows": 4} in found["content"][
        "overlap"
    ]


def test_an_attack_that_learns_nothing(tiny: Path, ilu: Ilu) -> None:
    ilu(*UNLEARN, "--model", tiny)
    still = [*ATTACK, "--task", "sst2", "--source", "builtin", "--lr", 1e-30, "--set", "attack.test_rows=40"]
    found = json.loads(ilu(*still).out)
    assert {"weights-unchanged", "attack-learned-nothing"} <= ids(found["warnings"])
    assert 0.5 <= found["fa"]["chance"] < 1
    assert ilu(*still, "--strict").code == 4
    learned = json.loads(
        ilu(
            *ATTACK, "--task", "sst2", "--source", "builtin", "--lr", 0.01, "--steps", 30, "--set", "attack.test_rows=4"
        ).out
    )
    assert not ids(learned["warnings"]) & {"weights-unchanged", "attack-learned-nothing"}


@pytest.mark.parametrize(
    ("low", "high", "fires"), [(-0.2, -0.1, True), (-0.2, 0.1, False), (0.01, 0.04, False), (0.01, 0.06, True)]
)
def test_arms_of_other_utility_are_not_compared_in_silence(low: float, high: float, fires: bool) -> None:
    gap: Any = {"name": "elements.acc", "role": "utility", "sign": 1, "low": low, "high": high, "difference": low}
    found = list(unmatched([{"a": "A", "b": "B", "numbers": [gap], "sentence": ""}], 0.05))
    assert [w.id for w in found] == ["utility-unmatched"] * fires


def test_the_list_of_warnings_is_declared(ilu: Ilu) -> None:
    assert set(json.loads(ilu("list", "warnings", "--json").out)["warnings"]) == set(KINDS)
