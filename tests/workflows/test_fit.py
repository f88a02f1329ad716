"""`ilu plan`: counted by hand where a hand can, and its keys are those of the recipe."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as T
from conftest import Ilu

from ilu_cli.errors import UsageError
from ilu_cli.models.dtypes import PIECE
from ilu_cli.models.load import trained_params
from ilu_cli.recipe.load import find, load, validate
from ilu_cli.recipe.memory import MemorySpec
from ilu_cli.recipe.schema import AttackRecipe, UnlearnRecipe
from ilu_cli.recipe.source import Layers
from ilu_cli.recipe.specs import TrainSpec
from ilu_cli.workflows.estimate import CONTEXT, PROCESS, TrainingPrice, estimate
from ilu_cli.workflows.fit.choices import Placement
from ilu_cli.workflows.fit.devices import KNOWN, Fleet, fleet
from ilu_cli.workflows.fit.fit import FitAnswer
from ilu_cli.workflows.fit.jobs import PricedJob, attacking
from ilu_cli.workflows.fit.plan import FitPlan, Planned
from ilu_cli.workflows.fit.roofline import replicated, seconds_of, sharded, stepping
from ilu_cli.workflows.moments import Ground, Moment, OnDisk
from ilu_cli.workflows.passes import Passing

H100 = KNOWN["H100-80GB"]
EMBEDDED, LAYER, NORM = 100 * 32, 2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 64 + 2 * 32, 32
ALL = 2 * EMBEDDED + 3 * LAYER + NORM


def shape(folder: Path) -> Path:
    """The config.json of a Llama of three layers, of which there is nothing else."""
    made = T.LlamaConfig(
        vocab_size=100, hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, tie_word_embeddings=False, dtype="bfloat16", architectures=["LlamaForCausalLM"],
    )  # fmt: skip
    made.save_pretrained(folder / "shape")
    return folder / "shape" / "config.json"


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return shape(tmp_path)


def moments(
    config: Path, patterns: list[str] | None, passes: list[Passing], ground: Ground, **keys: Any
) -> dict[str, Moment]:
    with torch.device("meta"):
        model = T.AutoModelForCausalLM.from_config(T.AutoConfig.from_pretrained(config))
    params = list(trained_params(model, patterns, False).values())
    found = estimate(model, params, passes, TrainSpec(**keys), 7, OnDisk(largest=1000, saved=2), ground).moments
    return {m.when: m for m in found}


def test_weights_moments_and_gradients_by_hand(config: Path) -> None:
    both = [Passing("forget", 2, 8, 14), Passing("retain", 2, 8, 14)]
    cpu = moments(config, None, both, Ground(), points=[1])
    assert cpu["loading"] == Moment("loading", weights=4 * ALL, files=1000)
    assert cpu["saving"] == Moment("saving", weights=4 * ALL, copies=2 * ALL, caches=7, process=PROCESS)
    assert cpu["saving a point"].optimizer == 8 * ALL
    largest = 2 * (100 * 32)  # the embeddings as they were, beside pieces of what they are in float64
    assert cpu["comparing"].copies == largest + 32 * PIECE
    retain = cpu["backward, head"]  # the later term: all gradients are there
    assert (retain.weights, retain.gradients, retain.optimizer, retain.caches) == (4 * ALL, 4 * ALL, 8 * ALL, 7)
    assert retain.copies == 3 * 2 * (LAYER - 2 * 32)
    alone = moments(config, None, [Passing("forget", 2, 8, 14)], Ground())
    assert alone["backward, head"].gradients == 0
    assert alone["backward, layer 1"].gradients == 4 * (2 * LAYER + NORM + EMBEDDED)
    assert moments(config, None, [Passing("forget", 2, 8, 14)], Ground(80 * 10**9))["saving"].process == CONTEXT


def test_what_saves_memory_is_counted_as_it_lies(config: Path) -> None:
    down, passes = ["*.0.mlp.down_proj.weight"], [Passing("forget", 2, 8, 14)]
    matrices = 3 * (LAYER - 2 * 32) - 32 * 64
    small = moments(config, down, passes, Ground(), memory=MemorySpec(frozen="bf16"))["saving"]
    assert small.weights == 4 * (ALL - matrices) + 2 * matrices
    assert small.process == PROCESS  # what was read is given back
    assert small.copies == 2 * (ALL - matrices)  # the others are in the checkpoint's type already
    away = moments(config, None, passes, Ground(80 * 10**9), memory=MemorySpec(offload="optimizer"))
    assert away["saving"].optimizer == 0
    plain, again = (
        moments(config, None, passes, Ground(), memory=MemorySpec(checkpointing=on))["backward, head"]
        for on in (False, True)
    )
    assert again.copies == 0 < plain.copies
    assert again.activations < plain.activations


def test_shards_are_divided_and_what_is_in_use_is_whole(config: Path) -> None:
    around = 4 * (2 * EMBEDDED + NORM)
    gathered = around + 2 * 4 * LAYER
    passes = [Passing("forget", 2, 8, 14)]
    found = moments(config, None, passes, Ground(80 * 10**9, shards=4))["backward, layer 0"]
    assert found.weights == gathered + 4 * ALL // 4
    assert found.optimizer == 8 * ALL // 4
    assert found.gradients == 4 * (ALL - EMBEDDED) // 4 + 2 * 4 * LAYER + around  # that of the embeddings comes last
    away = moments(config, None, passes, Ground(80 * 10**9, shards=4, away=True))["backward, layer 0"]
    assert (away.weights, away.optimizer, away.gradients) == (gathered, 0, 2 * 4 * LAYER + around)


def test_an_operation_takes_its_arithmetic_or_its_traffic(config: Path) -> None:
    work = Counter({(989_400_000_000_000, 10): 2, (0, 3_350_000_000_000): 1})
    assert seconds_of(work, H100, half=True) == pytest.approx(3.0)
    assert seconds_of(Counter({(66_900_000_000_000, 0): 1}), H100, half=False) == pytest.approx(1.0)
    eight = Fleet(H100, 8)
    assert replicated(10**9, 1, eight) == pytest.approx(2 * 7 / 8 * 4e9 / 450e9)
    assert replicated(10**9, 1, Fleet(H100, 1)) == 0
    assert sharded([32e9], 10**9, 1, Fleet(H100, 8, 2)) == pytest.approx(15 / 16 * (64e9 + 4e9) / 50e9)
    assert stepping(10**9, "adamw", H100, 1) == pytest.approx(32e9 / 3.35e12)


@pytest.mark.parametrize(
    ("text", "label", "devices"),
    [("8xH100-80GB", "8xH100-80GB", 8), ("2x8xh100-80gb", "2x8xH100-80GB", 16), ("H100-80GB", "1xH100-80GB", 1)],
)
def test_devices_by_name(text: str, label: str, devices: int) -> None:
    found = fleet(text)
    assert (found.label, found.all, found.device) == (label, devices, H100)


def test_devices_of_ones_own_and_those_that_are_not_known() -> None:
    own = fleet("2x(48GB,100TFLOPS,0.9TB/s,64GB/s)")
    d = own.device
    assert (own.all, d.memory, d.bf16, d.bandwidth, d.link) == (2, 48 * 10**9, 1e14, 0.9e12, 64e9)
    for text in ("8xH10-80GB", "0xH100-80GB", "1x(80GB)", ""):
        with pytest.raises(UsageError, match="--devices"):
            fleet(text)


def test_a_plan_in_numbers_and_in_words(ilu: Ilu, config: Path) -> None:
    asked = ["plan", "wmdp-npo-ilu", "--devices", "8xH100-80GB", "--config", config]
    found = json.loads(ilu(*asked, "--json").out)
    assert (found["parameters"], found["fits"], found["devices"]["count"]) == (ALL, True, 8)
    (job,) = found["jobs"]
    assert (job["trained"], job["steps"]) == (ALL, 125)
    assert [a["launch"] for a in job["answers"]] == [
        "one-gpu", "eight-gpus", "eight-gpus-sharded", "eight-gpus-sharded-offload"
    ]  # fmt: skip
    for a in job["answers"]:
        assert a["bytes"] == sum(a["kinds"].values()) == a["bytes_without_keys"]
        assert 0 < a["seconds_per_step"] < a["seconds"]
    sharded = job["answers"][2]
    assert (sharded["devices"], sharded["keys"]) == (4, ["train.accumulation=1"])  # four rows: one for each process
    assert job["best"] == "eight-gpus-sharded"
    told = ilu(*asked)
    assert told.code == 0
    assert "unlearn: fits: accelerate launch --config_file" in told.out
    assert "eight-gpus-sharded.yaml --num_processes 4 -m ilu_cli unlearn --recipe wmdp-npo-ilu --set" in told.out
    alone = ilu(*asked[:2], "--devices", "H100-80GB", *asked[4:])
    assert "unlearn: fits: ilu unlearn --recipe wmdp-npo-ilu\n" in alone.out


def test_a_plan_says_which_keys_make_it_fit_or_that_none_do(ilu: Ilu, config: Path) -> None:
    rows = ["--set", "forget.batch=64", "--set", "forget.max_length=64"]  # more than are asked about beforehand
    asked = ["plan", "wmdp-npo", "--config", config, *rows, "--json", "--devices"]
    whole = json.loads(ilu(*asked, "1x(1.5GB,100TFLOPS,1TB/s)").out)["jobs"][0]["answers"][0]["bytes"]
    room = (whole - 1_000_000) / 0.95 / 1e9
    found = json.loads(ilu(*asked, f"1x({room:.6f}GB,100TFLOPS,1TB/s)").out)["jobs"][0]["answers"][0]
    assert found["keys"] and found["fits"] and found["bytes"] < whole == found["bytes_without_keys"]
    assert found["keys"] == ["train.together=false"]  # costs least
    room = (found["bytes"] - 1_000_000) / 0.95 / 1e9
    found = json.loads(ilu(*asked, f"1x({room:.6f}GB,100TFLOPS,1TB/s)").out)["jobs"][0]["answers"][0]
    assert load(UnlearnRecipe, find("wmdp-npo"), {}, found["keys"]).train.memory != MemorySpec()
    none = ilu(*asked, "1x(0.5GB,100TFLOPS,1TB/s)")
    assert none.code == 4
    assert "does not fit" in none.err
    assert json.loads(none.out)["fits"] is False


@pytest.mark.parametrize("recipe", ["tofu-rmu", "quickstart-finetune", "eval-wmdp", "suite-paper", "grid-control"])
def test_every_kind_of_recipe_is_priced(ilu: Ilu, config: Path, recipe: str) -> None:
    more = ["--set", "objective.layer=1", "--set", "train.params=auto"] if recipe == "tofu-rmu" else []
    done = ilu("plan", recipe, "--devices", "2x8xH100-80GB", "--config", config, "--json", *more)
    assert done.code == 0, done.err
    jobs = {j["name"]: j for j in json.loads(done.out)["jobs"]}
    for job in jobs.values():
        assert "two-nodes-sharded" in {a["launch"] for a in job["answers"]} ^ job["refused"].keys()
        assert all(a["bytes"] > CONTEXT for a in job["answers"])
    if recipe == "suite-paper":
        assert (jobs["relearn"]["steps"], jobs["relearn"]["times"]) == (15, 4)  # 60 samples by 4, four rates
        assert jobs["finetune gsm8k"]["times"] == 3


def test_a_plan_of_a_model_that_is_not_here_names_the_way(ilu: Ilu) -> None:
    done = ilu("plan", "wmdp-rmu", "--devices", "H100-80GB")
    assert done.code == 3
    assert "--config FILE" in done.err


def test_a_sharded_launch_is_planned_as_it_would_be_taken(ilu: Ilu, config: Path) -> None:
    asked = ["plan", "wmdp-npo", "--config", config, "--devices"]

    def launches(devices: str, *more: str) -> tuple[dict[str, Any], dict[str, str]]:
        (job,) = json.loads(ilu(*asked, devices, "--json", *more).out)["jobs"]
        return {a["launch"]: a for a in job["answers"]}, job["refused"]

    rows = ["--set", "train.accumulation=1", "--set", "retain.batch=12", "--set", "forget.batch=6"]
    found, refused = launches("2x8xH100-80GB", *rows)
    assert (found["eight-gpus"]["devices"], found["eight-gpus-sharded"]["devices"]) == (8, 6)
    assert (found["two-nodes-sharded"]["devices"], refused) == (6, {})
    found, refused = launches("8xH100-80GB", *rows, "--set", "retain.batch=1")
    assert (found["eight-gpus-sharded"]["devices"], refused) == (8, {})  # one process would share nothing
    found, _ = launches("2x8x(0.0001GB,990TFLOPS,3.3TB/s)", *rows)  # where six do not suffice, more may
    assert (found["eight-gpus-sharded"]["devices"], found["two-nodes-sharded"]["devices"]) == (8, 16)
    found, refused = launches("8xH100-80GB", *rows, "--set", "train.optimizer=adafactor")
    assert list(found) == ["one-gpu", "eight-gpus"]
    assert "train.optimizer: adafactor steps whole matrices" in refused["eight-gpus-sharded-offload"]
    told = ilu(*asked, "2x(CPU,0.0001GB,1TFLOPS,1TB/s)", *rows)
    assert told.code == 4
    assert "one-process" in told.out
    assert "does not fit by any launch or keys known here" in told.out
    assert "--set lora.r=16" in told.out


@pytest.mark.parametrize(
    ("dtype", "sets", "kept"),  # kept: in bf16, by one process and by a sharded launch
    [("bfloat16", [], (True, True)), ("float32", [], (False, False)), ("float32", ["lora.r=4"], (True, False)),
     ("float32", ["train.save_dtype=bf16"], (True, False))],
)  # fmt: skip
def test_matrices_are_kept_in_bf16_where_that_rounds_nothing(
    ilu: Ilu, config: Path, dtype: str, sets: list[str], kept: tuple[bool, bool]
) -> None:
    config.write_text(json.dumps(json.loads(config.read_text()) | {"dtype": dtype}))
    params = [] if "lora.r=4" in sets else ["train.params=['*.1.mlp.down_proj.weight']"]
    more = [x for s in (*sets, *params, "train.precision=bf16") for x in ("--set", s)]
    asked = ["plan", "wmdp-npo", "--config", config, "--json", *more, "--devices", "2x(CPU,0.0001GB,1TFLOPS,1TB/s)"]
    answers = {a["launch"]: a for a in json.loads(ilu(*asked).out)["jobs"][0]["answers"]}
    both = (answers["one-process"]["keys"], answers["two-cpus-sharded"]["keys"])
    assert tuple(any("memory.frozen=" in key for key in keys) for keys in both) == kept


def test_several_nodes_are_started_one_by_one() -> None:
    launch = Placement("two-nodes-sharded", Fleet(H100, 8, 2), shards=True)
    answer = FitAnswer(launch, ("train.x=1",), Moment("saving"), 0, True, 1.0, None, 0)
    jobs = [Planned(PricedJob("unlearn", TrainSpec(), lambda *_: [], 1), 1, [answer], {})]
    planned = FitPlan("mine", "ilu unlearn --recipe mine", "m", 1, launch.fleet, jobs)
    (line,) = planned.lines()
    assert line.startswith("unlearn: fits, once on each node with its rank: accelerate launch --config_file ")
    assert "--num_processes 16 --num_machines 2 --machine_rank RANK --main_process_ip FIRST -m ilu_cli unlearn" in line
    assert line.endswith("--recipe mine --set train.x=1")


def test_lower_layers_alone_are_a_way_to_fit(ilu: Ilu, config: Path) -> None:
    lower = ["--set", "objective.layer=0", "--set", "train.params=auto"]
    asked = ["plan", "tofu-rmu", "--config", config, *lower, "--json", "--devices"]
    (whole,) = json.loads(ilu(*asked, "1x(CPU,16GB,1TFLOPS,0.1TB/s)").out)["jobs"][0]["answers"]
    assert (whole["launch"], whole["kinds"]["process"], whole["keys"]) == ("one-process", PROCESS, [])
    (needed,) = json.loads(ilu(*asked, "1x(CPU,0.0001GB,1TFLOPS,0.1TB/s)").out)["jobs"][0]["answers"]
    assert "train.loaded=needed" in needed["keys"]
    assert needed["kinds"]["weights"] == 4 * (ALL - 2 * LAYER)
    assert load(UnlearnRecipe, find("tofu-rmu"), {}, [*lower[1::2], *needed["keys"]]).train.loaded == "needed"


def test_sharded_scoring_waits_for_the_weights(ilu: Ilu, config: Path) -> None:
    slow = "8x(80GB,1000000TFLOPS,1000TB/s,0.001GB/s)"
    asked = ["plan", "eval-wmdp", "--config", config, "--devices", slow, "--json"]
    found = {a["launch"]: a["seconds_per_step"] for a in json.loads(ilu(*asked).out)["jobs"][0]["answers"]}
    assert found["eight-gpus-sharded"] == pytest.approx(7 / 8 * 4 * ALL / 1e6)
    assert found["eight-gpus"] == found["one-gpu"] < found["eight-gpus-sharded"] / 10


def test_this_machine_is_a_device(ilu: Ilu, config: Path) -> None:
    found = json.loads(ilu("plan", "wmdp-npo", "--config", config, "--json").out)
    assert found["devices"]["label"] == "1xhere"
    assert found["devices"]["fp32_flops"] > 1e8
    assert found["jobs"][0]["answers"][0]["kinds"]["process"] == PROCESS


def test_a_price_keeps_its_traces(config: Path) -> None:
    with torch.device("meta"):
        model = T.AutoModelForCausalLM.from_config(T.AutoConfig.from_pretrained(config))
    price = TrainingPrice(model, [], TrainSpec(), 0, Ground())
    p = Passing("forget", 2, 8, 14)
    assert price.trace(p) is price.trace(p)


def test_an_attack_is_told_to_run_rows_apart_only_if_it_mixes_some_in(ilu: Ilu, config: Path) -> None:
    told = ilu("plan", "suite-quick", "--devices", "1x(0.5GB,100TFLOPS,1TB/s)", "--config", config, "--json")
    assert "attack.memory.checkpointing=true" in told.out and "together" not in told.out
    mix: dict[str, Any] = {"mix": {"data": "prose", "batch": 2}}
    alone, mixed = (
        attacking(validate(AttackRecipe, Layers({"attack": {"name": "relearn", **more}}))).together
        for more in ({}, mix)
    )
    assert not alone and mixed == {"attack", "attack.mix"}
