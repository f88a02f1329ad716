"""A signal that arrives while pydantic writes a recipe ends a node as any other does, and is no failure of the node."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, model_serializer

from ilu_cli.runs.store import Store
from ilu_cli.workflows.pipeline import worker


class Hit(BaseModel):
    """Its dump is where the signal arrives."""

    kind: str

    @model_serializer(mode="wrap")
    def _dumped(self, dump: Any) -> Any:
        raise {"exit": SystemExit(-1), "interrupt": KeyboardInterrupt(), "fault": ValueError("a fault")}[self.kind]


def outcome(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(worker, "do", lambda *_: Hit(kind=kind).model_dump())
    task: Any = None
    return worker.outcome(task, Store(tmp_path), lambda _: None)


def test_an_exit_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit):
        outcome("exit", tmp_path, monkeypatch)


def test_an_interruption_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert outcome("interrupt", tmp_path, monkeypatch)["interrupted"]


def test_a_fault_is_the_nodes_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "a fault" in outcome("fault", tmp_path, monkeypatch)["error"]
