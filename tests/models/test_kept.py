"""What is kept on disk of a model: found again by content, noticed when damaged, never more than has room."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import items_of, noted, stream, tiny_model

from ilu_cli.engine.accel import backend
from ilu_cli.engine.blocks import Blocks, rows_key
from ilu_cli.engine.prefix import Begun, begin
from ilu_cli.engine.reference import fill, median_norm
from ilu_cli.models import kept as module
from ilu_cli.models.kept import kept
from ilu_cli.models.parts import parts_of
from ilu_cli.runs.files import cache_dir

NEEDS = {"reference.logps", "reference.hidden", "reference.states", "reference.final"}


def files() -> list[Path]:
    return sorted((cache_dir() / "states").glob("*"))


class Counted:
    """Tensors, and how often they were made."""

    def __init__(self, size: int = 4) -> None:
        self.made, self.size = 0, size

    def __call__(self) -> dict[str, torch.Tensor]:
        self.made += 1
        return {"a": torch.arange(self.size).float() / 3, "b": torch.ones(2, 2, dtype=torch.bfloat16)}


def test_what_was_computed_is_read_bit_by_bit() -> None:
    compute = Counted()
    first, second = (kept(["model", 1], compute) for _ in range(2))
    assert compute.made == 1
    assert all(torch.equal(first[n], second[n]) and first[n].dtype == second[n].dtype for n in ("a", "b"))
    kept(["model", 2], compute)
    assert compute.made == 2
    assert len(files()) == 2


@pytest.mark.parametrize("off", ["source", "variable"])
def test_nothing_is_kept_unasked(off: str, monkeypatch: pytest.MonkeyPatch) -> None:
    compute = Counted()
    if off == "variable":
        monkeypatch.setenv("ILU_CACHE_GB", "0")
    for _ in range(2):
        kept(None if off == "source" else ["model"], compute)
    assert compute.made == 2
    assert files() == []


@pytest.mark.parametrize("damage", ["a bit", "cut off", "empty"])
def test_a_damaged_file_is_noticed_and_made_again(damage: str, capsys: pytest.CaptureFixture[str]) -> None:
    compute = Counted()
    expected = kept(["model", damage], compute)["a"].clone()
    (file,) = files()
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes({"a bit": bytes(data), "cut off": bytes(data[:-3]), "empty": b""}[damage])
    assert torch.equal(kept(["model", damage], compute)["a"], expected)
    assert compute.made == 2
    assert f"{file} was damaged" in capsys.readouterr().err
    kept(["model", damage], compute)
    assert compute.made == 2


def test_the_folder_keeps_what_was_used_last(monkeypatch: pytest.MonkeyPatch) -> None:
    compute = Counted(1000)
    for n in range(2):
        kept([n], compute)
    size = files()[0].stat().st_size
    monkeypatch.setenv("ILU_CACHE_GB", str(2.5 * size / 1e9))
    for n, file in enumerate(sorted(files(), key=lambda f: f.stat().st_mtime)):
        os.utime(file, (n, n))
    kept([0], compute)  # is read, and so is the newer one
    kept([2], compute)
    assert compute.made == 3
    assert len(files()) == 2
    kept([0], compute)
    assert compute.made == 3
    kept([1], compute)
    assert compute.made == 4
    monkeypatch.setenv("ILU_CACHE_GB", str(0.5 * size / 1e9))
    kept([3], compute)  # has no room at all, and takes none from others
    assert len(files()) == 2


def test_a_failure_while_it_is_written_costs_time_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_args: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(module, "save_file", fails)
    compute = Counted()
    assert len(kept(["model"], compute)["a"]) == 4
    assert files() == []


def test_blocks_hold_rows_one_after_the_other() -> None:
    places = Blocks([2, 1, 3])
    rows = [torch.full((n, 2), float(i)) for i, n in enumerate([2, 1, 3])]
    for i in (2, 0, 1):
        places.put(i, rows[i])
    assert places.block is not None
    assert places.block[:, 0].tolist() == [0, 0, 1, 2, 2, 2]
    assert all(torch.equal(a, b) for a, b in zip(places.rows(places.block), rows))


def test_rows_are_told_by_their_tokens_targets_and_order() -> None:
    one = [([1, 2], 1), ([3], 1)]
    others = [one[::-1], [([1, 2], 0), ([3], 1)], [([1], 1), ([2, 3], 1)], one[:1]]
    assert len({rows_key(rows) for rows in [one, *others]}) == 5
    assert rows_key(one) == rows_key([((1, 2), 1), ((3,), 1)])


def test_a_second_run_asks_the_model_nothing() -> None:
    """Of what the original says, of the norm, and of the layers below the first trained one."""
    model, data = tiny_model(), stream(items_of([5, 9, 7], start=2))
    data.chosen = stream(items_of([4, 8, 6], seed=3))
    parts, calls = parts_of(model), list[int]()
    model.model.register_forward_hook(lambda *_: calls.append(1))

    def everything(source: object, precision: str = "fp32", layer: int = 1) -> tuple[Any, float]:
        cache = fill(data, NEEDS, layer, 1, parts, backend(), precision, [0, layer], source)
        return cache, median_norm(data, layer, parts, backend(), precision, source)

    first, norm = everything(["m"])
    made = len(calls)
    second, again = everything(["m"])
    assert len(calls) == made > 0
    assert norm == again
    for a, b in ((first, second), (first.chosen, second.chosen)):
        assert a.logps == b.logps
        for kind in ("hidden", "states", "final"):
            ours, theirs = getattr(a, kind), getattr(b, kind)
            assert ours.keys() == theirs.keys() != set()
            assert all(torch.equal(ours[k], theirs[k]) for k in ours)
    for more in (["other"], ["m"]):
        before = len(calls)
        everything(more, *(("bf16",) if more == ["m"] else ()))
        assert len(calls) > before
    before = len(calls)
    everything(["m"], layer=2)
    assert len(calls) > before


def test_a_prefix_is_read_again() -> None:
    model, rows = tiny_model(), [tuple(e.ids) for e in items_of([5, 9, 7])]
    found, ran = [], list[int]()
    inner = model.model.layers[0].forward
    model.model.layers[0].forward = lambda *a, **k: noted(ran, 1, inner(*a, **k))
    for _ in range(2):
        ran.clear()
        parts = begin(parts_of(model), 2, rows, backend(), "fp32", ["m"])
        assert isinstance(parts, Begun)
        found.append((len(ran), parts.known))
    (first, one), (second, other) = found
    assert second == first - 1  # one batch less; the rest is parts_of and the comparison
    assert one.keys() == other.keys()
    assert all(torch.equal(one[k], other[k]) for k in one)
