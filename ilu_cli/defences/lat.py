from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from pydantic import NonNegativeInt, PositiveFloat, PositiveInt

from ilu_cli.defences import Defence
from ilu_cli.registry import defence

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ilu_cli.data.encode import Batch
    from ilu_cli.engine.view import View
    from ilu_cli.recipe.schema import UnlearnRecipe
    from ilu_cli.recipe.source import Key


def problems(own: Any, key: Key, recipe: UnlearnRecipe) -> Iterator[tuple[Key, str]]:
    """A perturbed layer that the objective's own layer does not come after, so that it would change nothing."""
    objective = recipe.objective
    read = max(getattr(objective, "layers", None) or [getattr(objective, "layer", None)])
    if isinstance(read, int) and own.layer >= read:  # one that the model chooses is looked at again then
        message = f"{objective.name} reads layer {read}: a perturbation of layer {own.layer}"
        yield (*key, "layer"), f"{message} does not pass through what it trains; choose a lower one"


@defence(problems=problems)
class LAT(Defence):
    """Latent adversarial training: the forget term under the worst perturbation of a layer's output (arXiv 2407.15549).

    An adversary adds δ to the residual stream after `layer`, ‖δ_t‖₂ ≤ ε at every token, so as to make the forget
    targets likely: `inner_steps` steps of Adam from δ = 0, each projected onto the ball. The forget loss is then taken
    with δ in place. As the authors do, only prompts are perturbed; a text without a prompt is so all along. An answer
    that should be given instead is read after the same perturbed prompt.

    The authors use ε = 2, 16 steps, learning rate 0.05, at several layers at once; their ball is around activations of
    other models, so ε is a key to tune. The first position stays as it is here.
    """

    by_rows = True
    vectors = 0

    def __init__(
        self, *, layer: NonNegativeInt = 4, epsilon: PositiveFloat = 2.0, inner_lr: PositiveFloat = 0.05,
        inner_steps: PositiveInt = 16,
    ) -> None:  # fmt: skip
        self.layer, self.epsilon, self.inner_lr, self.inner_steps = layer, epsilon, inner_lr, inner_steps
        self.log = {}

    def values(self, values: Callable[[View], Tensor]) -> Callable[[View], Tensor]:
        import torch

        def attacked(view: View) -> Tensor:
            if not torch.is_grad_enabled():
                return values(view)
            with _added(view.parts.layers, self.layer, self._adversary(view)):
                return values(view.afresh())

        return attacked

    def _adversary(self, view: View) -> Tensor:
        """δ [B, T, D], detached. Every sequence's δ depends on that sequence alone."""
        import torch

        from ilu_cli.models.sharded import again

        width, mask = view.parts.width, perturbed(view.batch)[..., None]
        delta = torch.zeros(*view.batch.ids.shape, width, device=mask.device, requires_grad=True)
        optimizer = torch.optim.Adam([delta], lr=self.inner_lr)
        for _ in range(self.inner_steps):
            with _added(view.parts.layers, self.layer, delta):
                loss = view.afresh().nll.sum()
            (delta.grad,) = torch.autograd.grad(loss, delta)
            again(view.parts.decoder)
            optimizer.step()
            with torch.no_grad():
                norm = delta.norm(dim=-1, keepdim=True).clamp(min=1e-12)
                delta.mul_(mask * (self.epsilon / norm).clamp(max=1.0))
        return delta.detach()


def perturbed(batch: Batch) -> Tensor:
    """[B, T], the tokens of each prompt but the first; of a row with no more prompt than that, all real ones but it."""
    real = batch.mask.clone()
    real[:, 0] = False
    prompt = real & ~batch.scored
    return prompt | (real & ~prompt.any(-1, keepdim=True))


def _added(layers: nn.ModuleList, n: int, delta: Tensor) -> AbstractContextManager[None]:
    """Add `delta` to what layer n returns; rows that are longer or shorter get what there is of it."""
    from torch.nn.functional import pad

    from ilu_cli.models.parts import changed

    def add(states: Tensor) -> Tensor:
        return states + pad(delta, (0, 0, 0, states.shape[1] - delta.shape[1])).to(states.dtype)

    return changed(layers, {n: add})
