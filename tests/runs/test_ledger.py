"""The list of a run's files, and who holds a run."""

from __future__ import annotations

import json
import multiprocessing
import shutil
import socket
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
from conftest import present

from ilu_cli.errors import IluError, Interrupted, UnavailableError, UsageError
from ilu_cli.runs import ledger
from ilu_cli.runs.files import ModelRecord
from ilu_cli.runs.lock import HOLDER, holder, refuse_held, turn
from ilu_cli.runs.resume import begin, made_from
from ilu_cli.runs.store import Store, open_run


@pytest.fixture
def run(tmp_path: Path) -> Any:
    run = Store(tmp_path / "runs").create("unlearn", "rmu")
    run.checkpoint.mkdir()
    (run.checkpoint / "model.safetensors").write_bytes(b"weights")
    (run.checkpoint / "config.json").write_text("{}")
    (run.path / "recipe.yaml").write_text("a: 1\n")
    run.eval.mkdir()
    (run.eval / "capitals.rows.jsonl").write_text('{"value": 0}\n')
    run.finish()
    return run


def test_every_file_is_listed_with_the_hash_that_sha256sum_gives(run: Any) -> None:
    files = present(ledger.read(run.path))
    assert set(files) == {
        "recipe.yaml", "README.md",
        "checkpoint/model.safetensors", "checkpoint/config.json", "eval/capitals.rows.jsonl",
    }  # fmt: skip
    # printf weights | sha256sum
    digest = "9a129038d9a00aed0cf6a7ea059ca50a813449061ab87848cf1a13eafdf33b2c"
    assert files["checkpoint/model.safetensors"] == {"size": 7, "sha256": digest}


def test_rows_that_were_edited_are_found_and_added_ones_are_listed(run: Any) -> None:
    run.check("eval")
    (run.eval / "capitals.rows.jsonl").write_text('{"value": 1}\n')
    with pytest.raises(UnavailableError, match="changed or damaged"):
        run.check("eval")
    run.add("eval")
    run.check("eval")


def test_a_model_beside_the_runs_own_is_found(run: Any) -> None:
    (run.checkpoint / "pytorch_model.bin").write_bytes(b"other")
    with pytest.raises(UnavailableError, match="is not the run's"):
        run.verify()


@pytest.mark.parametrize("name", ["manifest.json", "files.json"])
def test_the_lists_hash_themselves(run: Any, name: str) -> None:
    path = run.path / name
    path.write_text(path.read_text().replace('"size": 7', '"size": 8').replace('"seed": 0', '"seed": 1'))
    with pytest.raises(UnavailableError, match="is damaged"):
        open_run(run.path).verify()


def test_a_list_that_is_gone_is_missed_and_a_run_of_before_has_none(run: Any) -> None:
    (run.path / ledger.NAME).unlink()
    with pytest.raises(UnavailableError, match="is missing"):
        run.verify()
    run.manifest.listed = False
    run.verify()


def _during(held: AbstractContextManager[None], ready: Any, done: Any) -> None:
    with held:
        ready.set()
        done.wait(30)


def beside(held: AbstractContextManager[None]) -> tuple[Any, Any]:
    """A process that holds it already, and the event at which it lets go, or after half a minute."""
    context = multiprocessing.get_context("fork")
    ready, done = context.Event(), context.Event()
    process = context.Process(target=_during, args=(held, ready, done))
    process.start()
    assert ready.wait(30)
    return process, done


def test_one_process_holds_a_run_and_is_named(run: Any) -> None:
    process, _ = beside(open_run(run.path).held(print))
    assert present(holder(run.path)).pid == process.pid
    with pytest.raises(UsageError, match=f"held by process {process.pid} on {socket.gethostname()}"), run.held(print):
        pass
    process.kill()
    process.join()
    said: list[str] = []
    assert holder(run.path) is None
    with run.held(said.append):
        assert "is gone" in said[0]
    assert not (run.path / HOLDER).exists()


def test_a_holder_on_another_host_is_not_taken_over(run: Any) -> None:
    there = {"host": "elsewhere", "pid": 1, "born": 0.0, "command": "ilu", "since": "2026-01-01"}
    (run.path / HOLDER).write_text(json.dumps(there))
    with pytest.raises(UsageError, match="elsewhere") as refused, run.held(print):
        pass
    assert HOLDER in present(refused.value.hint)


@pytest.mark.parametrize("done", ["removed", "status", "result"])
def test_what_others_did_to_a_run_while_a_command_planned_is_found(run: Any, done: str) -> None:
    seen, other = open_run(run.path), open_run(run.path)
    if done == "removed":
        shutil.rmtree(run.path)
    else:
        setattr(other.manifest, done, {"status": "failed", "result": {"points": [1]}}[done])
        other.save()
    with (
        pytest.raises(IluError, match="was removed by" if done == "removed" else "went on in") as told,
        seen.held(print),
    ):
        pass
    assert isinstance(told.value, UnavailableError if done == "removed" else UsageError)
    assert run.path.exists() == (done != "removed")


def test_an_interruption_tells_how_to_go_on(run: Any) -> None:
    with pytest.raises(Interrupted) as stopped, run.held(print):
        raise KeyboardInterrupt
    assert f"ilu unlearn {run.id} --resume" in present(stopped.value.hint)


def test_a_sum_of_task_vectors_is_not_told_to_resume(tmp_path: Path) -> None:
    made = Store(tmp_path / "runs").create("apply", "linear")
    (made.path / "recipe.yaml").write_text("a: 1\n")
    with pytest.raises(Interrupted) as stopped, made.held(print):
        raise KeyboardInterrupt
    assert "--resume" not in str(stopped.value.hint)
    assert f"ilu runs rm {made.id}" in str(stopped.value.hint)


def test_a_parent_that_is_gone_is_named(run: Any, tmp_path: Path) -> None:
    parent = tmp_path / "model"
    parent.mkdir()
    (parent / "config.json").write_text("{}")
    run.manifest.parents = [{"role": "parent", "kind": "folder", "id": "model", "path": str(parent)}]
    run.check_parents("step 3")
    (parent / "config.json").unlink()
    with pytest.raises(
        UnavailableError, match=r"step 3: model \(.*model\), which this run is made from, is gone"
    ) as gone:
        run.check_parents("step 3")
    assert "--resume" in str(gone.value.hint)


def test_results_are_measured_by_one_process_at_a_time(run: Any) -> None:
    process, done = beside(turn(run.eval, "results", print))
    with pytest.raises(UsageError, match=f"process {process.pid}"):
        refuse_held(run.path, "run")
    said: list[str] = []

    def note(text: str) -> None:
        said.append(text)
        done.set()

    with turn(run.eval, "results", note):
        assert len(said) == 1 and f"waiting for process {process.pid}" in said[0]
    process.join()
    refuse_held(run.path, "run")
    run.check("eval")  # what is held for it is no result


def test_a_run_goes_on_only_as_the_same_run(run: Any) -> None:
    parent: ModelRecord = {"role": "parent", "digest": "d"}
    data = {"role": "forget", "name": "x", "fingerprint": "f"}
    begin(run, made_from({"train": {"lr": 0.1}}, [parent], [data]))
    begin(run, made_from({"train": {"lr": 0.1}}, [parent], [data]))
    for recipe, digest, says in (({"lr": 0.2}, "d", r"train\.lr: 0\.1 → 0\.2"), ({"lr": 0.1}, "e", "parent")):
        with pytest.raises(UsageError, match=says):
            begin(run, made_from({"train": recipe}, [parent | {"digest": digest}], [data]))
    shutil.rmtree(run.state)
