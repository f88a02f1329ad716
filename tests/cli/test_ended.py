"""A run that ends before its end says so, and why, until it is continued."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import Ilu

from ilu_cli.runs.store import Store
from ilu_cli.workflows import unlearn
from ilu_cli.workflows.attack import run as attack
from ilu_cli.workflows.taskvec import apply

pytestmark = pytest.mark.slow

UNLEARN = ["unlearn", "--method", "grad_diff", "--steps", "3", "--set", "forget.batch=2", "--set", "retain.batch=2",
           "--set", "forget.max_length=24", "--set", "retain.max_length=24", "--set", "train.save_every=1",
           "--set", "train.params=null"]  # fmt: skip
ATTACK = ["attack", "--task", "elements", "--steps", "3", "--set", "attack.batch=2", "--set", "eval.limit=4",
          "--no-reference"]  # fmt: skip


def recorded(command: str) -> tuple[str, str | None]:
    """Status and reason of the latest run of a command, as they stand on disk."""
    found = [r for r in Store().runs() if r.manifest.command == command][-1].path / "manifest.json"
    manifest = json.loads(found.read_text())
    return manifest["status"], manifest["result"].get("error")


def test_training_that_diverges(ilu: Ilu, tiny: Path) -> None:
    done = ilu(*UNLEARN, "--model", tiny, "--lr", "1e9")
    assert done.code == 5
    status, why = recorded("unlearn")
    assert status == "failed" and why is not None
    assert why.startswith("step 2: ") and why.endswith("is not finite")
    assert why in done.err
    run = Store().runs()[-1].id
    assert [r["status"] for r in json.loads(ilu("runs", "--json").out)["runs"]] == ["failed"]
    assert f"failed     {why}" in ilu("runs", "show", run).out
    assert "failed" in ilu("runs", "tree").out
    assert ilu("eval", run).code == 3  # it is no model
    assert ilu("unlearn", run, "--resume").code == 5
    assert recorded("unlearn") == ("failed", why)


@pytest.mark.parametrize(
    ("raised", "status", "why"),
    [
        (OSError(28, "No space left on device"), "failed", "OSError: [Errno 28] No space left on device"),
        (ValueError("odd"), "failed", "ValueError: odd"),
        (KeyboardInterrupt(), "stopped", "KeyboardInterrupt: "),
    ],
)
def test_what_is_raised_is_recorded_until_the_run_is_continued(
    ilu: Ilu, tiny: Path, monkeypatch: pytest.MonkeyPatch, raised: Any, status: str, why: str
) -> None:
    def ends(*_args: Any, **_keys: Any) -> None:
        raise raised

    for module, command in ((unlearn, [*UNLEARN, "--model", tiny]), (attack, ATTACK)):
        name = str(command[0])
        with monkeypatch.context() as patch:
            patch.setattr(module, "save_checkpoint", ends)
            assert ilu(*command).code == (5 if status == "failed" else 130)
        assert recorded(name) == (status, why)
        done = ilu(name, "--resume")
        assert done.code == 0, done.err
        assert recorded(name) == ("complete", None)
    with monkeypatch.context() as patch:
        patch.setattr(apply, "_write", ends)
        ilu("taskvec", "apply", Store().runs()[0].id, "--alpha", "-0.5")
    assert recorded("taskvec apply") == (status, why)


def test_a_run_that_is_whole_stays_so(ilu: Ilu, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What fails after its files are hashed and its manifest says complete does not unmake it."""

    def fails(*_args: Any) -> None:
        raise ValueError("odd")

    monkeypatch.setattr(unlearn, "changed", fails)
    assert ilu(*UNLEARN, "--model", tiny).code == 5
    assert recorded("unlearn") == ("complete", None)
