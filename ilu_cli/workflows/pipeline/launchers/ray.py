"""Nodes as tasks of Ray: of a cluster that runs, or of one that is started here for this command."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, cast

from ilu_cli.errors import UnavailableError, UsageError, near
from ilu_cli.workflows.pipeline.launchers import Launch
from ilu_cli.workflows.pipeline.launchers.away import Errand
from ilu_cli.workflows.pipeline.worker import Answer

OPTIONS = ("address", "num_cpus", "memory", "resources", "accelerator_type")


class Ray:
    """See `Cluster`. Options are `address`, and what a task asks for, by Ray's names: `num_cpus` (1), `memory`."""

    signals = False  # Ray interrupts the main thread itself

    def __init__(self, launch: Launch, folder: Path) -> None:
        """Raises:
        UsageError: if an option is none of Ray's, or has a wrong value.
        """
        import ray

        self.options = dict(launch.options)
        if wrong := next((name for name in self.options if name not in OPTIONS), None):
            raise UsageError(
                f"--launcher-options {wrong}: no such option.{near(wrong, OPTIONS)}",
                hint=f"there are {', '.join(OPTIONS)}",
            )
        self.address = self.options.pop("address", None) or os.environ.get("RAY_ADDRESS")
        asked = {"num_cpus": 1, "num_gpus": launch.gpus} | self.options
        try:  # a lost task is ours to try again: its successor must know whom it follows
            self.task = ray.remote(_do).options(max_retries=0, **asked)
        except (ValueError, TypeError) as error:
            raise UsageError(f"--launcher-options: {error}") from error
        self.ours = False

    def submit(self, errand: Errand) -> tuple[Any, str]:
        """See `Cluster`.

        Raises:
            UnavailableError: if there is no Ray at the address.
        """
        import ray

        if not ray.is_initialized():
            here = {} if self.address else {"include_dashboard": False}
            try:
                ray.init(address=self.address, log_to_driver=False, logging_level="ERROR", **here)
            except (ConnectionError, RuntimeError, ValueError, OSError) as error:
                at = f"at {self.address}" if self.address else "that could be started here"
                raise UnavailableError(
                    f"there is no Ray {at}: {error}", hint="`ray start --head` starts one; `ray status` shows it"
                ) from error
            self.ours = True
        job = self.task.remote(errand)
        return job, f"task {job.task_id().hex()}"

    def ended(self, job: Any) -> bool:
        """See `Cluster`."""
        import ray

        return bool(ray.wait([job], timeout=0)[0])

    def result(self, job: Any) -> Answer:
        """See `Cluster`."""
        import ray

        return cast(Answer, ray.get(job))

    def cancel(self, job: Any) -> None:
        """See `Cluster`."""
        import ray

        ray.cancel(job, force=False)

    def close(self) -> None:
        """Leave Ray; one that was started here ends."""
        import ray

        if self.ours:
            ray.shutdown()


def _do(errand: Errand) -> Answer:
    return errand()
