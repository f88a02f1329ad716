"""`ilu pipeline`: methods × environments × attacks × seeds as a graph of runs; a suite is its last part."""

from __future__ import annotations

import functools
import hashlib
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, cast

from ilu_cli.models.subject import Subject, find_subject, is_builtin, never_of, original_of
from ilu_cli.paths import as_name
from ilu_cli.recipe.evaluation import EvalSpec
from ilu_cli.recipe.expand import Pipeline, Variant, with_data
from ilu_cli.recipe.grid import MatchSpec, SuiteRecipe
from ilu_cli.recipe.load import digest
from ilu_cli.recipe.refs import DataRef
from ilu_cli.recipe.schema import EvalRecipe
from ilu_cli.recipe.search import Chosen
from ilu_cli.runs.files import tensors_of, weight_files
from ilu_cli.runs.lineage import NEVER
from ilu_cli.runs.results import Row
from ilu_cli.runs.store import Store
from ilu_cli.workflows.attack.seen import Written, forget_data, unlearning_recipes
from ilu_cli.workflows.needs.inputs import inputs_of
from ilu_cli.workflows.pipeline.graph import Graph, Growing, Node
from ilu_cli.workflows.pipeline.line import SearchLine
from ilu_cli.workflows.pipeline.search import TrialSearch, check_installed
from ilu_cli.workflows.settle import settled_for

ORIGINAL = "original"


def graph_of(pipeline: Pipeline, store: Store) -> Graph:
    """The graph of a pipeline. Seeds are outermost, so that a stopped pipeline leaves whole tables.

    Raises:
        UnavailableError: if the original model is not to be had.
    """
    recipe = pipeline.recipe
    original = find_subject(recipe.model.ref, store, recipe.model.revision)
    forget = list(dict.fromkeys(d for method in pipeline.methods for d in method.recipe.forget.data))
    methods = [replace(m, recipe=settled_for(m.recipe, original)) for m in pipeline.methods]
    variants = _filled(pipeline.variants, lambda: forget, original)
    unlearned = {s: [cast(Written, m.seeded(s).model_dump()) for m in methods] for s in recipe.seeds}
    subjects = {ORIGINAL: original}
    if recipe.model.never:
        subjects[NEVER] = find_subject(recipe.model.never, store)
    bases = [_select(m, {"method": m, "env": None}, recipe.eval, None, []) for m in subjects]
    base, nodes, searches = bases[0], list(bases), list[Growing]()
    for seed in recipe.seeds:
        for line in bases:
            nodes += _attacks(variants, line.key, line.tags, seed, unlearned[seed])
        for method in methods:
            tags = {"method": method.name, "env": method.env}
            resolved, key = method.seeded(seed), f"seed {seed}/{method.name}"
            dumped, inputs = resolved.model_dump(), inputs_of(resolved)
            nodes.append(
                Node(f"{key}/unlearn", "unlearn", tags | {"seed": seed}, dumped, digest(resolved), inputs=inputs)
            )
            match = recipe.match.model_dump() if isinstance(recipe.match, MatchSpec) else None
            needs = [f"{key}/unlearn", *([base.key] if match else [])]
            select = _select(f"{key}/select", tags | {"seed": seed}, recipe.eval, match, needs)
            nodes += [select, *_attacks(variants, select.key, tags, seed, unlearned[seed])]
            searches += _searches(variants, select.key, tags, bases, seed, unlearned[seed])
    return Graph(pipeline.name, nodes, subjects, store, unlearned, recipe.bound, searches)


def suite_graph(name: str, variants: list[Variant], recipe: SuiteRecipe, subject: Subject, seeds: list[int],
                store: Store, *, reference: bool = True) -> Graph:  # fmt: skip
    """The attacks of a suite on one model, and on its original, or a model that never knew, as the `reference` line."""
    unlearned = unlearning_recipes(subject)
    variants = _filled(variants, lambda: forget_data(unlearned, "attack.data", subject.label), subject)
    subjects = {ORIGINAL: original_of(subject)}
    if never := never_of(subject):
        subjects[NEVER] = never
    if subject.run is not None:
        subjects[subject.label] = subject
    attacked = list(subjects) if reference or subject.run is None else [subject.label]
    bases = [_select(m, {"method": m, "env": None}, recipe.eval, None, []) for m in attacked]
    nodes, searches = list(bases), list[Growing]()
    own = bases[-1] if subject.run is not None else bases[0]
    others = [base for base in bases if base is not own]
    for seed in seeds:
        for base in bases:
            nodes += _attacks(variants, base.key, base.tags, seed, unlearned)
        searches += _searches(variants, own.key, own.tags, others, seed, unlearned)
    folder = as_name(f"suite-{name}-{subject.label}")
    return Graph(folder, nodes, subjects, store, dict.fromkeys(seeds, unlearned), recipe.bound, searches)


def _filled(variants: list[Variant], forget: Callable[[], list[DataRef]], subject: Subject) -> list[Variant]:
    """Attacks on forget data that the suite leaves open get that of the models, the original included.

    Their tasks come from where they belong to the `subject`.
    """
    found, builtin = [], is_builtin(subject)
    for v in variants:
        v = v if builtin else v.sourced("hub")
        attack = v.recipe.attack
        if "data" in type(attack).model_fields and attack.params()["data"] is None:
            attack = attack.model_copy(update={"data": forget()})
            v = replace(v, layers=v.layers and with_data(v.layers, attack.params()["data"]))
        found.append(replace(v, recipe=v.recipe.model_copy(update={"attack": attack})))
    return found


def _select(key: str, tags: dict[str, Any], evaluation: EvalSpec, match: Any, needs: list[str]) -> Node:
    recipe = {"eval": evaluation.model_dump(), "match": match}
    sha = hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()
    inputs = inputs_of(EvalRecipe.model_validate({"eval": evaluation.model_dump()}))
    return Node(key, "select", {"method": ORIGINAL, "env": None} | tags, recipe, sha, needs, inputs)


def _attacks(
    variants: list[Variant], parent: str, tags: dict[str, Any], seed: int, unlearned: list[Written]
) -> Iterator[Node]:
    for v in variants:
        if v.search is None:
            choice = "".join(f" {k}={value}" for k, value in v.choice.items())
            yield _attack(v, {**tags, "choice": v.choice}, choice, parent, seed, unlearned)


def _attack(v: Variant, tags: Row, choice: str, parent: str, seed: int, unlearned: list[Written]) -> Node:
    recipe = v.seeded(seed)
    found = tags | {"attack": v.attack, "seed": seed, "random": v.random}
    key = f"seed {seed}/{tags['method']}/{v.attack}{choice}"
    return Node(key, "attack", found, recipe.model_dump(), digest(recipe), [parent], inputs_of(recipe, unlearned))


def _searches(
    variants: list[Variant], parent: str, tags: Row, lines: list[Node], seed: int, unlearned: list[Written]
) -> Iterator[Growing]:
    """The searches on a model, and what each of them found on the models of `lines`."""
    for v in variants:
        if v.search is None:
            continue
        check_installed()

        def trial(number: int, chosen: Chosen, v: Variant = v) -> Node:
            found = {**tags, "choice": {"trial": number}, "chosen": chosen, "searched": True}
            return _attack(v.trial(chosen), found, f" trial {number}", parent, seed, unlearned)

        def beside(line: Node, chosen: Chosen, v: Variant = v) -> Node:
            found = {**line.tags, "choice": {"worst for": tags["method"]}, "chosen": chosen, "searched": True}
            return _attack(v.trial(chosen), found, f" of {tags['method']}", line.key, seed, unlearned)

        search = TrialSearch(v.search, seed, parent, trial)
        yield search
        for line in lines:
            yield SearchLine(search, functools.partial(beside, line))


def bytes_needed(graph: Graph, jobs: int) -> int:
    """Bytes that what is left will write at most: float32 checkpoints, and the resumable states of those at work."""
    files = weight_files(graph.subjects[ORIGINAL].root)
    total: int = sum(math.prod(t["shape"]) for path in files for t in tensors_of(path).values())
    left = [n for n in graph if n.status != "done"]
    checkpoints = sum(1 + len(n.recipe["train"]["points"]) for n in left if n.command == "unlearn")
    return 4 * total * checkpoints + min(jobs, len(left)) * 2 * 12 * total


@dataclass(frozen=True)
class GraphPlan:
    """The nodes of a graph as they stand, and the bytes of disk for what is left."""

    graph: Graph
    disk: int

    def to_json(self) -> Row:
        keys = ("key", "command", "status", "run", "tags")
        return {
            "command": "pipeline",
            "name": self.graph.name,
            "state": self.graph.counts(),
            "disk_bytes": self.disk,
            "nodes": [{key: getattr(node, key) for key in keys} for node in self.graph],
        }

    def lines(self) -> list[str]:
        counts = ", ".join(f"{n} {status}" for status, n in self.graph.counts().items())
        if to_come := self.graph.size - len(self.graph.nodes):
            counts += f", {to_come} runs of searches to come"
        return [
            *(f"{node.status:<8} {node.command:<8} {node.key}" for node in self.graph),
            f"{self.graph.size} nodes: {counts}; up to {self.disk / 1e9:.1f} GB of disk for what is left",
        ]


def plan(graph: Graph, jobs: int) -> GraphPlan:
    """How far a graph is, of which so many nodes run at a time."""
    return GraphPlan(graph, bytes_needed(graph, jobs))
