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

    from ilu_cli.engine.loop import Trainer
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

    def __init__(
        self, *, inner_steps: PositiveInt = 4, inner_lr: PositiveFloat = 5e-5, weight: NonNegativeFloat = 1.0,
        every: PositiveInt = 4, decay: NonNegativeFloat = 0.0625,
    ) -> None:  # fmt: skip
        self.inner_steps, self.inner_lr, self.weight, self.log = inner_steps, inner_lr, weight, {}
        self.every, self.decay = every, decay
        self.parts: tuple[TrainStream, TrainStream] | None = None

    def gradient(self, trainer: Trainer, compute: Callable[[], Tensor]) -> Tensor:
        import torch

        from ilu_cli.engine.environments import put, shifted, take

        if self.parts is None:
            self.parts = parted(next(t for t in trainer.terms if t.defended).stream)
        attack, held_out = self.parts
        params = list(trainer.params.values())
        value = compute()
        before, tampered = take(params), [torch.zeros_like(p) for p in params]
        with shifted(params, tampered, 0.0):  # gives the weights back afterwards
            attacker = torch.optim.AdamW(params, lr=self.inner_lr, weight_decay=0.0)
            for k in range(1, self.inner_steps + 1):
                step = trainer.step * self.inner_steps + k - 1
                trainer.accumulate(attack, lambda v: v.nll, "token", 1.0, step=step)
                trainer.backend.sum_gradients(params)
                attacker.step()
                take(params)
                if k % self.every and k < self.inner_steps:
                    continue
                share = trainer.accumulate(held_out, lambda v: -v.entropy, "token", 1.0)
                scale = self.weight * math.exp(self.decay * (k - self.inner_steps))
                for total, g in zip(tampered, take(params)):
                    if g is not None:
                        total.add_(g, alpha=scale)
        self.log = {"tampered H": -float(trainer.backend.sum(share))}
        put(params, tampered, 1.0)
        put(params, before, 1.0)
        return value


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
