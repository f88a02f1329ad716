"""A vector that moves the states of a layer is added, and taken back by the vector of the difference of means."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Ilu
from test_it_can_win import knowing, misdirected
from test_mixing_can_win import accuracy, unlearned

from ilu_cli import registry
from ilu_cli.attacks.steer import added

pytestmark = pytest.mark.slow

__all__ = ["knowing"]  # a fixture


@pytest.fixture(scope="module")
def moved() -> Any:
    """The model that knows, with one coordinate of the middle layer moved as far as RMU would."""
    return misdirected()


def test_what_was_added_is_taken_back(knowing: Any, moved: Any, ilu: Ilu, tmp_path: Path) -> None:
    found = accuracy(ilu, unlearned(knowing, tmp_path, moved), "--kind", "steer", "--set", "attack.scales=[0.5,1.0]")
    assert found[0.0] <= 0.5
    assert found[1.0] >= 0.9


def test_without_the_original_another_text_shows_where_the_model_is_not_moved(
    knowing: Any, moved: Any, ilu: Ilu, tmp_path: Path
) -> None:
    """The texts of the contrast are of tokens that were never moved; here the model itself undoes part of it."""
    rows = [{"text": t["text"]} for t in registry.task["elements"].obj().builtin("train")[:40]]
    (tmp_path / "other.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    run = unlearned(knowing, tmp_path, moved)
    args = ["--set", f"attack.contrast={tmp_path / 'other.jsonl'}", "--set", "attack.layers=[1]"]
    args += ["--set", "eval.benchmarks=[capitals]", "--set", "eval.limit=2", "--no-reference", "--json"]
    done = ilu("attack", run.id, "--kind", "steer", *args, "--set", "attack.scales=[-1.0,1.0]")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert [p["scale"] for p in found["points"]] == [0.0, -1.0, 1.0]
    assert [d["name"] for d in found["data"]] == ["capitals", str(tmp_path / "other.jsonl")]


def test_the_vector_is_added_at_every_token() -> None:
    hidden = torch.arange(12.0).view(1, 4, 3)
    assert added(hidden, torch.tensor([1.0, 0.0, -1.0])).tolist() == (hidden + torch.tensor([1.0, 0, -1])).tolist()


@pytest.mark.parametrize(
    ("sets", "code", "message"),
    [
        (["attack.contrast=nothing"], 2, "attack.contrast: unknown task 'nothing'"),
        (["attack.scales=[]"], 2, "attack.scales: list should have at least 1 item"),
        (["attack.data=capitals", "attack.layers=[9]"], 2, "attack.layers: 9 does not exist"),
    ],
)
def test_what_does_not_fit_is_refused_in_the_plan(
    tiny: Path, ilu: Ilu, sets: list[str], code: int, message: str
) -> None:
    done = ilu("attack", tiny, "--kind", "steer", "--dry-run", *(x for text in sets for x in ("--set", text)))
    assert (done.code, message in done.err) == (code, True), done.err
