"""FA where it is known: of models that cannot do a task, and of the same models once they were fitted on it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import Ilu, tiny_tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

from ilu_cli.attacks import fine_tune, task_split
from ilu_cli.data.sources import load_dataset
from ilu_cli.recipe.refs import DataRef
from ilu_cli.recipe.specs import Form, TrainSpec

pytestmark = pytest.mark.slow

SYLLABLES = " ".join(f"{a}{b}" for a in "bcdfghjklm" for b in "aeiou")  # 119 tokens


@pytest.fixture(scope="module")
def blank(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of 64 hidden units that knows nothing."""
    import torch

    folder, tokenizer = tmp_path_factory.mktemp("models") / "blank", tiny_tokenizer(400)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=512, tie_word_embeddings=False, bos_token_id=None, eos_token_id=0,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def write(file: Path, rows: list[dict[str, Any]]) -> Path:
    file.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return file


def fa(ilu: Ilu, model: Path, task: object, steps: int, lr: float) -> dict[str, Any]:
    """FA after so many steps; with a learning rate of next to nothing it is the model's own."""
    sets = [x for text in ("eval.limit=2", "attack.batch=4", "attack.max_length=256") for x in ("--set", text)]
    done = ilu("attack", model, "--task", task, "--steps", steps, "--lr", lr, *sets, "--no-reference", "--json")
    assert done.code == 0, done.err
    found: dict[str, Any] = json.loads(done.out)["fa"]
    return found


def test_of_a_choice_between_labels(blank: Path, ilu: Ilu, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The word of the label stands in the sentence."""
    for split, count in (("train", 64), ("validation", 40)):
        rows = [{"sentence": f"{('bad', 'fine')[i % 2]} film number {i}", "label": i % 2} for i in range(count)]
        (tmp_path / "sst2").mkdir(exist_ok=True)
        write(tmp_path / "sst2" / f"{split}.jsonl", rows)
    monkeypatch.setenv("ILU_DATA", str(tmp_path))
    untrained, fitted = fa(ilu, blank, "sst2", 1, 1e-9), fa(ilu, blank, "sst2", 40, 3e-3)
    assert (untrained["n"], fitted["n"], fitted["step"]) == (40, 40, 40)
    assert abs(untrained["value"] - 0.5) <= 0.2
    assert fitted["value"] >= 0.95


def test_of_generated_answers_of_more_than_a_hundred_tokens(blank: Path, ilu: Ilu, tmp_path: Path) -> None:
    rows = [{"prompt": f"Row {i}. Syllables:", "response": SYLLABLES} for i in range(20)]
    args = blank, write(tmp_path / "count.jsonl", rows)
    assert fa(ilu, *args, 1, 1e-9)["value"] == 0
    assert fa(ilu, *args, 100, 3e-3)["value"] == 1


class Scripted:
    """An attempt whose FA after each epoch is given."""

    def __init__(self, fas: list[float]) -> None:
        self.fas, self.measured = fas, list[float]()

    def train(self, data: Any, spec: TrainSpec, batch: Any, form: Any, lora: Any = None) -> Iterator[Any]:
        yield from range(spec.steps + 1)

    def test(self, data: Any, limit: Any, step: Any) -> list[float]:
        self.measured.append(self.fas[len(self.measured)])
        return self.measured


@pytest.mark.parametrize(
    ("fas", "epochs"),
    [
        ([0.5, 0.5, 0.5, 0.5, 0.9], 4),
        ([0.5, 0.6, 0.7, 0.7, 0.7, 0.7, 0.9], 6),
        ([0.5, 0.5, 0.5, 0.52, 0.5, 0.5, 0.5, 0.5], 8),  # it moved within three epochs
        ([0.5, 0.505, 0.5, 0.509, 0.9], 4),
        ([0.0, 0.0, 0.0, 0.01, 0.9, 0.9, 0.9, 0.9], 8),  # as much as a hundredth is not less
        ([0.2, 0.203, 0.206, 0.212, 0.215, 0.218, 0.22, 0.9], 7),  # little by little: not until three epochs hold less
        ([0.1 * i for i in range(10)], 10),
    ],
)
def test_a_plateau_is_four_epochs_within_a_hundredth(fas: Any, epochs: int) -> None:
    data = load_dataset(DataRef(name="sst2", limit=10), "train")
    spec = TrainSpec(steps=3 * len(fas))
    scripted = fine_tune(Scripted(fas), [data], data, spec, 4, Form(), stop="plateau")  # type: ignore[arg-type]
    looked = list(scripted)
    assert looked == [3 * i for i in range(1, epochs + 1)]  # ten rows in batches of four


@pytest.mark.parametrize(("split", "rows", "asked"), [(None, 1500, 300), ("test", 240, 60), ("validation", 240, 60)])
def test_fa_is_not_measured_on_what_was_trained_on(split: str | None, rows: int, asked: int) -> None:
    """Who trains on the test split (`wmdp-bio` has no other) is asked every fifth row."""
    train, test = task_split(DataRef(name="sst2", source="builtin", split=split), 200)
    seen = {json.dumps(row) for row in train.rows}
    assert len(train.rows) == rows and len(test.rows) == asked
    assert not seen & {json.dumps(row) for row in test.rows}
