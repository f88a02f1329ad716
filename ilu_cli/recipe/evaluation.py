"""What evaluation and gates read of a recipe: which benchmarks, how they are scored, and what they must show."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from pydantic import Field, NonNegativeInt, PositiveInt

from ilu_cli import registry
from ilu_cli.errors import UsageError
from ilu_cli.recipe.chat import ChatDate, ChatSystem
from ilu_cli.recipe.requirement import Requirement, benches_of, parse
from ilu_cli.recipe.source import Key
from ilu_cli.recipe.spec import Spec
from ilu_cli.recipe.specs import Precision
from ilu_cli.runs.results import stem


class EvalSpec(Spec):
    """Which benchmarks, and how they are scored."""

    benchmarks: list[str] = Field(["capitals", "elements", "prose"], min_length=1)
    precision: Precision = "fp32"
    chat: bool = Field(False, description="put every prompt into the tokenizer's chat template")
    chat_system: ChatSystem = None
    chat_date: ChatDate = None
    limit: PositiveInt | None = Field(None, description="score only the first rows of each benchmark")
    fewshot: NonNegativeInt | None = Field(None, description="solved examples before each question; null: the task's")
    retain_run: str | None = Field(
        None, description="run or rows file of a model that never saw the forget set, for TOFU's forget quality"
    )

    @property
    def names(self) -> list[str]:
        """The benchmarks that are run."""
        return self.benchmarks

    def problems(self, key: Key) -> Iterator[tuple[Key, str]]:
        for i, name in enumerate(self.benchmarks):
            if problem := _benchmark_problem(name):
                yield (*key, "benchmarks", i), problem
            elif name in self.benchmarks[:i]:
                yield (*key, "benchmarks", i), f"{name!r} is named twice"
            elif other := next((n for n in self.benchmarks[:i] if stem(n) == stem(name)), None):
                yield (*key, "benchmarks", i), f"its results would lie in the files of {other!r}; rename one of the two"
        known = [registry.benchmark[n].obj for n in self.names if n in registry.benchmark]
        if self.retain_run and not any(bench.takes_retain_run for bench in known):
            yield (*key, "retain_run"), "none of the benchmarks compares with a retain model"


class GateSpec(EvalSpec):
    """Which benchmarks, and what they must show."""

    require: list[str] = Field([], description="requirements such as `capitals.acc <= 0.32`; exit code 4 if one fails")

    @property
    def names(self) -> list[str]:
        """The benchmarks, and those that only a requirement names."""
        return list(dict.fromkeys([*self.benchmarks, *(b for text in self.require for b in benches_of(text))]))

    @property
    def requirements(self) -> list[Requirement]:
        """The parsed requirements.

        Raises:
            UsageError: if one does not parse.
        """
        return [parse(text, metrics(text)) for text in self.require]

    def problems(self, key: Key) -> Iterator[tuple[Key, str]]:
        yield from super().problems(key)
        for i, text in enumerate(self.require):
            try:
                parse(text, metrics(text))
            except UsageError as error:
                yield (*key, "require", i), str(error)


def metrics(text: str) -> dict[str, set[str]]:
    """The numbers of each benchmark that a requirement may name; of lm-eval's tasks any."""
    from ilu_cli.recipe.harness import harness_names, own_metrics

    found = {}
    for name, entry in registry.benchmark.items():
        bench = entry.obj
        found[name] = own_metrics(bench.__module__) or {bench.metric, *bench.others} | (
            {"chance"} if bench.chance else set()
        )
    theirs = [name for name in benches_of(text) if name not in found]
    return found | {name: set() for name in theirs if name in harness_names()} if theirs else found


class AttackEvalSpec(EvalSpec):
    """What is scored while an attack goes on."""

    at: Literal["all", "last"] = Field(
        "last", description="where utility is scored: at every point, or before the attack and at its last point"
    )


def _benchmark_problem(name: str) -> str:
    """What is wrong with the name of a benchmark: ours, a YAML file, or a task of lm-eval."""
    if name in registry.benchmark:
        return ""
    if name.endswith(".yaml"):
        return "" if Path(name).is_file() else f"there is no task file {name}"
    from ilu_cli.errors import near
    from ilu_cli.recipe.harness import harness_names

    if name in harness_names():
        return ""
    suggestion = near(name, [*registry.benchmark, *harness_names()])
    return f"unknown benchmark {name!r}.{suggestion} Neither ours (`ilu list benchmarks`) nor lm-eval's"
