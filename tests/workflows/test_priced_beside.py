"""What a plan counts beside the steps: rows that are kept, budgets and defences, adapters, and a node's main memory."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers as T
from conftest import Ilu
from test_fit import ALL, shape
from torch import nn

from ilu_cli.models.load import add_adapter, trained_params
from ilu_cli.models.logits import LMHead
from ilu_cli.recipe.load import find, load
from ilu_cli.recipe.memory import MemorySpec
from ilu_cli.recipe.schema import UnlearnRecipe
from ilu_cli.recipe.specs import LoraSpec, TrainSpec
from ilu_cli.workflows import moments
from ilu_cli.workflows.estimate import PROCESS, TrainingPrice, estimate
from ilu_cli.workflows.kept import at_most, beside, priced
from ilu_cli.workflows.main_memory import main_memory
from ilu_cli.workflows.moments import Beside, Ground, Moment, OnDisk
from ilu_cli.workflows.passes import ASKED, Passing, Shape, Shapes, asked_of, joined
from ilu_cli.workflows.plan import RunPlan, Training

WIDTH, INNER, WORDS = 32, 64, 100
ONE = (ALL - 2 * WORDS * WIDTH - WIDTH) // 3  # weights of a layer, more than the two matrices and the norm around them
SUBJECT: Any = SimpleNamespace(label="m", kind="folder", folder=Path("m"))
FORGET = Passing("forget", 2, 8, 14)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return shape(tmp_path)


def empty(config: Path) -> Any:
    with torch.device("meta"):
        return T.AutoModelForCausalLM.from_config(T.AutoConfig.from_pretrained(config))


def recipe(name: str, *sets: str) -> UnlearnRecipe:
    return load(UnlearnRecipe, find(f"quickstart-{name}"), {}, list(sets))


def test_what_is_kept_of_rows_by_hand(config: Path) -> None:
    shape = T.AutoConfig.from_pretrained(config)
    rows = ["forget.batch=2", "forget.max_length=8", "retain.batch=3", "retain.max_length=10", "train.steps=5"]
    rmu = recipe("rmu", "objective.layer=1", *rows)
    states = 4 * WIDTH * 5 * 3 * 10  # of the retain rows, at one layer
    below = 4 * WIDTH * 5 * (2 * 8 + 3 * 10)
    assert at_most(rmu, shape, 0) == states
    assert at_most(rmu, shape, 1) == states + below
    assert at_most(rmu, shape, 1, world=2) == states + below / 2
    assert at_most(rmu, shape, 1, sharded=True) == states
    little = rmu.model_copy(update={"train": rmu.train.model_copy(update={"prefix_gb": 1e-6})})
    assert at_most(little, shape, 1) == states + 1000
    assert at_most(recipe("npo", *rows), shape, 0) == 0  # a number for each row
    budget = ["train.budget.kl=0.1", "train.budget.rows=4", "train.budget.max_length=9"]
    assert at_most(recipe("npo", *rows, *budget), shape, 0) == 4 * WIDTH * 4 * 9


def test_what_is_run_before_the_first_step(config: Path) -> None:
    """Sixteen rows at a time, or as many as there are."""
    rows = ["forget.batch=2", "forget.max_length=8", "retain.batch=3", "retain.max_length=10", "train.steps=5"]
    rmu = recipe("rmu", "objective.layer=1", *rows)
    states, below = Passing(ASKED, 15, 10, 0, 1), Passing(ASKED, 16, 10, 0, 0)
    norms = Passing(ASKED, 16, 10, 0, 1)
    assert asked_of(rmu, Shapes.full(rmu), 1) == [norms, states, below]
    assert asked_of(rmu, Shapes.full(rmu), 0) == [norms, states]
    few = replace(Shapes.full(rmu), retain=Shape(3, 10, 9, rows=4))
    assert asked_of(rmu, few, 1) == [norms, replace(states, rows=4), replace(below, rows=14)]
    npo = recipe("npo", "train.heal.steps=9", "train.heal.batch=1", "train.heal.max_length=9", *rows)
    said, heals = Passing(ASKED, 10, 8, 10 * 7), Passing(ASKED, 9, 9, 0)
    assert asked_of(npo, Shapes.full(npo), 0) == [said, heals]
    assert asked_of(recipe("npo", "train.prefix_gb=0", *rows), Shapes.full(npo), 2) == [said]


def test_asking_the_original_is_a_moment_of_its_own(config: Path) -> None:
    """Without moments or gradients; the head's tiles where it is run, and copies of the trained weights as they are."""
    npo, model = recipe("npo", "forget.batch=2", "forget.max_length=8"), empty(config)
    found = priced(npo, Shapes.full(npo), 1, model, list(model.parameters()), 11)
    by = {m.when: m for m in found.moments}
    inside, head = by[ASKED], by[f"{ASKED}, head"]
    for m in (inside, head):
        assert (m.weights, m.gradients, m.optimizer, m.caches) == (4 * ALL, 0, 0, 11)
    scored = 16 * 7
    tile = scored * WORDS * (3 * 4 + 2) + 2 * 2 * (scored + WORDS) * WIDTH + 4 * scored * WIDTH
    assert head.logits == tile
    assert head.copies == 2 * sum(p.numel() for n, p in model.named_parameters() if ".layers." in n and p.ndim == 2)
    assert head.activations == 4 * 16 * 8 * WIDTH  # the states that the head reads
    assert inside.activations > head.activations + head.copies


def test_the_head_as_it_was_is_counted_where_it_is_trained(config: Path) -> None:
    """A copy for each term that reads the original's distribution, all the time and on the device."""
    heals = recipe("npo", "train.budget.kl=0.1", "train.heal.steps=9", "retain.name=kl")
    assert beside(heals, [(5, 7)]).heads == 3
    head = 4 * WORDS * WIDTH
    for ground, share in ((Ground(), 1), (Ground(80 * 10**9), 1), (Ground(shards=2), 2)):
        for patterns, copied in ((None, 3 * head // share), (["model.layers.1.*"], 0)):
            model = empty(config)
            params = list(trained_params(model, patterns, False).values())
            price = TrainingPrice(model, params, TrainSpec(), 0, ground, beside=Beside(heads=3))
            assert price.base["caches"] == copied


def test_a_trained_head_is_copied_and_another_is_not() -> None:
    linear = nn.Linear(WIDTH, WORDS, bias=False)
    assert LMHead(linear).kept().weight.data_ptr() != linear.weight.data_ptr()
    linear.requires_grad_(False)
    assert LMHead(linear).kept().weight.data_ptr() == linear.weight.data_ptr()


def test_what_is_kept_lies_there_while_the_weights_heal(ilu: Ilu, config: Path) -> None:
    asked = ["plan", "quickstart-npo", "--config", config, "--set", "train.heal.steps=9", "--set", "train.heal.batch=2"]
    cpu = ["--devices", "1x(CPU,16GB,1TFLOPS,0.1TB/s)", "--json", "--set", "train.heal.max_length=9"]
    jobs = json.loads(ilu(*asked, *cpu).out)["jobs"]
    rows = 4 * WIDTH * 9 * 2 * (9 - 1)  # states of the scored tokens
    assert [j["answers"][0]["kinds"]["caches"] for j in jobs] == [rows + 4 * WORDS * WIDTH] * 2


def test_a_dry_run_on_an_accelerator_tells_main_memory(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Ground, "here", classmethod(lambda _: Ground(80 * 10**9)))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    model, npo = empty(config), recipe("npo")
    found = priced(npo, Shapes.full(npo), 2, model, list(model.parameters()), 11, OnDisk(9, 2))
    assert found.main_peak == 2 * PROCESS + 2 * 4 * ALL  # both read the model
    plan = RunPlan(recipe=npo, subject=SUBJECT, parameters=ALL, parents=[], training=Training(1, ALL, found.peak, 0),
                   memory=found)  # fmt: skip
    assert plan.to_json()["main_memory_bytes"] == found.main_peak
    assert any(line.startswith("main memory about") for line in plan.lines())
    monkeypatch.setattr(Ground, "here", classmethod(lambda _: Ground()))
    assert priced(npo, Shapes.full(npo), 1, model, list(model.parameters()), 11, OnDisk(9, 2)).main == ()


def test_what_lies_around_the_layers_is_summed_in_copies(config: Path) -> None:
    model, around = empty(config), 4 * (2 * WORDS * WIDTH + WIDTH)
    for memory, copies in ((None, 3), (80 * 10**9, 2)):  # gloo has one more
        ground = Ground(memory, shards=2)
        found = estimate(model, list(model.parameters()), [FORGET], TrainSpec(), 0, OnDisk(), ground).moments
        (summed,) = (m for m in found if m.when == "summing gradients")
        assert summed.weights == 4 * ALL // 2
        assert summed.gradients == 4 * ALL // 2 + copies * around + around // 2
        assert summed.optimizer == 8 * ALL // 2


def test_what_defences_and_budgets_hold_is_counted(config: Path) -> None:
    trained = [(5, 7), (5,)]
    repselect = recipe("repselect")  # of which lr is auto, so that a budget keeps weights and a first step
    assert beside(repselect, trained) == Beside(first=2 * 40, each=40, budget=2 * 40, heads=2)
    follows = recipe("repselect", "defences.0.built=false")
    assert beside(follows, trained) == Beside(first=3 * 40, each=40, budget=2 * 40, heads=2)
    loss = recipe("npo", "defences=[{name: sam}]", "train.budget.benchmark=elements")
    assert beside(loss, trained) == Beside(first=3 * 40, each=3 * 40, budget=40)

    def peaks(held: Beside) -> dict[str, Moment]:
        model = empty(config)
        passes = [FORGET, Passing("budget", 4, 8, 28, chunks=True)]
        params = list(model.parameters())
        return {m.when: m for m in estimate(model, params, passes, TrainSpec(), 7, OnDisk(), Ground(), held).moments}

    plain, held = peaks(Beside()), peaks(Beside(first=3 * ALL, each=ALL, budget=2 * ALL))
    assert held["backward, head"].bytes - plain["backward, head"].bytes == 4 * ALL
    assert held["budget"].bytes - plain["budget"].bytes == 4 * 3 * ALL
    shot = held["backward, head, before the first step"]
    assert (shot.optimizer, shot.defences, shot.gradients) == (0, 12 * ALL, 4 * ALL)
    assert not any("first step" in when for when in plain)
    chunk, states = 5 * 4 * 28 * WORDS, 4 * 28 * WIDTH
    assert plain["budget"].logits == chunk + states
    assert (plain["budget"].copies, plain["budget"].gradients) == (0, 0)


def test_an_adapter_is_written_as_it_is_and_compared_where_it_adds(config: Path) -> None:
    model = empty(config)
    add_adapter(model, LoraSpec(r=2, targets=["down_proj", "q_proj"]), 0)
    params = list(trained_params(model, None, True).values())
    found = estimate(model, params, [FORGET], TrainSpec(), 0, OnDisk(largest=9, saved=2), Ground()).moments
    by = {m.when: m for m in found}
    assert by["saving"].copies == 0
    assert by["comparing"].copies == (2 * 8 + 2 * 2) * WIDTH * INNER  # two products in float64, two stored weights


def test_two_sharded_processes_on_cpus_read_a_layer_and_write_a_file_at_a_time(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = empty(config)
    found = estimate(model, list(model.parameters()), [FORGET], TrainSpec(), 0, OnDisk(9, 2), Ground(shards=2)).moments
    by = {m.when: m for m in found}
    assert by["loading"] == Moment("loading", weights=4 * ALL // 2 + 4 * ONE, files=9)
    assert by["saving"].copies == 2 * ALL
    assert by["saving"].weights == 4 * ALL // 2 + 4 * WORDS * WIDTH  # its part, and a matrix that is gathered
    assert by["saving"].optimizer == 0  # which is over
    monkeypatch.setattr("ilu_cli.workflows.estimate.LARGEST", 100)
    model = empty(config)
    found = estimate(model, list(model.parameters()), [FORGET], TrainSpec(), 0, OnDisk(9, 2), Ground(shards=2)).moments
    assert next(m.copies for m in found if m.when == "saving") == 2 * WORDS * WIDTH  # no file is smaller than a weight
    monkeypatch.setattr("ilu_cli.workflows.estimate.merges", lambda _: True)
    whole = OnDisk(9, 2, by_weight=False)
    found = estimate(model, list(model.parameters()), [FORGET], TrainSpec(), 0, whole, Ground(shards=2)).moments
    by = {m.when: m for m in found}
    assert (by["loading"].weights, by["saving"].copies) == (4 * ALL, 2 * ALL)


def test_the_ground_is_that_of_the_launch(monkeypatch: pytest.MonkeyPatch) -> None:
    launch = SimpleNamespace(device=torch.device("cpu"), world=2, mesh=object(), offload=True)
    monkeypatch.setattr(moments, "backend", lambda: launch)
    assert Ground.here() == Ground(None, 2)  # parts that lie in main memory lie where they are used
    launch.mesh = None
    assert Ground.here() == Ground()


@pytest.mark.parametrize("adapter", [False, True])
def test_main_memory_by_hand(config: Path, *, adapter: bool) -> None:
    def price(ground: Ground, **keys: Any) -> TrainingPrice:
        model = empty(config)
        if adapter:
            add_adapter(model, LoraSpec(r=2, targets=["down_proj"]), 0)
        params: list[nn.Parameter] = list(trained_params(model, None, adapter).values())
        return TrainingPrice(model, params, TrainSpec(memory=MemorySpec(**keys)), 0, ground)

    own = 3 * 2 * (WIDTH + INNER) if adapter else ALL
    whole, written = ALL + own * adapter, 4 * own if adapter else 2 * ALL
    gpu = Ground(80 * 10**9)
    load_, steps, save = main_memory(price(gpu), 8, 5, OnDisk(9, 2))
    assert load_ == Moment("loading", weights=8 * 4 * whole, process=8 * PROCESS)
    assert steps == Moment("steps", caches=40, process=8 * PROCESS)
    assert save == Moment("saving", copies=written, caches=40, process=8 * PROCESS)
    load_, steps, save = main_memory(price(gpu, offload="optimizer"), 8, 0, OnDisk(9, 2))
    assert (steps.weights, steps.gradients, steps.optimizer) == (8 * 4 * own, 8 * 4 * own, 8 * 8 * own)
    away = price(Ground(80 * 10**9, shards=16, away=True))
    load_, steps, save = main_memory(away, 8, 0, OnDisk(9, 2))
    assert load_.weights == 4 * (ONE + 2 * (WIDTH + INNER) * adapter) and save.copies == written
    assert (steps.weights, steps.gradients, steps.optimizer) == (2 * whole, 2 * own, 4 * own)
    assert main_memory(away, 8, 0, OnDisk(9, 2, by_weight=False))[0].weights == 4 * whole


def test_a_plan_tells_main_memory_and_counts_what_is_kept_on_cpus(ilu: Ilu, config: Path) -> None:
    asked = ["plan", "quickstart-rmu", "--config", config, "--set", "objective.layer=1", "--devices"]
    answers = json.loads(ilu(*asked, "8xH100-80GB", "--json").out)["jobs"][0]["answers"]
    reading = {a["launch"]: (a["main_memory_bytes"], a["main_memory_when"]) for a in answers}
    cached = answers[0]["main_memory_bytes"] - PROCESS
    assert cached > 4 * ALL  # so small is the model
    assert reading["one-gpu"][1] == "saving"
    assert "main memory of a node" in ilu(*asked, "8xH100-80GB").out
    (cpu,) = json.loads(ilu(*asked, "1x(CPU,16GB,1TFLOPS,0.1TB/s)", "--json").out)["jobs"][0]["answers"]
    assert cpu["kinds"]["caches"] == cached - 2 * ALL
    assert "main_memory_bytes" not in cpu


def test_rows_that_are_run_as_one_are_priced_as_one() -> None:
    forget, retain = Passing("forget", 4, 8, 28), Passing("retain", 2, 16, 30, chunks=True)
    penalty = Passing("irm[gsm8k]", 3, 9, 20)
    assert joined([penalty, forget, retain], {"forget", "retain"}) == [
        penalty, Passing("forget + retain", 4, 16, 58, chunks=True)
    ]  # fmt: skip
    assert joined([forget, retain], set()) == [forget, retain] == joined([forget, retain], {"forget"})


@pytest.mark.parametrize("together", ["true", "false"])
def test_the_estimate_follows_how_rows_are_run(together: str, config: Path) -> None:
    npo = recipe("npo", f"train.together={together}", "retain.batch=16")
    model = empty(config)
    moments = priced(npo, Shapes.full(npo), 1, model, list(model.parameters()), 0).moments
    kept = [m.activations for m in moments if m.when == "backward, head"]
    assert len(kept) == (1 if together == "true" else 2)
    one = priced(npo, replace(Shapes.full(npo), retain=None), 1, model, list(model.parameters()), 0).moments
    (alone,) = (m.activations for m in one if m.when == "backward, head")
    assert max(kept) == (2 if together == "true" else 1) * alone
