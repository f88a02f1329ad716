"""Run a graph by a launcher: ready nodes in order, failures apart, the state on disk at every moment."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

from filelock import Timeout

from ilu_cli.errors import RunFailed
from ilu_cli.workflows.pipeline.budget import TimeBudget, by_fall, last_call
from ilu_cli.workflows.pipeline.graph import Graph, Node
from ilu_cli.workflows.pipeline.launchers import Launcher
from ilu_cli.workflows.pipeline.worker import Answer, Job

Changed = Callable[[Node, str | None], None]


class Stopped(RunFailed):
    """The user stopped the graph; it can be continued."""

    exit_code = 130


@dataclass
class Conduct:
    """A graph that is run: by what, who hears of it, how long, what is at work, and how often each node was lost."""

    graph: Graph
    launcher: Launcher
    changed: Changed
    budget: TimeBudget | None = None
    busy: dict[str, Node] = field(default_factory=dict)
    lost: Counter[str] = field(default_factory=Counter)


def run(graph: Graph, launcher: Launcher, changed: Changed, budget: TimeBudget | None = None) -> None:
    """Do what can be done, as much at a time as the launcher takes.

    `changed` hears of every node that begins, says something, or ends. After the `budget` nothing is begun, and what
    is at work ends.

    Raises:
        Stopped: after Ctrl-C, when all that was at work has stopped.
        RunFailed: if another process runs this graph.
    """
    with _only_one(graph):
        graph.refresh()
        graph.retry()
        graph.save()
        conduct = Conduct(graph, launcher, changed, budget)
        try:
            _assign(conduct)
            while conduct.busy:
                for node, answer in launcher.listen():
                    _hear(conduct, node, answer)
                _assign(conduct)
        except KeyboardInterrupt:
            launcher.stop()
            for node in conduct.busy.values():
                node.status = "waiting"
            raise Stopped("stopped; nothing that was finished is lost", hint="the same command goes on") from None
        finally:
            graph.save()
            launcher.close()


def _assign(conduct: Conduct) -> None:
    """Hand every node that is ready to the launcher, while that has room and there is time."""
    graph, budget = conduct.graph, conduct.budget
    graph.grow()
    if budget and last_call(graph, budget):
        for search in graph.searches:
            search.close(graph)
        graph.grow()
    for node in by_fall(graph, graph.ready()) if budget else graph.ready():
        graph.settle(node)
        if node.status == "done":  # done by an earlier process, on weights that are known only now
            conduct.changed(node, None)
            return _assign(conduct)
        if node.hash in {n.hash for n in conduct.busy.values()}:  # the same work under another name: wait for it
            continue
        if len(conduct.busy) >= conduct.launcher.room or (budget and not budget.left):
            return
        node.status = "running"
        conduct.busy[node.key] = node
        conduct.launcher.begin(node, _task(graph, node))
        conduct.changed(node, None)
        graph.save()


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


def _hear(conduct: Conduct, node: Node, answer: Answer) -> None:
    """Take over what is said of a node: a note on the way, or how it ended.

    Raises:
        KeyboardInterrupt: if it was interrupted.
    """
    if "note" in answer:
        conduct.changed(node, answer["note"])
        return
    graph = conduct.graph
    del conduct.busy[node.key]
    node.status, node.error = "waiting", None
    if "interrupted" in answer:
        raise KeyboardInterrupt
    if "died" in answer and conduct.lost[node.key] < conduct.launcher.retries:
        conduct.lost[node.key] += 1
        conduct.changed(node, f"{answer['error']}; try {conduct.lost[node.key] + 1} of {conduct.launcher.retries + 1}")
    elif "error" in answer:
        node.status, node.error = "failed", answer["error"]
    elif not graph.settle(node, answer["run"]):
        node.status, node.error = (
            "failed",
            f"{answer['run']} is not what was planned: another recipe, parent or data",
        )
    node.seconds = answer["seconds"]
    graph.block()
    graph.save()
    if node.status != "waiting":
        conduct.changed(node, None)


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
