"""The backend `ilu` says what lm-eval's own HFLM says, request by request."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from families import make_family
from lm_eval.api.instance import Instance
from lm_eval.api.registry import get_model
from lm_eval.models.huggingface import HFLM

from ilu_cli.engine import scoring
from ilu_cli.errors import UsageError
from ilu_cli.harness.lm import IluLM

PREFIX = "Paris is the capital of France.\n\nIron is written Fe.\n\n" * 3
PAIRS = [
    ("The chemical symbol for iron is", " Fe"),
    ("The chemical symbol for iron is", " Fe and nothing else"),
    ("The chemical symbol for tin is", " Sn"),
    ("Question: ends with spaces  ", "Answer"),
    ("", "Paris is a city."),
    ("", " Paris"),
    *((f"{PREFIX}The capital of {c} is", f" {a}") for c in ("Chad", "Peru") for a in ("Lima", "N'Djamena", "Oslo")),
]
PROMPTS = ["The capital of France is", "In chemistry, iron is abbreviated", "Question:", PREFIX]


def instances(kind: str, arguments: list[tuple[Any, ...]]) -> list[Instance]:
    return [Instance(kind, {}, a, i) for i, a in enumerate(arguments)]


@pytest.fixture(scope="module")
def both(tiny: Path) -> tuple[Any, Any]:
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    return get_model("ilu")(pretrained=str(tiny)), HFLM(pretrained=str(tiny), device="cpu", batch_size=4)


def test_log_likelihoods_and_greedy_flags(both: Any) -> None:
    ours, theirs = (lm.loglikelihood(instances("loglikelihood", PAIRS), disable_tqdm=True) for lm in both)
    assert [o[0] for o in ours] == pytest.approx([t[0] for t in theirs], abs=1e-4)
    assert [o[1] for o in ours] == [t[1] for t in theirs]
    # the most probable continuation is told to be greedy
    ids = both[0].tok_encode("The capital")
    best = int(both[0].scorer.model(input_ids=torch.tensor([ids])).logits[0, -1].argmax())
    assert both[0]._loglikelihood_tokens([(("", ""), ids, [best])])[0][1]


@pytest.mark.parametrize("family", ["mistral", "gpt_oss", "lfm2", "bloom", "qwen2_moe"])
def test_families_with_windows_convolutions_and_alibi(family: str, tmp_path: Path) -> None:
    folder = str(make_family(family, tmp_path / family))
    lms = get_model("ilu")(pretrained=folder), HFLM(pretrained=folder, device="cpu", batch_size=1)
    found = [lm.loglikelihood(instances("loglikelihood", PAIRS), disable_tqdm=True) for lm in lms]
    assert [o[0] for o in found[0]] == pytest.approx([t[0] for t in found[1]], abs=1e-4)
    assert [o[1] for o in found[0]] == [t[1] for t in found[1]]
    texts = instances("loglikelihood_rolling", [(PREFIX,), ("Iron is a metal. " * 20,)])
    ours, theirs = (lm.loglikelihood_rolling(texts, disable_tqdm=True) for lm in lms)
    assert ours == pytest.approx(theirs, rel=1e-6)


def test_what_is_too_long_loses_its_beginning_or_is_refused(both: Any) -> None:
    long = instances("loglikelihood", [("word " * 400, " the end")])
    ours, theirs = (lm.loglikelihood(long, disable_tqdm=True) for lm in both)
    assert ours[0][0] == pytest.approx(theirs[0][0], abs=1e-4)
    with pytest.raises(UsageError, match="does not fit into the model's context of 256"):
        IluLM(scorer=both[0].scorer, truncate=False).loglikelihood(long)


def test_rolling_windows_over_texts_longer_than_the_context(both: Any) -> None:
    texts = instances("loglikelihood_rolling", [("Paris is a city.",), ("Iron is a metal. " * 120,)])
    assert len(both[0].tok_encode(texts[1].args[0])) > 2 * both[0].scorer.context_length
    ours, theirs = (lm.loglikelihood_rolling(texts, disable_tqdm=True) for lm in both)
    assert ours == pytest.approx(theirs, rel=1e-5)


def test_generation_stops_where_theirs_stops(both: Any) -> None:
    free = both[1].generate_until(instances("generate_until", [(p, {"max_gen_toks": 12}) for p in PROMPTS]), True)
    stop = next(t[3:5] for t in free if len(t) > 5 and t[3:5].isascii())
    for keys in ({"max_gen_toks": 12}, {"until": [stop, "\n\n"], "max_gen_toks": 12, "temperature": 0.0}):
        asked = [(p, keys) for p in PROMPTS]
        ours, theirs = (lm.generate_until(instances("generate_until", asked), True) for lm in both)
        assert ours == theirs
    assert any(len(o) < len(f) for o, f in zip(ours, free))


@pytest.mark.parametrize("keys", [{"do_sample": True, "temperature": 0.7}, {"num_beams": 4}])
def test_what_is_not_greedy_is_refused(both: Any, keys: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=r"decodes greedily|num_beams"):
        both[0].generate_until(instances("generate_until", [("Paris", keys)]))


def test_shared_beginnings_are_run_once(both: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, read = both[0], []
    final = type(ours.scorer.parts).final

    def counted(self: Any, ids: Any, *args: Any, **kwargs: Any) -> Any:
        read.append(ids.numel())
        return final(self, ids, *args, **kwargs)

    monkeypatch.setattr(type(ours.scorer.parts), "final", counted)
    ours.loglikelihood(instances("loglikelihood", PAIRS[-6:]))
    whole = [ours.tok_encode(c + a) for c, a in PAIRS[-6:]]
    tree = {tuple(ids[: n + 1]) for ids in whole for n in range(len(ids) - 1)}
    assert sum(read) == len(tree) < sum(map(len, whole)) / 3


def test_memory_that_runs_out_means_smaller_batches(both: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    scorer = both[0].scorer
    expected = both[0].loglikelihood(instances("loglikelihood", PAIRS))
    final, sizes = type(scorer.parts).final, []

    def small(self: Any, ids: Any, *args: Any, **kwargs: Any) -> Any:
        sizes.append(ids.numel())
        if ids.numel() > 150:
            raise torch.OutOfMemoryError("out of memory")
        return final(self, ids, *args, **kwargs)

    monkeypatch.setattr(type(scorer.parts), "final", small)
    found = both[0].loglikelihood(instances("loglikelihood", PAIRS))
    assert [f[0] for f in found] == pytest.approx([e[0] for e in expected], abs=1e-4)
    assert max(sizes) > 150
    assert scorer.tokens < scoring.TOKENS
    monkeypatch.setattr(type(scorer.parts), "final", lambda *a, **k: small(a[0], torch.zeros(200)))
    with pytest.raises(torch.OutOfMemoryError):
        both[0].loglikelihood(instances("loglikelihood", PAIRS[:1]))
    scorer.tokens = scoring.TOKENS
