"""A graph within a time: what is done first, and when nothing more is begun.

What is no trial comes first, in the graph's order. Of the searches those that have done fewer than `WINDOW` trials go
on, the one with the fewest first; then that whose best so far fell most per second in its last `WINDOW` trials. Where
none falls they take turns. So a search that has come to rest gives its time to those that have not. When no more time
is left than the searches' reference lines and one trial take, the searches are closed, and their lines begin.
"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass, field

from ilu_cli.errors import UsageError
from ilu_cli.workflows.pipeline.graph import Graph, Node
from ilu_cli.workflows.pipeline.line import SearchLine

UNITS = {"d": 86400, "h": 3600, "m": 60, "s": 1}
WINDOW = 4


@dataclass(frozen=True)
class TimeBudget:
    """So many seconds from now on."""

    seconds: float
    began: float = field(default_factory=time.monotonic)

    @classmethod
    def of(cls, text: str) -> TimeBudget:
        """From a text like `4h`, `90m` or `1h30m`.

        Raises:
            UsageError: if it is none, or no time.
        """
        parts = re.findall(r"(\d+(?:\.\d+)?)([dhms])", text)
        seconds = sum(float(number) * UNITS[unit] for number, unit in parts)
        if "".join(number + unit for number, unit in parts) != text or not seconds:
            raise UsageError(f"--budget {text}: a time above 0 is needed", hint="as in 4h, 90m or 1h30m")
        return cls(seconds)

    @property
    def left(self) -> float:
        """Seconds until nothing more is begun; 0 from then on."""
        return max(0.0, self.began + self.seconds - time.monotonic())


def last_call(graph: Graph, budget: TimeBudget) -> bool:
    """Whether the time left is just enough for what comes after the searches."""
    lines, trials = ([s.seconds for s in graph.searches if isinstance(s, SearchLine) is kind] for kind in (True, False))
    return budget.left <= sum(lines) + max(trials, default=0.0)


def by_fall(graph: Graph, nodes: list[Node]) -> list[Node]:
    """Nodes that can begin, those first that promise most for their time; see above."""

    def rank(node: Node) -> tuple[bool, float, int]:
        search = next((s for s in graph.searches if s.asked_for(node)), None)
        return (True, -search.fall(WINDOW), search.told) if search else (False, 0.0, 0)

    return sorted(nodes, key=rank)
