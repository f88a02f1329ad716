"""A model is compared with plain transformers when it is loaded; what differs is told, mended or refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Ilu
from families import family_model, family_tokenizer, make_family

from ilu_cli.engine import parity
from ilu_cli.engine.accel import backend
from ilu_cli.engine.layout import FULL, Layout
from ilu_cli.engine.parity import TOLERANCE, Parity, check, compare
from ilu_cli.engine.scoring import Scorer
from ilu_cli.errors import UnavailableError, UsageError
from ilu_cli.models import kept
from ilu_cli.models.parts import parts_of


def scorer_of(family: str, **keys: Any) -> Scorer:
    model = family_model(family)
    return Scorer(model, parts_of(model), family_tokenizer(), backend(), **keys)


def known(scorer: Scorer, weights: str) -> Scorer:
    """The same scorer, whose weights are told so."""
    scorer.parts = replace(scorer.parts, identity=[weights])
    return scorer


@pytest.mark.parametrize(("family", "trees"), [("llama", True), ("mistral", True), ("gpt_oss", True), ("lfm2", False)])
def test_a_model_that_is_right(family: str, trees: bool) -> None:
    notes: list[str] = []
    scorer = scorer_of(family, precision="bf16")
    found = check(scorer, notes.append)
    assert found.holds and found.trees is trees and found is scorer.parity
    assert max(found.loss, found.logps) < 1e-5 and found.tolerance == TOLERANCE
    assert notes == [] and scorer.precision == "bf16"


def test_the_text_is_longer_than_the_window_while_it_is_compared() -> None:
    scorer = scorer_of("mistral")
    scorer.model.config.sliding_window = 4096
    assert compare(scorer).trees
    scorer.layout = Layout(scorer.model.config, (FULL,))  # as if there were no window
    found = compare(scorer)
    assert found.holds and not found.trees and "would differ" in found.why
    assert scorer.model.config.sliding_window == 4096


@pytest.mark.parametrize("family", ["bloom", "mpt", "falcon", "lfm2"])
def test_trees_that_are_wrong_fall_back_to_plain_rows_and_say_so(family: str) -> None:
    scorer, notes = scorer_of(family), list[str]()
    scorer.layout = Layout(scorer.model.config, (FULL,))
    found = check(scorer, notes.append)
    assert found.holds and not found.trees and not scorer.layout.trees and scorer.layout.why == found.why
    assert len(notes) == 1 and "shared beginnings are run again" in notes[0] and "\n" not in notes[0]


def test_rows_that_lose_their_branches_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Positions that count in the row, or a mask that shows other branches, is never taken for a tree."""
    for place in ("positions", "mask"):
        scorer, inputs = scorer_of("llama"), Layout.inputs

        def wrong(
            self: Any, rows: Any, dtype: Any, device: Any, place: Any = place, inputs: Any = inputs
        ) -> tuple[Any, Any, Any]:
            ids, mask, extra = inputs(self, rows, dtype, device)
            if extra and place == "positions":
                extra = {"position_ids": torch.arange(ids.shape[1])[None]}
            if extra and place == "mask":
                mask = torch.full_like(mask, torch.finfo(mask.dtype).min).triu(1)
            return ids, mask, extra

        with monkeypatch.context() as patched:
            patched.setattr(Layout, "inputs", wrong)
            assert not compare(scorer).trees, place


def test_a_head_that_is_not_the_models_is_refused_by_name() -> None:
    scorer = scorer_of("llama")
    scorer.parts.head.weight.data *= 1.01  # tied to nothing: ours and theirs are the same module, so both change
    assert compare(scorer).holds
    theirs = scorer.model.forward

    def scaled(**inputs: Any) -> Any:
        out = theirs(**inputs)
        out.logits = out.logits * 1.01
        return out

    scorer.model.forward = scaled
    with pytest.raises(UsageError, match=r"LlamaForCausalLM is not supported: .*differs.* nats"):
        check(scorer, print)


def test_numbers_that_are_not_finite_are_an_error() -> None:
    scorer = scorer_of("llama")
    scorer.model.model.layers[1].mlp.down_proj.weight.data[3, 4] = torch.nan
    with pytest.raises(UnavailableError, match="not finite"):
        check(scorer, print)
    assert not Parity(float("nan"), 0.0, 1e-3, trees=True).holds
    assert not Parity(0.0, float("nan"), 1e-3, trees=True).holds
    assert not Parity(2e-3, 0.0, 1e-3, trees=True).holds and not Parity(0.0, 2e-3, 1e-3, trees=True).holds


def test_requests_branch_and_stand_alone() -> None:
    a, b, c = parity._requests(family_tokenizer())
    assert a.ids[:6] == b.ids[:6] and a.ids[6] != b.ids[6] and c.ids[0] != a.ids[0]
    assert [len(r.ids) for r in (a, b, c)] == [12, 10, 5] and {r.start for r in (a, b, c)} == {1}


def test_every_run_keeps_the_comparison(ilu: Ilu, tmp_path: Path) -> None:
    folder = make_family("mistral", tmp_path / "mistral")
    keys = ["--set", f"model.ref={folder}", "--set", "train.steps=1", "--set", "train.precision=fp32"]
    made = ilu("unlearn", "--method", "grad_ascent", *keys, "--set", "train.params=['*mlp*']", "--json")
    assert made.code == 0, made.err
    manifest = json.loads((tmp_path / "runs").joinpath(json.loads(made.out)["run"], "manifest.json").read_text())
    kept = manifest["result"]["parity"]
    assert kept["trees"] and kept["loss"] <= kept["tolerance"] and kept["logps"] <= kept["tolerance"]
    done = ilu("eval", "--bench", "capitals", "--limit", 3, "--alone", "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["results"]["capitals"]["parity"]["trees"]
    done = ilu("attack", "--kind", "noise", "--set", "eval.benchmarks=[capitals]", "--set", "eval.limit=3", "--json")
    assert done.code == 0, done.err
    runs = [json.loads(p.read_text()) for p in (tmp_path / "runs").glob("attack-*/manifest.json")]
    assert runs and all(r["result"]["parity"]["trees"] for r in runs)


def test_texts_of_several_lengths_are_not_continued_together_where_padding_is_seen() -> None:
    prompts, said = ["The capital of France is", "Who is Ada Byrne, and where does she live?"], list[str]()
    apart = [scorer_of("llama").complete([p], 8) for p in prompts]
    scorer = scorer_of("llama")
    own = scorer.model.forward
    scorer.model.forward = lambda attention_mask=None, position_ids=None, **inputs: own(**inputs)
    assert [[x] for x in scorer.complete(prompts, 8)] != apart
    found = check(scorer, said.append)
    assert found.holds and found.decodes and not found.padded
    assert "LlamaForCausalLM: only texts of one length are continued together" in said[-1]
    assert [[x] for x in scorer.complete(prompts, 8)] == apart


def test_a_model_whose_cache_gives_other_answers_scores_but_does_not_write() -> None:
    scorer = scorer_of("llama")
    own = scorer.model.forward

    def forgetful(**inputs: Any) -> Any:
        if inputs["input_ids"].shape[1] == 1:  # a step with a cache, which it reads as empty
            inputs = {"input_ids": inputs["input_ids"], "use_cache": False}
        return own(**inputs)

    scorer.model.forward = forgetful
    found = check(scorer, print)
    assert found.holds and not found.decodes and not found.padded
    with pytest.raises(UsageError, match="LlamaForCausalLM is not supported where it is to write"):
        scorer.complete(["The capital of France is"], 4)


@pytest.mark.parametrize(("family", "trees"), [("llama", True), ("lfm2", False)])
def test_what_is_known_is_what_was_found(
    family: str, trees: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("ILU_CACHE", str(tmp_path))
    made: list[Parity] = []

    def counted(scorer: Scorer) -> Parity:
        made.append(compare(scorer))
        return made[-1]

    monkeypatch.setattr(parity, "compare", counted)
    slow, fast = scorer_of(family), scorer_of(family)
    assert check(slow, print) == check(known(fast, "a"), print) and len(made) == 2
    again = scorer_of(family)
    assert check(known(again, "a"), print) == slow.parity == again.parity and len(made) == 2
    assert (again.layout.kinds, again.layout.why, again.layout.padded) == (
        slow.layout.kinds,
        slow.layout.why,
        slow.layout.padded,
    )
    assert again.layout.trees is trees
    check(known(scorer_of(family), "b"), print)  # other weights
    monkeypatch.setattr(kept, "code", lambda: "other code")
    check(known(scorer_of(family), "a"), print)
    assert len(made) == 4
    monkeypatch.setenv("ILU_CACHE_GB", "0")
    check(known(scorer_of(family), "a"), print)
    assert len(made) == 5


def test_a_model_that_brings_its_own_code_is_compared_each_time(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("ILU_CACHE", str(tmp_path))
    scorer, made = scorer_of("llama"), list[Parity]()

    def counted(scorer: Scorer) -> Parity:
        made.append(compare(scorer))
        return made[-1]

    monkeypatch.setattr(parity, "compare", counted)
    monkeypatch.setattr(type(scorer.model), "__module__", "transformers_modules.folder.modeling_llama")
    check(known(scorer, "a"), print)
    check(known(scorer, "a"), print)
    assert len(made) == 2


def test_what_fails_is_compared_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ILU_CACHE", str(tmp_path))
    monkeypatch.setattr(parity, "compare", lambda scorer: Parity(1.0, 1.0, TOLERANCE, trees=True))
    with pytest.raises(UsageError, match="is not supported"):
        check(known(scorer_of("llama"), "a"), print)
    monkeypatch.setattr(parity, "compare", compare)
    assert check(known(scorer_of("llama"), "a"), print).holds
