"""The worst case of a graph's attacks, chosen on other questions than it is reported on."""

from __future__ import annotations

import numpy as np

from ilu_cli.metrics.chosen import chosen_elsewhere
from ilu_cli.report.answers import ByStrength, answers, attacked
from ilu_cli.runs.results import AttackResult
from ilu_cli.workflows.pipeline.graph import Graph, Node


def result_of(node: Node) -> AttackResult:
    """What an attack came to, as its node keeps it: without the attack's points."""
    return AttackResult.read({**(node.result or {}), "points": []})


def answered(graph: Graph, node: Node) -> ByStrength | None:
    """See `ilu_cli.report.answers.answers`."""
    return answers(graph.store.root / (node.result or {}).get("subject", "") / "eval", result_of(node))


def tried(graph: Graph, method: str, attacks: dict[str, int]) -> np.ndarray | None:
    """[k, Q]: every point of every choice of the attacks, given with the seed of each; None unless all have rows."""
    found: list[np.ndarray] = []
    for node in graph:
        tags = node.tags
        if node.command != "attack" or tags["method"] != method or attacks.get(tags["attack"]) != tags["seed"]:
            continue
        known = answered(graph, node) if node.status == "done" else None
        if known is None:
            return None
        found += attacked(known, result_of(node))
    return np.stack(found) if found and len({len(v) for v in found}) == 1 else None


def elsewhere(graph: Graph, method: str, seeds: list[dict[str, int]]) -> list[np.ndarray] | None:
    """The worst case of each seed, [Q] each; see `ilu_cli.metrics.chosen` and `tried`."""
    known = [tried(graph, method, attacks) for attacks in seeds]
    return [chosen_elsewhere(k) for k in known if k is not None] if all(k is not None for k in known) else None
