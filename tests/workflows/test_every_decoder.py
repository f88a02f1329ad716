"""The way of a run on every decoder family, with no key that depends on the model: its layer and weights are chosen.

The models have more embeddings than their tokenizers have tokens, no pad token, and where their family has none no BOS.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from conftest import Ilu
from families import FAMILIES, VOCAB, WITHOUT_BOS, family_tokenizer
from transformers import AutoModelForCausalLM

pytestmark = pytest.mark.slow

SMALL = ["--steps", 1, "--set", "forget.batch=2", "--set", "forget.max_length=24", "--set", "retain.batch=2", "--set",
         "retain.max_length=24", "--set", "retain.data=[elements]"]  # fmt: skip
METHODS: dict[str, list[object]] = {
    "rmu with irm": ["--method", "rmu", "--irm-env", "other.jsonl", "--irm-batch", 2],
    "npo with an adapter": ["--method", "npo", "--lora"],
}
ADAPTER = {
    "mamba": "r=2,targets=in_proj"
}  # peft takes no `all-linear` there; NPO of all weights is in test_families_loss


def padded(family: str, folder: Path) -> Path:
    """A random model of a family with 24 embeddings that stand for no token."""
    config = FAMILIES[family]()
    config.vocab_size = VOCAB + 24
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).float().save_pretrained(folder)
    tokenizer = family_tokenizer(bos=family not in WITHOUT_BOS)
    assert len(tokenizer) == VOCAB
    assert tokenizer.pad_token is None
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_no_key_depends_on_the_model(family: str, ilu: Ilu, tmp_path: Path) -> None:
    rows = [{"text": f"A line about {word}, and no capital in it."} for word in ("bread", "mills", "rain", "wool")]
    Path("other.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    model, runs = padded(family, tmp_path / family), {}
    for name, args in METHODS.items():
        lora = [ADAPTER.get(family, "r=2")] if "--lora" in args else []
        done = ilu("unlearn", *args, *lora, *SMALL, "--model", model)
        assert done.code == 0, f"{name}: {done.err}"
        runs[name] = Path(done.out.strip())
        metrics = [json.loads(line) for line in (runs[name] / "metrics.jsonl").read_text().splitlines()]
        assert all(math.isfinite(v) for m in metrics for v in m.get("losses", {}).values())
        assert json.loads((runs[name] / "manifest.json").read_text())["result"]["changed_fraction"] > 0
    attacked = ilu("attack", runs["rmu with irm"], "--task", "other.jsonl", "--steps", 1, "--no-reference", "--set",
                   "attack.batch=2", "--set", "eval.limit=2", "--set", "eval.benchmarks=[capitals]")  # fmt: skip
    assert attacked.code == 0, attacked.err
    found = ilu("taskvec", "--json")
    assert found.code == 0, found.err
    measured = ilu("eval", runs["npo with an adapter"], "--alone", "--bench", "prose", "--limit", 2, "--json")
    assert measured.code == 0, measured.err
    assert math.isfinite(json.loads(measured.out)["results"]["prose"]["value"])
