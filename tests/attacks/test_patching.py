"""One model's states in another: by hand against a plain forward pass, the score's formula, and that depth shows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Ilu, noted
from families import FAMILIES, make_family
from test_it_can_win import FACTS, copy_of, knowing
from test_mixing_can_win import unlearned
from transformers import AutoModelForCausalLM

from ilu_cli.attacks.patch import uds
from ilu_cli.benchmarks.capitals import Capitals
from ilu_cli.engine.accel import backend
from ilu_cli.engine.patching import Patched, given_states, lay
from ilu_cli.engine.scoring import Scorer
from ilu_cli.engine.tree import Request
from ilu_cli.models.load import load_tokenizer
from ilu_cli.models.parts import parts_of

pytestmark = pytest.mark.slow

__all__ = ["knowing"]  # a fixture


def scorer(folder: Path) -> Scorer:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return Scorer(model, parts_of(model), load_tokenizer(folder), backend())


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "mixtral", "opt", "phi3"])
def test_only_the_states_that_predict_the_answer_are_replaced(family: str, tmp_path: Path) -> None:
    """Token by token, in plain transformers: layer 1 of the target is given the source's output there."""
    assert family in FAMILIES
    source, target = (scorer(make_family(family, tmp_path / str(n), seed=n)) for n in (1, 0))
    items = Capitals().items()[:3]
    requests = [target.pair(i["question"], c) for i in items for c in i["choices"]]
    laid = lay(target, requests)
    given = given_states(source, laid, [1])
    got, plain = Patched(target, requests, laid).logps(1, given[1]), target.score(requests)
    for request, (total, n), (own, _) in list(zip(requests, got, plain))[::3]:
        ids = torch.tensor([request.ids])
        kept = {}

        def keep(_module: Any, _args: Any, output: Any) -> None:
            kept["states"] = output[0] if isinstance(output, tuple) else output  # noqa: B023

        def put(_module: Any, _args: Any, output: Any) -> Any:
            states = (output[0] if isinstance(output, tuple) else output).clone()
            states[:, request.start - 1 : -1] = kept["states"][:, request.start - 1 : -1]  # noqa: B023
            return (states, *output[1:]) if isinstance(output, tuple) else states

        with torch.no_grad():
            logits = target.model(input_ids=ids).logits.log_softmax(-1)
            assert own == pytest.approx(_said(logits, request), abs=1e-3)
            handle = source.parts.layers[1].register_forward_hook(keep)
            source.model(input_ids=ids)
            handle.remove()
            handle = target.parts.layers[1].register_forward_hook(put)
            patched = target.model(input_ids=ids).logits.log_softmax(-1)
            handle.remove()
        assert total == pytest.approx(_said(patched, request), abs=1e-3)
        assert abs(total - own) > 1e-3
        assert n == len(request.ids) - request.start


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_a_pass_begins_where_the_one_before_was_patched(family: str, tmp_path: Path) -> None:
    """Layers 1 and 3 in turn, against layer 3 by itself, which runs all; layers below are run again for none."""
    source, target = (scorer(make_family(family, tmp_path / str(n), seed=n)) for n in (1, 0))
    requests = [target.pair(i["question"], c) for i in Capitals().items()[:2] for c in i["choices"]]
    laid = lay(target, requests)
    given = given_states(source, laid, [1, 3])
    alone = Patched(target, requests, laid).logps(3, given[3])
    in_turn = Patched(target, requests, laid)
    in_turn.logps(1, given[1])
    assert [logp for logp, _ in in_turn.logps(3, given[3])] == pytest.approx([x for x, _ in alone], abs=1e-4)
    again = in_turn.logps(1, given[1])  # below what was kept: from the bottom
    assert again == Patched(target, requests, laid).logps(1, given[1])


def test_layers_that_were_run_are_not_run_again(tmp_path: Path) -> None:
    source, target = (scorer(make_family("llama", tmp_path / str(n), seed=n)) for n in (1, 0))
    requests = [target.pair("The capital of France is", " Paris")]
    laid = lay(target, requests)
    given = given_states(source, laid, [1, 2])
    ours = Patched(target, requests, laid)
    ours.logps(1, given[1])
    seen: list[int] = []
    for n, layer in enumerate(target.parts.layers):
        inner = layer.forward
        layer.forward = lambda *a, n=n, inner=inner, **k: noted(seen, n, inner(*a, **k))
    ours.logps(2, given[2])
    look = [0, 1, 2, 3, 0, 1, 2, 3]  # two short rows: whole, up to layer 2, and from there, which must be the same
    assert seen == [*look, 2, 3]


def test_a_question_that_goes_on_where_an_answer_stands_keeps_its_own_states(tmp_path: Path) -> None:
    """`2 3 | 4 5` predicts from 3 and 4; `2 3 4 5 | 6` from 5 alone, so its 3 and 4 must not be replaced."""
    source, target = (scorer(make_family("llama", tmp_path / str(n), seed=n)) for n in (1, 0))
    short, long = Request((2, 3, 4, 5), 2), Request((2, 3, 4, 5, 6), 4)
    both: list[tuple[float, int]] = []
    alone: list[tuple[float, int]] = []
    for requests, found in (([short, long], both), ([short], alone), ([long], alone)):
        laid = lay(target, requests)
        found += Patched(target, requests, laid).logps(1, given_states(source, laid, [1])[1])
    assert [logp for logp, _ in both] == pytest.approx([logp for logp, _ in alone], abs=1e-5)
    assert [n for _, n in both] == [n for _, n in alone] == [2, 1]
    assert abs(both[1][0] - target.score([long])[0][0]) > 1e-4


def _said(logps: torch.Tensor, request: Any) -> float:
    return sum(float(logps[0, t - 1, request.ids[t]]) for t in range(request.start, len(request.ids)))


def test_the_score_by_hand() -> None:
    """First answer: layers of 2 and 4 count, erased by half and (clipped) wholly: (2 · ½ + 4 · 1) / 6.

    Second: no layer counts. Third: what patching improves is not negative.
    """
    s1 = torch.tensor([[0.05, 2.0, 4.0], [0.0, 0.01, -3.0], [1.0, 0.0, 0.0]])
    s2 = torch.tensor([[9.0, 1.0, 7.0], [1.0, 1.0, 1.0], [-2.0, 5.0, 5.0]])
    assert uds(s1[:1], s2[:1], 0.05) == pytest.approx(5 / 6)
    assert uds(s1[1:2], s2[1:2], 0.05) is None
    assert uds(s1, s2, 0.05) == pytest.approx((5 / 6 + 0) / 2)


def damaged(knowing: Any, layer: int) -> Any:
    """The model that knows, one layer of which was drawn anew."""
    model, _ = copy_of(knowing)
    g = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.model.layers[layer].parameters():
            if p.ndim == 2:
                p.copy_(10 * p.std() * torch.randn(p.shape, generator=g))
    return model


def patched(ilu: Ilu, run: Any, *sets: str) -> dict[str, Any]:
    sets = (*sets, "eval.benchmarks=[capitals]", f"eval.limit={FACTS}")
    args = [x for text in sets for x in ("--set", text)]
    done = ilu("attack", run.id, "--kind", "patch", *args, "--no-reference", "--json")
    assert done.code == 0, done.err
    found: dict[str, Any] = json.loads(done.out)
    return found


def test_the_answer_is_inside_up_to_the_layer_that_was_changed(knowing: Any, ilu: Ilu, tmp_path: Path) -> None:
    run = unlearned(knowing, tmp_path, damaged(knowing, 2))
    found = {f["layer"]: 1 - f["value"] for f in patched(ilu, run)["fq"]}
    assert found[0] == found[1] == 1.0
    assert found[2] <= 0.5
    back = {f["layer"]: 1 - f["value"] for f in patched(ilu, run, "attack.into=unlearned")["fq"]}
    assert back[2] == 1.0  # nothing of the unlearned model comes after
    assert min(back[0], back[1]) <= 0.5


def test_depth_is_told_against_a_model_that_never_knew(knowing: Any, ilu: Ilu, tmp_path: Path) -> None:
    never, tokenizer = damaged(knowing, 0), knowing[1]
    never.save_pretrained(tmp_path / "never")
    tokenizer.save_pretrained(tmp_path / "never")
    score = {}
    for name, layer in (("deep", 0), ("shallow", 2)):
        run = unlearned(knowing, tmp_path / name, damaged(knowing, layer))
        found = patched(ilu, run, f"attack.retain={tmp_path / 'never'}")
        score[name] = found["numbers"]["uds"]
        assert json.loads((Path(found["path"]) / "manifest.json").read_text())["result"]["numbers"] == found["numbers"]
    assert score["deep"] == pytest.approx(1.0)
    assert 0 < score["shallow"] < 0.7
    same = unlearned(knowing, tmp_path / "same", copy_of(knowing)[0])
    assert patched(ilu, same, f"attack.retain={tmp_path / 'never'}")["numbers"]["uds"] == pytest.approx(0.0, abs=1e-5)


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        (["attack.layers=[1]", "attack.every=2"], "attack.every: chooses among all layers"),
        (["attack.into=unlearned", "attack.retain=x"], "attack.retain: is compared with in the original"),
        (["attack.threshold=0.1"], "attack.threshold: belongs to `retain`"),
        (["attack.layers=[99]"], "attack.layers: 99 does not exist"),
    ],
)
def test_what_cannot_be_is_refused_in_the_plan(tiny: Path, ilu: Ilu, sets: list[str], message: str) -> None:
    args = ["--kind", "patch", "--dry-run", *(x for text in sets for x in ("--set", text))]
    done = ilu("attack", tiny, *args)
    assert (done.code, message in done.err) == (2, True), done.err


def test_another_model_of_another_shape_is_refused(knowing: Any, tiny: Path, ilu: Ilu, tmp_path: Path) -> None:
    run = unlearned(knowing, tmp_path, copy_of(knowing)[0])
    done = ilu("attack", run.id, "--kind", "patch", "--set", f"attack.retain={tiny}", "--dry-run")
    assert done.code == 3
    assert "do not fit" in done.err
