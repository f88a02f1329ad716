"""What the disk knows about a family of runs: recipes, steps, results, recovery curves. No torch."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from ilu_cli.metrics.chosen import chosen_elsewhere
from ilu_cli.recipe.source import flat
from ilu_cli.report.answers import answers, attacked
from ilu_cli.report.points import Reading, Source
from ilu_cli.runs.files import ModelRecord, same_model
from ilu_cli.runs.lineage import NEVER
from ilu_cli.runs.results import AttackResult, Point, Row, Summary, point_name, read_results, read_rows
from ilu_cli.runs.store import Run


@dataclass
class Member:
    """A finished run, or an unlearning run as it was at a `step` that it kept.

    `method` and `attack` are how the report calls its recipe, whatever its seed.
    """

    run: Run
    recipe: Row
    step: int | None = None
    method: str = ""
    attack: str = ""

    @property
    def id(self) -> str:
        """The run's id; of a kept step `RUN@STEP`."""
        return self.run.id if self.step is None else f"{self.run.id}@{self.step}"

    @property
    def seed(self) -> int:
        """The seed of the run's own recipe."""
        return self.run.manifest.seed

    @property
    def parent(self) -> str:
        return str(self.run.manifest.parents[0]["id"])

    @property
    def is_attack(self) -> bool:
        """Whether the run is an attack, on the original or on an unlearned model."""
        return self.run.manifest.command == "attack"

    @cached_property
    def steps(self) -> list[Row]:
        """The lines of metrics.jsonl."""
        return read_rows(self.run.path / "metrics.jsonl")

    @cached_property
    def result(self) -> AttackResult:
        """What an attack came to."""
        return AttackResult.read(self.run.manifest.result)

    @property
    def points(self) -> tuple[Point, ...]:
        """An attack's points in the order of the attack: first what it began with, last what it came to."""
        return self.result.points

    @property
    def axis(self) -> str:
        """What an attack's strength counts."""
        return self.result.axis

    @cached_property
    def results(self) -> dict[str, Summary]:
        """The benchmarks on the run's checkpoint, or on that of the step."""
        return read_results(self.folder)

    @property
    def folder(self) -> Path:
        """Where `results` and their rows are."""
        return self.run.results(self.step)

    def key(self) -> str:
        """Equal for runs of the same recipe but for the seed."""
        return json.dumps({k: v for k, v in self.recipe.items() if k != "seed"}, sort_keys=True)


@dataclass
class Family:
    """Runs that go back to one original model. `original` holds that model's results, with their folder.

    `names` are what a pipeline calls its unlearned models, by id. `never` is a model that never knew what they forget,
    if their recipes name one, and `never_found` holds its results: its attacks are members of the method `NEVER`.
    """

    base: ModelRecord
    members: list[Member]
    original: tuple[Path, dict[str, Summary]] | None = None
    unfinished: list[Run] = field(default_factory=list)
    names: dict[str, str] = field(default_factory=dict)
    never: ModelRecord | None = None
    never_found: tuple[Path, dict[str, Summary]] | None = None

    def __post_init__(self) -> None:
        name_all(self)

    @property
    def original_name(self) -> str:
        """The id of the model that the whole family came from."""
        return str(self.base.get("id", "the original"))

    def name_of(self, method: str) -> str:
        """How the report calls the models of a method: "" is the original."""
        if method == NEVER and self.never:
            return f"{Path(str(self.never.get('id', 'a model'))).name}, which never knew"
        return method or self.original_name

    @property
    def unlearned(self) -> list[Member]:
        """The unlearned models, and sums of task vectors."""
        return [m for m in self.members if not m.is_attack]

    @property
    def attacks(self) -> list[Member]:
        """The attacks, those on the original among them."""
        return [m for m in self.members if m.is_attack]

    @property
    def methods(self) -> list[str]:
        """Names of the unlearning recipes: in the pipeline's order, else in that of the runs."""
        return list(dict.fromkeys([*self.names.values(), *(m.method for m in self.unlearned)]))

    @property
    def attack_names(self) -> list[str]:
        """The attacks by name, each once, in the order of the members."""
        return list(dict.fromkeys(m.attack for m in self.attacks))

    def of_method(self, method: str) -> list[Member]:
        """The unlearned models of one method, as `method_name` tells it."""
        return [m for m in self.unlearned if m.method == method]

    def benchmarks(self, role: str) -> list[str]:
        """Benchmarks of a role with a result on some run; where none has any, those of the model they came from."""
        found: dict[str, str] = {}
        for results in [*(m.results for m in self.members), *(p.eval for m in self.attacks for p in m.points)]:
            found |= {name: s.role for name, s in results.items()}
        for known in (self.original, self.never_found) if not found else ():
            found |= {name: s.role for name, s in known[1].items()} if known else {}
        return [name for name, r in found.items() if r == role]

    def before(self, method: str | None, bench: str) -> Reading | None:
        """A benchmark on the unlearned models of a method (None: the original; `NEVER`), before any attack.

        Where `ilu eval` has not been, an attack's point at strength 0 says the same.
        """
        sources: list[Source] = []
        if method in (None, NEVER):
            known = self.never_found if method else self.original
            if known and bench in known[1]:
                sources.append(Source(known[1][bench], known[0], ()))
            else:
                sources += self._untouched([m for m in self.attacks if m.method == (method or "")], bench)
        for m in self.of_method(method) if method is not None else []:
            if bench in m.results:
                sources.append(Source(m.results[bench], m.folder, (m.seed,)))
            else:
                sources += self._untouched([a for a in self.attacks if a.parent == m.id], bench, m.seed)
        return Reading(0, sources) if sources else None

    @staticmethod
    def _untouched(attacks: Iterable[Member], bench: str, *seeds: int) -> list[Source]:
        for a in attacks:
            first = a.points[0] if a.points else None
            if first and first.strength == a.result.unattacked and bench in first.eval:
                return [Source(first.eval[bench], point_folder(a, first.strength), seeds)]
        return []

    def seeds(self, attack: Member) -> tuple[int, ...]:
        """The seeds of an attack's parent, if that is an unlearned model, and of the attack itself."""
        return (*(m.seed for m in self.unlearned if m.id == attack.parent), attack.seed)

    def under(self, method: str, attack: str) -> list[Member]:
        """The attacks of this name on the models of a method, of each model and seed the latest; "" is the original."""
        found = {(a.parent, a.seed): a for a in self.attacks if a.attack == attack and a.method == method}
        return list(found.values())

    def at_worst(self, method: str, attack: str) -> float | None:
        """1 − FQ at the attack's worst point, mean over its runs; None if it was not tried."""
        worst = [a.result.worst for a in self.under(method, attack)]
        known = [1 - w for w in worst if w is not None]
        return sum(known) / len(known) if known else None

    def elsewhere(self, method: str, attacks: list[str]) -> float | None:
        """1 − FQ at the worst point of all these attacks, chosen on other questions; mean over the seeds that all have.

        None if the method was not attacked by all of them, or their rows are gone or of different questions.
        """
        runs = [{self.seeds(m): m for m in self.under(method, a)} for a in attacks]
        found = []
        for seeds in set.intersection(*(set(r) for r in runs)):
            points = []
            for m in (r[seeds] for r in runs):
                known = answers(m.run.eval, m.result)
                if known is None:
                    return None
                points += attacked(known, m.result)
            if len({len(p) for p in points}) != 1:
                return None
            found.append(1 - chosen_elsewhere(np.stack(points)).mean())
        return float(np.mean(found)) if found else None

    def curve(self, method: str, attack: str, bench: str) -> list[Reading]:
        """What comes back under an attack. `method` "" is the original: the reference line."""
        points: dict[float, list[Source]] = {}
        for a in self.under(method, attack):
            for p in a.points:
                if bench in p.eval:
                    source = Source(p.eval[bench], point_folder(a, p.strength), self.seeds(a))
                    points.setdefault(p.strength, []).append(source)
        most = max(map(len, points.values()), default=0)
        return [Reading(x, s) for x, s in points.items() if len(s) == most]

    def chance(self, bench: str) -> float | None:
        """Chance of a benchmark, from any of its results."""
        for m in self.members:
            for results in [m.results, *(p.eval for p in m.points)]:
                if bench in results:
                    return results[bench].chance
        return self.original[1][bench].chance if self.original and bench in self.original[1] else None


def point_folder(attack: Member, x: float) -> Path:
    """Where `ilu attack` keeps the rows of a point."""
    return attack.run.eval / point_name(attack.axis, x)


def read_member(run: Run, step: int | None = None) -> Member:
    """A run with its recipe."""
    return Member(run, run.recipe() if (run.path / "recipe.yaml").is_file() else {}, step)


def environments(recipe: Row) -> list[Row]:
    """The environments of all regularisers of an unlearning recipe."""
    return [env for reg in recipe.get("regularizers") or [] for env in reg.get("env") or []]


def method_name(recipe: Row) -> str:
    """`rmu + irm(gsm8k) + sam`."""
    parts = [str((recipe.get("objective") or {}).get("name", "?"))]
    for reg in recipe.get("regularizers") or []:
        parts.append(f"{reg['name']}({', '.join(Path(str(e['name'])).stem for e in reg['env'])})")
    parts += [str(d["name"]) for d in recipe.get("defences") or []]
    return " + ".join(parts + ["LoRA"] * bool(recipe.get("lora")))


def made_by(m: Member) -> str:
    """How an unlearned model was made: by a method, or by arithmetic of task vectors."""
    return method_name(m.recipe) if m.recipe.get("objective") else m.run.manifest.label or m.run.manifest.command


def attack_name(recipe: Row) -> str:
    """`fine-tuning on sst2`, `quantize`."""
    attack = recipe.get("attack") or {}
    task = attack.get("task")
    name = {"finetune": "fine-tuning"}.get(str(attack.get("name")), str(attack.get("name", "?")))
    return f"{name} on {Path(str(task['name'])).stem}" if isinstance(task, dict) else name


def base_recipe(recipe: Row) -> str:
    """The recipe without seed, regularisers and defences: equal for a method and what was added to it."""
    dropped = {"seed", "regularizers", "defences"}
    return json.dumps({k: v for k, v in recipe.items() if k not in dropped}, sort_keys=True)


def name_all(family: Family) -> None:
    """Name methods and attacks; where two recipes would have the same name, add the keys in which they differ."""
    for m, name in zip(family.unlearned, distinct(family.unlearned, made_by)):
        at = "" if m.step is None else f" at step {m.step}"
        m.method = family.names.get(m.id, name + at)
    methods = {m.id: m.method for m in family.unlearned}
    for m, name in zip(family.attacks, distinct(family.attacks, lambda m: attack_name(m.recipe))):
        unknown = family.never is not None and same_model(m.run.manifest.parents[0], family.never)
        m.attack, m.method = name, NEVER if unknown else methods.get(m.parent, "")


def distinct(members: list[Member], name: Callable[[Member], str]) -> list[str]:
    """Names by recipe, one name for one recipe."""
    groups: dict[str, dict[str, Row]] = {}
    for m in members:
        groups.setdefault(name(m), {})[m.key()] = flat(m.recipe)
    found = []
    for m in members:
        same, mine = groups[name(m)], flat(m.recipe)
        keys = [k for k in mine if k != "seed" and len({json.dumps(r.get(k)) for r in same.values()}) > 1]
        extra = ", ".join(f"{k.rpartition('.')[2]} {mine[k]}" for k in keys[:3])
        found.append(f"{name(m)}, {extra}" if len(same) > 1 and extra else name(m))
    return found
