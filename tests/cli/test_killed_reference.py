"""An attack that is killed while it makes its reference line: --resume goes on to the model that was asked for."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import Ilu
from test_chain import ATTACK, rmu

from ilu_cli.runs.store import Run, Store

pytestmark = pytest.mark.slow


def reference() -> Run | None:
    """The reference line, when it has done some steps."""
    for run in Store().runs():
        metrics = run.path / "metrics.jsonl"
        if run.manifest.wanted and metrics.exists() and metrics.read_text().count("\n") > 2:
            return run
    return None


def test_resuming_attacks_the_model_that_was_asked_for(ilu: Ilu, tiny: Path, tmp_path: Path) -> None:
    assert ilu(*rmu(tiny), "--out", "runs/u").code == 0
    command = [sys.executable, "-m", "ilu_cli", "attack", "u", *ATTACK, "--steps", "120", "--out", "mine"]
    process = subprocess.Popen(command, env=dict(os.environ), stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    until = time.monotonic() + 120
    while (begun := reference()) is None and process.poll() is None and time.monotonic() < until:
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert begun is not None and not Store().get(begun.id).complete
    assert not Path("mine").exists()
    done = ilu("attack", "--resume")
    assert done.code == 0, done.err
    assert Store().get(begun.id).complete
    attacked = Store().get("mine")
    assert attacked.complete
    assert attacked.manifest.made_from == ["u"]
