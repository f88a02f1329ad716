"""Where the nodes of a graph are done: on this machine, as jobs of Slurm, or as tasks of Ray.

A launcher does no scheduling beyond this machine: what is ready is handed to Slurm or Ray, which place it. Nodes
exchange nothing but run folders, so that all machines must see the same ILU_RUNS.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from ilu_cli.errors import UnavailableError, UsageError

if TYPE_CHECKING:
    from ilu_cli.workflows.pipeline.graph import Graph, Node
    from ilu_cli.workflows.pipeline.worker import Answer, Job

PACKAGES = {"slurm": "submitit", "ray": "ray"}


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


def launcher(launch: Launch, graph: Graph) -> Launcher:
    """The launcher that is asked for; nothing is started or written yet.

    Raises:
        UsageError: if its options are wrong.
        UnavailableError: if its package, its cluster or its GPUs are not here.
    """
    if launch.gpus > 1:
        raise UsageError(
            f"--gpus-per-node {launch.gpus}: a node is one process, which uses one GPU",
            hint="`accelerate launch -m ilu_cli unlearn …` uses several; a pipeline takes the finished run",
        )
    if launch.name == "local":
        from ilu_cli.workflows.pipeline.launchers.local import Local

        if launch.options:
            raise UsageError("--launcher-options are those of slurm or ray", hint="name one with --launcher")
        return Local(launch, graph.store.root.absolute())
    package = PACKAGES[launch.name]
    if importlib.util.find_spec(package) is None:
        raise UnavailableError(
            f"--launcher {launch.name} needs the package {package}", hint=f"pip install 'ilu[{launch.name}]'"
        )
    from ilu_cli.workflows.pipeline.launchers import ray, slurm
    from ilu_cli.workflows.pipeline.launchers.away import Away

    cluster = slurm.Slurm if launch.name == "slurm" else ray.Ray
    return Away(launch, graph, cluster(launch, graph.folder.absolute() / "jobs"))
