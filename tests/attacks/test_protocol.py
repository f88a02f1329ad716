"""Data disjoint from the environments, what is kept, when training stops, and what a run without a model says."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from conftest import Ilu
from test_every_attack import UNLEARN

from ilu_cli.data.sources import load_dataset
from ilu_cli.recipe.load import validate
from ilu_cli.recipe.refs import DataRef
from ilu_cli.recipe.schema import AttackRecipe
from ilu_cli.recipe.source import Layers
from ilu_cli.runs.results import Point, Summary
from ilu_cli.workflows.attack.protocol import Follow
from ilu_cli.workflows.attack.seen import Regularised, Seen, Written

pytestmark = pytest.mark.slow

SMALL = ["--set", "attack.batch=2", "--set", "eval.limit=4", "--no-reference", "--json"]


def recipe(steps: int, limit: int | None = None) -> Written:
    env = [{"name": "sst2", "limit": limit}]
    return {
        "seed": 0, "train": {"steps": steps}, "forget": {"data": []}, "regularizers": [{"env": env, "batch": 8}],
    }  # fmt: skip


def test_rows_of_an_environment_are_taken_out_of_the_attack() -> None:
    data = load_dataset(DataRef(name="sst2"), "train")
    other, counts, note = Seen([recipe(1)]).without(load_dataset(DataRef(name="qqp"), "train"))
    assert (counts["overlap"], note) == (0, "")
    assert counts["rows"] == len(other.rows)
    some, counts, _ = Seen([recipe(1, limit=100)]).without(data)
    assert some.rows == data.rows[100:]
    assert counts == {"rows": len(data.rows) - 100, "overlap": 100}
    unvisited, counts, note = Seen([recipe(3)]).without(data)  # all rows were the environment's
    assert counts == {"rows": len(data.rows) - 24, "overlap": 24}
    assert len(unvisited.rows) == len(data.rows) - 24
    assert "was an environment" in note
    _, counts, note = Seen([recipe(len(data.rows) // 8 + 1)]).without(data)
    assert counts["overlap"] == len(data.rows)
    assert "NOT on unseen data" in note


def test_the_rows_that_training_drew_are_those_of_its_own_seed() -> None:
    """Drawn here by hand: an epoch's order is a seeded permutation, and a step takes the next eight of it."""
    data = load_dataset(DataRef(name="sst2"), "train")
    for seed in (0, 1):
        key = hashlib.sha256(f"{seed}:sst2:0:0".encode()).digest()
        order = np.random.default_rng(int.from_bytes(key[:8], "big") >> 1).permutation(len(data.rows))
        left, _, _ = Seen([recipe(3) | {"seed": seed}]).without(data)
        assert left.rows == [row for i, row in enumerate(data.rows) if i not in set(order[:24].tolist())]


def test_of_split_texts_any_row_may_have_been_seen() -> None:
    reg: Regularised = {"env": [{"name": "prose", "limit": 40}], "batch": 2, "long": "split"}
    data = load_dataset(DataRef(name="prose", limit=40), "train")
    _, counts, note = Seen([recipe(1) | {"regularizers": [reg]}]).without(data)
    assert counts["overlap"] == 40
    assert "may have seen, all 40 rows" in note


def test_test_rows_of_an_environment_are_taken_out_too(tiny: Path, ilu: Ilu) -> None:
    rows = [{"prompt": f"{i} plus one is", "response": str(i + 1)} for i in range(20)]
    file = Path("sums.jsonl")  # the name draws the rows
    file.write_text("".join(json.dumps(r) + "\n" for r in rows))
    assert ilu(*UNLEARN, "--steps", 6, "--model", tiny, "--irm-env", file, "--irm-batch", 2).code == 0
    done = ilu("attack", "--task", file, "--steps", 1, *SMALL)
    assert done.code == 0, done.err
    found = json.loads(done.out)
    d = found["disjoint"]
    assert (d["rows"] + d["overlap"], d["test_rows"] + d["test_overlap"]) == (16, 4)
    assert d["overlap"] + d["test_overlap"] == 12  # six steps of two rows
    assert found["fa"]["n"] == d["test_rows"] < 4
    assert done.err.count("was an environment of this model") == 2


@pytest.fixture
def unlearned(tiny: Path, ilu: Ilu) -> Path:
    return Path(
        ilu(*UNLEARN, "--model", tiny, "--irm-env", "sst2", "--source", "builtin", "--irm-batch", 2).out.strip()
    )


def test_overlap_is_recorded_and_points_are_kept(unlearned: Path, ilu: Ilu) -> None:
    done = ilu(
        "attack",
        "--task",
        "sst2",
        "--source",
        "builtin",
        "--steps",
        4,
        "--set",
        "attack.test_rows=4",
        "--set",
        "keep=points",
        *SMALL,
    )
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert found["disjoint"]["overlap"] == 4  # two steps of two rows
    run = Path(found["path"])
    assert json.loads((run / "manifest.json").read_text())["result"]["disjoint"] == found["disjoint"]
    assert sorted(p.name for p in (run / "points").iterdir()) == [f"steps-{s:07d}" for s in (1, 2, 4)]
    assert all((p / "model.safetensors").is_file() for p in (run / "points").iterdir())


def test_the_point_before_an_attack_that_is_asked_anew_stays_first_and_keeps_its_utility() -> None:
    """As `rtt` does that goes on: its first point is of other questions than the model's own results."""

    def point(step: int, value: float, *utility: str) -> Point:
        found = {n: Summary(n, "acc", "share", "utility", 0.9, None) for n in utility}
        return Point("steps", step, {"capitals": Summary("capitals", "acc", "share", "forget", value, None), **found})

    known = [point(0, 0.5, "elements"), point(3, 0.6), point(6, 0.7)]
    attack = validate(AttackRecipe, Layers({"command": "attack", "attack": {"name": "rtt"}}))
    follow = Follow(cast(Any, SimpleNamespace(run=None)), attack, known)
    assert list(follow._with(point(0, 0.25)).points) == [point(0, 0.25, "elements"), *known[1:]]
    assert list(follow._with(point(3, 0.8)).points) == [point(0, 0.25, "elements"), known[2], point(3, 0.8)]


def test_a_run_without_a_checkpoint_is_no_model(unlearned: Path, ilu: Ilu) -> None:
    found = json.loads(ilu("attack", "--kind", "prune", *SMALL[2:]).out)
    refused = ilu("eval", found["run"], "--limit", 4)
    assert refused.code == 3
    assert "kept no checkpoint" in refused.err
    latest = ilu("eval", "--limit", 4, "--json")
    assert json.loads(latest.out)["run"] == unlearned.name
    wrong = ilu("attack", "--kind", "fewshot", "--set", "keep=final")
    assert wrong.code == 2
    assert "changes no weights" in wrong.err


def test_training_stops_when_the_task_has_settled(unlearned: Path, ilu: Ilu, tmp_path: Path) -> None:
    rows = [{"prompt": f"{i} plus one is", "response": str(i + 1)} for i in range(10)]
    (tmp_path / "sums.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    done = ilu("attack", "--task", tmp_path / "sums.jsonl", "--steps", 400, "--lr", 1e-7,
               "--set", "attack.stop=plateau", *SMALL)  # fmt: skip
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert [p["steps"] for p in found["points"]] == [0, 4, 8, 12, 16]  # four epochs of eight rows, all with the same FA
    assert found["marks"] == [4, 8, 16]
    assert found["fa"]["n"] == 2


def test_an_adapter_is_trained_and_kept(unlearned: Path, ilu: Ilu) -> None:
    done = ilu("attack", "--kind", "relearn", "--set", "attack.k=4", "--set", "attack.lora.r=2", *SMALL)
    assert done.code == 0, done.err
    assert (Path(json.loads(done.out)["path"]) / "checkpoint" / "adapter_config.json").is_file()
    assert ilu("eval", "--limit", 4).code == 0


def test_relearning_without_a_lineage_asks_for_the_forget_data(tiny: Path, ilu: Ilu) -> None:
    refused = ilu("attack", tiny, "--kind", "relearn")
    assert refused.code == 2
    assert "attack.data" in refused.err
