import json
from pathlib import Path
from typing import Any

import pytest
from conftest import present

from ilu_cli.errors import UnavailableError, UsageError
from ilu_cli.runs.store import Store, open_run


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "runs")


def finished(store: Store, label: str = "rmu", command: str = "unlearn") -> Any:
    run = store.create(command, label)
    run.checkpoint.mkdir()
    (run.checkpoint / "model.safetensors").write_bytes(b"weights of " + run.id.encode())
    run.finish()
    return run


def test_a_finished_run_is_found_by_id_prefix_and_path(store: Store) -> None:
    run = finished(store)
    for text in (run.id, run.id[:-2], str(run.path)):
        assert present(store.find(text)).id == run.id
    assert store.find("nothing-like-it") is None


def test_an_ambiguous_prefix_is_refused(store: Store) -> None:
    finished(store), finished(store)
    with pytest.raises(UsageError, match="fits 2 runs"):
        store.find("unlearn-rmu")


def test_the_latest_is_the_last_created(store: Store) -> None:
    finished(store)
    last = finished(store)
    finished(store, command="attack")
    assert store.latest(lambda r: r.manifest.command == "unlearn", "run").id == last.id
    with pytest.raises(UnavailableError, match="there is no unicorn"):
        store.latest(lambda r: False, "unicorn")


def test_a_flipped_byte_is_noticed(store: Store) -> None:
    run = finished(store)
    run.verify()
    weights = run.checkpoint / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[3] ^= 1
    weights.write_bytes(bytes(data))
    with pytest.raises(UnavailableError, match="changed or damaged"):
        run.verify()
    weights.unlink()
    with pytest.raises(UnavailableError, match="is missing"):
        run.verify()


def test_an_unfinished_run_is_not_used(store: Store) -> None:
    with pytest.raises(UnavailableError, match="was not finished"):
        store.create("unlearn", "npo").verify()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": 1}', '{"format": 99}', '{"format": 1, "id": "x", "z": 0}'])
def test_a_broken_manifest_is_said_to_be_broken(store: Store, text: str) -> None:
    run = finished(store)
    (run.path / "manifest.json").write_text(text)
    with pytest.raises(UnavailableError, match=r"damaged|format"):
        open_run(run.path)
    assert store.runs() == []


def test_nothing_is_ever_overwritten(store: Store, tmp_path: Path) -> None:
    run = finished(store)
    before = json.loads((run.path / "manifest.json").read_text())
    with pytest.raises(UsageError, match="not empty"):
        store.create("unlearn", "again", run.path)
    assert json.loads((run.path / "manifest.json").read_text()) == before
    assert store.create("unlearn", "new", tmp_path / "here" / "mine").id == "mine"
