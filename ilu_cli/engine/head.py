"""The LM head, fused with cross-entropy and entropy, over tiles of the logits.

Never holds [B, T, V]: a tile, or `CHUNK` rows of logits, exist at a time; only hidden states are kept for backward.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

ROWS, TILE = 512, 8192  # tokens × words whose logits are held at a time: 17 MB of float32
CHUNK = 256  # rows of whole logits held at a time; at V = 49,152 that is 50 MB of float32


def token_stats(hidden: Tensor, weight: Tensor, targets: Tensor, bias: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Negative log-likelihood and predictive entropy of every token, both float32 [N] and differentiable.

    With z the logits and p = softmax(z): NLL = logsumexp(z) − z_y and H = −Σ p log p. Their gap D_t = NLL − H is
    d/dw of the loss of w·z at w = 1, the quantity whose squared mean IRMv1 penalises (arXiv 1907.02893, eq. 4), and
    ∂D_t/∂z_u = p_u (1 + log p_u + H) − 1[u=y]. Both come from one pass over the logits.

    Args:
        hidden: [N, D], the states that predict `targets`.
        weight: [V, D], the LM head's matrix.
        targets: [N], token ids.
        bias: [V] or None.
    """
    return _TokenStats.apply(hidden, weight, targets, bias)


def _compute_dtype(hidden: Tensor) -> torch.dtype:
    kind = hidden.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype


def wide(values: Tensor) -> Tensor:
    """At least float32: what losses are computed in."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


class _TokenStats(torch.autograd.Function):
    """Goes over tiles of ROWS tokens × TILE words; the softmax is summed up tile by tile."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, bias: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        ctx.dtype, ctx.full = _compute_dtype(hidden), torch.promote_types(hidden.dtype, torch.float32)
        lse, entropy, picked = (hidden.new_empty(hidden.shape[0], dtype=ctx.full) for _ in range(3))
        for part in _spans(hidden.shape[0], ROWS):
            y, top = targets[part], lse[part].fill_(-torch.inf)
            mass, spread = torch.zeros_like(top), torch.zeros_like(top)  # Σ e^(z−top) and Σ e^(z−top)(z−top)
            for words in _spans(len(weight), TILE):
                z = _logits(hidden[part], weight[words].to(ctx.dtype), bias if bias is None else bias[words], ctx.full)
                inside = (y >= words.start) & (y < words.stop)
                picked[part][inside] = z[inside, y[inside] - words.start]
                higher = torch.maximum(top, z.amax(-1))
                drop = (top - higher).clamp(min=-1e30)  # −∞ at first, when mass and spread are 0
                spread.add_(mass * drop).mul_(drop.exp())
                mass.mul_(drop.exp())
                p = z.sub_(higher[:, None]).exp()
                mass += p.sum(-1)
                spread += torch.linalg.vecdot(p, z)
                top = higher
            entropy[part] = mass.log() - spread / mass
            lse[part] = top + mass.log()
        ctx.save_for_backward(hidden, weight, targets, lse, entropy, bias)
        return lse - picked, entropy

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None, Tensor | None]:
        g_nll, g_entropy = grads
        hidden, weight, targets, lse, entropy, bias = ctx.saved_tensors
        gradients = _Gradients(ctx, {"hidden": (0, hidden), "weight": (1, weight), "bias": (3, bias)})
        with_entropy = bool(g_entropy.any())
        for part in _spans(hidden.shape[0], ROWS):
            h, y, g = hidden[part].to(ctx.dtype), targets[part], g_nll[part]
            for words in _spans(len(weight), TILE):
                w = weight[words].to(ctx.dtype)
                logp = _logits(h, w, bias if bias is None else bias[words], ctx.full).sub_(lse[part, None])
                p = logp.exp()
                if with_entropy:  # dNLL/dz = p − 1[y];  dH/dz = −p (log p + H)
                    dz = logp.add_(entropy[part, None]).mul_(-g_entropy[part, None]).add_(g[:, None]).mul_(p)
                else:
                    dz = p.mul_(g[:, None])
                inside = (y >= words.start) & (y < words.stop)
                dz[inside, y[inside] - words.start] -= g[inside]
                gradients.add(dz, part, words, h, w)
        return gradients["hidden"], gradients["weight"], None, gradients["bias"]


class _Gradients:
    """Gradients by hidden states, matrix and bias, summed up in float32 from tiles of that by the logits."""

    def __init__(self, ctx: Any, inputs: dict[str, tuple[int, Tensor | None]]) -> None:
        """`inputs` are (position among the function's arguments, tensor); what wants no gradient gets none."""
        self.kinds = {name: t.dtype for name, (_, t) in inputs.items() if t is not None}
        self.sums = {
            name: torch.zeros(t.shape, dtype=ctx.full, device=t.device)
            for name, (i, t) in inputs.items()
            if t is not None and ctx.needs_input_grad[i]
        }

    def add(self, dz: Tensor, part: slice, words: slice, hidden: Tensor, w: Tensor) -> None:
        """Carry dz, of the tokens `part` and the `words`, on; `hidden` and `w` are those of the tile."""
        if "bias" in self.sums:
            self.sums["bias"][words] += dz.sum(0)
        dz = dz.to(w.dtype)
        if "hidden" in self.sums:
            self.sums["hidden"][part] += dz @ w
        if "weight" in self.sums:
            self.sums["weight"][words] += dz.t() @ hidden

    def __getitem__(self, name: str) -> Tensor | None:
        return self.sums[name].to(self.kinds[name]) if name in self.sums else None


def _spans(length: int, size: int) -> list[slice]:
    return [slice(i, min(i + size, length)) for i in range(0, length, size)]


def distillation(
    hidden: Tensor, weight: Tensor, teacher: Tensor, teacher_weight: Tensor, targets: Tensor, shift: float = 0.0,
    bias: Tensor | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Cross-entropy from a teacher's distribution, and that distribution's entropy, per token: float32 [N] each.

    With q = softmax(teacher logits − shift·1[y]) and p the student's distribution: CE = −Σ q log p, whose gradient by
    the student's logits is p − q, and H(q); KL(q ‖ p) = CE − H(q). Only the student's side is differentiable. The
    teacher is its last hidden states [N, D] and its LM head [V, D]; no second model is needed.
    """
    return _Distillation.apply(hidden, weight, teacher, teacher_weight, targets, shift, bias)


class _Distillation(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, teacher: Tensor, teacher_weight: Tensor, targets: Tensor,
        shift: float, bias: Tensor | None,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        ctx.dtype, ctx.full, ctx.shift = _compute_dtype(hidden), torch.promote_types(hidden.dtype, torch.float32), shift
        saved = (hidden, weight, teacher, teacher_weight, targets, bias)
        ctx.save_for_backward(*saved)
        ce, entropy = (hidden.new_empty(hidden.shape[0], dtype=ctx.full) for _ in range(2))
        for part, logp, logq in _Distillation._chunks(ctx, *saved):
            q = logq.exp()
            ce[part], entropy[part] = -(q * logp).sum(-1), -(q * logq).sum(-1)
        ctx.mark_non_differentiable(entropy)
        return ce, entropy

    @staticmethod
    def backward(ctx: Any, g_ce: Tensor, _g_entropy: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, _, _, _, bias = ctx.saved_tensors
        gradients = _Gradients(ctx, {"hidden": (0, hidden), "weight": (1, weight), "bias": (6, bias)})
        w, words = weight.to(ctx.dtype), slice(0, len(weight))
        for part, logp, logq in _Distillation._chunks(ctx, *ctx.saved_tensors):
            dz = (logp.exp() - logq.exp()) * g_ce[part, None]
            gradients.add(dz, part, words, hidden[part].to(ctx.dtype), w)
        return gradients["hidden"], gradients["weight"], None, None, None, None, gradients["bias"]

    @staticmethod
    def _chunks(
        ctx: Any, hidden: Tensor, weight: Tensor, teacher: Tensor, teacher_weight: Tensor, targets: Tensor,
        bias: Tensor | None,
    ) -> Iterator[tuple[slice, Tensor, Tensor]]:  # fmt: skip
        """The log-probabilities of student and teacher, a chunk of tokens at a time."""
        w, tw = weight.to(ctx.dtype), teacher_weight.to(ctx.dtype)
        for i in range(0, hidden.shape[0], CHUNK):
            part = slice(i, i + CHUNK)
            zt = _logits(teacher[part], tw, bias, ctx.full)
            zt.scatter_add_(-1, targets[part, None], torch.full_like(zt[:, :1], -ctx.shift))
            yield part, _logits(hidden[part], w, bias, ctx.full).log_softmax(-1), zt.log_softmax(-1)


@torch.no_grad()
def picked_logps(
    hidden: Tensor, weight: Tensor, states: Tensor, targets: Tensor, bias: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Log-probability of each target, float32 [M], and whether it is the most probable token, bool [M].

    Several targets may be predicted by one state; its logits are computed once.

    Args:
        hidden: [N, D], states.
        weight: [V, D], the LM head's matrix.
        states: [M], which state predicts the target, ascending.
        targets: [M], token ids.
        bias: [V] or None.
    """
    full = torch.promote_types(hidden.dtype, torch.float32)
    w = weight.to(_compute_dtype(hidden))
    logps, greedy = hidden.new_empty(len(targets), dtype=full), targets.new_empty(len(targets), dtype=torch.bool)
    for i in range(0, hidden.shape[0], CHUNK):
        a, b = torch.searchsorted(states, torch.tensor([i, i + CHUNK], device=states.device)).tolist()
        z, rows = _logits(hidden[i : i + CHUNK], w, bias, full), states[a:b] - i
        logps[a:b] = z[rows, targets[a:b]] - z.logsumexp(-1)[rows]
        greedy[a:b] = z.argmax(-1)[rows] == targets[a:b]
    return logps, greedy


@torch.no_grad()
def token_moments(hidden: Tensor, head: torch.nn.Linear, targets: Tensor) -> Tensor:
    """[4, N] float32 per token: log p of the target, mean and deviation of log p under p, 1 if it is the argmax.

    Args:
        hidden: [N, D], the states that predict `targets`.
        head: the LM head.
        targets: [N], token ids.
    """
    full, w = torch.promote_types(hidden.dtype, torch.float32), head.weight.to(_compute_dtype(hidden))
    found = []
    for i in range(0, hidden.shape[0], CHUNK):
        part = slice(i, i + CHUNK)
        logp = _logits(hidden[part], w, head.bias, full).log_softmax(-1)
        p = logp.exp()
        mean = (p * logp).sum(-1)
        std = (p * (logp - mean[:, None]).square()).sum(-1).sqrt()
        picked = logp.gather(-1, targets[part, None]).squeeze(-1)
        found.append(torch.stack([picked, mean, std, (logp.argmax(-1) == targets[part]).to(full)]))
    return torch.cat(found, dim=1)


def _logits(hidden: Tensor, w: Tensor, bias: Tensor | None, full: torch.dtype) -> Tensor:
    with torch.autocast(hidden.device.type, enabled=False):
        z = (hidden.to(w.dtype) @ w.t()).to(full)
        return z if bias is None else z + bias
