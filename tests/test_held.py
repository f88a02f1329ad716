"""What defences say that they hold, against the tensors that are there when a gradient is taken."""

from __future__ import annotations

import gc
import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from conftest import items_of, stream, tiny_model, trainer
from test_defences import KEYS

from ilu_cli import registry
from ilu_cli.engine.gradients import Gradients, Term

SHAPE, LAYERS = (16, 24), 3  # of the down projections: one in each layer
OPEN = {"curvature", "grad_penalty"}
MORE: list[tuple[str, dict[str, Any]]] = [
    ("repselect", {"attacker_lr": 0.0}), ("repselect", {"every": 1, "rank": 2}), ("repselect", {"shot": "step"}),
    ("repselect", {"directions": "retain", "rank": 2}),
    ("repselect", {"built": False}),
]  # fmt: skip


@pytest.fixture(autouse=True)
def alone() -> Iterator[None]:
    """Let the garbage collector know nothing of what was there before, so that it tells the test's own tensors."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


def storages() -> set[int]:
    """The memory of all tensors of the shape that are there now."""
    gc.collect()
    found = [t for t in gc.get_objects() if isinstance(t, torch.Tensor) and t.shape == SHAPE]
    return {t.untyped_storage().data_ptr() for t in found}


@pytest.mark.parametrize(("name", "keys"), [*((n, k) for n, k in KEYS.items() if n not in OPEN), *MORE])
def test_what_is_held_while_a_gradient_is_taken(name: str, keys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    forget = Term("forget", stream(items_of([5, 8, 6, 9, 7, 4])), lambda view: view.logps, "token", defended=True)
    retain = Term("retain", stream(items_of([6, 4, 8], seed=11), name="retain"), lambda view: view.nll, "token")
    t = trainer(tiny_model(), [forget, retain], [], steps=4, lr=1e-3)
    t.defences = [made := registry.defence[name].obj(**keys)]
    most: dict[int, float] = {}
    optimizer: Any = t.optimizer
    real = Gradients._view

    def counted(self: Gradients, *args: Any, **more: Any) -> Any:
        own = [p for p in t.params.values() if p.shape == SHAPE]
        known = own + [p.grad for p in own if p.grad is not None]
        known += [m for p in own for m in optimizer.state.get(p, {}).values() if m.shape == SHAPE]
        found = len(storages() - {k.untyped_storage().data_ptr() for k in known})
        most[t.step] = max(most.get(t.step, 0.0), found / LAYERS)
        return real(self, *args, **more)

    monkeypatch.setattr(Gradients, "_view", counted)
    for _ in t.run():
        pass
    shapes = [p.shape for p in t.params.values()]
    first, each = (held / sum(map(math.prod, shapes)) for held in made.held(shapes) or ())
    if name == "cir":  # whose outer products are counted below
        assert most[0] <= 1 and most[3] == 0
        return
    assert most[0] == (0 if name == "averaging" or keys.get("shot") == "step" else first)  # averaging begins later
    later = max(most[n] for n in (1, 2, 3))
    assert later == (0 if keys.get("shot") == "step" else each)  # it holds more when the gradient is taken out


def test_outer_products_and_directions_by_hand() -> None:
    cir = registry.defence["cir"].obj(inputs=3, outputs=2)
    assert cir.held([(5, 7), (4,)]) == (5 * 5 + 7 * 7, 5 * 3 + 7 * 4 + 5 * 7 + 4)


def test_what_is_not_known_is_said() -> None:
    assert {name for name in registry.defence if registry.defence[name].obj().held([(2, 3)]) is None} == OPEN
