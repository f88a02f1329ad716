"""Runs on models whose files are named or stored otherwise than what is saved: complete, with the right numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import odd
import pytest
import torch
from conftest import Ilu, present
from families import make_family
from safetensors.torch import load_file

from ilu_cli.errors import UnavailableError
from ilu_cli.models.subject import find_subject
from ilu_cli.runs.store import Store
from ilu_cli.workflows import saved

pytestmark = pytest.mark.slow

BATCH = ["--set", "forget.batch=2", "--set", "retain.batch=2", "--set", "forget.max_length=24"]
SMALL = ["--method", "npo", "--set", "train.params=['*']", "--steps", 1, *BATCH]
PARENTS = ["inv_freq", "masks", "gpt2_hub", "gpt2_head", "stray", "modules_to_save", "dora", "rank_pattern", "ia3"]


def changed(before: Path, after: Path) -> tuple[int, int, float]:
    """(weights that differ, all weights, the norm of their difference) by transformers and peft alone."""
    a, b = (dict(odd.plain(folder).named_parameters()) for folder in (before, after))
    assert set(a) == set(b)
    moved = torch.cat([(b[n] - a[n]).flatten().double() for n in a])
    return int((moved != 0).sum()), len(moved), float(moved.norm())


@pytest.mark.parametrize("name", PARENTS)
def test_a_run_on_it_is_complete_with_the_share_that_changed(name: str, tmp_path: Path, ilu: Ilu) -> None:
    parent = odd.SOUND[name](tmp_path / name)
    done = ilu("unlearn", *SMALL, "--model", parent, "--out", "made")
    assert done.code == 0, done.err
    manifest = json.loads(Path("made/manifest.json").read_text())
    moved, total, norm = changed(parent, Path("made/checkpoint"))
    assert manifest["status"] == "complete"
    assert manifest["result"]["changed_fraction"] == moved / total
    found = json.loads(ilu("taskvec", "made", "--json").out)
    assert found["groups"]["all"]["norms"]["u"] == pytest.approx(norm, rel=1e-6)
    assert found["left_out"] == {}


@pytest.mark.parametrize("asked", ["stored", "bf16"])
def test_what_the_parent_holds_in_float32_is_not_rounded_with_the_rest(asked: str, tmp_path: Path, ilu: Ilu) -> None:
    """As routers' biases are beside matrices in bfloat16."""

    def narrow(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {n: w.bfloat16() if w.ndim > 1 else w + 0.001 for n, w in weights.items()}

    parent, trained = odd.rewrite(make_family("llama", tmp_path / "m"), narrow), "model.layers.1.mlp.down_proj.weight"
    done = ilu("unlearn", "--method", "npo", "--steps", 1, *BATCH, "--model", parent, "--out", "made", "--set",
               f"train.params=[{trained}]", "--set", f"train.save_dtype={asked}")  # fmt: skip
    assert done.code == 0, done.err
    before, after = (load_file(f / "model.safetensors") for f in (parent, Path("made/checkpoint")))
    same = [n for n, w in before.items() if torch.equal(w, after[n]) and w.dtype == after[n].dtype]
    assert sorted(before.keys() - same) == [
        n for n in sorted(before) if n == trained or (asked == "bf16" and "norm" in n)
    ]


@pytest.mark.parametrize("family", ["mixtral", "gpt2"])
def test_an_adapter_on_experts_and_on_conv1d(family: str, tmp_path: Path, ilu: Ilu) -> None:
    parent = make_family(family, tmp_path / family)
    small = ["--method", "npo", "--steps", 2, *BATCH, "--lora", "r=4"]
    done = ilu("unlearn", *small, "--model", parent, "--out", "made")
    assert done.code == 0, done.err
    moved, total, _ = changed(parent, Path("made/checkpoint"))
    found = json.loads(Path("made/manifest.json").read_text())["result"]["changed_fraction"]
    assert found == pytest.approx(moved / total, abs=0.01)  # a tiny B·A may round away in the float32 of peft's merge


def test_what_cannot_be_compared_loses_no_run(tmp_path: Path, ilu: Ilu, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_subject: Any) -> None:
        raise UnavailableError("these files are not to be compared")

    parent = make_family("llama-tied", tmp_path / "model")
    with monkeypatch.context() as m:
        m.setattr(saved, "open_checkpoint", refuse)
        done = ilu("unlearn", *SMALL, "--model", parent, "--out", "made")
    assert done.code == 0, done.err
    assert "the run is complete" in done.err and "an unknown share of the weights changed" in done.err
    run = present(find_subject("made", Store()).run)
    assert run.complete and run.manifest.result["changed_fraction"] is None
    assert ilu("eval", "made", "--bench", "capitals", "--limit", 4).code == 0
    assert "there is nothing to resume" in ilu("unlearn", "made", "--resume").err


def test_a_run_killed_after_its_training_is_finished_by_resume(
    tmp_path: Path, ilu: Ilu, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The checkpoint is written, and the manifest does not say so."""
    from ilu_cli.runs.store import Run

    def dies(_run: Any) -> None:
        raise OSError("killed")

    parent = odd.inv_freq(tmp_path / "model")
    with monkeypatch.context() as m:
        m.setattr(Run, "finish", dies)
        assert ilu("unlearn", *SMALL, "--model", parent, "--out", "made").code == 3
    assert json.loads(Path("made/manifest.json").read_text())["status"] == "failed"
    done = ilu("unlearn", "made", "--resume")
    assert done.code == 0, done.err
    moved, total, _ = changed(parent, Path("made/checkpoint"))
    assert present(find_subject("made", Store()).run).manifest.result["changed_fraction"] == moved / total


def test_a_second_file_changes_no_number(tmp_path: Path, ilu: Ilu) -> None:
    """The numbers of a model with an old copy beside its weights are those without."""
    found = {}
    for name, make in {"alone": lambda f: make_family("llama", f), "beside": odd.stray}.items():
        only = ["--set", "train.params=['model.layers.1.mlp.down_proj.weight']"]
        done = ilu("unlearn", *SMALL[:2], *SMALL[4:], *only, "--model", make(tmp_path / name), "--out", f"run-{name}")
        assert done.code == 0, done.err
        result = json.loads(Path(f"run-{name}", "manifest.json").read_text())["result"]
        norms = json.loads(ilu("taskvec", f"run-{name}", "--json").out)["groups"]["all"]["norms"]
        attack = ["--kind", "quantize", "--set", "attack.bits=[8]", "--set", "eval.benchmarks=[capitals]"]
        done = ilu("attack", tmp_path / name, *attack, "--set", "eval.limit=4", "--json")
        assert done.code == 0, done.err
        points = [p["eval"]["capitals"]["value"] for p in json.loads(done.out)["points"]]
        found[name] = (result["changed_fraction"], norms, points)
    assert found["alone"] == found["beside"]
    assert 0 < found["alone"][0] < 0.03
