"""Nodes in a few worker processes of this machine, each with GPUs of its own if there are any to divide."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import cast

from ilu_cli.errors import UnavailableError, UsageError
from ilu_cli.workflows.pipeline.graph import Node
from ilu_cli.workflows.pipeline.launchers import Launch
from ilu_cli.workflows.pipeline.worker import Answer, Job, serve

CONTEXT = multiprocessing.get_context("spawn")  # torch does not survive a fork
PATIENCE = 5.0  # seconds that an idle process has for its end


class Worker:
    """A process, the pipe to it, the GPUs that it sees (None: whatever is here), and the node that it does."""

    def __init__(self, root: Path, plugins: list[Path], threads: int, gpu: str | None) -> None:
        self.conn, theirs = CONTEXT.Pipe()
        self.process = CONTEXT.Process(target=serve, args=(theirs, root, plugins, threads, gpu), daemon=True)
        self.process.start()
        theirs.close()
        self.gpu, self.began = gpu, 0.0
        self.node: Node | None = None

    def give(self, node: Node, task: Job) -> None:
        """Start a node's job in this process."""
        self.node, self.began = node, time.monotonic()
        self.conn.send(task)

    def end(self) -> None:
        """End the process: one that waits for work, whose pipe is closed, by itself, and any other at once."""
        if self.node is None:
            self.process.join(PATIENCE)
        self.process.terminate()
        self.process.join()

    def answer(self) -> Answer:
        """What it says of its node; of a process that has died, how."""
        try:
            return cast(Answer, self.conn.recv())
        except (EOFError, OSError):
            self.process.join()
            code = self.process.exitcode or 0
            how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
            more = "; out of memory?" if code == -9 else ""
            return {
                "error": f"its process {how}{more}",
                "seconds": round(time.monotonic() - self.began, 2),
                "died": True,
            }


class Local:
    """At most `room` worker processes, which import torch once and do many nodes; one that dies is replaced.

    Its node is not tried again here: what was killed most likely lacked memory, and would again.
    """

    retries = 0

    def __init__(self, launch: Launch, root: Path) -> None:
        """Raises:
        UsageError: if more nodes are to be done at a time than there are GPUs.
        UnavailableError: if there are none.
        """
        self.root, self.plugins, self.workers = root, launch.plugins, list[Worker]()
        self.gpus = gpus_here() if launch.gpus else None
        if self.gpus == []:
            raise UnavailableError("--gpus-per-node: there is no GPU here", hint="leave it out, or name a --launcher")
        self.room = launch.jobs or len(self.gpus or [""])
        if self.gpus and self.room > len(self.gpus):
            raise UsageError(f"--jobs {self.room} with a GPU each, but there are {len(self.gpus)} here")

    def begin(self, node: Node, task: Job) -> None:
        """See `Launcher`."""
        self.workers = [w for w in self.workers if w.node or w.process.is_alive()]
        worker = next((w for w in self.workers if not w.node), None)
        if worker is None:
            taken = {w.gpu for w in self.workers}
            gpu = next(g for g in self.gpus if g not in taken) if self.gpus else None
            worker = Worker(self.root, self.plugins, threads(self.room), gpu)
            self.workers.append(worker)
        worker.give(node, task)

    def listen(self) -> list[tuple[Node, Answer]]:
        """See `Launcher`."""
        busy, said = {w.conn: w for w in self.workers if w.node}, []
        for conn in wait(list(busy)):
            worker = busy[cast(Connection, conn)]
            node, answer = cast(Node, worker.node), worker.answer()
            said.append((node, answer))
            if "note" not in answer:
                worker.node = None
            if "died" in answer:
                self.workers.remove(worker)
        return said

    def stop(self) -> None:
        """Pass Ctrl-C on, and wait until training has saved its state; a second Ctrl-C waits no longer."""
        busy = [w for w in self.workers if w.node]
        for worker in busy:
            if worker.process.pid and worker.process.is_alive():
                os.kill(worker.process.pid, signal.SIGINT)
        try:
            for worker in busy:
                while "note" in worker.answer():
                    pass
        except KeyboardInterrupt:
            return

    def close(self) -> None:
        """See `Launcher`."""
        for worker in self.workers:
            worker.conn.close()
        for worker in self.workers:
            worker.end()


def threads(jobs: int) -> int:
    """Threads of each of so many workers."""
    return int(os.environ.get("OMP_NUM_THREADS", 0)) or max(1, (os.cpu_count() or 1) // jobs)


def gpus_here() -> list[str]:
    """The GPUs that this process may use, by the names that CUDA_VISIBLE_DEVICES takes."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [name.strip() for name in named.split(",") if name.strip()]
    import torch

    return [str(i) for i in range(torch.cuda.device_count())]
