"""Batches without their padding against padded ones: states and gradients, family by family."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from conftest import items_of, stream, tiny_model
from families import FAMILIES, VOCAB, WINDOW, family_model
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from ilu_cli.data.encode import Batch, collate
from ilu_cli.engine.accel import backend
from ilu_cli.engine.gradients import Gradients, mean_nll
from ilu_cli.engine.loop import Penalty, Trainer
from ilu_cli.engine.packing import packed
from ilu_cli.engine.prefix import Begun, begin
from ilu_cli.engine.scoring import Scorer
from ilu_cli.engine.tree import Request
from ilu_cli.models.hold import checkpointed
from ilu_cli.models.load import add_adapter
from ilu_cli.models.packed import SHORT, PackedRows, Packing
from ilu_cli.models.parts import Parts, changed, parts_of
from ilu_cli.recipe.specs import LoraSpec, TrainSpec
from ilu_cli.regularizers.irm import irm

PADDED = {"gemma2", "bloom", "falcon", "mpt", "gpt_oss", "stablelm", "lfm2", "mamba"}
"""Softly capped attention, biases by distance, sinks, no rows handed on to attention, convolutions, state spaces."""
LENGTHS = [5, WINDOW, 9, 3]
LONG = [60, 3, 2, 2]  # two groups of rows attend


def batch_of(lengths: list[int]) -> Batch:
    return collate(items_of(lengths, VOCAB, start=1))


def run(parts: Parts, params: list[nn.Parameter], batch: Batch) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Last hidden states and those of a layer at the real tokens, and the gradient of a random function of both."""
    final = parts.final(batch.ids, batch.mask)[batch.mask]
    hidden = parts.hidden_at(1, batch.ids, batch.mask)[batch.mask]
    weight = torch.randn(final.shape, generator=torch.Generator().manual_seed(1))
    loss = (final * weight).sum() + (hidden * weight).sum()
    found = torch.autograd.grad(loss, params, allow_unused=True)
    return final, hidden, [torch.zeros_like(p) if g is None else g for p, g in zip(params, found)]


def close(ours: Tensor, theirs: Tensor, largest: Tensor) -> None:
    assert float((ours - theirs).detach().abs().max()) <= 1e-6 * max(1.0, float(largest))


@pytest.mark.parametrize("name", FAMILIES)
def test_states_and_gradients_are_those_of_the_padded_batch(name: str) -> None:
    model = family_model(name)
    if getattr(model.config, "attn_logit_softcapping", None):
        model.set_attn_implementation("eager")  # as models are loaded
    params, plain = list(model.parameters()), parts_of(model)
    batch = batch_of(LENGTHS)
    theirs = run(plain, params, batch)
    parts = packed(plain)
    assert (parts.packing is None) == (name in PADDED)
    if parts.packing is None:
        return
    assert parts.packing.rows(batch.mask) is not None
    ours = run(parts, params, batch)
    for a, b in zip(ours[:2], theirs[:2]):
        close(a, b, b.abs().max())
    for a, b in zip(ours[2], theirs[2]):
        close(a, b, torch.stack([g.abs().max() for g in theirs[2]]).max())


def test_rows_of_very_different_lengths_attend_in_groups_and_layers_may_be_computed_again() -> None:
    model = family_model("llama")
    params, plain, batch = list(model.parameters()), parts_of(model), batch_of(LONG)
    assert [g.count for g in PackedRows.of(batch.mask).groups] == [3, 1]
    theirs = run(plain, params, batch)
    parts = packed(plain)
    checkpointed(model)
    ours = run(parts, params, batch)
    for a, b in zip([*ours[:2], *ours[2]], [*theirs[:2], *theirs[2]]):
        close(a, b, torch.stack([g.abs().max() for g in theirs[2]]).max())


def test_rows_are_taken_apart_as_they_were_put_together() -> None:
    batch = batch_of(LENGTHS)
    rows = PackedRows.of(batch.mask)
    states = torch.randn(4, WINDOW, 3)
    assert rows.pack(batch.ids)[0].tolist() == [i for n in (3, 0, 2, 1) for i in batch.ids[n, : LENGTHS[n]].tolist()]
    assert rows.positions[0].tolist() == [i for n in sorted(LENGTHS) for i in range(n)]
    assert torch.equal(rows.unpack(rows.pack(states)), states * batch.mask[..., None])


def test_a_change_of_a_layer_sees_rows_as_if_they_were_padded() -> None:
    model = family_model("llama")
    plain, batch = parts_of(model), batch_of(LENGTHS)
    both = plain, packed(plain)
    delta = torch.randn(4, WINDOW, plain.width)
    shapes = []

    def add(states: Tensor) -> Tensor:
        shapes.append(states.shape)
        return states + delta

    with changed(plain.layers, {1: add}):
        theirs, ours = (p.final(batch.ids, batch.mask)[batch.mask] for p in both)
    assert set(shapes) == {delta.shape}
    close(ours, theirs, theirs.abs().max())


def test_what_an_mlp_writes_is_of_the_padded_batch() -> None:
    plain, batch = parts_of(family_model("llama")), batch_of(LENGTHS)
    theirs, ours = (p.mlp_at([1], batch.ids, batch.mask)[0] for p in (plain, packed(plain)))
    assert ours.shape == theirs.shape
    close(ours[batch.mask], theirs[batch.mask], theirs.abs().max())


def test_rows_whose_first_layers_are_known_are_packed_behind_them() -> None:
    model, items = family_model("llama"), items_of(LENGTHS, VOCAB, start=1)
    plain, batch = parts_of(model), collate(items)
    params = list(plain.layers[2:].requires_grad_(True).parameters())
    theirs = run(plain, params, batch)
    parts = packed(begin(plain, 2, [tuple(e.ids) for e in items], backend(), "fp32"))
    assert isinstance(parts, Begun)
    assert parts.packing is not None
    for p in plain.layers[0].parameters():
        p.data.fill_(torch.nan)  # is not read
    ours = run(parts, params, batch)
    for a, b in zip([*ours[:2], *ours[2]], [*theirs[:2], *theirs[2]]):
        close(a, b, torch.stack([g.abs().max() for g in theirs[2]]).max())


@pytest.mark.parametrize("kind", ["adapter", "penalty"])
def test_steps_are_those_of_padded_batches(kind: str) -> None:
    """Of an adapter with checkpointed layers, and of a penalty on two environments."""

    def losses(packing: bool) -> list[dict[str, float]]:
        model = tiny_model(VOCAB)
        if kind == "adapter":
            add_adapter(model, LoraSpec(r=2, targets=["q_proj", "up_proj"]), 0)
            checkpointed(model)
        params = {n: p for n, p in model.named_parameters() if p.requires_grad}
        streams = [stream(items_of([5, n, 3], VOCAB, start=2), name=str(n)) for n in (20, 12)]
        penalties = [Penalty("irm", streams, lambda e: irm(e, variant="logit"))] if kind == "penalty" else []
        spec = TrainSpec(steps=3, lr=1e-2, precision="fp32", packing=packing)
        trainer = Trainer(parts_of(model), params, [mean_nll("x", streams[0])], penalties, spec, 0, backend())
        assert trainer.grads.batches == ("packed" if packing else "padded: train.packing is off")
        return [log.losses | {"length": log.grad_norm} for log in trainer.run()]

    ours, theirs = losses(True), losses(False)
    assert theirs[2]["x"] < theirs[0]["x"]
    for a, b in zip(ours, theirs, strict=True):
        assert a == pytest.approx(b, rel=1e-4)


def test_a_batch_padded_on_its_left_stays_as_it_is() -> None:
    plain, batch = parts_of(family_model("llama")), batch_of(LENGTHS)
    ids, mask = batch.ids.flip(1), batch.mask.flip(1)
    parts = packed(plain)
    assert parts.packing is not None and parts.packing.rows(batch.mask) is not None
    assert parts.packing.rows(mask) is None
    ours, theirs = (p.final(ids, mask)[mask] for p in (parts, plain))
    close(ours, theirs, theirs.abs().max())


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("mamba", "padded: the model takes no positions"),
        ("stablelm", "padded: without their padding its states would be others"),
        ("mistral", f"packed, but for rows of more than {WINDOW} tokens"),
    ],
)
def test_what_is_done_is_told(name: str, why: str) -> None:
    model = family_model(name)
    assert Gradients(parts_of(model), dict(model.named_parameters()), TrainSpec(), 0, backend()).batches == why


def test_batches_without_padding_and_rows_beyond_a_window_stay_as_they_are() -> None:
    full, ragged = torch.ones(3, 8, dtype=torch.bool), batch_of(LENGTHS).mask
    assert Packing().rows(full) is None
    assert Packing().rows(ragged) is not None
    assert Packing(window=WINDOW).rows(ragged) is not None
    assert Packing(window=WINDOW - 1).rows(ragged) is None
    assert packed(parts_of(family_model("mistral"))).packing == Packing(WINDOW)


def test_the_key_turns_it_off() -> None:
    model = family_model("llama")
    params = dict(model.named_parameters())
    for wanted in (True, False):
        spec = TrainSpec(packing=wanted)
        found = Gradients(parts_of(model), params, spec, 0, backend()).parts
        assert (found.packing is not None) is wanted


def test_a_decoder_that_gives_other_states_so_stays_padded(monkeypatch: pytest.MonkeyPatch) -> None:
    model = family_model("llama")
    right = PackedRows.inputs
    wrong: Any = lambda rows, ids: right(rows, ids) | {"position_ids": rows.positions + 2 * (rows.positions > 3)}  # noqa: E731
    monkeypatch.setattr(PackedRows, "inputs", wrong)
    assert packed(parts_of(model)).packing is None
    assert model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("length", [20, SHORT + 1])
def test_bfloat16_attention_of_a_cpu_is_as_exact_as_pytorchs_own(length: int) -> None:
    from transformers import AttentionInterface

    module = nn.Module()
    module.num_key_value_groups, module.is_causal = 3, True  # type: ignore[assignment]
    torch.manual_seed(0)
    given = [torch.randn(2, h, length, 16, dtype=torch.bfloat16, requires_grad=True) for h in (6, 2, 2)]
    slope = torch.randn(2, 6, length, 16)

    def apart(found: Tensor, inputs: list[Tensor], exact: list[Tensor]) -> float:
        grads = torch.autograd.grad((found.double() * slope).sum(), inputs)
        return sum(float((g - e).norm() / e.norm()) for g, e in zip(grads, exact))

    doubles = [t.detach().double().requires_grad_() for t in given]
    truth = scaled_dot_product_attention(doubles[0], doubles[1], doubles[2], is_causal=True, enable_gqa=True)
    exact = list(torch.autograd.grad((truth * slope).sum(), doubles))
    with torch.autocast("cpu", torch.bfloat16):
        own = scaled_dot_product_attention(given[0], given[1], given[2], is_causal=True, enable_gqa=True)
        ours = AttentionInterface()["ilu"](module, *given, None)[0].transpose(1, 2)
    assert ours.dtype == own.dtype == torch.bfloat16
    assert apart(ours, given, exact) <= 1.01 * apart(own, given, exact)


def test_trees_are_scored_in_bfloat16_after_training_has_packed_its_rows() -> None:
    """Who sees whom in a tree stands in a mask of bfloat16, and its short rows attend in float32."""
    model = tiny_model()
    scorer = Scorer(model, parts_of(model), None, backend(), "bf16")
    requests = [Request((5, 9, 2, answer), 3) for answer in (4, 7)]
    before = [logp for logp, _ in scorer.score(requests)]
    assert packed(scorer.parts).packing is not None
    assert [logp for logp, _ in scorer.score(requests)] == pytest.approx(before, abs=0.05)
