"""A graph of runs: what is to be made, from what, and how far it is. Its state is read from the runs on disk.

A node is known by the hash of its resolved recipe, its parent (its weights and what else decides its answers) and the
data that it reads. It is done when a finished run (or, for a node that chooses a model, a small file in the pipeline's
folder) with that hash is there, whoever made it. Runs that recorded no more of their parent than its weights are
known by those.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from filelock import FileLock, Timeout

from ilu_cli import trust
from ilu_cli.metrics.figure import strict, value_of
from ilu_cli.models.subject import Subject
from ilu_cli.paths import as_name
from ilu_cli.recipe.search import BoundSpec
from ilu_cli.runs.files import combined, read_json, sha256, write_json
from ilu_cli.runs.ledger import unseal
from ilu_cli.runs.results import AttackResult
from ilu_cli.runs.store import Run, Store, open_run
from ilu_cli.workflows.attack.seen import Written
from ilu_cli.workflows.pipeline.cost import kept_at


class Growing(Protocol):
    """What puts nodes into a graph after what others have come to; `left` is how many it has not put in yet."""

    @property
    def left(self) -> int:
        """How many nodes are still to come."""

    @property
    def told(self) -> int:
        """How many of its nodes have come to something."""

    def asked_for(self, node: Node) -> bool:
        """Whether it has put this node in."""

    def fall(self, window: int) -> float:
        """By how much its best so far fell per second in the last trials, so many; infinite if it has had fewer."""

    @property
    def seconds(self) -> float:
        """What one more of its nodes takes, as far as is known."""

    def close(self, graph: Graph) -> None:
        """Begin nothing more, but for what comes after a search that is closed."""

    def reset(self) -> None:
        """Forget what was read: the state on disk is read again."""

    def grow(self, graph: Graph) -> None:
        """Put in what is known or comes next."""


Status = Literal["waiting", "running", "done", "failed", "blocked"]


@dataclass
class Node:
    """One run, or (`select`) the measuring of a model and the choice among its kept steps.

    `needs` are keys of nodes; the first is the parent. `inputs` is what it reads (`ilu_cli.workflows.needs.inputs`),
    `result` what later nodes and the table read.
    """

    key: str
    command: Literal["unlearn", "select", "attack"]
    tags: dict[str, Any]
    recipe: dict[str, Any]
    recipe_sha256: str
    needs: list[str] = field(default_factory=list)
    inputs: list[str] = field(default_factory=list)
    hash: str | None = None
    status: Status = "waiting"
    run: str | None = None
    seconds: float | None = None
    error: str | None = None
    result: dict[str, Any] | None = None


def hash_of(command: str, recipe_sha256: str, digest: str, *extra: Any) -> str:
    """What tells one piece of work from another: what is done, to which model, with which data."""
    parts = [command, recipe_sha256, digest, *filter(None, extra)]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def hash_of_run(run: Run) -> str:
    """The hash of the node that a run is the outcome of."""
    m, parent = run.manifest, run.manifest.parents[0]
    return hash_of(
        m.command, m.asked_sha256 or m.recipe_sha256, parent.get("digest") or combined(parent["weights"]), m.inputs,
        trust.codes(m.trust),
    )  # fmt: skip


def unfinished_path(store: Store, command: str, label: str, digest: str) -> Path:
    """Where a node's run lies: a name that a later process finds again, whatever happened to this one."""
    return store.root / f"{command}-{as_name(label)}-{digest[:10]}"


class Graph:
    """The nodes in the order in which they are begun, and the folder with the graph's files."""

    def __init__(
        self, name: str, nodes: list[Node], subjects: dict[str, Subject], store: Store,
        unlearned: dict[int, list[Written]], bound: BoundSpec | None = None, searches: Sequence[Growing] = (),
    ) -> None:  # fmt: skip
        """`subjects` are the models that are there already: the parents of nodes without `needs`, by method.

        `unlearned` are the recipes of the unlearned models by seed: an attack keeps clear of the environments of all
        models that it is compared on. `bound` is what an attack may cost, and `searches` put in nodes as they go.
        """
        self.name, self.store, self.subjects, self.unlearned = name, store, subjects, unlearned
        self.bound, self.searches = bound, searches
        self.nodes = {node.key: node for node in nodes}
        self.folder = store.root / name
        self._runs: dict[str, Run] = {}

    def __iter__(self) -> Iterator[Node]:
        return iter(self.nodes.values())

    def refresh(self) -> None:
        """Read the state from disk; what an earlier process says of errors and times is taken over."""
        complete = [run for run in self.store.runs() if run.complete and run.manifest.parents]
        self._runs = {hash_of_run(run): run for run in complete}
        earlier = self._earlier()
        for node in self:
            known = earlier.get(node.key, {})
            node.status, node.error, node.seconds = "waiting", None, None
            done = self.settle(node)
            same = known.get("hash") == node.hash and known.get("recipe_sha256") == node.recipe_sha256
            if same and done:
                node.seconds = known.get("seconds") or node.seconds
            elif same and known.get("status") == "failed":
                node.status, node.error, node.seconds = "failed", known.get("error"), known.get("seconds")
        for search in self.searches:
            search.reset()
        self.grow()
        self.block()

    @property
    def size(self) -> int:
        """How many nodes there will be, with the trials that are still to come."""
        return len(self.nodes) + sum(search.left for search in self.searches)

    def grow(self) -> None:
        """Put in the trials of searches that are known or come next."""
        for search in self.searches:
            search.grow(self)

    def _earlier(self) -> dict[str, dict[str, Any]]:
        path = self.folder / "pipeline.json"
        try:
            return {n["key"]: n for n in json.loads(path.read_text(encoding="utf-8"))["nodes"]}
        except (OSError, ValueError, KeyError):
            return {}

    def watch(self) -> None:
        """Read the state from disk, with what another process is at."""
        self.refresh()
        if self.is_run():
            running = {key for key, node in self._earlier().items() if node["status"] == "running"}
            for node in self:
                node.status = "running" if node.key in running and node.status == "waiting" else node.status

    def is_run(self) -> bool:
        """Whether a process runs the graph: it holds the lock."""
        if not (self.folder / ".lock").exists():
            return False
        try:
            with self.lock():
                return False
        except Timeout:
            return True

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the graph; the lock ends with the process.

        Raises:
            Timeout: if another process holds it.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with FileLock(self.folder / ".lock", timeout=0):
            yield

    def block(self) -> None:
        """Mark what cannot be done because something it needs has failed."""
        for node in self:
            bad = [key for key in node.needs if self.nodes[key].status in ("failed", "blocked")]
            if node.status in ("waiting", "blocked"):
                node.status, node.error = ("blocked", f"{bad[0]} failed") if bad else ("waiting", None)

    def retry(self) -> None:
        """Give failed nodes another try."""
        for node in self:
            if node.status in ("failed", "blocked"):
                node.status, node.error = "waiting", None
        for search in self.searches:  # which were told of the failures
            search.reset()
        self.grow()

    def ready(self) -> list[Node]:
        """The nodes that can begin now, in order."""
        return [n for n in self if n.status == "waiting" and all(self.nodes[k].status == "done" for k in n.needs)]

    def settle(self, node: Node, path: Path | None = None) -> bool:
        """Work out the node's hash, if its parents are done, and return whether it is done (by the run at `path`)."""
        known = self._hashes(node)
        node.hash = known[0] if known else None
        node.hash = next((digest for digest in known if self._done(node, digest, path)), node.hash)
        return node.status == "done"

    def _done(self, node: Node, digest: str, path: Path | None) -> bool:
        """Take over the outcome that has this hash, if there is one."""
        if node.command == "select":
            file = self.folder / "nodes" / f"{digest}.json"
            if file.is_file():
                node.status, node.result = "done", unseal(read_json(file), file)
            return file.is_file()
        run = open_run(path) if path else self._runs.get(digest)
        if run is None or not run.complete or hash_of_run(run) != digest:
            return False
        self._runs[digest], m = run, run.manifest
        node.status, node.run, node.seconds = "done", run.id, m.result.get("seconds")
        node.result = {
            "subject": self._name(run),
            "weights": m.weights,
            "digest": m.digest,
            "points": m.points,
            "manifest_sha256": sha256(run.path / "manifest.json"),
            "kept": kept_at(AttackResult.read(m.result).points) if node.command == "attack" else {},
            **{k: m.result.get(k) for k in ("fa", "fq", "ra", "marks", "axis", "unattacked", "budget")},
            "data": m.data,
        }
        return True

    def result_file(self, node: Node) -> Path:
        """Where the outcome of a node that makes no run is kept."""
        return self.folder / "nodes" / f"{node.hash}.json"

    def _name(self, run: Run) -> str:
        return run.id if (self.store.root / run.id) == run.path else str(run.path.absolute())

    def parent(self, node: Node) -> dict[str, Any] | None:
        """The `subject`, `weights` and `digest` that the node starts from; None until they are there."""
        if node.needs:
            return self.nodes[node.needs[0]].result if self.nodes[node.needs[0]].status == "done" else None
        subject = self.subjects[node.tags["method"] if node.command == "select" else "original"]
        name = subject.label if subject.run is None else self._name(subject.run)
        step = f"@{subject.step}" if subject.step is not None else ""
        return {"subject": name + step, "weights": subject.weights, "digest": subject.digest, "points": {}}

    def target(self, node: Node) -> float | None:
        """The utility that a `select` node is to match, once the original's is known."""
        match = node.recipe.get("match")
        if match is None:
            return None
        if match["of"] == "value":
            return float(match["target"])
        original = self.nodes[node.needs[1]].result or {}
        return float(match["target"]) * value_of(original["eval"][match["benchmark"]])

    def _hashes(self, node: Node) -> list[str]:
        """The node's hash, and that of runs that know their parent by its weights; none until its parents are done."""
        parent = self.parent(node)
        if parent is None or any(self.nodes[k].status != "done" for k in node.needs):
            return []
        points = [parent["points"], self.target(node)] if node.command == "select" else None
        digests = dict.fromkeys(filter(None, (parent.get("digest"), combined(parent["weights"]))))
        code = trust.codes(trust.record())
        return [hash_of(node.command, node.recipe_sha256, d, points, node.inputs, code) for d in digests]

    def counts(self) -> dict[str, int]:
        """How many nodes there are of each status."""
        found: dict[str, int] = {}
        for node in self:
            found[node.status] = found.get(node.status, 0) + 1
        return found

    def save(self) -> None:
        """Write pipeline.json, atomically."""
        self.folder.mkdir(parents=True, exist_ok=True)
        nodes = [{k: v for k, v in asdict(node).items() if k != "recipe"} for node in self]
        write_json(self.folder / "pipeline.json", strict({"format": 1, "name": self.name, "nodes": nodes}))
