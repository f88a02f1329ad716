"""`ilu doctor MODEL` compares a model with plain transformers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import Ilu
from families import make_family
from safetensors.torch import load_file, save_file


def test_a_model_that_is_right(ilu: Ilu, tmp_path: Path) -> None:
    folder = make_family("mistral", tmp_path / "m")
    done = ilu("doctor", folder, "--json")
    assert done.code == 0, done.err
    facts = json.loads(done.out)
    assert facts["holds"] and facts["trees"] and facts["class"] == "MistralForCausalLM" and facts["why"] == ""
    assert max(facts["loss"], facts["logps"]) < 1e-5 and facts["tolerance"] == 1e-3
    shown = ilu("doctor", folder)
    assert shown.code == 0 and "packed trees" in shown.out and "1.0e-03" in shown.out
    assert f"next: ilu eval {folder}" in shown.err


def test_plain_rows_and_their_reason_are_told(ilu: Ilu, tmp_path: Path) -> None:
    done = ilu("doctor", make_family("lfm2", tmp_path / "m"))
    assert done.code == 0 and "layers of conv" in done.out and "texts are continued all together" in done.out


def test_a_model_whose_numbers_are_not_finite(ilu: Ilu, tmp_path: Path) -> None:
    folder = make_family("llama", tmp_path / "m")
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"][0] = float("nan")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    done = ilu("doctor", folder)
    assert done.code == 3 and "infinite or not numbers: model.norm.weight" in done.err
    assert json.loads(ilu("doctor", folder, "--json").out)["error"]["code"] == 3
    assert ilu("eval", folder, "--bench", "capitals").code == 3


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (["smollm2-134m"], 2, "no recipe, run or model 'smollm2-134m'. Did you mean 'smollm2-135m'?"),
        (["."], 3, "neither a run"),
        (["m", "--set", "train.lr=1"], 2, "--set changes a recipe"),
    ],
)
def test_wrong_use(ilu: Ilu, tmp_path: Path, args: list[str], code: int, message: str) -> None:
    make_family("llama", tmp_path / "m")
    done = ilu("doctor", *args)
    assert done.code == code and message in done.err
