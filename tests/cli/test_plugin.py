"""A newcomer's exercise: an objective in a file outside the package."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import Ilu
from test_chain import SMALL

from ilu_cli import registry

METHOD = '''\
"""Bounded gradient ascent, as a newcomer might write it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import PositiveFloat

from ilu_cli.registry import objective

if TYPE_CHECKING:
    from torch import Tensor

    from ilu_cli.engine.view import View


@objective(needs="logps", per="sequence")
def bounded_ascent(forget: View, *, ceiling: PositiveFloat = 20.0) -> Tensor:
    """Raise the forget loss to a ceiling and no further.

    Returns:
        [B], the distance of each sequence's NLL from the ceiling.
    """
    return (ceiling - forget.nll).clamp(min=0)
'''


ATTACK = '''\
from ilu_cli.attacks import fine_tune
from ilu_cli.recipe.refs import DataRef
from ilu_cli.recipe.specs import Form, TrainSpec
from ilu_cli.registry import attack


@attack(strength="steps", access="training", unattacked=0)
def on_questions(attempt, *, steps: int = 1):
    """Fine-tune on as many rows as there are questions of the benchmark."""
    from ilu_cli.data.sources import load_dataset

    count = sum(map(len, attempt.questions().values()))
    data = load_dataset(DataRef(name="sst2", limit=count), "train")
    yield from fine_tune(attempt, [attempt.admit(data)], None, TrainSpec(steps=steps), 2, Form())
'''


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget what the plugins of this test registered."""
    for known in (registry.objective, registry.attack):
        len(known)
        monkeypatch.setattr(known, "_entries", dict(known._entries))


def test_an_objective_of_25_lines_outside_the_package_is_listed_and_trains(
    tiny: Path, ilu: Ilu, tmp_path: Path
) -> None:
    assert len(METHOD.splitlines()) <= 25
    plugin = tmp_path / "bounded_ascent.py"
    plugin.write_text(METHOD)
    listed = ilu("list", "methods", "--plugin", plugin)
    assert "bounded_ascent" in listed.out
    assert "Raise the forget loss to a ceiling" in listed.out
    done = ilu("unlearn", "--plugin", plugin, "--method", "bounded_ascent", *SMALL, "--model", tiny, "--steps", 12,
               "--lr", 1e-2, "--set", "objective.ceiling=400.0")  # fmt: skip
    assert done.code == 0, done.err
    steps = [json.loads(x) for x in (Path(done.out.strip()) / "metrics.jsonl").read_text().splitlines()]
    assert steps[-1]["forget"] < steps[0]["forget"]
    wrong = ilu("unlearn", "--plugin", plugin, "--method", "bounded_ascent", "--set", "objective.cieling=3.0")
    assert wrong.code == 2
    assert "Did you mean 'ceiling'?" in wrong.err


def test_an_attack_that_asks_for_more_than_its_data_runs_and_has_no_price(tiny: Path, ilu: Ilu, tmp_path: Path) -> None:
    (tmp_path / "on_questions.py").write_text(ATTACK)
    args = ["attack", tiny, "--plugin", "on_questions.py", "--kind", "on_questions", "--set", "eval.limit=3"]
    done = ilu(*args, "--dry-run")
    assert done.code == 0, done.err
    assert "not priced  what comes after the attack's `questions`, which needs the model" in done.out
    done = ilu(*args, "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["data"][0]["rows"] == 3


def test_plugins_that_do_not_import(ilu: Ilu, tmp_path: Path) -> None:
    assert "there is no plugin" in ilu("list", "--plugin", "none.py").err
    (tmp_path / "bad.py").write_text("import nothing_like_it")
    done = ilu("list", "--plugin", "bad.py")
    assert done.code == 2
    assert "No module named 'nothing_like_it'" in done.err
