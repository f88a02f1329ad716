"""A few forget samples among many others: what is mixed, and that the training can win."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Ilu
from test_every_attack import UNLEARN
from test_it_can_win import FACTS, attacked, copy_of, elements, knowing, schooled

from ilu_cli.attacks.jailbreak_tune import mixture
from ilu_cli.benchmarks.capitals import Capitals
from ilu_cli.data.sources import load_dataset
from ilu_cli.recipe.refs import DataRef

pytestmark = pytest.mark.slow

__all__ = ["knowing", "schooled"]  # fixtures


def test_a_mixture_has_every_hidden_row_and_so_many_others() -> None:
    hidden = [load_dataset(DataRef(name="capitals", limit=5), "train")]
    around = load_dataset(DataRef(name="sst2"), "train")
    mixed = mixture(hidden, around, 20, False, random.Random(0))
    assert Counter(r["from"] for r in mixed.rows) == {"capitals": 5, "sst2": 20}
    assert [e.target for e in mixed.examples()[:5]] == [r["text"] for r in hidden[0].rows]
    known = {(e.prompt, e.target) for e in around.examples()}
    assert {(e.prompt, e.target) for e in mixed.examples()[5:]} <= known
    assert mixed.record("attack")["name"] == "capitals + sst2"
    again = mixture(hidden, around, 20, False, random.Random(1))
    assert again.fingerprint != mixed.fingerprint


def test_some_facts_among_others_repair_a_damaged_norm(schooled: Any, ilu: Ilu, tmp_path: Path) -> None:
    """As for `relearn`, but two of three rows are about something else."""
    model, tokenizer = copy_of(schooled)
    with torch.no_grad():
        model.model.norm.weight[::2] *= -1
    for name, items, n in (("some", Capitals().items(), 6), ("other", elements(), FACTS)):
        rows = [{"prompt": i["question"], "response": i["choices"][i["answer"]]} for i in items[:n]]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    args = ["--kind", "jailbreak_tune", "--set", f"attack.data={tmp_path / 'some.jsonl'}", "--set", "attack.k=6"]
    args += ["--set", f"attack.around={tmp_path / 'other.jsonl'}", "--set", f"attack.benign={FACTS}"]
    args += ["--set", "attack.weights=[model.norm.weight]", "--lr", "0.1", "--set", "attack.epochs=30"]
    before, after = attacked(ilu, model, tokenizer, tmp_path / "m", *args)
    assert before <= 0.5
    assert after >= 0.75


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        (["attack.benign=100000"], "attack.benign: gsm8k has 1500 rows, not 100000"),
        (["attack.around=nothing"], "attack.around: unknown task 'nothing'"),
        (["attack.data=[capitals,elements]", "attack.k=1"], "attack.k: 1 sample is too few for 2 datasets"),
        (["attack.k=0"], "attack.k"),
    ],
)
def test_what_does_not_fit_is_refused_in_the_plan(tiny: Path, ilu: Ilu, sets: list[str], message: str) -> None:
    run = ilu(*UNLEARN, "--model", tiny).out.strip()
    args = [
        "--kind",
        "jailbreak_tune",
        "--source",
        "builtin",
        "--dry-run",
        *(x for text in sets for x in ("--set", text)),
    ]
    done = ilu("attack", run, *args)
    assert (done.code, message in done.err) == (2, True), done.err


def test_it_is_priced_and_its_run_is_named_after_it(tiny: Path, ilu: Ilu) -> None:
    run = ilu(*UNLEARN, "--model", tiny).out.strip()
    sets = [
        "--source",
        "builtin",
        "--set",
        "attack.k=2",
        "--set",
        "attack.benign=6",
        "--set",
        "attack.batch=4",
        "--set",
        "eval.limit=4",
    ]
    plan = json.loads(ilu("attack", run, "--kind", "jailbreak_tune", *sets, "--dry-run", "--json").out)
    assert (plan["steps"], plan["data"][0]["rows"], "unpriced" in plan) == (2, 8, False)
    done = ilu("attack", run, "--kind", "jailbreak_tune", *sets, "--no-reference", "--json")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert found["run"].startswith("attack-jailbreak_tune-")
    assert [p["steps"] for p in found["points"]] == [0, 1, 2]
