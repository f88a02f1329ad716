"""Trackers: TensorBoard's files are read back; what is not installed is said before anything runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from conftest import Ilu
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_chain import ATTACK, SMALL, npo

from ilu_cli.engine.tracking import plain
from ilu_cli.recipe.load import digest, load, shipped
from ilu_cli.recipe.schema import UnlearnRecipe


def read(run: Path) -> dict[str, list[tuple[int, float]]]:
    """The curves that TensorBoard finds in a run."""
    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def metrics(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_tensorboard_is_told_every_step_and_the_recipe(tiny: Path, ilu: Ilu) -> None:
    done = ilu(*npo(tiny, 3), "--irm-env", "elements", "--set", "retain.data=[prose]", "--track", "tensorboard")
    assert done.code == 0, done.err
    run = Path(done.out.strip())
    curves, rows = read(run), metrics(run)
    assert {"forget", "retain", "irm", "D/elements", "lr", "grad_norm"} <= set(curves)
    for name in ("forget", "D[elements]", "grad_norm"):
        curve = curves[plain(name)]
        assert [step for step, _ in curve] == [1, 2, 3]
        assert [value for _, value in curve] == pytest.approx([row[name] for row in rows], rel=1e-5)
    (hparams,) = (run / "tensorboard").glob("*/hparams.yml")
    told = yaml.safe_load(hparams.read_text())
    assert (told["objective.name"], told["train.steps"], told["regularizers.0.env.0.name"]) == ("npo", 3, "elements")
    attacked = ilu("attack", run, *ATTACK, "--no-reference", "--track", "tensorboard", "--json")
    assert attacked.code == 0, attacked.err
    path = Path(json.loads(attacked.out)["path"])
    assert [v for _, v in read(path)["loss"]] == pytest.approx([row["loss"] for row in metrics(path)], rel=1e-5)


@pytest.mark.parametrize(
    ("name", "told"), [("D[gsm8k]", "D/gsm8k"), ("nll[data/my set(1).jsonl]", "nll/data/my set_1_.jsonl"), ("lr", "lr")]
)
def test_names_are_such_as_every_tracker_takes(name: str, told: str) -> None:
    """MLflow takes letters, digits, and `_-. :/`."""
    assert plain(name) == told


def test_what_is_not_installed_is_said_at_once(tiny: Path, ilu: Ilu, tmp_path: Path) -> None:
    for command in (npo(tiny), ["attack", str(tiny), *ATTACK]):
        for tracker in ("wandb", "mlflow"):
            done = ilu(*command, "--track", tracker)
            assert done.code == 3, done.err
            assert f"{tracker} is not installed" in done.err
            assert f"pip install {tracker}" in done.err
    assert not (tmp_path / "runs").exists()
    wrong = ilu("unlearn", *SMALL, "--track", "tensorbord")
    assert wrong.code == 2
    assert "tensorboard" in wrong.err


def test_tracking_is_a_recipe_key_that_changes_no_identity() -> None:
    path = shipped()["quickstart-rmu"]
    plain, tracked = (load(UnlearnRecipe, path, {}, sets) for sets in ([], ["track=[tensorboard]"]))
    assert tracked.track == ["tensorboard"]
    assert digest(plain) == digest(tracked)
