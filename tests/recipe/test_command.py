"""`taskvec apply` was called `apply` inside: what was written then is read, and is known by the same hash."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import Ilu

from ilu_cli.errors import UsageError
from ilu_cli.recipe.load import digest, load
from ilu_cli.recipe.schema import ApplyRecipe, UnlearnRecipe
from ilu_cli.recipe.source import read_layers
from ilu_cli.runs import ledger
from ilu_cli.runs.store import Store

BODY = "vectors: [{run: u, alpha: -1.0}]\nmerge: ties\ndensity: 0.2\n"
SHA256 = (
    "d3f4321550d7f4158c3068afaf4ffeca12ee565905e47d57d05d9092370118d8"  # as the version wrote it that knew only `apply`
)


@pytest.mark.parametrize("command", ["command: apply\n", "command: taskvec apply\n", ""])
def test_a_recipe_of_either_name_is_one_recipe(tmp_path: Path, command: str) -> None:
    path = tmp_path / "sum.yaml"
    path.write_text(command + BODY)
    recipe = load(ApplyRecipe, path, {}, [])
    assert recipe.command == "taskvec apply"
    assert digest(recipe) == SHA256


def test_it_is_refused_by_its_name(tmp_path: Path) -> None:
    path = tmp_path / "sum.yaml"
    path.write_text("command: apply\n" + BODY)
    with pytest.raises(UsageError, match="this is a recipe for `ilu taskvec apply`, not for `ilu unlearn`"):
        load(UnlearnRecipe, path, {}, [])
    path.write_text("command: [apply]\n")
    assert read_layers(path).data == {"command": ["apply"]}


def test_a_manifest_of_before_is_read(tmp_path: Path) -> None:
    store = Store(tmp_path / "runs")
    run = store.create("taskvec apply", "linear")
    assert run.id.startswith("taskvec-apply-linear-")
    path = run.path / "manifest.json"
    assert run.resume_command == f"ilu taskvec apply --recipe {run.path / 'recipe.yaml'}"  # it has no --resume
    written = json.loads(path.read_text())
    assert written["command"] == "taskvec apply"
    del written["sha256"]
    path.write_text(json.dumps(ledger.seal(written | {"command": "apply"})))
    assert store.get(run.id).manifest.command == "taskvec apply"
    assert "Sum of task vectors" in store.get(run.id).card() and "`ilu taskvec apply --recipe" in run.card()


def test_every_way_to_write_the_name(ilu: Ilu) -> None:
    found = {ilu("schema", *words).out for words in (["apply"], ["taskvec", "apply"], ["taskvec apply"])}
    assert len(found) == 1
    assert json.loads(found.pop())["properties"]["command"]["const"] == "taskvec apply"
    refused = ilu("schema", "taskvec", "aply")
    assert refused.code == 2 and "Did you mean 'taskvec apply'?" in refused.err
    for words in (["taskvec", "apply"], ["taskvec-apply"]):
        assert "RUN" in ilu(*words, "--help").out
        assert ilu(*words, "u", "--density", 2).code == 2
    assert "taskvec-apply" not in ilu("--help").out
