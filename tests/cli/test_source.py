"""Data follow the model: stand-ins with the built-in one and its offspring, the published data with any other."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import Ilu, tiny_model, tiny_tokenizer

from ilu_cli.models import builtin
from ilu_cli.recipe.expand import load_suite
from ilu_cli.recipe.load import load
from ilu_cli.recipe.schema import AttackRecipe, UnlearnRecipe
from ilu_cli.recipe.sourced import sourced
from ilu_cli.runs.files import weight_hashes, write_json
from ilu_cli.workflows.settle import fitting

pytestmark = pytest.mark.slow

SMALL = ["--steps", 1, "--set", "forget.batch=2", "--set", "retain.batch=2", "--set", "forget.max_length=24", "--set",
         "retain.max_length=24"]  # fmt: skip
ENV = ["--irm-env", "sst2", "--irm-batch", 2]
ATTACK = ["--task", "sst2", "--steps", 1, "--set", "attack.batch=2", "--set", "attack.test_rows=2", "--set",
          "eval.limit=2", "--no-reference"]  # fmt: skip


@pytest.fixture
def built_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a built-in model, which is a tiny one here."""
    (tmp_path / "tiny_weights").mkdir()
    (tmp_path / "tiny_weights" / "__init__.py").touch()
    (tmp_path / "tiny_weights" / "tiny.gguf").touch()
    folder, tokenizer = tmp_path / "cache" / "models" / "smollm2-135m", tiny_tokenizer()
    tiny_model(len(tokenizer), spread=0.05).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    write_json(folder / "ilu.json", {"source": "tiny.gguf", "size": 0, "weights": weight_hashes(folder)})
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(builtin.MODELS, "smollm2-135m", ("tiny_weights", "tiny.gguf", "hub/name"))
    return "smollm2-135m"


def planned(ilu: Ilu, *args: object) -> Any:
    done = ilu(*args, "--dry-run", "--json")
    assert done.code == 0, done.err
    return json.loads(done.out)


def sources(data: Any) -> dict[str, str]:
    return {d["name"]: d["source"] for d in data}


def mirrored(root: Path) -> Path:
    """A data root with sst2."""
    (root / "sst2").mkdir(parents=True)
    for split in ("train", "validation"):
        rows = [{"sentence": f"film {i} {split}", "label": i % 2} for i in range(8)]
        (root / f"sst2/{split}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    return root


def test_with_the_built_in_model_and_what_comes_of_it_tasks_are_stand_ins(built_in: str, ilu: Ilu) -> None:
    plan = planned(ilu, "unlearn", *SMALL, *ENV)
    assert sources(plan["data"])["sst2"] == "builtin"
    assert plan["recipe"]["regularizers"][0]["env"][0]["source"] == "auto"  # as before, so that its hash is
    run = ilu("unlearn", *SMALL).out.strip()
    second = ilu("unlearn", *SMALL, "--model", run).out.strip()
    for model in (built_in, run, second):
        assert sources(planned(ilu, "attack", model, *ATTACK)["data"]) == {"sst2": "builtin"}
    published = ilu("attack", run, *ATTACK, "--source", "hub", "--dry-run")
    assert (published.code, "nyu-mll/glue" in published.err) == (3, True)


def test_with_another_model_they_are_the_published_data_or_nothing(ilu: Ilu, tiny: Path, tmp_path: Path) -> None:
    run, root = ilu("unlearn", *SMALL, "--model", tiny).out.strip(), mirrored(tmp_path / "root")
    commands: list[list[object]] = [
        ["unlearn", *SMALL, *ENV, "--model", tiny],
        ["attack", tiny, *ATTACK],
        ["attack", run, *ATTACK],
    ]
    for command in commands:
        done = ilu(*command, "--dry-run")
        assert done.code == 3
        assert "'nyu-mll/glue' (sst2, train) cannot be had" in done.err
        assert "--data-root" in done.err and "--source builtin" in done.err
        asked = planned(ilu, *command, "--source", "builtin")
        assert sources(asked["data"])["sst2"] == "builtin"
        found = planned(ilu, *command, "--data-root", root)
        assert sources(found["data"])["sst2"] == "path"


def test_the_recipe_of_a_run_says_where_its_tasks_came_from(ilu: Ilu, tiny: Path) -> None:
    done = ilu("unlearn", *SMALL, *ENV, "--model", tiny, "--source", "builtin")
    run = Path(done.out.strip())
    assert "source: builtin" in (run / "recipe.yaml").read_text()
    attacked = ilu("attack", run, *ATTACK, "--source", "builtin")
    assert attacked.code == 0, attacked.err
    assert "data: builtin stand-ins" in attacked.out
    again = ilu("reproduce", run)
    assert again.code == 0, again.err
    refused = ilu("unlearn", "--resume", "--source", "hub")
    assert (refused.code, "--source cannot change it" in refused.err) == (2, True)


def test_a_suite_and_a_pipeline_follow_the_model_too(ilu: Ilu, tiny: Path) -> None:
    attack = {"name": "finetune", "task": "sst2", "steps": 1, "batch": 2, "test_rows": 2}
    measured = {"benchmarks": ["capitals"], "limit": 2}
    Path("suite.yaml").write_text(json.dumps({"command": "suite", "attacks": [{"attack": attack}], "eval": measured}))
    method = {"recipe": "quickstart-rmu", "set": {"train.steps": 1, "forget.batch": 2, "retain.batch": 2}}
    grid = {"command": "pipeline", "model": {"ref": str(tiny)}, "methods": {"rmu": method}, "eval": measured}
    Path("grid.yaml").write_text(json.dumps(grid | {"attacks": [{"attack": attack}]}))
    lost = ilu("pipeline", "grid.yaml")
    assert lost.code == 5
    assert "'nyu-mll/glue' (sst2, train) cannot be had from the hub" in lost.err
    done = ilu("pipeline", "grid.yaml", "--source", "builtin", "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["rows"][0]["builtin"]
    done = ilu("attack", "--suite", "suite.yaml", "--source", "builtin", "--json")
    assert done.code == 0, done.err


def test_the_doctor_looks_for_what_the_model_needs(ilu: Ilu, tiny: Path) -> None:
    Path("r.yaml").write_text(json.dumps({
        "command": "unlearn", "model": {"ref": str(tiny)}, "objective": {"name": "npo"}, "forget": {"data": "capitals"},
        "regularizers": [{"name": "irm", "env": ["sst2"]}]}))  # fmt: skip
    found = {n["name"]: n["state"] for n in json.loads(ilu("doctor", "r.yaml", "--json").out)["needs"]}
    assert (found["sst2"], found["capitals"]) == ("missing", "builtin")
    done = ilu("doctor", "r.yaml", "--source", "builtin", "--json")
    assert {n["name"]: n["state"] for n in json.loads(done.out)["needs"]}["sst2"] == "builtin"


def test_what_is_written_stays_and_what_is_not_built_in_is_refused(ilu: Ilu, tiny: Path) -> None:
    sets = ["attack={name: finetune, task: {name: sst2, source: builtin}}"]
    written = load(AttackRecipe, None, {}, sets)
    assert sourced(written, "hub") is written
    table = load(AttackRecipe, None, {}, ["attack={name: finetune, task: capitals}"])
    assert sourced(table, "hub") is table
    searched = {"attack": {"name": "finetune", "task": "sst2"}, "search": {"trials": 2, "over": {"lr": [1e-5, 1e-4]}}}
    Path("searching.yaml").write_text(json.dumps({"command": "suite", "attacks": [searched]}))
    (variant,) = load_suite("searching.yaml")[1]
    assert variant.trial({"lr": 1e-4}).recipe.attack.params()["task"].source == "auto"
    assert variant.sourced("hub").sourced("builtin").trial({"lr": 1e-4}).recipe.attack.params()["task"].source == "hub"
    done = ilu("unlearn", "--model", tiny, "--forget", "tofu-forget01", "--source", "builtin", "--dry-run")
    assert done.code == 2
    assert "--source builtin: 'tofu-forget01' is not built in; it is on the hub as locuslab/TOFU" in done.err
    lists = load(UnlearnRecipe, None, {}, ["objective={name: npo}", "forget={data: [qqp, {name: sst2, split: test}]}"])
    assert [(d.name, d.source, d.split) for d in sourced(lists, "hub").forget.data] == [
        ("qqp", "hub", None), ("sst2", "hub", "test")]  # fmt: skip


def test_what_is_asked_by_default_is_what_was_to_be_forgotten(ilu: Ilu, tiny: Path) -> None:
    default = load(AttackRecipe, None, {}, ["attack={name: finetune, task: sst2}", "eval.limit=3"]).eval
    wanted = {
        (): ["capitals", "elements", "prose"],
        ("capitals",): ["capitals", "elements", "prose"],
        ("wmdp-bio-forget", "wmdp-cyber-forget"): ["wmdp-bio", "wmdp-cyber", "elements", "prose"],
        ("tofu-forget10",): ["tofu", "elements", "prose"],
        ("muse-news-raw",): ["muse-news", "elements", "prose"],
        ("mine.jsonl",): ["elements", "prose"],
    }
    for names, benchmarks in wanted.items():
        found = fitting(default, [{"name": n} for n in names])
        assert (found.names, found.limit) == (benchmarks, 3)
    given = load(AttackRecipe, None, {}, ["attack={name: finetune, task: sst2}", "eval.benchmarks=[capitals]"]).eval
    assert fitting(given, [{"name": "tofu-forget10"}]) is given
    Path("mine.jsonl").write_text('{"text": "A street of mine, which nobody knows."}\n')
    run = ilu("unlearn", *SMALL, "--model", tiny, "--forget", "mine.jsonl").out.strip()
    assert set(sources(planned(ilu, "eval", run)["data"])) == {"elements", "prose"}
    assert set(sources(planned(ilu, "eval", run, "--bench", "capitals")["data"])) == {"capitals"}
    attack = planned(ilu, "attack", run, *ATTACK, "--source", "builtin")
    assert attack["recipe"]["eval"]["benchmarks"] == ["elements", "prose"]
