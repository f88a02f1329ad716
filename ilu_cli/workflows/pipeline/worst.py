"""The worst case of a graph's attacks, chosen on other questions than it is reported on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ilu_cli import registry
from ilu_cli.metrics.chosen import chosen_elsewhere, chosen_on_the_first
from ilu_cli.report.answers import ByStrength, answers
from ilu_cli.runs.results import AttackResult
from ilu_cli.workflows.pipeline.cost import KeptAt, losses
from ilu_cli.workflows.pipeline.graph import Graph, Node


@dataclass(frozen=True)
class Tried:
    """A point of an attack after it began: FQ of each question [Q], and what it cost the attacker, if that is known."""

    strength: float
    values: np.ndarray
    loss: float | None

    def costs(self, most: float | None) -> bool:
        """Whether it costs so much at most, and is known to; None: any cost will do."""
        return most is None or (self.loss is not None and self.loss <= most)


def result_of(node: Node) -> AttackResult:
    """What an attack came to, as its node keeps it: without the attack's points."""
    return AttackResult.read({**(node.result or {}), "points": []})


def answered(graph: Graph, node: Node) -> ByStrength | None:
    """See `ilu_cli.report.answers.answers`."""
    return answers(graph.store.root / (node.result or {}).get("subject", "") / "eval", result_of(node))


def points_of(graph: Graph, node: Node) -> list[Tried]:
    """The points of a finished attack, with what each cost by the graph's bound; none if its rows are gone.

    An attack that cannot change what else the model knows costs nothing. What another costs is not known where the
    bound's benchmark was not measured, nor where there is no bound.
    """
    known, result = answered(graph, node), result_of(node)
    if known is None:
        return []
    strengths = [s for s in known if s != result.unattacked]
    lost: list[float | None] = [None] * len(strengths)
    if graph.bound:
        kept: KeptAt | None = (node.result or {}).get("kept", {}).get(graph.bound.benchmark)
        if not registry.attack[node.recipe["attack"]["name"]].declared.utility:
            lost = [0.0] * len(strengths)
        elif kept:
            lost = losses(kept, result.unattacked, strengths)
    return [Tried(s, known[s], loss) for s, loss in zip(strengths, lost)]


def tried(graph: Graph, method: str, attacks: dict[str, int], most: float | None = None) -> list[np.ndarray] | None:
    """FQ by question [Q] at every point of every choice and trial of the attacks, given with the seed of each.

    None if a choice is not done or has no rows. Of a search what is done counts. Attacks that ask a part of the
    questions (`rtt`) have fewer.

    Args:
        most: leave out points that cost more than that, or of which it is not known, by the graph's bound.
    """
    found = [points_of(graph, n) if n.status == "done" else [] for n in _nodes(graph, method, attacks)]
    if not all(found):
        return None
    return [p.values for points in found for p in points if p.costs(most)] or None


def _nodes(graph: Graph, method: str, attacks: dict[str, int]) -> Iterator[Node]:
    """The attacks of a method, each with its seed; of a search what is done."""
    for node in graph:
        if node.command == "attack" and node.tags["method"] == method:
            wanted = attacks.get(node.tags["attack"]) == node.tags["seed"]
            if wanted and (node.status == "done" or not node.tags.get("searched")):
                yield node


def elsewhere(
    graph: Graph, method: str, seeds: list[dict[str, int]], most: float | None = None
) -> list[np.ndarray] | None:
    """The worst case of each seed by question, on others than chose it; see `ilu_cli.metrics.chosen` and `tried`.

    Each half chooses for the other, unless a search has seen the first, or attacks ask different questions: then what
    is lowest on the first half of its questions counts by the other.
    """
    known = [tried(graph, method, attacks, most) for attacks in seeds]
    led = any(n.tags.get("searched") and n.tags["attack"] in seeds[0] for n in graph if n.command == "attack")
    found = []
    for values in known:
        if values is None:
            return None
        alike = len({len(v) for v in values}) == 1
        found.append(chosen_elsewhere(np.stack(values)) if alike and not led else chosen_on_the_first(values))
    return found
