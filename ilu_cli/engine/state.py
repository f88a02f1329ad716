"""Resumable state: trained weights and optimiser moments. Random streams are functions of the step and need none."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch

from ilu_cli.engine.loop import Trainer
from ilu_cli.errors import UnavailableError


def save_state(trainer: Trainer, folder: Path) -> None:
    """Write `step-N.pt` whole, then drop older states. Call on the main process."""
    folder.mkdir(exist_ok=True)
    target = folder / f"step-{trainer.step:07d}.pt"
    part = target.with_suffix(".part")
    torch.save(
        {
            "step": trainer.step,
            "params": {name: p.detach() for name, p in trainer.params.items()},
            "optimizer": trainer.optimizer.state_dict(),
            "defences": [d.state() for d in trainer.defences],
            "weights": [t.weight for t in trainer.terms],
        },
        part,
    )
    part.replace(target)
    for old in folder.glob("step-*.pt"):
        if old != target:
            old.unlink()


def load_state(trainer: Trainer, folder: Path) -> int:
    """Bring the trainer to the newest saved state; return its step, 0 if there is none.

    Raises:
        UnavailableError: if the state does not fit this recipe.
    """
    states = sorted(folder.glob("step-*.pt"))
    if not states:
        return 0
    saved: dict[str, Any] = torch.load(states[-1], map_location="cpu", weights_only=True)
    if saved["params"].keys() != trainer.params.keys():
        raise UnavailableError(f"{states[-1]} does not belong to this recipe: it has other trained weights")
    with torch.no_grad():
        for name, p in trainer.params.items():
            p.copy_(saved["params"][name])
    trainer.optimizer.load_state_dict(saved["optimizer"])
    for defence, state in zip(trainer.defences, saved["defences"]):
        defence.load(state)
    for term, weight in zip(trainer.terms, saved.get("weights", ())):  # states of before had none that moved
        term.weight = weight
    trainer.step = saved["step"]
    return trainer.step


def drop_state(folder: Path) -> None:
    """Remove the states of a finished run."""
    shutil.rmtree(folder, ignore_errors=True)
