from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import present

from ilu_cli.recipe.load import digest, dump, load, validate
from ilu_cli.recipe.schema import RECIPES, AttackRecipe, UnlearnRecipe
from ilu_cli.recipe.source import Layers, RecipeError, parse_scalar, read_layers

GOOD = """\
command: unlearn
objective: {name: npo, beta: 0.2}
forget: {data: capitals}
retain: {name: nll, data: [prose, elements]}
train: {lr: 1e-4}
"""


def written(tmp_path: Path, text: str) -> Any:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    return path


def problems(tmp_path: Path, text: str, flags: Any = None, sets: Any = (), command: str = "unlearn") -> list[Any]:
    with pytest.raises(RecipeError) as caught:
        load(RECIPES[command], written(tmp_path, text), flags or {}, list(sets))
    assert caught.value.exit_code == 2
    return [str(p) for p in caught.value.problems]


def test_defaults_flags_and_sets_meet_in_one_recipe(tmp_path: Path) -> None:
    path = written(tmp_path, GOOD)
    recipe = load(
        UnlearnRecipe, path, {"--lr": (("train", "lr"), 3e-4)}, ["train.steps=7", "retain.data.1=capitals_x"][:1]
    )
    assert (recipe.objective.params()["beta"], recipe.train.lr, recipe.train.steps) == (0.2, 3e-4, 7)
    assert recipe.objective.params() == {"beta": 0.2, "reduction": "sum"}
    assert [d.name for d in present(recipe.retain).data] == ["prose", "elements"]


def test_component_keys_reach_the_component(tmp_path: Path) -> None:
    """What an idea's signature declares is what its function is called with: nothing is dropped on the way."""
    text = "command: attack\nattack: {name: finetune, task: elements, steps: 3, lr: 1.0e-3}\n"
    params = load(AttackRecipe, written(tmp_path, text), {}, []).attack.params()
    assert (params["task"].name, params["steps"], params["lr"]) == ("elements", 3, 1e-3)
    recipe = load(UnlearnRecipe, written(tmp_path, GOOD), {}, [])
    assert present(recipe.retain).params() == {}


def test_three_mistakes_are_reported_together_with_line_and_near_name(tmp_path: Path) -> None:
    text = GOOD.replace("beta: 0.2", "betta: 0.2").replace("data: capitals", "data: capitls") + "seed: many\n"
    found = problems(tmp_path, text)
    assert len(found) == 3
    assert any(p.startswith("mine.yaml:2: objective.betta: unknown key") and "'beta'" in p for p in found)
    assert any(p.startswith("mine.yaml:3: forget.data.0: unknown task 'capitls'") and "'capitals'" in p for p in found)
    assert any(p.startswith("mine.yaml:6: seed:") and "integer" in p for p in found)


def test_a_problem_of_a_flag_names_the_flag(tmp_path: Path) -> None:
    found = problems(tmp_path, GOOD, {"--lr": (("train", "lr"), -1.0)}, ["train.stps=3", "nonsense"])
    assert any(p.startswith("--lr: train.lr:") for p in found)
    assert any(p.startswith("--set train.stps: train.stps: unknown key") and "'steps'" in p for p in found)
    assert any(p.startswith("--set nonsense") for p in found)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("name: npo, beta: 0.2", "name: npi"), "unknown name 'npi'. Did you mean 'npo'?"),
        (("beta: 0.2", "beta: 0"), "greater than 0"),
        (("beta: 0.2", "beta: '0.2'"), "number"),
        (("name: nll", "name: hidden_mse"), "needs an objective with a layer"),
        (("lr: 1e-4", "warmup: 80"), "do not fit"),
        (("data: capitals}", "data: capitals}\nregularizers: [{name: irm, env: [capitals]}]"), "is the forget data"),
        (("data: capitals}", "data: {name: capitals, source: hub}}"), "has no hub dataset"),
        (("command: unlearn", "command: attack"), "for `ilu attack`"),
        (("train: {", "train: {steps: true, "), "integer"),
        (("forget: {data: capitals}", "forget: {data: []}"), "at least 1"),
        (("forget: {data: capitals}\n", ""), "required"),
    ],
)
def test_what_cannot_be_is_refused(tmp_path: Path, change: tuple[str, str], message: str) -> None:
    found = problems(tmp_path, GOOD.replace(*change))
    assert any(message in p for p in found), found


@pytest.mark.parametrize(
    ("text", "message"),
    [("a: [1", "not valid YAML"), ("- 1\n", "mapping"), ("command: unlearn\ncommand: unlearn\n", "second time")],
)
def test_what_is_no_recipe_is_refused(tmp_path: Path, text: str, message: str) -> None:
    assert any(message in p for p in problems(tmp_path, text))


def test_a_key_written_twice_is_a_problem(tmp_path: Path) -> None:
    assert any("second time" in p for p in problems(tmp_path, GOOD + "train: {lr: 1e-5}\n"))


def test_the_resolved_recipe_reads_back_as_itself(tmp_path: Path) -> None:
    recipe = load(UnlearnRecipe, written(tmp_path, GOOD), {}, [])
    again = load(UnlearnRecipe, written(tmp_path, dump(recipe)), {}, [])
    assert again == recipe
    assert digest(again) == digest(recipe) != digest(load(UnlearnRecipe, written(tmp_path, GOOD), {}, ["seed=1"]))


def test_a_key_that_came_later_changes_no_hash_where_it_is_not_used(tmp_path: Path) -> None:
    text = "command: unlearn\nforget: {data: capitals}\nobjective: {name: npo}\nretain: {name: nll, data: elements}\n"
    plain = digest(load(UnlearnRecipe, written(tmp_path, text), {}, ["train.precision=bf16"]))
    assert plain == "88c8eeaefa4ac4acdc6e4de395543282215d8fbd7d5596a49223b4f60e4fe7c6"
    attack = "command: attack\nattack: {name: relearn}\n"
    plain_attack = digest(load(AttackRecipe, written(tmp_path, attack), {}, ["attack.precision=bf16"]))
    assert plain_attack == "0aef3d131b98ef09904da1d69217dee1f900cf6fcd69b9bfd437f91e1b5ea795"
    for key in (
        "optimizer=muon",
        "warmup=3",
        "weight_decay=0.1",
        "max_grad_norm=1.0",
        "mix={data: prose}",
        "memory.checkpointing=true",
    ):
        assert digest(load(AttackRecipe, written(tmp_path, attack), {}, [f"attack.{key}"])) != plain_attack
    for key in (
        "train.optimizer=sgd",
        "train.budget={kl: 0.1}",
        "retain.dual={limit: 1.0}",
        "train.memory.checkpointing=true",
        "train.save_dtype=bf16",
    ):
        assert digest(load(UnlearnRecipe, written(tmp_path, text), {}, [key])) != plain
    text += "regularizers: [{name: irm, env: [gsm8k]}]\n"
    found = {k: digest(load(UnlearnRecipe, written(tmp_path, text), {}, [f"regularizers.0.every={k}"])) for k in (1, 2)}
    assert digest(load(UnlearnRecipe, written(tmp_path, text), {}, [])) == found[1] != found[2]


def test_a_penalty_is_due_within_the_run(tmp_path: Path) -> None:
    text = "command: unlearn\nforget: {data: capitals}\nobjective: {name: npo}\ntrain: {steps: 3}\n"
    text += "regularizers: [{name: irm, env: [gsm8k]}]\n"
    load(UnlearnRecipe, written(tmp_path, text), {}, ["regularizers.0.every=3"])
    with pytest.raises(RecipeError, match=r"a run of 3 steps has no step 4"):
        load(UnlearnRecipe, written(tmp_path, text), {}, ["regularizers.0.every=4"])


def test_numbers_in_scientific_notation_are_numbers() -> None:
    assert parse_scalar("1e-4") == 1e-4
    assert yaml.safe_load("1e-4") == "1e-4"  # what plain PyYAML does


def test_set_reaches_into_lists_and_makes_what_is_missing(tmp_path: Path) -> None:
    layers = read_layers(written(tmp_path, GOOD))
    layers.data.pop("regularizers", None)
    layers.put(("regularizers", "0", "name"), "irm", "--set a")
    layers.put(("regularizers", "0", "env"), ["gsm8k_"], "--set b")
    with pytest.raises(RecipeError, match="unknown task 'gsm8k_'"):
        validate(UnlearnRecipe, layers)


def test_an_empty_recipe_says_what_is_required() -> None:
    with pytest.raises(RecipeError, match="objective"):
        validate(UnlearnRecipe, Layers())


ATTACKS = "command: suite\nattacks:\n- attack: {name: noise}\n  search: {trials: 2, over: {sigmas: [[0.1], [0.2]]}}\n"


@pytest.mark.parametrize(
    ("command", "text", "keys"),
    [
        ("suite", ATTACKS.replace("trials: 2", "trials: 0"), ["attacks.0.search.trials"]),
        ("suite", ATTACKS.replace("[[0.1], [0.2]]", "{low: .nan, high: 1.0}"), ["attacks.0.search.over.sigmas.low"]),
        ("attack", "command: attack\nattack: {name: interpolate, ts: [1.5]}\n", ["attack.ts.0"]),
        ("attack", "command: attack\nattack: {name: prune, fractions: [2, x]}\n", ["attack.fractions.0", ".1"]),
    ],
)
def test_what_is_missing_only_since_it_was_wrong_is_not_told(
    tmp_path: Path, command: str, text: str, keys: list[str]
) -> None:
    """A list that is empty without its wrong item, a key that is required and was wrong; and no tag of the schema."""
    found = problems(tmp_path, text, command=command)
    assert len({p.split(": ")[1] for p in found}) == len(keys)
    assert all(any(f"{key}: " in p for p in found) for key in keys)
    assert not any("is required" in p or "at least 1 item" in p for p in found)
