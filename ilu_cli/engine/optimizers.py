"""The optimisers of a recipe, PyTorch's but for the one with moments in 8 bits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from ilu_cli.errors import UnavailableError
from ilu_cli.models.parts import Parts
from ilu_cli.models.sharded import is_part
from ilu_cli.recipe.specs import TrainSpec

MOMENTUM = 0.9


class MuonAndAdamW:
    """Muon for the matrices inside the layers, AdamW for all other weights (embeddings, head, norms, biases).

    So its authors use it (Jordan et al. 2024). Each update of Muon is scaled to the RMS that AdamW's usually has
    (arXiv 2502.16982), so that both take the same learning rate. An expert's stacked matrices go by AdamW.
    """

    def __init__(self, parts: Parts, params: Sequence[nn.Parameter], lr: float, weight_decay: float) -> None:
        inside = {id(p) for layer in parts.layers for p in layer.parameters() if p.ndim == 2}
        matrices, others = ([p for p in params if (id(p) in inside) == wanted] for wanted in (True, False))
        self.both: list[torch.optim.Optimizer] = []
        if matrices:
            self.both.append(
                torch.optim.Muon(matrices, lr=lr, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw")
            )
        if others:
            self.both.append(torch.optim.AdamW(others, lr=lr, weight_decay=weight_decay))

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """Those of both; their learning rate may be set."""
        return [group for one in self.both for group in one.param_groups]

    def step(self) -> None:
        """Step all weights that have a gradient."""
        for one in self.both:
            one.step()

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` takes."""
        return {"both": [one.state_dict() for one in self.both]}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Go on from what `state_dict` gave."""
        for one, known in zip(self.both, saved["both"]):
            one.load_state_dict(known)


AnyOptimizer = torch.optim.Optimizer | MuonAndAdamW


def optimizer_of(parts: Parts, params: Sequence[nn.Parameter], spec: TrainSpec, device: torch.device) -> AnyOptimizer:
    """The optimiser that a recipe names, for these trained parameters of these parts.

    The gradients are the caller's to clear: those of `params` themselves.
    """
    check(spec)
    if spec.memory.offload is not None:
        return _away(params, spec)
    given: dict[str, Any] = {"lr": spec.rate, "weight_decay": spec.weight_decay}
    if spec.optimizer == "muon":
        return MuonAndAdamW(parts, params, **given)
    if spec.optimizer == "adafactor":
        return torch.optim.Adafactor(params, **given)
    if spec.memory.optimizer_bits == 8:
        return _eight_bits(params, given)
    given["fused"] = device.type in ("cpu", "cuda")
    if spec.optimizer == "adamw":
        return torch.optim.AdamW(params, **given)
    given["fused"] &= not any(map(is_part, params))  # PyTorch has no sharded kernel for it
    return torch.optim.SGD(params, momentum=MOMENTUM if spec.optimizer == "momentum" else 0.0, **given)


def check(spec: TrainSpec) -> None:
    """Raise UnavailableError if this torch does not have the optimiser."""
    if spec.optimizer == "muon" and not hasattr(torch.optim, "Muon"):
        raise UnavailableError(f"the optimiser muon is not in torch {torch.__version__}", hint="torch 2.9 has it")


def forget_moments(optimizer: AnyOptimizer) -> None:
    """Let the optimiser go on as if it had done no step."""
    for one in optimizer.both if isinstance(optimizer, MuonAndAdamW) else [optimizer]:
        one.state.clear()


def _eight_bits(params: Sequence[nn.Parameter], given: dict[str, Any]) -> torch.optim.Optimizer:
    """bitsandbytes' AdamW, moments quantised in blocks; tensors of less than 4096 weights have theirs in float32."""
    from bitsandbytes.optim import AdamW8bit

    small: Any = AdamW8bit(params, **given)
    found: torch.optim.Optimizer = small
    return found


def _away(params: Sequence[nn.Parameter], spec: TrainSpec) -> torch.optim.Optimizer:
    """AdamW over copies in main memory, which fetch weights and gradients before each step and give back after it."""
    twins = [nn.Parameter(p.detach().to("cpu", copy=True)) for p in params]
    given: dict[str, Any] = {"lr": spec.rate, "weight_decay": spec.weight_decay}
    eight = spec.memory.optimizer_bits == 8
    optimizer = _eight_bits(twins, given) if eight else torch.optim.AdamW(twins, fused=True, **given)
    optimizer.register_step_pre_hook(lambda *_: _fetch(params, twins))
    optimizer.register_step_post_hook(lambda *_: _give(params, twins))
    return optimizer


@torch.no_grad()
def _fetch(params: Sequence[nn.Parameter], twins: Sequence[nn.Parameter]) -> None:
    """Bring weights, which others than the optimiser move too, and gradients to the twins in main memory."""
    for p, twin in zip(params, twins):
        twin.copy_(p)
        twin.grad = None if p.grad is None else p.grad.to("cpu")


@torch.no_grad()
def _give(params: Sequence[nn.Parameter], twins: Sequence[nn.Parameter]) -> None:
    for p, twin in zip(params, twins):
        p.copy_(twin)
        twin.grad = None
