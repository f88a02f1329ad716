"""A view without fused kernels, for what must be differentiated twice."""

from __future__ import annotations

import functools

from torch import Tensor
from torch.nn.functional import cross_entropy

from ilu_cli.engine.head import wide
from ilu_cli.engine.view import OUT, View


class PlainView(View):
    """What a `View` tells, from the whole logits of the scored tokens, at least in float32. For few tokens."""

    @functools.cached_property
    def logits(self) -> Tensor:
        """[N, V], which predict the scored tokens."""
        return wide(self.parts.head(self.final))

    def _read(self, final: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        z = wide(self.parts.head(final))
        logp = z.log_softmax(-1)
        return cross_entropy(z, targets, reduction="none"), -(logp.exp() * logp).sum(-1)

    def distillation(self, shift: float = 0.0) -> tuple[Tensor, Tensor]:
        teacher = self.reference
        assert teacher.final is not None and teacher.head is not None
        return self._towards(wide(teacher.head(teacher.final.to(self.final.dtype))), shift)

    @property
    def margins(self) -> Tensor:
        return self.logits.amax(-1) - self.logits.mean(-1)

    @property
    def elsewhere(self) -> Tensor:
        return self._towards(self.logits, OUT)[0]

    def _towards(self, z: Tensor, shift: float) -> tuple[Tensor, Tensor]:
        """[N] each: cross-entropy to what the logits z [N, V] say without `shift` on the target, and its entropy."""
        logq = z.detach().scatter_add(-1, self.targets[:, None], z.new_full((len(z), 1), -shift)).log_softmax(-1)
        q = logq.exp()
        return -(q * self.logits.log_softmax(-1)).sum(-1), -(q * logq).sum(-1)
