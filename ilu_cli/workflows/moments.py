"""How many bytes are held at a moment, by kind, and what that depends on beside the model and the recipe."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch

from ilu_cli.engine.accel import backend
from ilu_cli.engine.tiles import memory_of
from ilu_cli.models.by_weight import stored_weights
from ilu_cli.models.subject import Subject
from ilu_cli.runs.files import weight_files

FLOAT, HALF = 4, 2  # bytes


@dataclass(frozen=True)
class Moment:
    """Bytes on one device at one moment, by kind; `when` says which.

    copies: weights in another type, autocast's for the backward pass or a checkpoint's; files: pages of weights' files
    that are mapped, which the system takes back where memory is short; defences: what those and a budget hold beside
    the gradient.
    """

    when: str
    weights: int = 0
    copies: int = 0
    gradients: int = 0
    optimizer: int = 0
    activations: int = 0
    logits: int = 0
    caches: int = 0
    defences: int = 0
    files: int = 0
    process: int = 0

    def kinds(self) -> dict[str, int]:
        """Bytes by kind."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name != "when"}

    @property
    def bytes(self) -> int:
        """All of them."""
        return sum(self.kinds().values())


@dataclass(frozen=True)
class MemoryEstimate:
    """The moments of a run that may be its dearest; `main`: those of the main memory of a node of accelerators."""

    moments: tuple[Moment, ...]
    main: tuple[Moment, ...] = ()

    def __add__(self, later: MemoryEstimate) -> MemoryEstimate:
        """With those of what comes after it."""
        return MemoryEstimate((*self.moments, *later.moments), (*self.main, *later.main))

    @property
    def highest(self) -> Moment:
        """The dearest one."""
        return max(self.moments, key=lambda m: m.bytes)

    @property
    def peak(self) -> int:
        """Bytes at the highest point."""
        return self.highest.bytes

    @property
    def main_peak(self) -> int:
        """Bytes of a node's main memory at its highest point; 0 on CPUs, where they are the process's."""
        return max((m.bytes for m in self.main), default=0)


@dataclass(frozen=True)
class Ground:
    """Where a training runs: an accelerator's `memory`, or None: a CPU, whose process holds the files' pages too.

    shards: devices over which each weight, gradient and moment is divided (FSDP2); away: their parts lie in main memory
    between uses.
    """

    memory: int | None = None
    shards: int = 1
    away: bool = False

    @classmethod
    def here(cls) -> Ground:
        """The device of this process."""
        b = backend()
        memory = memory_of(b.device)
        return cls(memory, b.world, b.offload and memory is not None) if b.mesh else cls(memory)


@dataclass(frozen=True)
class Beside:
    """What defences and a budget hold beside weights, moments and gradient, as so many float32 on all devices together.

    first: while gradients are taken before the first step, when there are no moments yet; each: at every step; budget:
    while it is measured what a step has spent. heads: copies of the LM head as it was at the start, if that is trained.
    """

    first: int = 0
    each: int = 0
    budget: int = 0
    heads: int = 0


@dataclass(frozen=True)
class OnDisk:
    """Bytes of the largest file that the weights are read from, and of each weight of the checkpoint to be made.

    by_weight: the first process of a sharded launch reads one weight at a time, and not the whole model.
    """

    largest: int = 0
    saved: int = FLOAT
    by_weight: bool = True

    @classmethod
    def at(cls, folder: Path, dtype: torch.dtype) -> OnDisk:
        """Of the weights in a folder, of which a checkpoint is to be made in this type."""
        return cls(max((path.stat().st_size for path in weight_files(folder)), default=0), dtype.itemsize)

    @classmethod
    def of(cls, subject: Subject, model: Any, dtype: torch.dtype) -> OnDisk:
        """Of a subject's weights, and of a checkpoint in this type; `model`: it, without an adapter to be trained."""
        apart = backend().mesh is None or stored_weights(subject, model) is not None
        return replace(cls.at(subject.root, dtype), by_weight=apart)


UNREAD, NOTHING = OnDisk(), Beside()
