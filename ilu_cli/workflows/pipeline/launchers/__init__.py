"""Where the nodes of a graph are done: on this machine, as jobs of Slurm, or as tasks of Ray.

A launcher does no scheduling beyond this machine: what is ready is handed to Slurm or Ray, which place it. Nodes
exchange nothing but run folders, so that all machines must see the same ILU_RUNS.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    from ilu_cli.workflows.pipeline.graph import Node
    from ilu_cli.workflows.pipeline.worker import Answer, Job


@dataclass(frozen=True)
class Launch:
    """How a graph is to be launched, as the user says it.

    `jobs` is how many nodes are at work, or in a queue, at a time; None: one here, or one for each GPU; elsewhere all
    that are ready. `options` are those of submitit or Ray, by their names there.
    """

    name: Literal["local", "slurm", "ray"] = "local"
    jobs: int | None = None
    gpus: int = 0
    options: dict[str, Any] = field(default_factory=dict)
    plugins: list[Path] = field(default_factory=list)


class Launcher(Protocol):
    """Does nodes somewhere and says how they went."""

    room: int
    """How many nodes it takes at a time."""
    retries: int
    """How often a node is tried again whose process was lost."""

    def begin(self, node: Node, task: Job) -> None:
        """Have a node done; it has room."""

    def listen(self) -> list[tuple[Node, Answer]]:
        """Wait until something is said of nodes at work: notes, and how they ended."""

    def stop(self) -> None:
        """Pass Ctrl-C on, and wait a while for what is training to save its state."""

    def close(self) -> None:
        """End all that is left of it."""
