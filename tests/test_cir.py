"""CIR's filter against every token's own activation and gradient, taken apart by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Ilu, items_of, stream, tiny_model, trainer

from ilu_cli.data.encode import collate
from ilu_cli.defences.cir import CIR, Moments
from ilu_cli.engine.gradients import Term
from ilu_cli.errors import UsageError

ROWS = [5, 9, 7, 9]


def rows() -> Any:
    return items_of(ROWS, start=4)


def filtered(**keys: Any) -> dict[str, torch.Tensor]:
    terms = [Term("forget", stream(rows()), lambda view: view.logps, "token", defended=True)]
    t = trainer(tiny_model(), terms, [])
    t.defences = [CIR(**keys)]
    t.backward()
    return {n: torch.zeros_like(p) if p.grad is None else p.grad.clone() for n, p in t.params.items()}


def by_hand() -> tuple[dict[str, torch.Tensor], dict[str, tuple[torch.Tensor, torch.Tensor]]]:
    """Plain gradients, and of each linear map what it read and the gradient of what it wrote, token by token."""
    model = tiny_model()
    batch, seen = collate(rows()), dict[str, Any]()
    for name, module in model.model.named_modules():
        if isinstance(module, torch.nn.Linear):

            def keep(_m: Any, args: Any, out: Any, name: str = name) -> None:
                out.retain_grad()
                seen[name] = args[0], out

            module.register_forward_hook(keep)
    logp = model(input_ids=batch.ids, attention_mask=batch.mask).logits[:, :-1].log_softmax(-1)
    picked = logp.gather(-1, batch.ids[:, 1:, None])[..., 0]
    picked[batch.scored[:, 1:]].mean().backward()
    plain = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    pairs = {n: (a.detach().flatten(0, 1), out.grad.flatten(0, 1)) for n, (a, out) in seen.items()}
    return plain, pairs


def without(x: torch.Tensor, used: torch.Tensor, k: int) -> torch.Tensor:
    """Rows less their part in the span of the mean and the first k principal axes of `used`, by SVD and QR."""
    mean = used.mean(0)
    axes = torch.linalg.svd(used - mean, full_matrices=False).Vh[:k]
    q = torch.linalg.qr(torch.cat([axes, mean[None]]).T).Q
    left: torch.Tensor = x - x @ q @ q.T
    return left


def test_nothing_taken_out_is_the_plain_gradient(float64: None) -> None:
    plain, pairs = by_hand()
    for name, found in filtered(inputs=0, outputs=0, norm=None).items():
        linear = name.removeprefix("model.").removesuffix(".weight") in pairs
        torch.testing.assert_close(found, plain[name] if linear else 0 * found, rtol=1e-9, atol=1e-12)
    a, g = pairs["layers.1.mlp.up_proj"]
    torch.testing.assert_close(g.T @ a, plain["model.layers.1.mlp.up_proj.weight"], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("inputs", "outputs"), [(3, 2), (4, 0), (0, 3)])
def test_every_token_is_projected_before_the_sum(float64: None, inputs: int, outputs: int) -> None:
    _, pairs = by_hand()
    found = filtered(inputs=inputs, outputs=outputs, norm=None)
    for name, (a, g) in pairs.items():
        there = g.abs().amax(-1) > 0
        a, g = a[there], g[there]
        a_left = without(a, a, inputs) if inputs else a
        g_left = without(g, g, outputs) if outputs else g
        torch.testing.assert_close(found[f"model.{name}.weight"], g_left.T @ a_left, rtol=1e-6, atol=1e-10)
    assert len(pairs) == 3 * 7


def test_what_is_left_has_the_length_that_is_asked_for(float64: None) -> None:
    free, scaled = filtered(inputs=3, outputs=2, norm=None), filtered(inputs=3, outputs=2, norm=0.25)
    length = torch.cat([g.flatten() for g in free.values()]).norm()
    for name, g in free.items():
        torch.testing.assert_close(scaled[name], g * 0.25 / length, rtol=1e-9, atol=1e-12)


def test_a_mean_among_the_components_is_counted_once() -> None:
    x = torch.tensor([[2.0, 0, 0], [4.0, 0, 0]])
    moments = Moments.of(3)
    moments.add(x)
    assert moments.basis(1).abs().tolist() == [[1.0], [0.0], [0.0]]
    assert moments.basis(0).shape == (3, 0)
    apart = Moments.of(3)
    apart.add(torch.tensor([[2.0, 3, 0], [4.0, 3, 0]]))
    basis = apart.basis(2)  # of rank 1: one component, and the mean beside it
    torch.testing.assert_close(basis.T @ basis, torch.eye(2))
    assert float(basis[2].abs().max()) == 0


def test_as_many_components_as_units_are_refused() -> None:
    with pytest.raises(UsageError, match=r"15 components and the mean are all 16 units of layers\.0"):
        filtered(inputs=15)


def test_a_resumed_run_has_its_directions_again() -> None:
    one, other = CIR(), CIR()
    one.bases = [(torch.ones(2, 1), torch.ones(3, 1))]
    other.load(one.state())
    assert other.bases == one.bases


def test_it_runs_and_layers_without_an_mlp_are_refused(ilu: Ilu, tiny: Path) -> None:
    sets = ["objective.layers=[0, 2]", "train.optimizer=sgd", "train.lr=0.1", "train.steps=3", "forget.batch=8"]
    sets += [
        "defences=[{name: cir, inputs: 4, outputs: 4}]",
        "retain=null",
        "forget.data=[{name: capitals, limit: 16}]",
    ]
    sets += ["train.params=['*mlp*']", "train.precision=fp32"]
    args = [x for text in sets for x in ("--set", text)]
    done = ilu("unlearn", "--method", "cir", "--model", tiny, *args)
    assert done.code == 0, done.err
    out = ilu("unlearn", "--method", "cir", "--model", tiny, "--dry-run", *args, "--set", "objective.layers=[3]")
    assert out.code == 2 and "objective.layers.0: 3 does not exist" in out.err
    lora = ilu("unlearn", "--method", "cir", "--dry-run", "--set", "defences=[{name: cir}]", "--lora", "r=2")
    assert lora.code == 2 and "leave lora out" in lora.err
