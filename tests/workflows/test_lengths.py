"""Rows that a model does not take, or would read otherwise beside others, are refused in the plan."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as T
from conftest import Ilu
from families import COMMON, family_tokenizer, make_family

from ilu_cli.engine.accel import backend
from ilu_cli.engine.scoring import Scorer
from ilu_cli.models.load import load_model, load_tokenizer
from ilu_cli.models.parts import parts_of
from ilu_cli.models.subject import find_model

BOUND = 20
LONG: dict[str, Any] = {
    "rope_type": "longrope", "rope_theta": 10000.0, "short_factor": [1.0] * 4, "long_factor": [4.0] * 4,
    "original_max_position_embeddings": BOUND,
}  # fmt: skip


@pytest.fixture
def turned(tmp_path: Path) -> Path:
    """A model whose rotations are others in rows of more than `BOUND` tokens."""
    torch.manual_seed(0)
    config = T.Phi3Config(**COMMON, rope_parameters=LONG, original_max_position_embeddings=BOUND)
    T.AutoModelForCausalLM.from_config(config).float().save_pretrained(tmp_path / "m")
    family_tokenizer().save_pretrained(tmp_path / "m")
    return tmp_path / "m"


def unlearn(ilu: Ilu, model: Path, **lengths: int) -> Any:
    sets = [a for part, n in lengths.items() for a in ("--set", f"{part}.max_length={n}")]
    return ilu("unlearn", "--method", "npo", "--model", model, "--dry-run", *sets)


def test_rows_on_both_sides_of_longropes_bound_are_refused(ilu: Ilu, turned: Path) -> None:
    done = unlearn(ilu, turned, forget=BOUND, retain=40)
    assert done.code == 2 and "retain: a row has 40 tokens" in done.err and f"a max_length of {BOUND}" in done.err
    assert unlearn(ilu, turned, forget=BOUND, retain=BOUND).code == 0
    done = ilu(
        "attack", turned, "--task", "elements", "--source", "builtin", "--set", "attack.max_length=40", "--dry-run"
    )
    assert done.code == 2 and "attack: a row has" in done.err


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_rows_longer_than_the_context_are_refused(family: str, ilu: Ilu, tmp_path: Path) -> None:
    model, text = make_family(family, tmp_path / "m"), tmp_path / "long.jsonl"
    text.write_text('{"text": "' + " ".join(f"word {n}" for n in range(900)) + '"}\n')
    done = ilu("unlearn", "--method", "npo", "--model", model, "--dry-run", "--set", f"retain.data=[{text}]", "--set",
               "retain.max_length=600")  # fmt: skip
    assert done.code == 2 and "retain: a row has 600 tokens, more than the model's context of 512" in done.err


def test_what_a_model_writes_does_not_hang_on_the_prompts_beside_it(turned: Path) -> None:
    """The first is continued across the bound, the second up to it, the third lies beyond it."""
    model = load_model(find_model(str(turned)))
    scorer = Scorer(model, parts_of(model), load_tokenizer(turned), backend())
    prompts = [
        "The capital city of France is called",
        "Tin is",
        "The symbol of the element tin is called Sn, yes",
    ]
    assert [len(scorer.prompt(p)) > BOUND for p in prompts] == [False, False, True]
    assert scorer.complete(prompts, 8) == [scorer.complete([p], 8)[0] for p in prompts]
