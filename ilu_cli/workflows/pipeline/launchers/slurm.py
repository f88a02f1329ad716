"""Nodes as jobs of Slurm, by submitit; with `cluster=local` as processes that submitit starts here."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import tempfile
from pathlib import Path
from typing import Any, cast

from ilu_cli.errors import UnavailableError, UsageError
from ilu_cli.workflows.pipeline.launchers import Launch
from ilu_cli.workflows.pipeline.launchers.away import Errand
from ilu_cli.workflows.pipeline.worker import Answer

MINUTES = 240  # of a job, unless `timeout_min` says otherwise; one whose time is up is queued again


class Slurm:
    """See `Cluster`. Options are `cluster`, and those of submitit's AutoExecutor (`timeout_min`, `slurm_partition`)."""

    signals = True

    def __init__(self, launch: Launch, folder: Path) -> None:
        """Raises:
        UsageError: if submitit does not take an option.
        UnavailableError: if there is no Slurm here.
        """
        self.folder, self.gpus, self.options = folder, launch.gpus, dict(launch.options)
        self.cluster = str(self.options.pop("cluster", "slurm"))
        if self.cluster not in ("slurm", "local"):
            raise UsageError(f"--launcher-options cluster={self.cluster}: there are slurm and local")
        if self.cluster == "slurm" and shutil.which("srun") is None:
            raise UnavailableError(
                "there is no Slurm here: srun is not found",
                hint="start it where jobs are submitted; --launcher-options cluster=local tries the way without Slurm",
            )
        with tempfile.TemporaryDirectory() as checked:
            self._executor(Path(checked))
        self.executor: Any = None
        self.cancelled = set[str]()

    def _executor(self, folder: Path) -> Any:
        import submitit

        executor = submitit.AutoExecutor(folder, cluster=self.cluster)
        given = {"name": "ilu", "timeout_min": MINUTES, "gpus_per_node": self.gpus or None} | self.options
        try:
            executor.update_parameters(**given)
        except (NameError, ValueError, TypeError, AssertionError) as error:
            raise UsageError(
                f"--launcher-options: {error}", hint="submitit's names: timeout_min=60, slurm_partition=gpu, mem_gb=32"
            ) from error
        return executor

    def submit(self, errand: Errand) -> tuple[Any, str]:
        """See `Cluster`."""
        if self.executor is None:
            self.executor = self._executor(self.folder / "submitit")
        job = self.executor.submit(errand)
        return job, f"job {job.job_id}"

    def ended(self, job: Any) -> bool:
        """See `Cluster`."""
        return bool(job.done())

    def result(self, job: Any) -> Answer:
        """See `Cluster`."""
        return cast(Answer, job.result())

    def cancel(self, job: Any) -> None:
        """See `Cluster`. Asked a second time, a process of this machine is killed; Slurm does that by itself."""
        if self.cluster == "local" and job.job_id not in self.cancelled:
            self.cancelled.add(job.job_id)
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(job.job_id), signal.SIGTERM)  # submitit's own way leaves a second to save the state
        else:
            job.cancel(check=False)

    def close(self) -> None:
        """Jobs end by themselves."""
