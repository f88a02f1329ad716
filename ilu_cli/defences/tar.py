from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt

from ilu_cli.defences import Defence
from ilu_cli.registry import defence

if TYPE_CHECKING:
    from torch import Tensor

    from ilu_cli.engine.loop import Trainer


@defence()
class TAR(Defence):
    """Tamper resistance by first-order meta-learning over simulated relearning (TAR, arXiv 2408.00761, alg. 1).

    From the weights of the step an attacker fine-tunes on other batches of the forget data: `inner_steps` steps of
    AdamW at `inner_lr`. Where it arrives, the gradient of −H, the entropy of the predictions on the forget batch, is
    taken and added, times `weight`, to the gradient at the step's own weights (the first-order approximation). The
    authors run 750 outer and 64 inner steps; the defaults here are sized for a small machine.
    """

    def __init__(
        self, *, inner_steps: PositiveInt = 4, inner_lr: PositiveFloat = 5e-5, weight: NonNegativeFloat = 1.0
    ) -> None:
        self.inner_steps, self.inner_lr, self.weight, self.log = inner_steps, inner_lr, weight, {}

    def gradient(self, trainer: Trainer, compute: Callable[[], Tensor]) -> Tensor:
        import torch

        from ilu_cli.engine.environments import put, shifted, take
        from ilu_cli.engine.stream import TrainStream

        forget = next(t for t in trainer.terms if t.defended).stream
        attack = TrainStream("tar", forget.corpora, forget.batch, forget.seed)
        params = list(trainer.params.values())
        value = compute()
        before = take(params)
        with shifted(params, [torch.zeros_like(p) for p in params], 0.0):  # gives the weights back afterwards
            attacker = torch.optim.AdamW(params, lr=self.inner_lr, weight_decay=0.0)
            for k in range(self.inner_steps):
                trainer.accumulate(attack, lambda v: v.nll, "token", 1.0, step=trainer.step * self.inner_steps + k)
                trainer.backend.sum_gradients(params)
                attacker.step()
                take(params)
            share = trainer.accumulate(forget, lambda v: -v.entropy, "token", 1.0)
        self.log = {"tampered H": -float(trainer.backend.sum(share))}
        put(params, take(params), self.weight)
        put(params, before, 1.0)
        return value
