"""Run a graph on a few worker processes: ready nodes in order, failures apart, the state on disk at every moment."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import cast

from filelock import Timeout

from ilu_cli.errors import RunFailed
from ilu_cli.workflows.pipeline.graph import Graph, Node
from ilu_cli.workflows.pipeline.worker import Answer, Job, serve

Changed = Callable[[Node, str | None], None]
CONTEXT = multiprocessing.get_context("spawn")  # torch does not survive a fork
PATIENCE = 5.0  # seconds that an idle process has for its end


class Stopped(RunFailed):
    """The user stopped the graph; it can be continued."""

    exit_code = 130


class Worker:
    """A process, the pipe to it, and the node that it does."""

    def __init__(self, root: Path, plugins: list[Path], threads: int) -> None:
        self.conn, theirs = CONTEXT.Pipe()
        self.process = CONTEXT.Process(target=serve, args=(theirs, root, plugins, threads), daemon=True)
        self.process.start()
        theirs.close()
        self.node: Node | None = None
        self.began = 0.0

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
            more = "; out of memory?" if code == -signal.SIGKILL else ""
            return {
                "error": f"its process {how}{more}",
                "seconds": round(time.monotonic() - self.began, 2),
                "died": True,
            }


def run(graph: Graph, jobs: int, plugins: list[Path], changed: Changed) -> None:
    """Do what can be done, `jobs` nodes at a time. `changed` hears of every node that begins, says something, or ends.

    Raises:
        Stopped: after Ctrl-C, when every worker has stopped.
        RunFailed: if another process runs this graph.
    """
    with _only_one(graph):
        graph.refresh()
        graph.retry()
        graph.save()
        workers: list[Worker] = []
        try:
            _assign(graph, workers, jobs, plugins, changed)
            while busy := {w.conn: w for w in workers if w.node}:
                for conn in wait(list(busy)):
                    _listen(graph, workers, busy[cast(Connection, conn)], changed)
                _assign(graph, workers, jobs, plugins, changed)
        except KeyboardInterrupt:
            _stop(workers)
            for worker in workers:
                if worker.node and worker.node.status == "running":
                    worker.node.status = "waiting"
            raise Stopped("stopped; nothing that was finished is lost", hint="the same command goes on") from None
        finally:
            graph.save()
            for worker in workers:
                worker.conn.close()
            for worker in workers:
                worker.end()


def _assign(graph: Graph, workers: list[Worker], jobs: int, plugins: list[Path], changed: Changed) -> None:
    """Give every node that is ready to a free worker, or to a new one while there are fewer than `jobs`."""
    workers[:] = [w for w in workers if w.node or w.process.is_alive()]
    for node in graph.ready():
        graph.settle(node)
        if node.status == "done":  # done by an earlier process, on weights that are known only now
            changed(node, None)
            return _assign(graph, workers, jobs, plugins, changed)
        if node.hash in {w.node.hash for w in workers if w.node}:  # the same work under another name: wait for it
            continue
        worker = next((w for w in workers if not w.node), None)
        if worker is None:
            if len(workers) >= jobs:
                return
            worker = Worker(graph.store.root.absolute(), plugins, _threads(jobs))
            workers.append(worker)
        node.status = "running"
        worker.give(node, _task(graph, node))
        changed(node, None)
        graph.save()


def _threads(jobs: int) -> int:
    """Threads of each of so many workers."""
    return int(os.environ.get("OMP_NUM_THREADS", 0)) or max(1, (os.cpu_count() or 1) // jobs)


def _task(graph: Graph, node: Node) -> Job:
    """What a worker is told of a node that is ready."""
    parent = graph.parent(node)
    assert parent is not None and node.hash is not None  # it is ready
    return Job(
        node.command,
        node.recipe,
        node.hash,
        parent["subject"],
        {"weights": parent["weights"], "digest": parent.get("digest")},
        graph.target(node),
        graph.result_file(node).absolute(),
        graph.unlearned.get(node.tags.get("seed", 0), []),
    )


def _listen(graph: Graph, workers: list[Worker], worker: Worker, changed: Changed) -> None:
    """Hear what a worker says: a note on the way, or how its node ended."""
    answer = worker.answer()
    if "note" in answer:
        changed(cast(Node, worker.node), answer["note"])
        return
    _finish(graph, worker, answer, changed)
    if "died" in answer:
        workers.remove(worker)


def _finish(graph: Graph, worker: Worker, answer: Answer, changed: Changed) -> None:
    """Take over what a worker says of its node.

    Raises:
        KeyboardInterrupt: if it was interrupted.
    """
    node = cast(Node, worker.node)
    worker.node = None
    node.status, node.error = "waiting", None
    if "error" in answer:
        node.status, node.error = "failed", answer["error"]
    elif "interrupted" in answer:
        raise KeyboardInterrupt
    elif not graph.settle(node, answer["run"]):
        node.status, node.error = (
            "failed",
            f"{answer['run']} is not what was planned: another recipe, parent or data",
        )
    node.seconds = answer["seconds"]
    graph.block()
    graph.save()
    changed(node, None)


def _stop(workers: list[Worker]) -> None:
    """Pass Ctrl-C on, and wait until training has saved its state; a second Ctrl-C waits no longer."""
    busy = [w for w in workers if w.node]
    for worker in busy:
        if worker.process.pid and worker.process.is_alive():
            os.kill(worker.process.pid, signal.SIGINT)
    try:
        for worker in busy:
            while "note" in worker.answer():
                pass
    except KeyboardInterrupt:
        return


@contextmanager
def _only_one(graph: Graph) -> Iterator[None]:
    with ExitStack() as held:
        try:
            held.enter_context(graph.lock())
        except Timeout:
            raise RunFailed(
                f"{graph.name} is being run by another process", hint="--state shows how far it is"
            ) from None
        yield
