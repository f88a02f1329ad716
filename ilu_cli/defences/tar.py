from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt

from ilu_cli.defences import Defence
from ilu_cli.errors import UsageError
from ilu_cli.registry import defence

if TYPE_CHECKING:
    from torch import Tensor

    from ilu_cli.engine.gradients import Gradients, Term, Vector
    from ilu_cli.engine.stream import TrainStream

HELD_OUT = 5  # every fifth row of the forget data is kept from the attacker


@defence()
class TAR(Defence):
    """Tamper resistance by first-order meta-learning over simulated relearning (TAR, arXiv 2408.00761, alg. 1).

    From the weights of the step an attacker fine-tunes on the forget data: K = `inner_steps` steps of AdamW at
    `inner_lr`. After every `every`-th of them, and the last, the gradient of −H is taken, H the entropy of the
    predictions on a batch of forget rows that the attacker never trains on. These gradients, times
    `weight`·exp(`decay`·(k − K)) after step k, are added to the gradient at the step's own weights (first order).

    `every` and `decay` are the authors'. They run K = 64 inner steps at rates drawn from 2e-6, 2e-5 and 4e-5, with
    weight 4, for 750 steps; the other defaults are sized for a small machine. Otherwise than theirs, the attacker has
    forget data alone (a third of theirs begin with other text), the entropy is that of the scored tokens, and the
    objective's own gradient is kept beside it.
    """

    by_rows = True
    vectors = 5  # the gradient set aside, the sum, the weights, and two moments of the attacker's

    def __init__(
        self, *, inner_steps: PositiveInt = 4, inner_lr: PositiveFloat = 5e-5, weight: NonNegativeFloat = 1.0,
        every: PositiveInt = 4, decay: NonNegativeFloat = 0.0625,
    ) -> None:  # fmt: skip
        self.inner_steps, self.inner_lr, self.weight, self.log = inner_steps, inner_lr, weight, {}
        self.every, self.decay = every, decay
        self.parts: tuple[TrainStream, TrainStream] | None = None

    def check(self, forget: TrainStream) -> None:
        parted(forget)

    def gradient(self, grads: Gradients, forget: Term, retain: Term | None, compute: Callable[[], Tensor]) -> Tensor:
        value = compute()
        with grads.aside():
            grads.put(self._tampered(grads, forget))
        return value

    def _tampered(self, grads: Gradients, forget: Term) -> Vector:
        """This process's share of Σ_k weight·exp(decay·(k − K)) · ∇(−H) along the attacker's way."""
        import torch

        from ilu_cli.engine.gradients import Term

        self.parts = self.parts or parted(forget.stream)
        attack, held_out = (
            Term(s.name, s, values, "token") for s, values in zip(self.parts, (lambda v: v.nll, lambda v: -v.entropy))
        )
        found = [torch.zeros_like(p) for p in grads.params]
        with grads.shifted(found, 0.0):  # gives the weights back afterwards
            attacker = torch.optim.AdamW(grads.params, lr=self.inner_lr, weight_decay=0.0)
            for k in range(1, self.inner_steps + 1):
                grads.accumulate(attack, step=grads.step * self.inner_steps + k - 1)
                grads.sum()
                attacker.step()
                grads.take()
                if k % self.every and k < self.inner_steps:
                    continue
                share = grads.accumulate(held_out)
                scale = self.weight * math.exp(self.decay * (k - self.inner_steps))
                for total, g in zip(found, grads.take()):
                    if g is not None:
                        total.add_(g, alpha=scale)
        self.log = {"tampered H": -float(grads.backend.sum(share))}
        return found


def parted(forget: TrainStream) -> tuple[TrainStream, TrainStream]:
    """The forget data without every fifth row of each dataset, and these rows.

    Raises:
        UsageError: if nothing is left to attack with.
    """
    from ilu_cli.data.encode import Corpus, Packed
    from ilu_cli.engine.stream import TrainStream

    found = []
    for name, held in (("tar", False), ("tar held out", True)):
        kept = [[e for i, e in enumerate(c.items) if (i % HELD_OUT == 0) is held] for c in forget.corpora]
        corpora = [Corpus(Packed.of(rows), 0) for rows in kept if rows]
        if not corpora:
            raise UsageError("defences.tar: the forget data has one row only; the attacker needs rows of its own")
        found.append(TrainStream(name, corpora, forget.batch, forget.seed))
    return found[0], found[1]
