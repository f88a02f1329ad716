"""The LM head, fused with cross-entropy and entropy, over tiles of the logits.

Never holds [B, T, V]: a tile, or some rows of logits, exist at a time (`ilu_cli.engine.tiles`); only hidden states are
kept for backward.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ilu_cli.engine.tiles import CACHED, chunks, memory_of, spans, tile_for
from ilu_cli.models.logits import LMHead, LogitMap


def token_stats(hidden: Tensor, head: LMHead, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Negative log-likelihood and predictive entropy of every token, both float32 [N] and differentiable.

    With z = f(h Wᵀ + b) the logits and p = softmax(z): NLL = logsumexp(z) − z_y and H = −Σ p log p. Their gap
    D_t = NLL − H is d/dw of the loss of w·z at w = 1, the quantity whose squared mean IRMv1 penalises (arXiv
    1907.02893, eq. 4), and ∂D_t/∂z_v = p_v (1 + log p_v + H) − 1[v=y]; f′ carries gradients further. Both come from
    one pass over the logits.

    Args:
        hidden: [N, D], the states that predict `targets`.
        head: W, b and f.
        targets: [N], token ids.
    """
    found: tuple[Tensor, Tensor] = _TokenStats.apply(hidden, head.weight, head.bias, head.map, targets)
    return found


def _compute_dtype(hidden: Tensor) -> torch.dtype:
    kind = hidden.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype


def wide(values: Tensor) -> Tensor:
    """At least float32: what losses are computed in."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


class _TokenStats(torch.autograd.Function):
    """Goes over tiles of tokens × words (`tile_for`); the softmax is summed up tile by tile."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, f: LogitMap, targets: Tensor
    ) -> tuple[Tensor, Tensor]:
        ctx.dtype, ctx.full = _compute_dtype(hidden), torch.promote_types(hidden.dtype, torch.float32)
        ctx.f = f
        lse, entropy, picked = (hidden.new_empty(hidden.shape[0], dtype=ctx.full) for _ in range(3))
        ctx.tile = rows, words_at_once = tile_for(memory_of(hidden.device))
        for part in spans(hidden.shape[0], rows):
            y, top = targets[part], lse[part].fill_(-torch.inf)
            mass, spread = torch.zeros_like(top), torch.zeros_like(top)  # Σ e^(z−top) and Σ e^(z−top)(z−top)
            for words in spans(len(weight), words_at_once):
                z = _logits(hidden[part], weight[words].to(ctx.dtype), _of(bias, words), f, ctx.full)
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
        ctx.save_for_backward(hidden, weight, bias, targets, lse, entropy)
        return lse - picked, entropy

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        g_nll, g_entropy = grads
        hidden, weight, bias, targets, lse, entropy = ctx.saved_tensors
        gradients = _Gradients(ctx, hidden, weight, bias)
        with_entropy = bool(g_entropy.any())
        rows, words_at_once = ctx.tile
        for part in spans(hidden.shape[0], rows):
            h, y, g = hidden[part].to(ctx.dtype), targets[part], g_nll[part]
            for words in spans(len(weight), words_at_once):
                w = weight[words].to(ctx.dtype)
                z = _logits(h, w, _of(bias, words), ctx.f, ctx.full)
                slope = ctx.f.slope(z)
                logp = z.sub_(lse[part, None])
                p = logp.exp()
                if with_entropy:  # dNLL/dz = p − 1[y];  dH/dz = −p (log p + H)
                    dz = logp.add_(entropy[part, None]).mul_(-g_entropy[part, None]).add_(g[:, None]).mul_(p)
                else:
                    dz = p.mul_(g[:, None])
                inside = (y >= words.start) & (y < words.stop)
                dz[inside, y[inside] - words.start] -= g[inside]
                gradients.add(dz, slope, part, words, h, w)
        return *gradients.all(), None, None


class _Gradients:
    """Gradients by hidden states, matrix and bias, summed up in float32 from tiles of that by the logits."""

    def __init__(self, ctx: Any, *inputs: Tensor | None) -> None:
        """`inputs` are the function's first three arguments; what wants no gradient gets none."""
        self.inputs = inputs
        self.hidden, self.weight, self.bias = (
            torch.zeros(t.shape, dtype=ctx.full, device=t.device) if t is not None and wanted else None
            for t, wanted in zip(inputs, ctx.needs_input_grad)
        )

    def add(self, dz: Tensor, slope: Tensor | float, part: slice, words: slice, hidden: Tensor, w: Tensor) -> None:
        """Carry dz, of the tokens `part` and the `words`, on; `hidden` and `w` are those of the tile, `slope` is f′."""
        du = dz if isinstance(slope, float) and slope == 1 else dz.mul_(slope)
        if self.bias is not None:
            self.bias[words] += du.sum(0)
        du = du.to(w.dtype)
        if self.hidden is not None:
            self.hidden[part] += du @ w
        if self.weight is not None:
            self.weight[words] += du.t() @ hidden

    def all(self) -> list[Tensor | None]:
        """By hidden states, matrix and bias, each in its own type."""
        found = (self.hidden, self.weight, self.bias)
        return [None if g is None or t is None else g.to(t.dtype) for g, t in zip(found, self.inputs)]


def distillation(
    hidden: Tensor, head: LMHead, teacher: Tensor, teacher_head: LMHead, targets: Tensor, shift: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Cross-entropy from a teacher's distribution, and that distribution's entropy, per token: float32 [N] each.

    With q = softmax(teacher logits − shift·1[y]) and p the student's distribution: CE = −Σ q log p, whose gradient by
    the student's logits is p − q, and H(q); KL(q ‖ p) = CE − H(q). Only the student's side is differentiable. The
    teacher is its last hidden states [N, D] and its own LM head; no second model is needed.
    """
    found: tuple[Tensor, Tensor] = _Distillation.apply(
        hidden, head.weight, head.bias, head.map, teacher, teacher_head, targets, shift
    )
    return found


class _Distillation(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, f: LogitMap, teacher: Tensor,
        teacher_head: LMHead, targets: Tensor, shift: float,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        ctx.dtype, ctx.full, ctx.shift = _compute_dtype(hidden), torch.promote_types(hidden.dtype, torch.float32), shift
        ctx.f, ctx.teacher_head = f, teacher_head
        saved = (hidden, weight, bias, teacher, targets)
        ctx.save_for_backward(*saved)
        ce, entropy = (hidden.new_empty(hidden.shape[0], dtype=ctx.full) for _ in range(2))
        for part, z, logq in _Distillation._chunks(ctx, *saved):
            q = logq.exp()
            ce[part], entropy[part] = -(q * z.log_softmax(-1)).sum(-1), -(q * logq).sum(-1)
        ctx.mark_non_differentiable(entropy)
        return ce, entropy

    @staticmethod
    def backward(ctx: Any, g_ce: Tensor, _g_entropy: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, *_ = ctx.saved_tensors
        gradients = _Gradients(ctx, hidden, weight, bias)
        w, words = weight.to(ctx.dtype), slice(0, len(weight))
        for part, z, logq in _Distillation._chunks(ctx, *ctx.saved_tensors):
            dz = (z.softmax(-1) - logq.exp()) * g_ce[part, None]
            gradients.add(dz, ctx.f.slope(z), part, words, hidden[part].to(ctx.dtype), w)
        return *gradients.all(), None, None, None, None, None

    @staticmethod
    def _chunks(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, teacher: Tensor, targets: Tensor
    ) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """The student's logits and the teacher's log-probabilities, a chunk of tokens at a time."""
        t = ctx.teacher_head
        w, tw = weight.to(ctx.dtype), t.weight.to(ctx.dtype)
        for part in chunks(hidden, weight):
            zt = _logits(teacher[part], tw, t.bias, t.map, ctx.full)
            zt.scatter_add_(-1, targets[part, None], torch.full_like(zt[:, :1], -ctx.shift))
            yield part, _logits(hidden[part], w, bias, ctx.f, ctx.full), zt.log_softmax(-1)


def margins(hidden: Tensor, head: LMHead) -> Tensor:
    """The largest logit of every token less the mean of its logits: float32 [N], differentiable.

    hidden: [N, D]. A chunk of logits exists at a time, and is computed again for the backward pass.
    """
    dtype, full = _compute_dtype(hidden), torch.promote_types(hidden.dtype, torch.float32)

    def of(part: Tensor) -> Tensor:
        z = _logits(part, head.weight.to(dtype), head.bias, head.map, full)
        return z.amax(-1) - z.mean(-1)

    parts = [hidden[part] for part in chunks(hidden, head.weight)]
    return torch.cat([checkpoint(of, part, use_reentrant=False) for part in parts])


@torch.no_grad()
def picked_logps(hidden: Tensor, head: LMHead, states: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probability of each target, float32 [M], and whether it is the most probable token, bool [M].

    Several targets may be predicted by one state; its logits are computed once.

    Args:
        hidden: [N, D], states.
        head: the LM head.
        states: [M], which state predicts the target, ascending.
        targets: [M], token ids.
    """
    full = torch.promote_types(hidden.dtype, torch.float32)
    w = head.weight.to(_compute_dtype(hidden))
    logps, greedy = hidden.new_empty(len(targets), dtype=full), targets.new_empty(len(targets), dtype=torch.bool)
    for part in chunks(hidden, w):
        a, b = torch.searchsorted(states, torch.tensor([part.start, part.stop], device=states.device)).tolist()
        z, rows = _logits(hidden[part], w, head.bias, head.map, full), states[a:b] - part.start
        logps[a:b] = z[rows, targets[a:b]] - z.logsumexp(-1)[rows]
        greedy[a:b] = z.argmax(-1)[rows] == targets[a:b]
    return logps, greedy


@torch.no_grad()
def token_moments(hidden: Tensor, head: LMHead, targets: Tensor) -> Tensor:
    """[4, N] float32 per token: log p of the target, mean and deviation of log p under p, 1 if it is the argmax.

    Args:
        hidden: [N, D], the states that predict `targets`.
        head: the LM head.
        targets: [N], token ids.
    """
    found = []
    for part, z in _each(hidden, head):
        logp = z.log_softmax(-1)
        p = logp.exp()
        mean = (p * logp).sum(-1)
        std = (p * (logp - mean[:, None]).square()).sum(-1).sqrt()
        picked = logp.gather(-1, targets[part, None]).squeeze(-1)
        found.append(torch.stack([picked, mean, std, (logp.argmax(-1) == targets[part]).to(z.dtype)]))
    return torch.cat(found, dim=1)


@torch.no_grad()
def scaled(hidden: Tensor, head: LMHead, targets: Tensor, beta: float) -> tuple[Tensor, Tensor, Tensor]:
    """Of every token, with all logits z times β: the negative log-likelihood and its first and second derivatives by β.

    NLL = logsumexp(β z) − β z_y, which is convex in β; NLL′ = E z − z_y and NLL″ = Var z, both under softmax(β z).

    Args:
        hidden: [N, D], the states that predict `targets`.
        head: the LM head.
        targets: [N], token ids.

    Returns:
        float32 [N] each.
    """
    found = []
    for part, logits in _each(hidden, head):
        at_once = CACHED if memory_of(hidden.device) is None else len(logits)
        for z, y in zip(logits.split(at_once), targets[part].split(at_once)):
            z = z - z.amax(-1, keepdim=True)
            p = (beta * z).exp()
            mass, picked = p.sum(-1), z.gather(-1, y[:, None]).squeeze(-1)
            mean, square = torch.linalg.vecdot(p, z) / mass, torch.linalg.vecdot(p.mul_(z), z) / mass
            found.append(torch.stack([mass.log() - beta * picked, mean - picked, square - mean.square()]))
    nll, slope, curvature = torch.cat(found, dim=1)
    return nll, slope, curvature


def _each(hidden: Tensor, head: LMHead) -> Iterator[tuple[slice, Tensor]]:
    """The logits of `hidden` [N, D], a chunk at a time, as which rows they are and float32 [·, V]."""
    full, w = torch.promote_types(hidden.dtype, torch.float32), head.weight.to(_compute_dtype(hidden))
    for part in chunks(hidden, w):
        yield part, _logits(hidden[part], w, head.bias, head.map, full)


def _of(bias: Tensor | None, words: slice) -> Tensor | None:
    return None if bias is None else bias[words]


def _logits(hidden: Tensor, w: Tensor, bias: Tensor | None, f: LogitMap, full: torch.dtype) -> Tensor:
    """f(h Wᵀ + b), the product in W's type, the rest in at least float32."""
    with torch.autocast(hidden.device.type, enabled=False):
        u = (hidden.to(w.dtype) @ w.t()).to(full)
        return f(u if bias is None else u + bias)
