"""A launch that cannot work ends on all of its processes with one message; what is half done is not taken for whole.

Two processes on CPUs, started by `accelerate launch`; where both outlive a failure, one launch does for several.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import tiny_model, tiny_tokenizer
from test_sharded import launch

pytestmark = pytest.mark.slow

HERE = Path(__file__).parents[1]
SAID = {  # by the case: exit code, words of the message
    "key": (2, "train.lr: 9e-05 in process 0"),
    "recipe": (2, "there is no file nowhere.yaml"),
    "usage": (2, "no-such-option"),
    "dry": (2, "--dry-run: False in process 0"),
    "version": (2, "version of torch: "),
    "model": (2, "model.ref: 'tiny' in process 0"),
    "weights": (2, "(parent parent): "),
    "no-weights": (3, "there is no run, model or folder 'tiny'"),
    "data": (2, "(data 0: forget facts.jsonl): "),
    "no-data": (3, "there is no dataset file or folder facts.jsonl"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model and data, and folders in which one of them is another, or gone."""
    path = tmp_path_factory.mktemp("launches")
    tokenizer = tiny_tokenizer()
    for place in (path, *(path / name for name in ("weights", "no-weights", "data", "no-data"))):
        model = tiny_model(len(tokenizer), spread=0.05 if place.name != "weights" else 0.06)
        model.save_pretrained(place / "tiny")
        tokenizer.save_pretrained(place / "tiny")
        more = 8 if place.name == "data" else 7
        rows = [json.dumps({"text": f"The capital of land {i} is town {more * i}."}) for i in range(8)]
        (place / "facts.jsonl").write_text("\n".join(rows))
    shutil.rmtree(path / "no-weights" / "tiny")
    (path / "no-data" / "facts.jsonl").unlink()
    return path


def spoilt(folder: Path, *cases: str, interface: str = "lo") -> tuple[dict[str, list[dict[str, Any]]], str]:
    """What the processes that told it said, by case, each within a minute; what the launch said."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        done = launch(str(HERE / "spoilt.py"), *cases, ILU_RUNS=str(folder / "runs"), ILU_CACHE=str(folder / "cache"),
                      HF_HUB_OFFLINE="1", GLOO_SOCKET_IFNAME=interface)  # fmt: skip
    said = {case: [json.loads(f.read_text()) for f in sorted(folder.glob(f"?.{case}.json"))] for case in cases}
    assert all(one["seconds"] < 60 for each in said.values() for one in each), said
    return said, done.stdout + done.stderr


@pytest.fixture(scope="module")
def refused(folder: Path) -> dict[str, list[dict[str, Any]]]:
    said, launcher = spoilt(folder, *SAID)
    assert not any((folder / "runs").glob("*")) and all(len(each) == 2 for each in said.values()), launcher
    return said


@pytest.mark.parametrize("case", SAID)
def test_what_is_not_the_same_everywhere_is_refused_before_anything_is_begun(
    refused: dict[str, list[dict[str, Any]]], case: str
) -> None:
    code, words = SAID[case]
    assert [each["code"] for each in refused[case]] == [code, code]
    told = [each["said"] for each in refused[case] if "error: " in each["said"] or "Error" in each["said"]]
    assert len(told) == 1 and words in told[0].replace("\n", " "), refused[case]


@pytest.mark.parametrize("case", ["memory", "full", "killed"])
def test_a_process_that_fails_alone_ends_all_and_leaves_a_run_that_goes_on(folder: Path, case: str) -> None:
    shutil.rmtree(folder / "runs", ignore_errors=True)
    said, launcher = spoilt(folder, case)
    [run] = (folder / "runs").iterdir()
    manifest = json.loads((run / "manifest.json").read_text())
    assert manifest["status"] in ("failed", "stopped") and not (run / "checkpoint").exists()
    words = {"memory": ["out of memory"], "full": ["No space left on device"], "killed": ["gloo", "Interrupt"]}[case]
    assert any(word in manifest["result"]["error"] for word in words)
    told = [each for each in said[case] if "error: " in each["said"]]
    assert len(told) == 1 and told[0]["code"] in ((5, 130) if case == "killed" else (5,)), (said, launcher)


def test_weights_that_are_no_numbers_are_refused_while_they_are_handed_out(folder: Path) -> None:
    shutil.rmtree(folder / "runs", ignore_errors=True)
    model = tiny_model(len(tokenizer := tiny_tokenizer()), spread=0.05)
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight[0, 0] = torch.nan
    model.save_pretrained(folder / "nowhere-finite")
    tokenizer.save_pretrained(folder / "nowhere-finite")
    said, launcher = spoilt(folder, "damaged")
    [told] = [each for each in said["damaged"] if "error: " in each["said"]]
    assert told["code"] == 3 and "infinite or not numbers: model.layers.1.mlp.down_proj.weight" in told["said"], (
        launcher
    )
    assert not any((folder / "runs").glob("*"))


def test_a_network_interface_that_is_not_there_is_refused(folder: Path) -> None:
    said, launcher = spoilt(folder, "network", interface="nowhere0")
    [told] = [each for each in said["network"] if "error: " in each["said"]]
    assert told["code"] == 2 and "this machine has no network interface nowhere0" in told["said"], launcher
