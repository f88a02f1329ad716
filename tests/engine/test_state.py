"""A kill at any moment of writing a state leaves the ones before it, and no word of damage."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import items_of, stream, tiny_model, trainer

from ilu_cli.engine import state
from ilu_cli.engine.gradients import Term
from ilu_cli.engine.loop import Trainer
from ilu_cli.errors import UnavailableError


class Killed(BaseException):
    """What nothing catches, as no process catches SIGKILL."""


def small() -> Trainer:
    return trainer(tiny_model(), [Term("loss", stream(items_of([6, 9])), lambda view: view.nll, "token")], [])


def at(t: Trainer, step: int) -> Trainer:
    t.step = step
    return t


def killed(when: str, function: Callable[..., Any]) -> Callable[..., Any]:
    def run(*args: Any, **keys: Any) -> None:
        if when == "after":
            function(*args, **keys)
        raise Killed

    return run


@pytest.mark.parametrize("earlier", [0, 1, 2])
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize(
    ("place", "name"), [(os, "fsync"), (state, "entry"), (state, "write_json"), (Path, "replace"), (Path, "unlink")]
)
def test_a_kill_leaves_the_states_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: Any, name: str, when: str, earlier: int
) -> None:
    folder, t = tmp_path / "state", small()
    folder.mkdir()
    (folder / "made_from.json").write_text("{}")  # a run of today: every state has a hash
    for step in range(1, earlier + 1):
        state.save_state(at(t, step), folder)
    with monkeypatch.context() as patch:
        patch.setattr(place, name, killed(when, getattr(place, name)))
        if name == "unlink" and earlier < state.KEPT:
            state.save_state(at(t, earlier + 1), folder)  # nothing is removed yet
        else:
            with pytest.raises(Killed):
                state.save_state(at(t, earlier + 1), folder)
    notes: list[str] = []
    assert state.load_state(small(), folder, notes.append) in (earlier, earlier + 1)
    assert notes == []


def test_a_state_without_its_hash_is_damaged(tmp_path: Path) -> None:
    folder, t = tmp_path / "state", small()
    for step in (1, 2):
        state.save_state(at(t, step), folder)
    (folder / "made_from.json").write_text("{}")
    (folder / "step-0000002.json").unlink()
    notes: list[str] = []
    assert state.load_state(small(), folder, notes.append) == 1
    assert "its hash is gone" in notes[0]
    (folder / "step-0000001.pt").write_bytes(b"changed")
    with pytest.raises(UnavailableError, match="every state of this run is damaged"):
        state.load_state(small(), folder, notes.append)
