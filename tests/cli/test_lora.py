"""Adapters: trained by every part of `unlearn`, saved as plain peft, accepted by the other commands."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Ilu, present
from peft import PeftModel
from safetensors.torch import load_file
from test_chain import ATTACK, SMALL
from transformers import AutoModelForCausalLM

from ilu_cli.engine.loop import Trainer
from ilu_cli.models.load import load_model
from ilu_cli.models.subject import find_model, find_subject
from ilu_cli.runs.store import Store
from ilu_cli.taskvec.delta import open_checkpoint

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("method", ["npo", "rmu"])
def test_an_adapter_through_the_whole_chain(tiny: Path, ilu: Ilu, method: str) -> None:
    layer = ["--set", "objective.layer=1"] if method == "rmu" else []
    done = ilu("unlearn", "--method", method, *layer, *SMALL, "--model", tiny, "--steps", 3, "--lr", 1e-2,
               "--lora", "r=4,alpha=8,targets=down_proj+q_proj", "--defence", "sam", "--irm-env", "elements",
               "--set", "retain.data=[prose]", "--irm-batch", 2)  # fmt: skip
    assert done.code == 0, done.err
    run = Path(done.out.strip())
    assert "lora" in run.name
    assert not list(run.glob("checkpoint/model*.safetensors"))
    saved = load_file(run / "checkpoint" / "adapter_model.safetensors")
    assert {n.split(".")[-3] for n in saved} == {"down_proj", "q_proj"}
    assert all(t.shape[0] == 4 for n, t in saved.items() if "lora_A" in n)
    assert any(t.abs().max() > 0 for n, t in saved.items() if "lora_B" in n)

    plain = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny), run / "checkpoint")  # plain peft
    ids = torch.arange(1, 9)[None]
    ours = load_model(find_subject(str(run), Store()))
    torch.testing.assert_close(ours(input_ids=ids).logits, plain(input_ids=ids).logits, rtol=1e-4, atol=1e-5)
    merged = open_checkpoint(find_subject(str(run), Store()))
    for name, p in ours.named_parameters():
        torch.testing.assert_close(merged.tensor(name), p.detach(), rtol=1e-5, atol=1e-6)
    result = json.loads((run / "manifest.json").read_text())["result"]
    assert 0 < result["changed_fraction"] < 0.5

    for command in (["attack", *ATTACK, "--json"], ["eval", "--limit", 8, "--json"], ["taskvec", "--json"]):
        done = ilu(*command)
        assert done.code == 0, done.err
    found = json.loads(done.out)
    assert found["checkpoints"]["unlearned"]["id"] == run.name
    assert found["groups"]["layer 0"]["norms"]["u"] > 0
    again = ilu("unlearn", "--method", "npo", *SMALL, "--model", run, "--steps", 1)  # full training from an adapter
    assert again.code == 0, again.err
    assert list(Path(again.out.strip()).glob("checkpoint/model*.safetensors"))


def test_an_interrupted_adapter_run_resumes_to_the_same_bits(
    tiny: Path, ilu: Ilu, monkeypatch: pytest.MonkeyPatch
) -> None:
    args = ["unlearn", "--method", "npo", *SMALL, "--model", tiny, "--steps", 4, "--lora", "r=2", "--set",
            "train.save_every=1"]  # fmt: skip
    whole = Path(ilu(*args).out.strip())
    original = Trainer.run

    def interrupted(self: Any) -> Iterator[Any]:
        for log in original(self):
            yield log
            if log.step == 3:
                raise KeyboardInterrupt

    monkeypatch.setattr(Trainer, "run", interrupted)
    assert ilu(*args, "--out", "broken").code == 130
    monkeypatch.setattr(Trainer, "run", original)
    done = ilu("unlearn", "broken", "--resume")
    assert done.code == 0, done.err
    assert "continuing after step" in done.err
    a, b = (load_file(run / "checkpoint" / "adapter_model.safetensors") for run in (whole, Path("broken")))
    assert all(a[n].equal(b[n]) for n in a)


def test_a_bare_adapter_folder_finds_its_base(tiny: Path, ilu: Ilu, tmp_path: Path) -> None:
    done = ilu("unlearn", "--method", "npo", *SMALL, "--model", tiny, "--steps", 1, "--lora", "r=2")
    adapter = Path(done.out.strip()) / "checkpoint"
    subject = find_model(str(adapter))
    assert present(subject.base).folder == tiny
    assert subject.root == tiny
    found = ilu("eval", adapter, "--limit", 4, "--json")
    assert found.code == 0, found.err


@pytest.mark.parametrize(
    ("text", "code", "message"),
    [
        ("r", 2, "write it as r=16"),
        ("rank=4", 2, "lora.rank"),
        ("r=0", 2, "greater than 0"),
        ("r=2,targets=nothing_proj", 2, "lora.targets"),
    ],
)
def test_wrong_adapters(tiny: Path, ilu: Ilu, text: str, code: int, message: str) -> None:
    done = ilu("unlearn", "--method", "npo", "--model", tiny, "--lora", text)
    assert done.code == code, done.err
    assert message in done.err
