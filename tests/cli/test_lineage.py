"""Which attack on the original an attack is held against: the same recipe, and the same rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import Ilu, present
from test_chain import ATTACK, rmu

from ilu_cli.models.subject import of_run
from ilu_cli.recipe.load import digest, load
from ilu_cli.recipe.schema import AttackRecipe
from ilu_cli.runs.lineage import same_recipe
from ilu_cli.runs.store import Manifest, Store
from ilu_cli.workflows.taskvec.roles import find_roles

pytestmark = pytest.mark.slow

SST2 = ["--task", "sst2", "--source", "builtin", *ATTACK[2:]]


@pytest.fixture
def two(tiny: Path, ilu: Ilu) -> Any:
    """Two models attacked by one recipe; the task was an environment of the second, which is attacked on fewer rows."""
    attacked = []
    for env in ([], ["--irm-env", "sst2", "--source", "builtin", "--irm-batch", 2]):
        unlearned = ilu(*rmu(tiny), *env)
        assert unlearned.code == 0, unlearned.err
        done = ilu("attack", unlearned.out.strip(), *SST2, "--json")
        assert done.code == 0, done.err
        attacked.append(json.loads(done.out))
    return attacked


def rows(run: Any) -> str:
    return str(next(d["fingerprint"] for d in run.manifest.data if d["role"] == "attack"))


def test_each_model_has_the_line_of_its_own_rows(two: Any) -> None:
    store = Store()
    first, second = (store.get(found["run"]) for found in two)
    assert rows(first) != rows(second)
    assert len([r for r in store.runs() if r.manifest.command == "attack"]) == 4
    for run, found in zip((first, second), two):
        roles = find_roles(of_run(run), store).by_name
        assert rows(roles["finetuned"].run) == rows(run)
        assert present(roles["finetuned"].run).id == found["reference"]["run"]


def test_a_runs_recipe_hashes_to_what_its_manifest_says_and_is_the_same_attack(two: Any, ilu: Ilu) -> None:
    store = Store()
    first = store.get(two[0]["run"])
    recipe = load(AttackRecipe, first.path / "recipe.yaml", {}, [])
    assert digest(recipe) == first.manifest.recipe_sha256
    again = ilu("attack", first.manifest.parents[0]["id"], "--recipe", first.path / "recipe.yaml", "--json")
    assert again.code == 0, again.err
    assert json.loads(again.out)["reference"]["run"] == two[0]["reference"]["run"], "the line that is there serves"
    assert len([r for r in store.runs() if r.manifest.command == "attack"]) == 5


def test_runs_of_before_are_known_by_the_recipe_that_was_asked_for() -> None:
    old = Manifest("a", "attack", recipe_sha256="asked")
    new = Manifest("b", "attack", recipe_sha256="filled", asked_sha256="asked")
    other = Manifest("c", "attack", recipe_sha256="filled otherwise", asked_sha256="asked")
    assert same_recipe(old, new) and same_recipe(old, old) and same_recipe(new, new)
    assert not same_recipe(new, other), "one recipe, filled with the forget data of two lineages"
    assert not same_recipe(Manifest("d", "attack"), Manifest("e", "attack"))
