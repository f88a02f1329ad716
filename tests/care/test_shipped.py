"""What is shipped gives no cause for warnings by its data, and what overlaps by design says so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ilu_cli import registry
from ilu_cli.data.sources import Dataset, load_dataset
from ilu_cli.recipe.load import load, shipped
from ilu_cli.recipe.refs import DataRef
from ilu_cli.recipe.schema import UnlearnRecipe
from ilu_cli.workflows.content import Content, of_attack, of_benchmarks, of_training, rows_of, trained_on

pytestmark = pytest.mark.slow

CAPITALS = {"forget": {"data": [{"name": "capitals"}]}, "retain": {"data": [{"name": "elements"}, {"name": "prose"}]},
            "regularizers": [{"env": [{"name": "gsm8k"}]}]}  # fmt: skip
TASKS = ("agnews", "gsm8k", "mnli", "qqp", "sst2", "winogrande")


def builtin(name: str) -> Dataset:
    return load_dataset(DataRef(name=name, source="builtin"), "train")


def recipes() -> dict[str, UnlearnRecipe]:
    """The shipped unlearning recipes all of whose data are built in."""
    named = {name: path for name, path in shipped().items() if name.startswith("quickstart")}
    return {name: load(UnlearnRecipe, path, {}, []) for name, path in named.items() if name != "quickstart-finetune"}


def by_data() -> list[str]:
    """Recipes by name, one for each of the data that any of them has."""
    found = {str((r.forget.data, r.retain and r.retain.data)): name for name, r in sorted(recipes().items())}
    return sorted(found.values())


@pytest.mark.parametrize("name", by_data())
def test_the_data_of_a_shipped_recipe_are_apart(name: str) -> None:
    recipe = recipes()[name]
    retain = [load_dataset(d, "train") for d in recipe.retain.data] if recipe.retain else []
    envs = [builtin(task) for task in TASKS]  # any of them may be an environment
    found = of_training([load_dataset(d, "train") for d in recipe.forget.data], retain, envs)
    assert found.warned == []
    assert not any(o.rows for o in found.overlaps)


@pytest.mark.parametrize(
    ("attack", "data"), [*(("finetune", t) for t in TASKS), ("relearn_benign", "surroundings"), ("relearn", "capitals")]
)
def test_a_shipped_attack_is_apart_from_what_was_forgotten_or_says_so(attack: str, data: str) -> None:
    found = of_attack([builtin(data)], [CAPITALS], registry.attack[attack].declared.forget)
    assert found.warned == []
    counts = {(o.left.name, o.right.name): len(o.rows) for o in found.overlaps}
    assert counts[data, "capitals"] == (1700 if attack == "relearn" else 0)


def test_the_questions_of_the_quickstart_are_in_no_training_text() -> None:
    content = Content()
    names = {name: registry.benchmark[name].obj() for name in ("capitals", "elements", "prose")}
    asked: Any = {name: (bench, bench.items()) for name, bench in names.items()}
    trained = [*trained_on(content, [CAPITALS]), *(rows_of("attack", builtin(t)) for t in TASKS)]
    of_benchmarks(content, asked, trained)
    assert content.warned == []
    assert len(content.overlaps) == 3 * len(trained)
    assert content.unread == []


def test_a_benchmark_of_retained_data_declares_it() -> None:
    class Kept:
        role, retains = "forget", True

    content, rows = Content(), rows_of("retain", builtin("elements"))
    items = [{"question": text, "choices": ["A", "B"], "answer": 0} for text in rows.texts[:3]]
    of_benchmarks(content, {"kept": (Kept(), items)}, [rows])  # type: ignore[dict-item]
    assert content.warned == []
    assert [len(o.rows) for o in content.overlaps] == [3]
    Kept.retains = False
    of_benchmarks(content, {"kept": (Kept(), items)}, [rows])  # type: ignore[dict-item]
    assert [w.id for w in content.warned] == ["rows-overlap"]
    assert registry.benchmark["tofu-forget01"].obj.retains
    assert registry.benchmark["muse-news"].obj.retains


def test_data_that_cannot_be_read_any_more_are_named(tmp_path: Path) -> None:
    gone = {"forget": {"data": [{"name": str(tmp_path / "gone.jsonl")}]}}
    found = of_attack([builtin("sst2")], [gone], None)
    assert found.facts()["unread"] == [f"forget: {tmp_path / 'gone.jsonl'}"]


def test_which_attacks_touch_the_forget_data_is_declared() -> None:
    known = {name: registry.attack[name].declared.forget for name in registry.attack}
    assert {n for n, stance in known.items() if stance == "taught"} == {"relearn", "jailbreak_tune", "rtt"}
    assert {n for n, stance in known.items() if stance == "held out"} == {"relearn_benign"}
