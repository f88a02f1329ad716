"""What evaluation and gates read of a recipe: which benchmarks, how they are scored, and what they must show."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, NonNegativeInt, PositiveInt
from typing_extensions import Self

from ilu_cli import registry
from ilu_cli.errors import UsageError
from ilu_cli.recipe.bench import BenchmarkSpec
from ilu_cli.recipe.chat import ChatDate, ChatSystem
from ilu_cli.recipe.requirement import Requirement, benches_of, parse
from ilu_cli.recipe.source import Key
from ilu_cli.recipe.spec import Spec
from ilu_cli.recipe.specs import Precision
from ilu_cli.runs.results import WARNINGS, stem, summary_file


class EvalSpec(Spec):
    """Which benchmarks, and how they are scored."""

    benchmarks: list[str | BenchmarkSpec] = Field(
        ["capitals", "elements", "prose"],
        min_length=1,
        description="by name, or with keys of its own as `{name: …, key: …}`",
    )
    precision: Precision = "fp32"
    chat: bool = Field(False, description="put every prompt into the tokenizer's chat template")
    chat_system: ChatSystem = None
    chat_date: ChatDate = None
    limit: PositiveInt | None = Field(None, description="score only the first rows of each benchmark")
    fewshot: NonNegativeInt | None = Field(None, description="solved examples before each question; null: the task's")
    retain_run: str | None = Field(
        None, description="the key of that name of every benchmark that has it and is not given its own"
    )

    @property
    def named(self) -> list[str]:
        """The names that `benchmarks` lists."""
        return [b if isinstance(b, str) else b.name for b in self.benchmarks]

    @property
    def names(self) -> list[str]:
        """The benchmarks that are run."""
        return self.named

    def keys_of(self, name: str) -> dict[str, Any]:
        """The own keys of a benchmark that the recipe gives, without those at their default."""
        own = next((b.given() for b in self.benchmarks if isinstance(b, BenchmarkSpec) and b.name == name), {})
        shared = {"retain_run": self.retain_run} if self.retain_run and "retain_run" in _keys(name) else {}
        return shared | own

    def only(self, name: str) -> Self:
        """This, with one of its benchmarks alone."""
        return self.model_copy(update={"benchmarks": [b for b, n in zip(self.benchmarks, self.named) if n == name]})

    def problems(self, key: Key, recipe: Any) -> Iterator[tuple[Key, str]]:
        for i, (item, name) in enumerate(zip(self.benchmarks, self.named)):
            here: Key = (*key, "benchmarks", i)
            if problem := _benchmark_problem(name):
                yield here, problem
            elif name in self.named[:i]:
                yield here, f"{name!r} is named twice"
            elif other := next((n for n in self.named[:i] if stem(n) == stem(name)), None):
                yield here, f"its results would lie in the files of {other!r}; rename one of the two"
            elif isinstance(item, str):
                yield from _without_keys(name, here)
            elif name in registry.benchmark:
                yield from item.problems(registry.benchmark, here, recipe)
        if self.retain_run and not any("retain_run" in _keys(name) for name in self.names):
            yield (*key, "retain_run"), "none of the benchmarks compares with a retain model"


class GateSpec(EvalSpec):
    """Which benchmarks, and what they must show."""

    require: list[str] = Field([], description="requirements such as `capitals.acc <= 0.32`; exit code 4 if one fails")

    @property
    def names(self) -> list[str]:
        """The benchmarks, and those that only a requirement names."""
        return list(dict.fromkeys([*self.named, *(b for text in self.require for b in benches_of(text))]))

    @property
    def requirements(self) -> list[Requirement]:
        """The parsed requirements.

        Raises:
            UsageError: if one does not parse.
        """
        return [parse(text, metrics(text)) for text in self.require]

    def problems(self, key: Key, recipe: Any) -> Iterator[tuple[Key, str]]:
        yield from super().problems(key, recipe)
        for i, text in enumerate(self.require):
            try:
                for name in benches_of(text):
                    if name not in self.named:
                        yield from _without_keys(name, (*key, "require", i))
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


def _keys(name: str) -> dict[str, tuple[Any, Any]]:
    return registry.benchmark[name].keys() if name in registry.benchmark else {}


def _without_keys(name: str, key: Key) -> Iterator[tuple[Key, str]]:
    """What is wrong with a benchmark that stands there by its name alone."""
    if needed := [k for k, (_, default) in _keys(name).items() if default is ...]:
        told = ", ".join(f"{k}: …" for k in needed)
        yield key, f"{name!r} needs keys of its own: in eval.benchmarks, {{name: {name}, {told}}}"


def _benchmark_problem(name: str) -> str:
    """What is wrong with the name of a benchmark: ours, a YAML file, or a task of lm-eval."""
    if name in registry.benchmark:
        return ""
    if name.endswith(".yaml"):
        from ilu_cli.paths import problem_of_name
        from ilu_cli.recipe.taskfile import refusal

        if problem := problem_of_name(stem(name)):
            return f"its results are called after the task file, whose name {problem}"
        if summary_file(Path(), name).name == WARNINGS:
            return f"its results would lie in {WARNINGS}, where those of the evaluation are; rename the file"
        return refusal(Path(name)) if Path(name).is_file() else f"there is no task file {name}"
    from ilu_cli.errors import near
    from ilu_cli.recipe.harness import harness_names

    if name in harness_names():
        return ""
    suggestion = near(name, [*registry.benchmark, *harness_names()])
    return f"unknown benchmark {name!r}.{suggestion} Neither ours (`ilu list benchmarks`) nor lm-eval's"
