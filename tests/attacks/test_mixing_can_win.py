"""What is between two models, or was added to one, taken back: interpolation, stripping, merging."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Ilu
from test_it_can_win import FACTS, copy_of, knowing

from ilu_cli.attacks.merge import _ties
from ilu_cli.models.matrices import matrices
from ilu_cli.models.save import save_checkpoint
from ilu_cli.models.subject import find_model
from ilu_cli.runs.store import Run, Store

pytestmark = pytest.mark.slow

__all__ = ["knowing"]  # a fixture


def unlearned(knowing: Any, folder: Path, model: Any) -> Run:
    """A run that says it has made `model` of the one that knows."""
    original, tokenizer = knowing
    original.save_pretrained(folder / "original")
    tokenizer.save_pretrained(folder / "original")
    run = Store().create("unlearn", "moved")
    save_checkpoint(model, tokenizer, run.checkpoint)
    record = find_model(str(folder / "original")).record
    run.manifest.base, run.manifest.parents = record("original"), [record("parent")]
    recipe = {"forget": {"data": [{"name": "capitals"}]}, "regularizers": [], "seed": 0, "train": {"steps": 1}}
    (run.path / "recipe.yaml").write_text(json.dumps(recipe))
    run.finish()
    return run


def accuracy(ilu: Ilu, run: Run, *args: str) -> dict[float, float]:
    """By strength."""
    args = (*args, "--set", "eval.benchmarks=[capitals]", "--set", f"eval.limit={FACTS}")
    done = ilu("attack", run.id, *args, "--no-reference", "--json")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    return {f[found["axis"]]: 1 - f["value"] for f in found["fq"]}


def shaken(knowing: Any, scale: float, seed: int = 0) -> tuple[Any, Any]:
    """The model that knows, with noise in the matrices of its layers."""
    model, tokenizer = copy_of(knowing)
    g, params = torch.Generator().manual_seed(seed), dict(model.named_parameters())
    with torch.no_grad():
        for m in matrices(model):
            w = params[m.param]
            w.add_(scale * w.std() * torch.randn(w.shape, generator=g))
    return model, tokenizer


def test_interpolation_walks_back_to_what_is_known(knowing: Any, ilu: Ilu, tmp_path: Path) -> None:
    model, _ = shaken(knowing, 3.0)
    found = accuracy(ilu, unlearned(knowing, tmp_path, model), "--kind", "interpolate", "--set", "attack.ts=[0.5,1.0]")
    assert found[0.0] <= 0.5
    assert found[1.0] == 1.0


@pytest.mark.parametrize("base", ["original", "named"])
def test_stripping_takes_a_merged_adapter_out(knowing: Any, ilu: Ilu, tmp_path: Path, base: str) -> None:
    """Rank two is added to every matrix: the first direction is not enough, two are, and more take nothing else."""
    model, _ = copy_of(knowing)
    g, params = torch.Generator().manual_seed(0), dict(model.named_parameters())
    with torch.no_grad():
        for m in matrices(model):
            w = params[m.param]
            a, b = (torch.randn(n, 2, generator=g) for n in w.shape)
            w.add_(0.3 * w.std() * a @ b.T * len(w) ** 0.5)
    run = unlearned(knowing, tmp_path, model)
    args = ["--set", f"attack.model={tmp_path / 'original'}"] if base == "named" else []
    found = accuracy(ilu, run, "--kind", "strip", "--set", "attack.directions=[1,2,5]", *args)
    assert found[0] <= 0.5
    assert found[1] < 0.9
    assert (found[2], found[5]) == (1.0, 1.0)


def test_an_average_with_another_finetune_cancels_what_they_do_not_share(
    knowing: Any, ilu: Ilu, tmp_path: Path
) -> None:
    model, tokenizer = shaken(knowing, 2.0)
    other, _ = copy_of(knowing)
    with torch.no_grad():
        for p, q in zip(other.parameters(), model.parameters()):
            p.mul_(2).sub_(q)  # as far on the other side
    save_checkpoint(other, tokenizer, tmp_path / "other")
    run = unlearned(knowing, tmp_path, model)
    args = ["--kind", "merge", "--set", f"attack.finetuned={tmp_path / 'other'}"]
    found = accuracy(ilu, run, *args)
    assert found[0] <= 0.5
    assert found[1] >= 0.9
    assert set(found) == {0, 1, 2}


def test_ties_by_hand() -> None:
    """Of four entries each vector keeps two; where both have one left, the sign of the larger sum wins alone."""
    start = torch.zeros(4)
    mine, theirs = torch.tensor([4.0, -1.0, 3.0, 0.5]), torch.tensor([-6.0, 0.1, 2.0, 0.2])
    merged = _ties(mine, "w", {"w": theirs}, {"w": start}, 0.5, 1.0)
    assert merged.tolist() == [-6.0, 0.0, 2.5, 0.0]
    halved = _ties(mine + 1, "w", {"w": theirs + 1}, {"w": start + 1}, 0.5, 0.5)
    assert halved.tolist() == [-2.0, 1.0, 2.25, 1.0]


def test_a_finetune_is_found_by_lineage_or_asked_for(knowing: Any, ilu: Ilu, tmp_path: Path) -> None:
    run = unlearned(knowing, tmp_path, shaken(knowing, 1.0)[0])
    quick = ["--set", "eval.benchmarks=[capitals]", "--set", "eval.limit=2"]
    refused = ilu("attack", run.id, "--kind", "merge", "--dry-run")
    assert refused.code == 2
    assert "no run here has fine-tuned" in refused.err
    train = [
        "--task",
        "sst2",
        "--source",
        "builtin",
        "--steps",
        1,
        "--set",
        "attack.batch=2",
        "--set",
        "attack.test_rows=2",
    ]
    assert ilu("attack", run.id, *train, *quick).code == 0  # with its reference line
    done = ilu("attack", run.id, "--kind", "merge", *quick, "--no-reference", "--json")
    assert done.code == 0, done.err
    path = Path(json.loads(done.out)["path"])
    [line] = [r for r in Store().runs() if r.manifest.parents[0]["path"] == str(tmp_path / "original")
              and r.manifest.command == "attack"]  # fmt: skip
    assert f"finetuned: {line.id}" in (path / "recipe.yaml").read_text()
    assert json.loads((path / "manifest.json").read_text())["inputs"][0].startswith(f"finetuned {line.id}: ")


def test_a_base_of_another_shape_is_refused_in_the_plan(knowing: Any, tiny: Path, ilu: Ilu, tmp_path: Path) -> None:
    run = unlearned(knowing, tmp_path, copy_of(knowing)[0])
    for kind, key in (("strip", "model"), ("interpolate", "model"), ("merge", "finetuned")):
        done = ilu("attack", run.id, "--kind", kind, "--set", f"attack.{key}={tiny}", "--dry-run")
        assert done.code == 3
        assert "do not fit" in done.err
        gone = ilu("attack", run.id, "--kind", kind, "--set", f"attack.{key}=nowhere", "--dry-run")
        assert gone.code == 3
        assert "there is no run, model or folder 'nowhere'" in gone.err
