"""`--dry-run --devices`: what `ilu plan` says, of a recipe as flags make it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import Ilu

H100 = ["--devices", "8xH100-80GB"]


def test_a_dry_run_is_priced_as_the_plan_of_its_recipe(ilu: Ilu, tiny: Path) -> None:
    asked = ["--model", tiny, *H100]
    plan = ilu("plan", "quickstart-npo", "--set", "train.steps=3", *asked)
    dry = ilu("unlearn", "--method", "npo", "--steps", 3, *asked, "--dry-run")
    assert (plan.code, dry.code) == (0, 0), dry.err
    cut = [out.replace(how, "HOW") for out, how in (
        (plan.out, "unlearn --recipe quickstart-npo"), (dry.out, f"unlearn --method npo --steps 3 --model {tiny}")
    )]  # fmt: skip
    assert "fits: ilu HOW\n" in cut[0]
    assert cut[0] == cut[1]
    found = json.loads(ilu("unlearn", "--method", "npo", "--steps", 3, *asked, "--dry-run", "--json").out)
    assert found == json.loads(ilu("plan", "quickstart-npo", "--set", "train.steps=3", *asked, "--json").out)


def test_an_attack_is_priced_on_the_model_that_it_is_of(ilu: Ilu, tiny: Path) -> None:
    done = ilu("attack", tiny, "--task", "sst2", "--dry-run", f"{H100[0]}={H100[1]}", "--json")
    found = json.loads(done.out)
    assert found["model"] == str(tiny)
    assert found["recipe"] == "quickstart-finetune"
    assert [j["name"] for j in found["jobs"]] == ["attack"]
    told = ilu("attack", tiny, "--task", "sst2", "--dry-run", f"{H100[0]}={H100[1]}").out
    assert f"attack: fits: ilu attack {tiny} --task sst2\n" in told


@pytest.mark.parametrize("command", ["unlearn", "attack"])
def test_what_is_run_is_not_priced(ilu: Ilu, tiny: Path, command: str) -> None:
    done = ilu(command, tiny, *H100)
    assert done.code == 2
    assert "--devices 8xH100-80GB prices and runs nothing" in done.err
    assert "--dry-run" in done.err


def test_what_does_not_fit_is_exit_code_4(ilu: Ilu, tiny: Path) -> None:
    done = ilu("unlearn", tiny, "--dry-run", "--devices", "1x(0.5GB,100TFLOPS,1TB/s)")
    assert done.code == 4
    assert "quickstart-repselect does not fit on" in done.err
