"""The launcher of a graph, as the user asked for it."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING

from ilu_cli.errors import UnavailableError, UsageError

if TYPE_CHECKING:
    from ilu_cli.workflows.pipeline.graph import Graph
    from ilu_cli.workflows.pipeline.launchers import Launch, Launcher

PACKAGES = {"slurm": "submitit", "ray": "ray"}


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
