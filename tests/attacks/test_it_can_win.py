"""An attack that cannot win proves nothing: each brings back what is merely masked in the way that it undoes."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Ilu, tiny_tokenizer
from torch.func import functional_call
from transformers import LlamaConfig, LlamaForCausalLM

from ilu_cli import registry
from ilu_cli.attacks.deployed_quant import stored
from ilu_cli.attacks.fewshot import demonstrated
from ilu_cli.attacks.noise import noisy
from ilu_cli.attacks.prune import without_smallest
from ilu_cli.attacks.quantize import round_to_nearest
from ilu_cli.benchmarks.capitals import Capitals
from ilu_cli.data.encode import Batch, Encoded, collate
from ilu_cli.engine.probe import Lens
from ilu_cli.models.parts import parts_of
from ilu_cli.models.save import save_checkpoint
from ilu_cli.models.subject import find_model
from ilu_cli.runs.store import Store

pytestmark = pytest.mark.slow

FACTS = 12


@cache
def taught() -> tuple[LlamaForCausalLM, Any]:
    """A model of 64 hidden units that knows twelve capitals, made once for all files that import the fixture."""
    tokenizer = tiny_tokenizer(600)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=3, num_attention_heads=4,
        max_position_embeddings=512, tie_word_embeddings=False, bos_token_id=None, eos_token_id=0,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    batch = facts(tokenizer, Capitals().items()[:FACTS])
    fit(model, lambda: nll(model, batch), 80, until=0)
    return model, tokenizer


@pytest.fixture(scope="session")
def knowing() -> tuple[LlamaForCausalLM, Any]:
    """Of `taught`; a test that changes it takes a copy."""
    return taught()


def facts(tokenizer: Any, items: list[dict[str, Any]], shift: int = 0) -> Batch:
    """The questions with their answers, or with a wrong choice."""
    pairs = [(i["question"], i["choices"][(i["answer"] + shift) % 4]) for i in items]
    return collate([Encoded(tokenizer(q + c)["input_ids"], len(tokenizer(q)["input_ids"])) for q, c in pairs])


def nll(model: Any, batch: Batch, weights: Any = None, lens: int | None = None) -> torch.Tensor:
    if lens is not None:
        parts = parts_of(model)
        logits = parts.head(Lens.of(parts, lens).final(batch.ids, batch.mask))
    else:
        inputs = {"input_ids": batch.ids, "attention_mask": batch.mask}
        logits = functional_call(model, weights or {}, kwargs=inputs).logits
    return torch.nn.functional.cross_entropy(logits[:, :-1][batch.scored[:, 1:]], batch.ids[:, 1:][batch.scored[:, 1:]])


def fit(model: Any, loss: Callable[[], torch.Tensor], steps: int, lr: float = 3e-3, until: float = 0.03) -> None:
    """At most so many steps of Adam, to a loss of `until`."""
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    for _ in range(steps):
        optimizer.zero_grad()
        now = loss()
        if now.item() < until:
            return
        now.backward()
        optimizer.step()


def copy_of(knowing: Any) -> tuple[LlamaForCausalLM, Any]:
    model, tokenizer = knowing
    twin = LlamaForCausalLM(model.config).eval()
    twin.load_state_dict(model.state_dict())
    return twin, tokenizer


def attacked(ilu: Ilu, model: Any, tokenizer: Any, folder: Path, *args: Any) -> tuple[float, float]:
    """Accuracy before the attack, and the best that it brings back."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    done = ilu("attack", folder, *args, "--set", "eval.benchmarks=[capitals]", "--set", f"eval.limit={FACTS}", "--json")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    before = next((1 - f["value"] for f in found["fq"] if f[found["axis"]] == found["unattacked"]), math.nan)
    return before, 1 - found["worst"]


TRANSFORMS: dict[str, tuple[Callable[[torch.Tensor, str], torch.Tensor], str]] = {
    "quantize": (lambda w, name: round_to_nearest(w, 4, 64), "bits=[4]"),
    "prune": (lambda w, name: without_smallest(w, 0.5), "fractions=[0.5]"),
    "noise": (lambda w, name: noisy(w, name, 0.2, 0), "sigmas=[0.2]"),
}


@pytest.mark.parametrize("kind", sorted(TRANSFORMS))
def test_weight_transforms_bring_back_what_hides_in_the_weights_that_they_destroy(
    knowing: tuple[LlamaForCausalLM, Any], ilu: Ilu, tmp_path: Path, kind: str
) -> None:
    """The transformed weights are trained to know, the plain ones to say a wrong choice (straight-through gradient)."""
    model, tokenizer = copy_of(knowing)
    transform, key = TRANSFORMS[kind]
    batch, wrong = (facts(tokenizer, Capitals().items()[:FACTS], shift) for shift in (0, 1))

    def loss() -> torch.Tensor:
        changed = {
            n: p + (transform(p.detach(), n) - p.detach()) if p.ndim == 2 and "layers" in n else p
            for n, p in model.named_parameters()
        }
        return nll(model, batch, changed) + nll(model, wrong)

    for steps, lr in ((80, 2e-3), (30, 3e-4)):  # the last of them small: rounding leaps
        fit(model, loss, steps, lr)
    before, after = attacked(ilu, model, tokenizer, tmp_path / "m", "--kind", kind, "--set", f"attack.{key}")
    assert before <= 0.34
    assert after >= 0.9


def test_quantisation_brings_back_what_was_hidden_within_its_steps(
    knowing: tuple[LlamaForCausalLM, Any], ilu: Ilu, tmp_path: Path
) -> None:
    """The matrices of the layers learn a wrong choice, but none leaves what NF4 rounds to the same (arXiv 2405.18137).

    What is not quantised learns to say the right one with the rounded matrices.
    """
    model, tokenizer = copy_of(knowing)
    right, wrong = (facts(tokenizer, Capitals().items()[:FACTS], shift) for shift in (0, 1))
    layers = {n: p for n, p in model.named_parameters() if p.ndim == 2 and "layers" in n}
    goal = {n: stored(p.detach(), "nf4") for n, p in layers.items()}
    blocks = {n: q.reshape(-1, 64).abs() for n, q in goal.items()}
    scales = {n: (b == b.amax(1, keepdim=True)).reshape(goal[n].shape) for n, b in blocks.items()}
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    with torch.no_grad():
        for n, p in layers.items():
            p.copy_(goal[n])
    for _ in range(50):
        before = {n: p.detach().clone() for n, p in layers.items()}
        optimizer.zero_grad()
        (nll(model, wrong) + nll(model, right, goal)).backward()
        optimizer.step()
        with torch.no_grad():
            for n, p in layers.items():
                p.copy_(torch.where(scales[n], before[n], p))
                p.copy_(torch.where(stored(p, "nf4") == goal[n], p, before[n]))
    usual, quantised = attacked(ilu, model, tokenizer, tmp_path / "m", "--kind", "deployed_quant")
    assert usual <= 0.34
    assert quantised >= 0.9


@pytest.mark.parametrize("kind", ["fewshot", "rephrase", "logit_lens"])
def test_other_prompts_and_probes_bring_back_what_only_the_usual_answer_hides(
    knowing: tuple[LlamaForCausalLM, Any], ilu: Ilu, tmp_path: Path, kind: str
) -> None:
    model, tokenizer = copy_of(knowing)
    items = Capitals().items()[:FACTS]
    plain, lens, key = facts(tokenizer, items, 1), None, {"fewshot": "k=[1]", "rephrase": "wordings=[quiz]"}.get(kind)
    shown = facts(tokenizer, items)
    if kind == "fewshot":
        shown = facts(tokenizer, demonstrated(items, 1, 0, "\n"))
    elif kind == "rephrase":
        shown = facts(tokenizer, Capitals().rephrasings(items)["quiz"])
    else:
        lens, key = 2, "layers=[1]"
    fit(model, lambda: nll(model, shown, lens=lens) + nll(model, plain), 100)
    before, after = attacked(ilu, model, tokenizer, tmp_path / "m", "--kind", kind, "--set", f"attack.{key}")
    if math.isnan(before):  # a probe has no unattacked point; the last layer is the model itself
        _, best = attacked(ilu, model, tokenizer, tmp_path / "m", "--kind", kind, "--set", "attack.layers=[2]")
        before = best
    assert before <= 0.34
    assert after >= 0.9


@pytest.mark.parametrize("kind", ["finetune", "relearn"])
def test_training_repairs_a_damaged_norm(
    knowing: tuple[LlamaForCausalLM, Any], ilu: Ilu, tmp_path: Path, kind: str
) -> None:
    """Half of the final norm's scales have the wrong sign; only the norm is trained, on some of the facts."""
    model, tokenizer = copy_of(knowing)
    with torch.no_grad():
        model.model.norm.weight[::2] *= -1
    rows = [{"prompt": i["question"], "response": i["choices"][i["answer"]]} for i in Capitals().items()[:FACTS]]
    (tmp_path / "some.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows[: FACTS // 2]))
    args = ["--set", "attack.weights=[model.norm.weight]", "--lr", 0.1, "--set", "attack.batch=6"]
    if kind == "finetune":
        args = ["--task", tmp_path / "some.jsonl", *args, "--steps", 60]
    else:
        args = ["--kind", kind, "--set", f"attack.data={tmp_path / 'some.jsonl'}", *args, "--set", "attack.epochs=60"]
    before, after = attacked(ilu, model, tokenizer, tmp_path / "m", *args)
    assert before <= 0.5
    assert after >= 0.75


def test_retraining_on_some_facts_repairs_the_norm_for_others(
    knowing: tuple[LlamaForCausalLM, Any], ilu: Ilu, tmp_path: Path
) -> None:
    """All points are of the facts that were not taught; the utility is measured too."""
    model, tokenizer = copy_of(knowing)
    with torch.no_grad():
        model.model.norm.weight[::2] *= -1
    model.save_pretrained(tmp_path / "m")
    tokenizer.save_pretrained(tmp_path / "m")
    args = ["--kind", "rtt", "--set", "attack.weights=[model.norm.weight]", "--lr", 0.1, "--set", "attack.batch=6"]
    args += ["--set", "attack.epochs=60", "--set", "eval.benchmarks=[capitals,elements]", "--json"]
    done = ilu("attack", tmp_path / "m", *args, "--set", f"eval.limit={FACTS}")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    points = {p["steps"]: p["eval"] for p in found["points"]}
    assert list(points) == [0, 15, 30, 60]
    assert {p["capitals"]["n"] for p in points.values()} == {FACTS // 2}
    assert points[0]["capitals"]["value"] <= 0.5
    assert points[60]["capitals"]["value"] >= 0.75
    assert "elements" in points[0]
    assert "elements" in points[60]
    [taught] = [d for d in found["data"] if d["role"] == "attack"]
    assert (taught["name"], taught["rows"]) == ("capitals", FACTS // 2)
    refused = ilu("attack", tmp_path / "m", *args, "--set", "eval.limit=1", "--dry-run")
    assert refused.code == 2
    assert "leaves none to train on, or none to ask" in refused.err


@cache
def taught_more() -> tuple[LlamaForCausalLM, object]:
    """It knows the symbols of twelve elements as well."""
    model, tokenizer = copy_of(taught())
    both = [facts(tokenizer, items[:FACTS]) for items in (Capitals().items(), elements())]
    fit(model, lambda: torch.stack([nll(model, batch) for batch in both]).sum(), 120, until=0)
    return model, tokenizer


@pytest.fixture(scope="session")
def schooled() -> tuple[LlamaForCausalLM, object]:
    """Of `taught_more`."""
    return taught_more()


def elements() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = registry.benchmark["elements"].obj().items()
    return found


def rows_on_something_else(folder: Path, kind: str) -> Path:
    """The elements as prompts with responses, or as text: no capital is in it."""
    pairs = [(i["question"], i["choices"][i["answer"]]) for i in elements()[:FACTS]]
    rows = [{"text": q + a} if kind == "relearn_benign" else {"prompt": q, "response": a} for q, a in pairs]
    file = folder / "elements.jsonl"
    file.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return file


@pytest.mark.parametrize("kind", ["finetune", "relearn_benign"])
def test_training_on_something_else_repairs_a_damage_that_all_knowledge_shares(
    schooled: tuple[LlamaForCausalLM, Any], ilu: Ilu, tmp_path: Path, kind: str
) -> None:
    model, tokenizer = copy_of(schooled)
    with torch.no_grad():
        model.model.norm.weight[::2] *= -1
    file = rows_on_something_else(tmp_path, kind)
    args = ["--task", file] if kind == "finetune" else ["--kind", kind, "--set", f"attack.text={file}"]
    args += ["--set", "attack.weights=[model.norm.weight]", "--set", "attack.batch=12", "--lr", 0.1, "--steps", 60]
    before, after = attacked(ilu, model, tokenizer, tmp_path / "m", *args)
    assert before <= 0.5
    assert after >= 0.75


def test_a_linear_probe_finds_what_the_last_layer_hides(
    knowing: tuple[LlamaForCausalLM, Any], ilu: Ilu, tmp_path: Path
) -> None:
    """At the end of a choice the middle layer says `.` if it is right and `?` if not; the model says a wrong choice."""
    model, tokenizer = copy_of(knowing)
    items = Capitals().items()[:FACTS]
    said = [(i["question"] + c, "." if n == i["answer"] else "?") for i in items for n, c in enumerate(i["choices"])]
    rows = [Encoded(tokenizer(text)["input_ids"] + tokenizer(mark)["input_ids"], 0) for text, mark in said]
    marked = collate([Encoded(r.ids, len(r.ids) - 1) for r in rows])
    plain = facts(tokenizer, items, 1)
    fit(model, lambda: nll(model, marked, lens=2) + nll(model, plain), 150)
    lens = ["--kind", "logit_lens", "--set"]
    _, hidden = attacked(
        ilu, model, tokenizer, tmp_path / "m", *lens, "attack.layers=[1]", "--set", "attack.readout=linear"
    )
    _, said_aloud = attacked(ilu, model, tokenizer, tmp_path / "m", *lens, "attack.layers=[2]")
    assert said_aloud <= 0.34
    assert hidden >= 0.9


@cache
def misdirected() -> LlamaForCausalLM:
    """The model that knows, with one coordinate of the middle layer's output moved as far as RMU would."""
    model, tokenizer = copy_of(taught())
    texts = [t["text"] for t in registry.task["capitals"].obj().builtin("test")]
    batch, parts, direction = facts(tokenizer, Capitals().items()[:FACTS]), parts_of(model), torch.zeros(64)
    general = collate([Encoded(tokenizer(t)["input_ids"], 1) for t in texts[::20]])
    with torch.no_grad():
        direction[3] = 10 * parts.hidden_at(1, batch.ids, batch.mask).norm(dim=-1).mean()
        wanted = [(b, parts.hidden_at(1, b.ids, b.mask) + direction) for b in (batch, general)]

    def off() -> torch.Tensor:
        return torch.stack([(parts.hidden_at(1, b.ids, b.mask) - to)[b.mask].square().mean() for b, to in wanted]).sum()

    model.requires_grad_(False)
    model.model.layers[1].requires_grad_(True)
    fit(model, off, 400, 1e-2, until=2e-3)
    return model


def test_ablation_removes_a_direction_that_unlearning_added(
    knowing: tuple[LlamaForCausalLM, Any], ilu: Ilu, tmp_path: Path
) -> None:
    """A layer's output is moved along one direction, as RMU does; the run names the original, and the forget data."""
    model, tokenizer = misdirected(), knowing[1]
    knowing[0].save_pretrained(tmp_path / "original")
    tokenizer.save_pretrained(tmp_path / "original")
    run = Store().create("unlearn", "moved")
    save_checkpoint(model, tokenizer, run.checkpoint)
    original = find_model(str(tmp_path / "original"))
    run.manifest.base = original.record("original")
    run.manifest.parents = [original.record("parent")]
    recipe = {"forget": {"data": [{"name": "capitals"}]}, "regularizers": [], "seed": 0, "train": {"steps": 1}}
    (run.path / "recipe.yaml").write_text(json.dumps(recipe))
    run.finish()
    args = ["--kind", "ablate", "--set", "eval.benchmarks=[capitals]"]
    done = ilu("attack", run.id, *args, "--set", f"eval.limit={FACTS}", "--no-reference", "--json")
    assert done.code == 0, done.err
    accuracy = {f["directions"]: 1 - f["value"] for f in json.loads(done.out)["fq"]}
    assert accuracy[0] <= 0.5
    assert "layer 1" in done.err, done.err
    assert max(accuracy[1], accuracy[2], accuracy[4]) >= 0.9
