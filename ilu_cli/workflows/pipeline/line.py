"""The reference line of a search: the trial that was worst for the model under attack, once on another model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ilu_cli.recipe.search import Chosen
from ilu_cli.workflows.pipeline.graph import Graph, Node
from ilu_cli.workflows.pipeline.search import TrialSearch


@dataclass
class SearchLine:
    """What a search found, on a model that it is held against: the original, or one that never knew.

    The search ends, then `make` gives the node from the keys of its worst trial. Nothing is searched on that model: it
    is asked what the same attack does to it, and a search costs as much as its trials.
    """

    search: TrialSearch
    make: Callable[[Chosen], Node]
    key: str = ""
    asked: bool = False

    @property
    def left(self) -> int:
        return int(not self.asked)

    @property
    def told(self) -> int:
        return 0

    @property
    def seconds(self) -> float:
        """What it is going to take, by the trials so far."""
        return 0.0 if self.asked else self.search.seconds

    def asked_for(self, node: Node) -> bool:
        """Whether a node is a trial: this one is to come before all trials."""
        return False

    def fall(self, window: int) -> float:
        """Nothing is searched."""
        return 0.0

    def close(self, graph: Graph) -> None:
        """What the search has found by now counts: see `TrialSearch.close`."""

    def reset(self) -> None:
        self.asked = False

    def grow(self, graph: Graph) -> None:
        """Put the node in when the search is over; take it out if it is not, for a failed trial is tried again."""
        if not self.search.over:
            if self.key in graph.nodes and graph.nodes[self.key].status in ("waiting", "blocked"):
                del graph.nodes[self.key]
            return
        if self.asked:
            return
        self.asked, best = True, self.search.best(graph)
        if best is None:
            return
        node = self.make(best.tags["chosen"])
        self.key, known = node.key, graph.nodes.get(node.key)
        if known is None or known.recipe_sha256 != node.recipe_sha256:
            graph.nodes[node.key] = node
            graph.settle(node)
