"""A searching attacker: each trial is an ordinary node, whose keys Optuna chooses after what the ones before brought.

Nothing of a search is kept but its runs. A later process asks the sampler again, trial by trial: it is seeded by the
trial's number and told what the trials before it came to, so it chooses the same keys, and finds the run by its hash.
"""

from __future__ import annotations

import importlib.util
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ilu_cli.errors import UnavailableError
from ilu_cli.metrics.chosen import first_half
from ilu_cli.recipe.search import BoundSpec, Chosen, RangeSpec, SearchSpec
from ilu_cli.workflows.pipeline.graph import Graph, Node
from ilu_cli.workflows.pipeline.worst import Tried, points_of

if TYPE_CHECKING:
    import optuna
    from optuna.distributions import BaseDistribution

FAR = 1e9  # of a bound
STARTUP = 5  # trials at random before the model of TPE is used


@dataclass
class TrialSearch:
    """One attack on one model under one seed, searched.

    `make` gives the node of a trial from its number and keys.
    """

    spec: SearchSpec
    seed: int
    parent: str
    make: Callable[[int, Chosen], Node]
    asked: list[tuple[optuna.Trial, str]] = field(default_factory=list)
    study: optuna.Study | None = None
    worth: list[tuple[float, float]] = field(default_factory=list)
    closed: bool = False

    @property
    def left(self) -> int:
        return self.spec.trials - len(self.asked)

    @property
    def told(self) -> int:
        """How many trials have an outcome: their FQ (1 if they do not count) and seconds are in `worth`."""
        return len(self.worth)

    @property
    def over(self) -> bool:
        """Whether no trial is to come, and none is under way."""
        return (self.closed or not self.left) and self.told == len(self.asked)

    @property
    def seconds(self) -> float:
        """What a trial takes on average; 0 before the first."""
        return sum(s for _, s in self.worth) / max(1, self.told)

    def best(self, graph: Graph) -> Node | None:
        """The finished trial that is worth most to the attacker; None if none has rows."""
        nodes = [graph.nodes[key] for _, key in self.asked]
        known = {n.key: found for n in nodes if n.status == "done" and (found := worth(graph, n))[1] < math.inf}
        return graph.nodes[min(known, key=known.__getitem__)] if known else None

    def close(self, graph: Graph) -> None:
        """Ask for no more trials: the time is spent. One that has not begun is taken back."""
        self.closed = True
        if self.asked and graph.nodes[self.asked[-1][1]].status == "waiting":
            del graph.nodes[self.asked.pop()[1]]

    def asked_for(self, node: Node) -> bool:
        return any(key == node.key for _, key in self.asked)

    def fall(self, window: int) -> float:
        """See `Growing`. Of the first trials it is the fall from the first of them."""
        if self.told < window:
            return math.inf
        before = self.worth[: max(1, self.told - window)]
        seconds = sum(s for _, s in self.worth[-window:])
        return (min(fq for fq, _ in before) - min(fq for fq, _ in self.worth)) / max(seconds, 1e-9)

    def reset(self) -> None:
        """Begin anew: the state on disk is read again."""
        self.study, self.asked, self.worth = None, [], []

    def grow(self, graph: Graph) -> None:
        """Tell the sampler what is done, and put the next trial into the graph. One trial is under way at a time."""
        if graph.nodes[self.parent].status != "done":
            return
        self.study = self.study or _new_study()
        while True:
            if self.asked:
                trial, key = self.asked[-1]
                if not self._tell(trial, graph, graph.nodes[key]):
                    return
            if self.closed or not self.left:
                return
            self._ask(graph, len(self.study.trials))

    def _ask(self, graph: Graph, number: int) -> None:
        assert self.study is not None
        self.study.sampler = self._sampler(number)
        trial = self.study.ask(_distributions(self.spec))
        node = self.make(number, {k: _value(self.spec.over[k], v) for k, v in trial.params.items()})
        self.asked.append((trial, node.key))
        if node.key not in graph.nodes:
            graph.nodes[node.key] = node
            graph.settle(node)

    def _tell(self, trial: optuna.Trial, graph: Graph, node: Node) -> bool:
        """Whether the last trial has an outcome, which the sampler then knows."""
        import optuna

        assert self.study is not None
        if self.study.trials[trial.number].state.is_finished():
            return True
        if node.status not in ("failed", "blocked", "done"):
            return False
        value, over = 1.0, math.inf
        if points := points_of(graph, node) if node.status == "done" else []:
            value, over = outcome(points, graph.bound)
            if graph.bound:
                trial.set_constraint("loss", over)
            self.study.tell(trial, value)
        else:  # it failed, or its rows are gone
            self.study.tell(trial, state=optuna.trial.TrialState.FAIL)
        self.worth.append((value if over <= 0 else 1.0, node.seconds or 0.0))
        return True

    def _sampler(self, number: int) -> optuna.samplers.BaseSampler:
        from optuna.exceptions import ExperimentalWarning
        from optuna.samplers import RandomSampler, TPESampler

        seed = hash((self.spec.seed, self.seed, number)) % 2**32
        if self.spec.sampler == "random":
            return RandomSampler(seed=seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            return TPESampler(seed=seed, n_startup_trials=STARTUP, multivariate=True)


def _new_study() -> optuna.Study:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna.create_study(direction="minimize")


def check_installed() -> None:
    """Raise UnavailableError unless Optuna is there."""
    if importlib.util.find_spec("optuna") is None:
        raise UnavailableError("a search needs optuna", hint="pip install 'ilu[search]'")


def _distributions(spec: SearchSpec) -> dict[str, BaseDistribution]:
    """What Optuna draws for each key; of a list the place of a choice, which may be anything."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    found: dict[str, BaseDistribution] = {}
    for key, given in spec.over.items():
        if isinstance(given, list):
            found[key] = CategoricalDistribution(range(len(given)))
        else:
            kind: Any = IntDistribution if given.whole else FloatDistribution
            found[key] = kind(given.low, given.high, log=given.log)
    return found


def _value(given: RangeSpec | list[Any], drawn: Any) -> Any:
    """The key's value; of continuous ones four digits, which a recipe shows."""
    if isinstance(given, list):
        return given[drawn]
    return drawn if given.whole else min(max(float(f"{drawn:.4g}"), given.low), given.high)


def worth(graph: Graph, node: Node) -> tuple[bool, float]:
    """What a finished trial is worth to the attacker, the lowest first: within the bound, and low on the half it sees.

    Infinite if its rows are gone.
    """
    points = points_of(graph, node)
    if not points:
        return True, math.inf
    value, over = outcome(points, graph.bound)
    return over > 0, value


def outcome(points: list[Tried], bound: BoundSpec | None) -> tuple[float, float]:
    """What a trial is worth to the attacker: its lowest FQ on the first half of the questions, and by how much the
    cheapest of its points is beyond the bound (not above 0: it counts).

    The lowest of the points within the bound; if none is within, of all. Where no cost is known, it is far beyond.
    """
    within = [p for p in points if p.costs(bound.loss if bound else None)] or points
    value = min(float(p.values[first_half(len(p.values))].mean()) for p in within)
    known = [p.loss for p in points if p.loss is not None]
    return value, (min(known) - bound.loss if known else FAR) if bound else -FAR
