"""The LM head, and what a model does to its logits afterwards: z = f(h Wᵀ + b), f elementwise.

f is not read from a configuration, whose keys mean different things in different families (`logits_scaling` divides in
Granite and multiplies in HyperCLOVA X): it is read off the model, known states and logits put in place of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPast

from ilu_cli.errors import UsageError
from ilu_cli.models.sharded import gathered, is_part

TOKENS = 4  # of the text that a model is tried on
TINY, HUGE = 2.0**-20, 2.0**100  # where f is linear, and where it has reached its cap
ROUNDING = 1e-4  # of the largest value; what a model adds to its states is far larger


@dataclass(frozen=True)
class LogitMap:
    """f(u) = cap · tanh(scale · u / cap), or scale · u without a cap.

    Gemma-2 has a cap of 30; Granite divides, Cohere and Falcon-H1 multiply; most models do nothing.
    """

    scale: float = 1.0
    cap: float | None = None

    def __call__(self, u: Tensor) -> Tensor:
        """f(u), in place where nothing is to be differentiated."""
        if u.requires_grad:
            return u * self.scale if self.cap is None else self.cap * (u * (self.scale / self.cap)).tanh()
        if self.cap is not None:
            return u.mul_(self.scale / self.cap).tanh_().mul_(self.cap)
        return u if self.scale == 1 else u.mul_(self.scale)

    def slope(self, z: Tensor) -> Tensor | float:
        """f′(u) where f(u) = z: scale · (1 − (z/cap)²)."""
        if self.cap is None:
            return self.scale
        return (z / self.cap).square_().neg_().add_(1).mul_(self.scale)


class LMHead:
    """Logits z = f(h Wᵀ + b) of hidden states h. weight: [V, D]; bias: [V] or None; map: f.

    Of a module it is what weight and bias are when they are read: a sharded one's are others while it is whole.
    """

    def __init__(self, weight: Tensor | nn.Linear, bias: Tensor | None = None, map: LogitMap = LogitMap()) -> None:
        self.of = weight if isinstance(weight, nn.Linear) else SimpleNamespace(weight=weight, bias=bias)
        self.map = map

    @property
    def weight(self) -> Tensor:
        """[V, D], now."""
        found: Tensor = self.of.weight
        return found

    @property
    def bias(self) -> Tensor | None:
        """[V] or None, now."""
        found: Tensor | None = self.of.bias
        return found

    def __call__(self, hidden: Tensor) -> Tensor:
        """All logits [..., V] at once, for few tokens; `ilu_cli.engine.head` goes over many."""
        return self.map(nn.functional.linear(hidden, self.weight, self.bias))

    def kept(self) -> LMHead:
        """The head as it is now: without gradients, and copied where it is trained."""
        weight, bias = self.weight, self.bias
        if is_part(weight) and not weight.requires_grad and (bias is None or not bias.requires_grad):
            return self

        def keep(t: Tensor) -> Tensor:
            return t.detach().clone() if t.requires_grad else t.detach()

        return LMHead(keep(weight), None if bias is None else keep(bias), self.map)

    def whole(self) -> LMHead:
        """The head that was `kept`, with all its rows; of a sharded model all processes must ask together."""
        if isinstance(self.of, nn.Linear) or not is_part(self.weight):
            return self
        return LMHead(gathered(self.weight), None if self.bias is None else gathered(self.bias), self.map)


@torch.no_grad()
def head_of(model: Any, decoder: nn.Module, linear: nn.Linear) -> LMHead:
    """The LM head of a model, after checking that it and f are all there is between last hidden states and logits.

    Needs no weights, so a plan can ask as well: decoder and head are left out, and their outputs given.

    Raises:
        UsageError: if states or logits are changed in another way.
    """
    refuse = f"{type(model).__name__} is not supported: "
    if type(linear).forward is not nn.Linear.forward:
        raise UsageError(f"{refuse}its LM head is more than a matrix and a bias")
    ids = torch.arange(TOKENS, device=linear.weight.device).remainder(linear.out_features)[None]
    h, u = _known(linear)
    entered: list[Tensor] = []

    def project(states: Tensor) -> Tensor:
        entered.append(states)
        return u.clone()

    try:
        with instead(decoder, lambda *_, **__: _Given(h)), instead(linear, project):
            logits = model(input_ids=ids, use_cache=False).logits
    except Exception as error:  # whatever a model may raise that does something else here
        raise UsageError(f"{refuse}its logits do not come from its decoder's states alone ({error})") from error
    if len(entered) != 1 or logits.shape != u.shape:
        raise UsageError(f"{refuse}its logits are not the output of one LM head")
    factor = _rounded((entered[0].to(h) * h).sum() / h.square().sum())
    if not torch.allclose(entered[0].to(h), factor * h) or (factor != 1 and linear.bias is not None):
        raise UsageError(f"{refuse}it changes its hidden states before the LM head")
    f = _map(logits)
    if not torch.allclose(logits.to(u), f(u.clone()), rtol=1e-6, atol=1e-9):
        raise UsageError(f"{refuse}its logits are not the LM head's, scaled or softly capped alike at all words")
    _check_loss(model, decoder, linear, ids, f)
    return LMHead(linear, map=replace(f, scale=factor * f.scale))


def _check_loss(model: Any, decoder: nn.Module, linear: nn.Linear, ids: Tensor, f: LogitMap) -> None:
    """Check that the loss for labels is of each token given those before it; logits are given, each token its own most.

    Raises:
        UsageError: if it is another one: that of a model whose labels are shifted already.
    """
    h, labels = _known(linear)[0], torch.arange(TOKENS, device="cpu").remainder(linear.out_features)[None]
    u = torch.zeros(1, TOKENS, linear.out_features, device="cpu").scatter_(-1, labels[..., None], 4.0)
    extra = {"output_router_logits": False} if hasattr(model.config, "output_router_logits") else {}
    refuse = f"{type(model).__name__} is not supported: its loss for labels is not that of each next token"
    try:
        with instead(decoder, lambda *_, **__: _Given(h)), instead(linear, lambda _: u.clone()):
            loss = float(model(input_ids=ids, labels=labels, use_cache=False, **extra).loss)
    except Exception as error:  # whatever a model may raise whose labels mean something else
        raise UsageError(f"{refuse} ({error})") from error
    if not abs(loss - float(nn.functional.cross_entropy(f(u.clone())[0, :-1], labels[0, 1:]))) < ROUNDING:
        raise UsageError(f"{refuse}; it may be half of an encoder-decoder")


@torch.no_grad()
def check_states(model: Any, linear: nn.Linear, decode: Callable[[Tensor, Tensor], Tensor]) -> None:
    """Check on a short text that what enters the LM head is what `decode` gives of ids and mask, up to f's scale.

    Raises:
        UsageError: if it is not.
    """
    ids, mask = short_text(linear.weight)
    entered: list[Tensor] = []
    handle = linear.register_forward_pre_hook(lambda _, args: entered.append(args[0]))
    try:
        model(input_ids=ids, attention_mask=mask, use_cache=False)
    finally:
        handle.remove()
    theirs, ours = (t / t.norm() for t in (entered[0], decode(ids, mask)))
    if bool((theirs - ours).abs().max() > ROUNDING * ours.abs().max()):  # not so of NaN, which is for others to find
        raise UsageError(f"{type(model).__name__} is not supported: its decoder alone gives other hidden states")


def short_text(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Ids and mask [1, T] of a text that a model is tried on whose LM head has this weight."""
    ids = torch.arange(TOKENS, device=weight.device).remainder(len(weight))[None]
    return ids, torch.ones_like(ids)


class _Given(BaseModelOutputWithPast):
    """What a decoder returns: its last hidden states, and None for whatever else a model passes on."""

    def __getattr__(self, name: str) -> None:
        if name.startswith("_"):
            raise AttributeError(name)


def _known(linear: nn.Linear) -> tuple[Tensor, Tensor]:
    """States [1, T, D], and logits [1, T, V]: −1000 to 1000, dense around 0, at every position; with TINY and HUGE."""
    d, v = linear.in_features, linear.out_features
    h = torch.arange(TOKENS * d, dtype=torch.float64, device="cpu").remainder(31).sub(15).div(8)  # exact in bf16
    u = 1000 * torch.linspace(-1, 1, TOKENS * v, dtype=torch.float64, device="cpu") ** 3
    u = u.view(v, TOKENS).t()[None].contiguous()
    u[..., 0], u[..., 1] = TINY, HUGE
    return h.view(1, TOKENS, d), u


@contextmanager
def instead(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Run `forward` instead of the module."""
    own = module.__dict__.get("forward")
    module.__dict__["forward"] = forward
    try:
        yield
    finally:
        del module.__dict__["forward"]
        if own is not None:
            module.__dict__["forward"] = own


def _map(z: Tensor) -> LogitMap:
    """The f whose values are z at TINY and HUGE."""
    scale, end = _rounded(z[0, 0, 0].cpu().double() / TINY), _rounded(z[0, 0, 1])
    return LogitMap(scale, end if 0 < abs(end) < abs(scale) * HUGE / 2 else None)


def _rounded(x: Tensor) -> float:
    """To 12 digits, more than float32 holds: 1, not 1 and an ulp."""
    return float(f"{x.item():.12g}")
