"""A run that ends by an error says so, also where it is told to stop while it writes that."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from ilu_cli import stopping
from ilu_cli.runs.ending import ending
from ilu_cli.runs.store import Run, Store, open_run


def test_a_signal_while_the_reason_is_written_waits_until_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, save = Store(tmp_path / "runs").create("unlearn", "rmu"), Run.save

    def stopped(self: Run) -> None:
        if self.manifest.status != "running":
            os.kill(os.getpid(), signal.SIGTERM)  # what a launcher sends as soon as another process has failed
        save(self)

    monkeypatch.setattr(Run, "save", stopped)
    before: Any = {number: signal.getsignal(number) for number in stopping.stopping_signals()}
    stopping.install()
    try:
        with pytest.raises(KeyboardInterrupt), ending(run, main=True):
            raise MemoryError("out of memory")
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    manifest = open_run(run.path).manifest
    assert manifest.status == "failed" and manifest.result["error"] == "MemoryError: out of memory"
