"""The optimisers of a recipe, all of them PyTorch's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from ilu_cli.errors import UnavailableError
from ilu_cli.models.parts import Parts
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

    def zero_grad(self, *, set_to_none: bool) -> None:
        """Drop all gradients."""
        for one in self.both:
            one.zero_grad(set_to_none=set_to_none)

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` takes."""
        return {"both": [one.state_dict() for one in self.both]}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Go on from what `state_dict` gave."""
        for one, known in zip(self.both, saved["both"]):
            one.load_state_dict(known)


AnyOptimizer = torch.optim.Optimizer | MuonAndAdamW


def optimizer_of(parts: Parts, params: Sequence[nn.Parameter], spec: TrainSpec, device: torch.device) -> AnyOptimizer:
    """The optimiser that a recipe names, for these trained parameters of these parts."""
    check(spec)
    given: dict[str, Any] = {"lr": spec.lr, "weight_decay": spec.weight_decay}
    if spec.optimizer == "muon":
        return MuonAndAdamW(parts, params, **given)
    if spec.optimizer == "adafactor":
        return torch.optim.Adafactor(params, **given)
    given["fused"] = device.type in ("cpu", "cuda")
    if spec.optimizer == "adamw":
        return torch.optim.AdamW(params, **given)
    return torch.optim.SGD(params, momentum=MOMENTUM if spec.optimizer == "momentum" else 0.0, **given)


def check(spec: TrainSpec) -> None:
    """Raise UnavailableError if this torch does not have the optimiser."""
    if spec.optimizer == "muon" and not hasattr(torch.optim, "Muon"):
        raise UnavailableError(f"the optimiser muon is not in torch {torch.__version__}", hint="torch 2.9 has it")


def forget_moments(optimizer: AnyOptimizer) -> None:
    """Let the optimiser go on as if it had done no step."""
    for one in optimizer.both if isinstance(optimizer, MuonAndAdamW) else [optimizer]:
        one.state.clear()
