from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt

from ilu_cli.defences import Defence, Resumable
from ilu_cli.defences.project import problems
from ilu_cli.recipe.specs import Fraction
from ilu_cli.registry import defence

if TYPE_CHECKING:
    from torch import Tensor

    from ilu_cli.engine.gradients import Gradients, Term


@defence(problems=problems)
class Mudman(Defence):
    """Unlearn what a relearner knows, where it does not run against what is kept (MUDMAN, arXiv 2506.12484).

    Beside the weights W goes an adversary A, which starts at W, and again after every `every` steps: A ← A −
    `attacker_lr`·∇NLL_forget(A). At a step r ← `decay`·r + (1 − `decay`)·∇L_retain(W), L_retain the retain term without
    its weight; then A steps; then g = ∇L_forget(A) ⊙ 1[sign g = sign r], scaled to the length `norm` (null: as it
    comes), is the forget gradient at W. Where the length is 0 it stays so.

    As published, W ← W − η·g/‖g‖: `train.optimizer: sgd`. It costs the retain gradient and one of the forget NLL at
    each step, and two copies of the trained weights. The value that is logged is that at A. A retain term whose
    gradient is 0 at the start, as that of `kl` and `hidden_mse`, lets nothing pass there: take `nll`.

    Published: 40 % over TAR (abstract).
    """

    moves = True
    vectors = 4  # of retain data the mean and the last gradient, the adversary, and the weights

    def __init__(
        self, *, attacker_lr: NonNegativeFloat = 0.05, every: PositiveInt = 10, decay: Fraction = 0.9,
        norm: PositiveFloat | None = 1.0,
    ) -> None:  # fmt: skip
        self.attacker_lr, self.every, self.decay, self.norm, self.log = attacker_lr, every, decay, norm, {}
        self.adversary, self.kept = list[Any](), list[Any]()

    def gradient(self, grads: Gradients, forget: Term, retain: Term | None, compute: Callable[[], Tensor]) -> Tensor:
        import torch

        from ilu_cli.engine.gradients import norm

        assert retain is not None, "the plan refuses a recipe without one"
        with grads.aside():
            grads.accumulate(replace(retain, weight=1.0))
            now = grads.whole()
            self.kept = [r.lerp_(g, 1 - self.decay) for r, g in zip(self.kept or map(torch.zeros_like, now), now)]
            with torch.no_grad(), grads.shifted(now, 0.0):  # gives the weights back afterwards
                if grads.step % self.every and self.adversary:
                    for p, a in zip(grads.params, self.adversary):
                        p.copy_(a)
                with torch.enable_grad():
                    nll = self._relearn(grads, forget)
                self.adversary = [p.detach().clone() for p in grads.params]
                with torch.enable_grad():
                    value = compute()
            found = grads.whole()
            before = norm(found)
            masked = [g * (g.sign() == r.sign()) for g, r in zip(found, self.kept)]
            length = norm(masked)
            self.log = {"attacker nll": nll, "forget gradient left": length / (before or 1.0)}
            grads.add(masked, self.norm / length if self.norm and length else 1.0)
        return value

    def _relearn(self, grads: Gradients, forget: Term) -> float:
        """A step of the adversary, whose weights are in place."""
        from ilu_cli.engine.gradients import mean_nll

        found = grads.accumulate(mean_nll("attacker", forget.stream))
        for p, g in zip(grads.params, grads.whole()):
            p.detach().sub_(g, alpha=self.attacker_lr)
        return float(grads.backend.sum(found))

    def state(self) -> Resumable:
        return {"adversary": self.adversary, "kept": self.kept}

    def load(self, state: Resumable) -> None:
        self.adversary, self.kept = state["adversary"], state["kept"]
