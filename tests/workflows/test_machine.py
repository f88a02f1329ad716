"""`precision: auto`: bf16 where the device multiplies it, else float32, written down as what it was."""

from __future__ import annotations

import json
import platform
from pathlib import Path

import pytest
import torch
from conftest import Ilu
from safetensors.torch import load_file
from test_fit import shape

from ilu_cli.engine.accel import Backend, backend
from ilu_cli.recipe.memory import MemorySpec
from ilu_cli.runs.store import open_run
from ilu_cli.workflows.fit.plan import plan as fit_plan
from ilu_cli.workflows.machine import precision_here
from ilu_cli.workflows.pipeline.graph import hash_of_run

NPO = ["unlearn", "--method", "npo", "--steps", 1, "--lr", 1e-3, "--set", "forget.batch=2", "--set", "retain.batch=2"]
ATTACK = ["--task", "sst2", "--source", "builtin", "--no-reference", "--set", "attack.steps=1", "--set",
          "attack.batch=2", "--set", "attack.test_rows=2", "--set", "eval.limit=2", "--set",
          "eval.benchmarks=[elements]"]  # fmt: skip


def has_bf16(monkeypatch: pytest.MonkeyPatch, *, yes: bool) -> None:
    monkeypatch.setattr(Backend, "multiplies_bf16", property(lambda _: yes))


@pytest.mark.skipif(platform.machine() != "x86_64" or not Path("/proc/cpuinfo").is_file(), reason="reads Linux's flags")
def test_a_processor_has_what_linux_says_of_it() -> None:
    flags = Path("/proc/cpuinfo").read_text().partition("flags")[2].partition("\n")[0].split()
    assert backend().multiplies_bf16 == {"avx512bw", "avx512vl", "avx512dq"}.issubset(flags)


def test_what_is_asked_for_goes_before_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for yes, auto in ((True, "bf16"), (False, "fp32")):
        has_bf16(monkeypatch, yes=yes)
        assert precision_here("auto", MemorySpec()) == auto
        assert precision_here("auto", MemorySpec(frozen="bf16")) == "bf16"
        assert [precision_here(asked, MemorySpec()) for asked in ("bf16", "fp32")] == ["bf16", "fp32"]


def test_autocast_takes_no_type_that_was_left_open() -> None:
    with pytest.raises(KeyError, match="auto"):
        backend().autocast("auto")


def test_runs_keep_the_type_and_a_pipeline_finds_them_by_what_was_asked(
    ilu: Ilu, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = {}
    for yes in (True, False):
        has_bf16(monkeypatch, yes=yes)
        done = ilu(*NPO, "--model", tiny)
        assert ("multiplies no bfloat16" in done.err) == (not yes)
        run = open_run(Path(done.out.split()[-1]))
        attacked = ilu("attack", run.path, *ATTACK)
        assert attacked.code == 0, attacked.err
        assert ("multiplies no bfloat16" in attacked.err) == (not yes)
        found[yes] = run, open_run(Path(attacked.out.split()[-1]))
    for half, full in zip(found[True], found[False]):
        assert [r.manifest.precision for r in (half, full)] == ["bf16", "fp32"]
        assert "precision: auto" not in "".join((r.path / "recipe.yaml").read_text() for r in (half, full))
        assert half.manifest.asked_sha256 == full.manifest.asked_sha256
        assert half.manifest.recipe_sha256 != full.manifest.recipe_sha256
    half, full = (r[0] for r in found.values())
    assert hash_of_run(half) == hash_of_run(full)
    weights = [load_file(r.path / "checkpoint" / "model.safetensors") for r in (half, full)]
    assert any(not torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_a_run_that_is_said_to_be_in_float32_is_the_same_recipe(
    ilu: Ilu, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    has_bf16(monkeypatch, yes=False)
    open_, named = (
        json.loads(ilu(*NPO, "--model", tiny, *more, "--dry-run", "--json").out)
        for more in ([], ["--set", "train.precision=fp32"])
    )
    assert open_["recipe_sha256"] == named["recipe_sha256"]
    assert open_["peak_memory_bytes"] == named["peak_memory_bytes"]


def test_a_plan_for_other_devices_does_not_ask_this_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ilu_cli.recipe.load import find, load
    from ilu_cli.recipe.schema import UnlearnRecipe

    recipe = load(UnlearnRecipe, find("quickstart-npo"), {}, [])
    kinds, config = {}, shape(tmp_path)
    for yes in (True, False):
        has_bf16(monkeypatch, yes=yes)
        for devices in ("H100-80GB", "here"):
            job = fit_plan("quickstart-npo", "unlearn", recipe, "", devices, ("a Llama", config)).jobs[0].job
            kinds[yes, devices] = job.train.precision
    assert kinds[True, "H100-80GB"] == kinds[False, "H100-80GB"] == "auto"
    assert (kinds[True, "here"], kinds[False, "here"]) == ("bf16", "fp32")
