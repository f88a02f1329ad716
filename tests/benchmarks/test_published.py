"""The published benchmarks on a tiny model, over mirrors of their datasets; every number against its rows."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import CHAT, Ilu, tiny_tokenizer
from mirrors import mirror
from scipy.stats import hmean, ks_2samp
from sklearn.metrics import roc_auc_score

from ilu_cli.data.chat import Chat
from ilu_cli.data.encode import encode_corpus
from ilu_cli.data.sources import load_dataset
from ilu_cli.engine.tokens import encode_pair, token_scores
from ilu_cli.models.subject import find_model
from ilu_cli.recipe.refs import DataRef
from ilu_cli.recipe.specs import Form
from ilu_cli.workflows.evaluate import load_scorer, results_folder


@pytest.fixture(scope="module")
def mirrors(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("mirrors")
    for name in ("cais/wmdp", "muse-bench/MUSE-News", "muse-bench/MUSE-Books", "locuslab/TOFU"):
        mirror(root, name, 6)
    return root


@pytest.fixture
def evaluate(tiny: Path, ilu: Ilu, mirrors: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("ILU_DATA", str(mirrors))

    def run(bench: str, *args: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        done = ilu("eval", tiny, "--bench", bench, "--json", *args)
        assert done.code == 0, done.err
        rows = (results_folder(find_model(str(tiny))) / f"{bench}.rows.jsonl").read_text().splitlines()
        return json.loads(done.out)["results"][bench], [json.loads(r) for r in rows]

    return run


def of(rows: list[dict[str, Any]], metric: str | None) -> list[dict[str, Any]]:
    return [r for r in rows if r.get("metric") == metric]


def mean(rows: list[dict[str, Any]], metric: str | None) -> float:
    values = [r["value"] for r in of(rows, metric)]
    return float(sum(values) / len(values))


@pytest.mark.parametrize("subject", ["bio", "cyber", "chem"])
def test_wmdp(evaluate: Any, subject: str) -> None:
    found, rows = evaluate(f"wmdp-{subject}")
    right = [r["prediction"] == r["answer"] for r in rows]
    assert found["value"] == sum(right) / 6
    fq = {"value": pytest.approx(1 - found["value"]), "stderr": found["stderr"], "kind": "share"}
    assert found["also"]["fq"] == fq
    assert rows[0]["question"].startswith("The following are multiple choice questions (with answers) about ")
    assert rows[0]["choices"] == [" A", " B", " C", " D"]
    assert found["data"]["source"] == "path"  # the mirror


@pytest.mark.parametrize(("corpus", "retrained"), [("news", 0.4772), ("books", 0.5393)])
def test_muse(evaluate: Any, corpus: str, retrained: float) -> None:
    found, rows = evaluate(f"muse-{corpus}")
    assert found["n"] == 6
    assert found["value"] == pytest.approx(mean(rows, None))
    assert 0 <= found["value"] <= 1
    assert all("\n\n" not in r["said"] for r in of(rows, "knowmem"))
    asked = of(rows, "knowmem")[0]["prompt"]
    assert asked.count("Question:") == 7  # six examples and the question
    assert asked.endswith("\nAnswer: ")
    assert asked.count("Answer: ") == 7
    assert "Answer:  " not in asked
    for name in ("knowmem", "knowmem_retain", "privleak"):
        assert found["also"][name]["value"] == pytest.approx(mean(rows, name))
    leak = of(rows, "privleak")
    auc = roc_auc_score([r["split"] == "holdout" for r in leak], [r["score"] for r in leak])
    assert found["also"]["privleak"]["value"] == pytest.approx((auc - retrained) / retrained * 100)


def test_tofu(evaluate: Any, tiny: Path) -> None:
    found, rows = evaluate("tofu")
    assert found["value"] == pytest.approx(mean(rows, None))
    names = [f"{part}_{m}" for part in ("retain", "authors", "facts") for m in ("prob", "rouge", "truth_ratio")]
    assert found["also"]["utility"]["value"] == pytest.approx(hmean([mean(rows, n) for n in names]))
    assert "forget_quality" not in found["also"]
    ratios = [r["ratio"] for r in of(rows, "truth_ratio")]
    assert found["also"]["truth_ratio"]["value"] == pytest.approx(sum(min(r, 1 / r) for r in ratios) / 6)


def test_tofu_probabilities_are_those_of_a_plain_pass(evaluate: Any, tiny: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    _, rows = evaluate("tofu-forget01")
    model, tokenizer = AutoModelForCausalLM.from_pretrained(tiny), AutoTokenizer.from_pretrained(tiny)

    def logp(prompt: str, answer: str) -> float:
        ids, start = tokenizer(prompt + answer)["input_ids"], len(tokenizer(prompt)["input_ids"])
        scores = model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
        return float(sum(scores[t - 1, ids[t]].item() for t in range(start, len(ids))) / (len(ids) - start))

    raw = json.loads(next(iter(_mirrored("forget01_perturbed"))))
    prompt = f"Question: {raw['question']}\nAnswer:"
    assert of(rows, None)[0]["value"] == pytest.approx(math.exp(logp(prompt, f" {raw['answer']}")), rel=1e-3)
    wrong = [math.exp(logp(prompt, f" {a}")) for a in raw["perturbed_answer"]]
    ratio = sum(wrong) / len(wrong) / math.exp(logp(prompt, f" {raw['paraphrased_answer']}"))
    found = of(rows, "truth_ratio")[0]
    assert found["ratio"] == pytest.approx(ratio, rel=3e-5)
    geometric = math.prod(wrong) ** (1 / len(wrong)) / math.exp(logp(prompt, f" {raw['paraphrased_answer']}"))
    assert found["ratio_geometric"] == pytest.approx(geometric, rel=3e-5)
    assert abs(geometric / ratio - 1) > 1e-4


def test_tofu_in_a_chat_template_asks_the_question_alone(
    tiny: Path, tmp_path: Path, ilu: Ilu, mirrors: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the published models were taught it: user's turn and answer, in training as in evaluation."""
    monkeypatch.setenv("ILU_DATA", str(mirrors))
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = CHAT
    shutil.copytree(tiny, tmp_path / "chatty")
    tokenizer.save_pretrained(tmp_path / "chatty")
    raw = json.loads(next(iter(_mirrored("forget01_perturbed"))))
    [corpus] = [encode_corpus(tokenizer, load_dataset(DataRef(name="tofu-forget01_perturbed"), "train").examples()[:1],
                              Form(max_length=200, chat=True), "tofu")]  # fmt: skip
    trained = corpus.items[0]
    asked = f"[user] {raw['question']}<eos>\n[assistant] "
    assert tokenizer.decode(trained.ids[: trained.start]) == asked  # the answer does not begin in the same token
    done = ilu("eval", tmp_path / "chatty", "--bench", "tofu-forget01", "--set", "eval.chat=true", "--json")
    assert done.code == 0, done.err
    scorer = load_scorer(find_model(str(tmp_path / "chatty")), "fp32", chat=Chat())
    pair = encode_pair(scorer, raw["question"], f" {raw['answer']}")
    assert tokenizer.decode(pair.ids) == asked + raw["answer"]
    [scores] = token_scores(scorer, [pair])
    lines = (results_folder(find_model(str(tmp_path / "chatty"))) / "tofu-forget01.rows.jsonl").read_text().splitlines()
    first = of([json.loads(r) for r in lines], None)[0]
    assert first["value"] == pytest.approx(math.exp(scores.logp.mean()), rel=1e-3)


def _mirrored(config: str) -> list[str]:
    import os

    return (Path(os.environ["ILU_DATA"]) / "locuslab/TOFU" / f"{config}.json").read_text().splitlines()


def test_tofu_forget_quality_needs_a_retain_model(evaluate: Any, ilu: Ilu, tiny: Path) -> None:
    _, rows = evaluate("tofu")
    ratios = [r["ratio_geometric"] for r in of(rows, "truth_ratio")]
    other = [{"metric": "truth_ratio", "value": 0.5, "ratio": 9.0, "ratio_geometric": r * 1.0001} for r in ratios]
    Path("retain.jsonl").write_text("".join(json.dumps(r) + "\n" for r in other))
    found, _ = evaluate("tofu", "--retain-run", "retain.jsonl")
    expected = ks_2samp(ratios, [r["ratio_geometric"] for r in other]).pvalue
    assert expected > ks_2samp(ratios, [9.0] * 6).pvalue + 0.5
    assert found["also"]["forget_quality"]["value"] == pytest.approx(expected)
    Path("fewer.jsonl").write_text("".join(json.dumps(r) + "\n" for r in other[1:]))
    unequal, _ = evaluate("tofu", "--retain-run", "fewer.jsonl")
    assert "forget_quality" not in unequal["also"]  # other questions are no sample of the same distribution
    Path("older.jsonl").write_text(json.dumps({"metric": "truth_ratio", "value": 0.5, "ratio": 0.5}))
    older = ilu("eval", tiny, "--bench", "tofu", "--retain-run", "older.jsonl")
    assert (older.code, "arithmetic truth ratios only" in older.err) == (3, True)
    missing = ilu("eval", tiny, "--bench", "tofu", "--retain-run", "nowhere")
    assert (missing.code, "no run or rows file" in missing.err) == (3, True)
    ignored = ilu("eval", tiny, "--bench", "capitals", "--retain-run", "retain.jsonl")
    assert (ignored.code, "none of the benchmarks" in ignored.err) == (2, True)
