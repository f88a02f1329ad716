"""Models that cap or scale their logits, pad their vocabulary, have a biased head or bf16 weights, from end to end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Ilu
from families import make_family
from transformers import AutoModelForCausalLM, AutoTokenizer

pytestmark = pytest.mark.slow

SMALL = ["--set", "forget.batch=4", "--set", "retain.batch=4", "--set", "forget.max_length=24", "--set",
         "retain.max_length=24", "--steps", 3, "--irm-env", "elements", "--irm-batch", 2]  # fmt: skip
TRAININGS = [
    ["--method", "rmu", "--set", "objective.layer=2", "--set", "train.params=null", "--lr", "1e-3"],
    ["--method", "npo", "--set", "retain={name: kl, data: [elements], batch: 4, max_length: 24}"],
]
MODELS = ["gemma2", "granite", "cohere", "phi", "llama-tied"]


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest) -> Path:
    """A saved model: Gemma-2 without a window, the tied Llama in bf16 and with a vocabulary larger than its tokens."""
    folder = make_family(request.param, Path(request.param))
    config = json.loads((folder / "config.json").read_text())
    if request.param == "gemma2":
        (folder / "config.json").write_text(json.dumps(config | {"sliding_window": 512}))
    if request.param == "llama-tied":
        made = AutoModelForCausalLM.from_pretrained(folder)
        made.resize_token_embeddings(448)
        torch.nn.Module.to(made, torch.bfloat16).save_pretrained(folder)
    return folder


def plain(folder: Path, row: dict[str, Any]) -> list[float]:
    """The log-probabilities of a question's choices by plain transformers, each sequence by itself."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    found, start = [], len(tokenizer(row["question"].rstrip())["input_ids"])
    for choice in row["choices"]:
        ids = tokenizer(row["question"] + choice, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            logp = model(input_ids=ids).logits[0].double().log_softmax(-1)
        found.append(sum(logp[t - 1, ids[0, t]].item() for t in range(start, ids.shape[1])))
    return found


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "capitals.rows.jsonl").read_text().splitlines()]


def test_unlearn_and_eval(model: Path, ilu: Ilu, tmp_path: Path) -> None:
    done = ilu("eval", model, "--bench", "capitals", "--limit", 4)
    assert done.code == 0, done.err
    (folder,) = (tmp_path / "cache" / "eval").iterdir()
    for row in rows(folder):
        assert row["logps"] == pytest.approx(plain(model, row), rel=1e-5, abs=1e-4)
    for training in TRAININGS:
        done = ilu("unlearn", "--model", model, *training, *SMALL)
        assert done.code == 0, done.err
        run = Path(done.out.strip())
        assert ilu("eval", run, "--bench", "capitals", "--limit", 4).code == 0
        for row in rows(run / "eval"):
            assert row["logps"] == pytest.approx(plain(run / "checkpoint", row), rel=1e-5, abs=1e-4)
