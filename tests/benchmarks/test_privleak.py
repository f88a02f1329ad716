"""PrivLeak's direction, with the labels taken from the files and the scores from plain transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as parquet
import pytest
import torch
from conftest import Ilu
from mirrors import mirror
from transformers import AutoModelForCausalLM, AutoTokenizer


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    mirror(tmp_path / "hub", "muse-bench/MUSE-News", 8)
    monkeypatch.setenv("ILU_DATA", str(tmp_path / "hub"))
    return tmp_path / "hub" / "muse-bench/MUSE-News" / "privleak"


def min_k(model: Any, tokenizer: Any, text: str) -> float:
    """Mean of the int(0.4·T) lowest log-probabilities, as in MUSE's code."""
    ids = torch.tensor([tokenizer(text)["input_ids"]])
    with torch.no_grad():
        logps = model(input_ids=ids).logits[0, :-1].log_softmax(-1)
    each = logps.gather(1, ids[0, 1:, None])[:, 0].sort().values
    return float(each[: int(0.4 * len(each))].mean().item())


def test_it_is_positive_if_held_out_texts_look_more_trained_on_than_forgotten_ones(
    hub: Path, tiny: Path, ilu: Ilu
) -> None:
    """(AUC − AUC of the retrained model)/the latter, AUC = P(Min-K% of a held-out text > that of a forgotten one).

    MUSE's `forget_holdout_Min-40%` takes forgotten texts for the non-members, so that too much forgetting is positive.
    """
    model, tokenizer = AutoModelForCausalLM.from_pretrained(tiny), AutoTokenizer.from_pretrained(tiny)
    scores = {}
    for split in ("holdout", "forget"):
        table = parquet.read_table(next(hub.glob(f"{split}-*.parquet")))
        scores[split] = [min_k(model, tokenizer, t) for t in table["text"].to_pylist()]
    auc = sum(h > f for h in scores["holdout"] for f in scores["forget"]) / 64
    assert abs(auc - 0.5) > 0.01  # the two directions differ
    done = ilu("eval", tiny, "--bench", "muse-news", "--json")
    assert done.code == 0, done.err
    found = json.loads(done.out)["results"]["muse-news"]["also"]["privleak"]["value"]
    assert found == pytest.approx((auc - 0.4772) / 0.4772 * 100, abs=1e-6)
