"""When a defence acts, and what it does where there is nothing to act on."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from conftest import gradient, items_of, noted, stream, tiny_model, trainer

from ilu_cli import registry
from ilu_cli.data.sampling import seed_of
from ilu_cli.defences.lat import _added
from ilu_cli.engine.gradients import Term
from ilu_cli.engine.loop import Trainer


def flat(t: Trainer) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in t.params.values()])


def defended(name: str, values: Any = lambda view: view.logps, model: Any = None, keys: Any = (), **spec: Any) -> Any:
    term = Term("forget", stream(items_of([5, 8, 6])), values, "token", defended=True)
    t = trainer(model or tiny_model(), [term], [], **spec)
    t.defences = [registry.defence[name].obj(**dict(keys))]
    return t


@pytest.mark.parametrize(
    ("start", "every", "taken"), [(2, 3, (5, 8)), (0, 4, (4, 8)), (3, 1, (4, 5, 6, 7, 8)), (4, 2, (6, 8)), (7, 2, ())]
)
def test_averaging_takes_each_every_th_step_beyond_start(start: int, every: int, taken: Any) -> None:
    t = defended("averaging", keys={"start": start, "every": every}, steps=8, lr=1e-2)
    seen = [flat(t) for _ in t.run()]
    (averaging,) = t.defences
    assert averaging.count == len(taken)
    averaging.finish(t.grads)
    expected = torch.stack([seen[step - 1] for step in taken]).mean(0) if taken else seen[-1]
    torch.testing.assert_close(flat(t), expected)


def test_averaging_leaves_training_alone() -> None:
    free, averaged = (defended(n, keys=k, steps=4, lr=1e-2) for n, k in (("sam", {"rho": 1e-12}), ("averaging", {})))
    for _ in zip(free.run(), averaged.run()):
        torch.testing.assert_close(flat(free), flat(averaged), rtol=1e-4, atol=1e-5)


def test_sam_without_a_gradient_has_nowhere_to_go() -> None:
    t = defended("sam", lambda view: 0.0 * view.logps)
    assert gradient(t).norm() == 0


def test_the_noise_is_of_the_weights_own_precision() -> None:
    """Normal numbers of a float64 weight are other numbers than those of a float32 one."""
    model = tiny_model().double()
    t = defended("smoothing", keys={"sigma": 0.1, "samples": 1}, model=model, precision="fp32")
    before = flat(t)
    seen: list[torch.Tensor] = []
    t.terms[0].values = lambda view: noted(seen, flat(t), view.logps)
    t.backward()
    generator = torch.Generator().manual_seed(seed_of(0, "smoothing", 0, 0))
    noise = torch.cat([torch.randn(p.shape, generator=generator, dtype=p.dtype).flatten() for p in t.params.values()])
    assert noise.dtype == torch.float64
    torch.testing.assert_close(seen[0], before + 0.1 * noise, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["sam", "smoothing"])
def test_the_value_is_of_the_forget_term_and_every_step_has_noise_of_its_own(name: str) -> None:
    keys = {"sam": {"rho": 0.05}, "smoothing": {"sigma": 0.05, "samples": 2}}[name]
    plain = defended("averaging").backward()["forget"]
    t = defended(name, keys=keys)
    now = t.backward()["forget"]
    assert now == pytest.approx(plain, rel=1e-6 if name == "sam" else 0.2)
    t.step = 1
    assert (t.backward()["forget"] == now) == (name == "sam")
    t.step, t.grads.seed = 0, 1
    assert (t.backward()["forget"] == now) == (name == "sam")


def test_what_lat_adds_leaves_the_type_and_the_rest_of_what_a_layer_returns() -> None:
    """A layer may return a tuple; a row may be longer or shorter than the perturbation."""

    class Layer(torch.nn.Module):
        def forward(self, states: Any) -> tuple[Any, Any, Any]:
            return states, "attention", "cache"

    layer, delta = Layer(), torch.tensor([[[1.0, 2], [3, 4]]])
    states = torch.ones(1, 3, 2, dtype=torch.bfloat16)
    with _added(torch.nn.ModuleList([layer]), 0, delta):
        longer, *rest = layer(states)
        shorter, *_ = layer(states[:, :1])
    assert (longer.dtype, rest) == (torch.bfloat16, ["attention", "cache"])
    assert longer.tolist() == [[[2, 3], [4, 5], [1, 1]]]
    assert shorter.tolist() == [[[2, 3]]]
    assert layer(states)[0] is states
