"""What launchers of other machines share: an errand for each node, its notes in a file, and whether it was lost."""

from __future__ import annotations

import os
import secrets
import sys
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from ilu_cli.workflows.pipeline.graph import Graph, Node
from ilu_cli.workflows.pipeline.launchers import Launch
from ilu_cli.workflows.pipeline.worker import Answer, Job, outcome

RETRIES = 2  # of a node whose process was lost: three tries in all
PAUSE = 0.5  # seconds between two looks at what is at work
ARRIVAL = 60.0  # seconds that a file written elsewhere may need until it is seen here
SAVING = 30.0  # seconds that what is cancelled has to save its state
PASSED = ("HF_HOME", "HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "OMP_NUM_THREADS")  # and ILU_*; no tokens

_loaded: set[Path] = set()


@dataclass(frozen=True)
class Errand:
    """A node's job with all that its process must be told; called there. It comes pickled.

    `title` is how the process calls itself to whoever asks who holds a run (`ilu_cli.runs.lock`). It is one of a
    kind, so that a second process with the same errand, which Slurm may start after a lost one, may take over.
    """

    task: Job
    root: Path
    plugins: list[Path]
    title: str
    log: Path
    place: Path
    env: dict[str, str]
    signals: bool

    def __call__(self) -> Answer:
        """Do it. Whatever goes wrong is part of the answer."""
        from ilu_cli import stopping
        from ilu_cli.models.heap import collect_rarely
        from ilu_cli.registry import load_plugin
        from ilu_cli.runs.store import Store

        if "torch" not in sys.modules:  # of Ray's processes none is new but once
            collect_rarely()
        os.environ.update(self.env)
        os.chdir(self.place)
        sys.argv = ["ilu", *self.title.split(" ")]
        if self.signals:
            stopping.install()
        for path in self.plugins:
            if path not in _loaded:  # Ray does one errand after another in a process
                load_plugin(path)
                _loaded.add(path)

        def say(answer: Answer) -> None:
            with self.log.open("a", encoding="utf-8") as file:
                file.write(answer["note"] + "\n")

        return outcome(self.task, Store(self.root), say)

    def checkpoint(self) -> Any:
        """What submitit queues again when a job's time is up or it is preempted: the same, which goes on."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


class Cluster(Protocol):
    """A few words of Slurm's or Ray's."""

    signals: bool
    """Whether its processes are stopped by signals."""

    def submit(self, errand: Errand) -> tuple[Any, str]:
        """Hand an errand over; what stands for it from now on, and its name for people."""

    def ended(self, job: Any) -> bool:
        """Whether it has ended, however."""

    def result(self, job: Any) -> Answer:
        """What it answered. Raises an exception of the cluster's if its process was lost."""

    def cancel(self, job: Any) -> None:
        """Ask it to stop."""

    def close(self) -> None:
        """Leave the cluster."""


@dataclass
class Sent:
    """A node at work elsewhere."""

    node: Node
    errand: Errand
    job: Any
    name: str
    read: int = 0  # bytes of its notes that were passed on
    began: float = field(default_factory=time.monotonic)


class Away:
    """Nodes as jobs of a cluster. What is lost there is begun again; by whom, the cluster decides."""

    retries = RETRIES

    def __init__(self, launch: Launch, graph: Graph, cluster: Cluster) -> None:
        self.cluster, self.graph, self.plugins = cluster, graph, [p.absolute() for p in launch.plugins]
        self.room = launch.jobs or max(1, len(graph.nodes))
        self.folder = graph.folder.absolute() / "jobs"
        self.sent: dict[str, Sent] = {}
        self.lost: dict[str, list[str]] = {}  # how the lost processes of a node called themselves
        self.news: list[tuple[Node, Answer]] = []

    def begin(self, node: Node, task: Job) -> None:
        """See `Launcher`."""
        token = secrets.token_hex(4)
        title = f"pipeline {token} {self.graph.name} {node.key}"
        self.folder.mkdir(parents=True, exist_ok=True)
        env = {k: v for k, v in os.environ.items() if k in PASSED or k.startswith("ILU_")}
        task = replace(task, lost=[*self.lost.get(node.key, []), f"ilu {title}"])
        errand = Errand(
            task, self.graph.store.root.absolute(), self.plugins,
            title, self.folder / f"{token}.log", Path.cwd(), env,
            self.cluster.signals,
        )  # fmt: skip
        job, name = self.cluster.submit(errand)
        self.sent[node.key] = Sent(node, errand, job, name)
        self.news.append((node, {"note": f"{name}; notes in {errand.log}"}))

    def listen(self) -> list[tuple[Node, Answer]]:
        """See `Launcher`."""
        while True:
            said, self.news = self.news, []
            for sent in list(self.sent.values()):
                over = self.cluster.ended(sent.job)
                said += [(sent.node, {"note": line}) for line in notes(sent)]
                if over:
                    said.append((sent.node, self._answer(sent)))
                    del self.sent[sent.node.key]
            if said:
                return said
            time.sleep(PAUSE)

    def _answer(self, sent: Sent) -> Answer:
        """How a node ended, once what it wrote has arrived here."""
        seconds = round(time.monotonic() - sent.began, 2)
        try:
            answer = self.cluster.result(sent.job)
            if "interrupted" not in answer:
                return self._arrived(sent, answer)
            why = "it was stopped from outside"
        except Exception as error:  # each cluster has its own for a process that is gone
            why = f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"
        self.lost.setdefault(sent.node.key, []).append(f"ilu {sent.errand.title}")
        return {"error": f"{sent.name} was lost ({why})", "seconds": seconds, "died": True}

    def _arrived(self, sent: Sent, answer: Answer) -> Answer:
        run = answer.get("run")
        wanted = run / "manifest.json" if run else sent.errand.task.result_file
        end = time.monotonic() + ARRIVAL
        while "error" not in answer and not wanted.is_file():
            if time.monotonic() > end:
                where = "is ILU_RUNS on a file system that all machines share?"
                return {"error": f"{sent.name} wrote {wanted}, which is not seen here: {where}", "seconds": ARRIVAL}
            time.sleep(PAUSE)
        return answer

    def stop(self) -> None:
        """Cancel all jobs, and wait a while until they have ended; a second Ctrl-C waits no longer."""
        for sent in self.sent.values():
            self.cluster.cancel(sent.job)
        end = time.monotonic() + SAVING
        try:
            while time.monotonic() < end and not all(self.cluster.ended(s.job) for s in self.sent.values()):
                time.sleep(PAUSE)
        except KeyboardInterrupt:
            return

    def close(self) -> None:
        """See `Launcher`."""
        for sent in self.sent.values():  # after an error here, nobody would hear them
            if not self.cluster.ended(sent.job):
                self.cluster.cancel(sent.job)
        self.cluster.close()


def notes(sent: Sent) -> list[str]:
    """The whole lines that an errand has written since the last look."""
    try:
        with sent.errand.log.open("rb") as file:
            file.seek(sent.read)
            found = file.read()
    except OSError:
        return []
    found = found[: found.rfind(b"\n") + 1]
    sent.read += len(found)
    return found.decode("utf-8", "replace").splitlines()
