"""The stages of a comparison, on numbers worked out by hand."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from ilu_cli.taskvec.delta import Checkpoint
from ilu_cli.workflows.reproduce.compare import losses, tensors
from ilu_cli.workflows.reproduce.stages import (
    TOLERANCES,
    equal_or_not,
    first_difference,
    numbers,
    relative,
    stage_of,
    verdict,
)


def test_relative_differences() -> None:
    assert relative(2.0, 2.0) == 0.0
    assert relative(4.0, 3.0) == relative(3.0, 4.0) == 0.25
    assert relative(0.0, 1e-9) == 1.0
    assert relative(math.nan, math.nan) == 0.0
    assert relative(1.0, math.inf) == relative(1.0, None) == relative(None, 1.0) == math.inf


def test_the_first_step_that_differs_is_named_and_times_are_not_compared() -> None:
    was = [{"step": i, "forget": 1.0, "retain": 2.0, "seconds": 0.1} for i in (1, 2, 3)]
    now = [dict(row, seconds=9.0) for row in was]
    same = stage_of("losses", losses(was, now), TOLERANCES)
    assert (same.compared, same.different, verdict([same])) == (6, 0, "identical")
    now[1] = {**now[1], "retain": 2.02}
    now[2] = {**now[2], "forget": 1.25}
    found = stage_of("losses", losses(was, now), TOLERANCES)
    assert found.different == 2 and found.largest == pytest.approx(0.2)
    assert found.first and found.first.where == "step 2: retain"
    assert found.first.by == pytest.approx(0.02 / 2.02)
    assert found.beyond and found.beyond.where == "step 3: forget"
    assert verdict([found]) == "different"
    assert verdict([stage_of("losses", losses(was, now), {"losses": 0.2})]) == "within tolerance"
    shorter = stage_of("losses", losses(was, now[:2]), TOLERANCES)
    assert shorter.beyond and shorter.beyond.where == "step 3: forget"


def test_other_packages_are_told_and_decide_nothing() -> None:
    packages = stage_of("packages", equal_or_not({"torch": "2.9"}, {"torch": "2.8"}), TOLERANCES)
    assert verdict([packages]) == "identical"
    seed = stage_of("setting", equal_or_not({"seed": 0}, {"seed": 1}), TOLERANCES)
    assert verdict([packages, seed]) == "different"
    metric = stage_of("metrics", numbers({"acc": 0.5}, {"acc": 0.49}), TOLERANCES)
    assert verdict([metric]) == "within tolerance"
    found = first_difference([metric, packages])
    assert found and found[0] == "packages"  # the cause comes first, whatever was compared first
    rows = stage_of("rows", equal_or_not({"1": 0}, {"1": 1}), TOLERANCES)
    assert verdict([rows]) == "within tolerance"  # a row counts by the number that is made of it


def folder(path: Path, **weights: torch.Tensor) -> Checkpoint:
    path.mkdir()
    save_file({name: w.clone() for name, w in weights.items()}, path / "model.safetensors")
    return Checkpoint(path)


def test_weights_differ_by_a_share_of_what_was_changed(tmp_path: Path) -> None:
    base = torch.ones(3)
    was, now = torch.tensor([1.0, 4.0, 5.0]), torch.tensor([1.0, 4.0, 5.5])  # changed by (0, 3, 4), apart by 0.5
    parent = folder(tmp_path / "parent", **{"layers.2.w": base, "layers.10.w": base, "left": base})
    a = folder(tmp_path / "a", **{"layers.2.w": was, "layers.10.w": was, "left": base})
    b = folder(tmp_path / "b", **{"layers.2.w": now, "layers.10.w": was, "left": base + 1})
    found = list(tensors(a, b, parent))
    assert [p.where for p in found] == ["layers.2.w", "layers.10.w", "left"]
    assert [p.by for p in found] == [pytest.approx(0.1), 0.0, math.inf]
    (alone, *_) = tensors(a, b, None)
    assert alone.by == pytest.approx(0.5 / 42**0.5)
    other = folder(tmp_path / "c", **{"layers.2.w": torch.ones(2)})
    assert [p.by for p in tensors(a, other, parent)] == [math.inf] * 3


def test_weights_that_are_no_numbers_are_different(tmp_path: Path) -> None:
    a = folder(tmp_path / "a", w=torch.ones(2))
    b = folder(tmp_path / "b", w=torch.tensor([1.0, math.nan]))
    found = stage_of("weights", tensors(a, b, None), TOLERANCES)
    assert (found.largest, verdict([found])) == (math.inf, "different")
