"""Resumable state: trained weights and optimiser moments. Random streams are functions of the step and need none.

Each state has its size and hash beside it, and the one before is kept: a damaged state costs `save_every` steps.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ilu_cli.engine.loop import Trainer
from ilu_cli.errors import UnavailableError
from ilu_cli.models.sharded import gathered, is_part, like, mine
from ilu_cli.runs.files import read_json, write_json
from ilu_cli.runs.ledger import entry, seal, unseal

KEPT = 2


def save_state(trainer: Trainer, folder: Path) -> None:
    """Write a state whole and to the disk, then its hash, then name it `step-N.pt`; drop all but two.

    Call on all processes; the main one writes. A state is whole, however many processes there are, and any other number
    of them goes on from it. A kill at any moment leaves no state that has a name and no hash.
    """
    saved = _contents(trainer)
    if not trainer.backend.main:
        return
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"step-{trainer.step:07d}.pt"
    part = target.with_suffix(".part")
    with part.open("wb") as f:
        torch.save(saved, f)
        f.flush()
        os.fsync(f.fileno())
    write_json(_beside(target), seal({"state": entry(part)}))
    part.replace(target)
    for old in sorted(folder.glob("step-*.pt"))[:-KEPT]:
        old.unlink()
        _beside(old).unlink(missing_ok=True)


def _contents(trainer: Trainer) -> dict[str, Any]:
    """What is saved; of sharded tensors all rows, gathered one tensor at a time and kept by the main process."""
    found: dict[str, Any] = _gathered(
        {
            "step": trainer.step,
            "params": {name: p.detach() for name, p in trainer.params.items()},
            "optimizer": trainer.optimizer.state_dict(),
            "defences": [d.state() for d in trainer.defences],
            "weights": [t.weight for t in trainer.terms],
            "lengths": trainer.lengths.means,
            "budget": trainer.budget.state() if trainer.budget else None,
        },
        trainer.backend.main,
    )
    return found


def _gathered(value: Any, keep: bool) -> Any:
    if is_part(value):
        rows = gathered(value)
        return rows.cpu() if keep else None
    if isinstance(value, dict):
        return {k: _gathered(v, keep) for k, v in value.items()}
    return [_gathered(v, keep) for v in value] if isinstance(value, list) else value


def _beside(state: Path) -> Path:
    return state.with_suffix(".json")


def _damage(state: Path) -> str | None:
    """What is wrong with a state; one of before there were hashes is taken as it is."""
    beside = _beside(state)
    if not beside.exists() and (state.parent / "made_from.json").exists():
        return "its hash is gone"
    try:
        known = unseal(read_json(beside), beside).get("state") if beside.exists() else None
    except UnavailableError as error:
        return str(error)
    sound = not beside.exists() or known == entry(state)
    return None if sound else "its bytes are not those that were written"


def load_state(trainer: Trainer, folder: Path, note: Callable[[str], None] = lambda _: None) -> int:
    """Bring the trainer to the newest sound state; return its step, 0 if there is none.

    Raises:
        UnavailableError: if every state is damaged, or it does not fit this recipe.
    """
    states = sorted(folder.glob("step-*.pt"), reverse=True)
    if not states:
        return 0
    for state in states:
        if (wrong := _damage(state)) is None:
            return _take(trainer, state)
        note(f"{state} is damaged ({wrong}); the state before it is taken")
    raise UnavailableError(
        f"every state of this run is damaged: {', '.join(map(str, states))}",
        hint="restore a file; or remove them, and --resume begins at the first step",
    )


def _take(trainer: Trainer, state: Path) -> int:
    sharded = trainer.backend.mesh is not None
    saved: dict[str, Any] = torch.load(state, map_location="cpu", weights_only=True, mmap=sharded)
    if saved["params"].keys() != trainer.params.keys():
        raise UnavailableError(f"{state} does not belong to this recipe: it has other trained weights")
    with torch.no_grad():
        for name, p in trainer.params.items():
            mine(p).copy_(mine(like(saved["params"][name], p)))
    params = list(trainer.params.values())
    for i, moments in saved["optimizer"].get("state", {}).items():
        saved["optimizer"]["state"][i] = {k: _placed(v, params[i]) for k, v in moments.items()}
    trainer.optimizer.load_state_dict(saved["optimizer"])
    for defence, kept in zip(trainer.defences, saved["defences"]):
        defence.load({k: _vector(v, params) for k, v in kept.items()})
    for term, weight in zip(trainer.terms, saved.get("weights", ())):  # states of before had none that moved
        term.weight = weight
    trainer.lengths.means = saved.get("lengths", {})
    if trainer.budget:
        kept = saved.get("budget")
        trainer.budget.load(kept and {k: _vector(v, params) for k, v in kept.items()})
    trainer.step = saved["step"]
    return trainer.step


def _placed(value: Any, p: Tensor) -> Any:
    """What has the shape of a parameter, sharded as that is."""
    return like(value, p) if isinstance(value, Tensor) and value.shape == p.shape else value


def _vector(value: Any, params: list[nn.Parameter]) -> Any:
    """The same of a list with an entry for each parameter."""
    if isinstance(value, list) and len(value) == len(params):
        return [_placed(v, p) for v, p in zip(value, params)]
    return value


def drop_state(folder: Path) -> None:
    """Remove the states of a finished run."""
    shutil.rmtree(folder, ignore_errors=True)
