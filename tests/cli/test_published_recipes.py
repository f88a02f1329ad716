"""Recipes of published experiments over mirrors: `ilu doctor`, `ilu fetch`, two steps of training, an evaluation."""

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import CHAT, Ilu, tiny_model, tiny_tokenizer
from hub import Hub, serving
from mirrors import HUB, mirror_all
from transformers import LlamaForCausalLM

from ilu_cli.recipe.load import load, shipped
from ilu_cli.recipe.schema import UnlearnRecipe

pytestmark = pytest.mark.slow

PUBLISHED = sorted(n for n in shipped() if n.startswith(("wmdp-", "muse-", "tofu-")))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data root with all datasets, and under the name of each published model a tiny one of eight layers."""
    folder = mirror_all(tmp_path_factory.mktemp("root"))
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = CHAT
    config = tiny_model(len(tokenizer)).config
    config.num_hidden_layers = 8
    for name in {load(UnlearnRecipe, shipped()[n], {}, []).model.ref for n in PUBLISHED}:
        LlamaForCausalLM(config).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    return folder


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_recipe_trains_on_what_the_doctor_finds(ilu: Ilu, root: Path, name: str) -> None:
    done = ilu("doctor", name, "--data-root", root, "--json")
    assert done.code == 0, done.out
    facts = json.loads(done.out)
    assert facts["ready"]
    assert {n["state"] for n in facts["needs"]} == {"here"}
    assert facts["memory_bytes"] > 0
    recipe = load(UnlearnRecipe, shipped()[name], {}, [])
    small = ["train.steps=2", "train.accumulation=1", "forget.batch=2", "forget.max_length=32", "retain.batch=2",
             "retain.max_length=32"]  # fmt: skip
    if recipe.regularizers:
        small += ["regularizers.0.batch=2", "regularizers.0.max_length=32"]
    sets = [part for text in small for part in ("--set", text)]
    done = ilu("unlearn", "--recipe", name, "--data-root", root, *sets, "--json")
    assert done.code == 0, done.err
    result = json.loads(done.out)
    assert result["result"]["changed_fraction"] > 0
    for record in result["data"]:
        assert record["source"] == "path"
        assert record["path"].split("/")[1] in {hub.split("/")[1] for hub in HUB}
        assert record["chat"] == recipe.forget.chat
    paper = "eval-" + "-".join(name.split("-")[: 2 if name.startswith("muse-") else 1])
    known = ilu("doctor", paper, "--data-root", root, "--json")
    assert known.code == 0, known.out
    done = ilu("eval", result["run"], "--recipe", paper, "--limit", 8, "--alone", "--data-root", root, "--json")
    assert done.code == 0, done.err
    for bench, found in json.loads(done.out)["results"].items():
        assert found["data"]["source"] == "path", bench
        assert 0 <= found["value"] <= 1, bench


def test_a_task_named_by_a_flag_comes_from_the_data_root(
    ilu: Ilu, tiny: Path, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ILU_DATA", str(root))
    args = ["--model", tiny, "--set", "objective.layer=1", "--set", "train.params=['*down_proj*']", "--steps", 1]
    done = ilu("unlearn", *args, "--irm-env", "gsm8k", "--forget", "tofu-forget01", "--json")
    assert done.code == 0, done.err
    told = json.loads(done.out)
    found = {d["name"]: d for d in told["data"]}
    assert found["gsm8k"]["path"] == "openai/gsm8k/main/train-00000-of-00001.parquet"
    assert found["tofu-forget01"]["path"] == "locuslab/TOFU/forget01.json"
    assert found["prose"]["source"] == "builtin"
    own = shutil.copytree(root, tmp_path / "own")  # the rows of the environment are looked up again
    (own / "sst2").mkdir(parents=True)
    for split in ("train", "validation"):
        (own / f"sst2/{split}.jsonl").write_text("".join(
            json.dumps({"sentence": f"film {i} {split}", "label": i % 2}) + "\n" for i in range(8)))  # fmt: skip
    done = ilu("attack", told["run"], "--task", "sst2", "--data-root", own, "--steps", 1, "--no-reference", "--json",
               "--set", "eval.benchmarks=[elements]", "--set", "eval.limit=4")  # fmt: skip
    assert done.code == 0, done.err
    data = {d["role"]: d for d in json.loads(done.out)["data"]}
    assert (data["attack"]["path"], data["attack"]["rows"]) == ("sst2/train.jsonl", 8)
    assert data["attack test"]["path"] == "sst2/validation.jsonl"


def test_without_a_mirror_the_doctor_says_at_once_what_is_missing(ilu: Ilu, tmp_path: Path) -> None:
    began = time.monotonic()
    done = ilu("doctor", "wmdp-rmu", "--json")
    assert done.code == 3
    assert time.monotonic() - began < 5
    states = {n["name"]: n for n in json.loads(done.out)["needs"]}
    assert states["wmdp-bio-forget"]["state"] == "gated"
    assert "ask for access" in states["wmdp-bio-forget"]["todo"]
    assert states["wikitext"]["state"] == states["HuggingFaceH4/zephyr-7b-beta"]["state"] == "missing"
    done = ilu("unlearn", "--recipe", "tofu-npo", "--model", "no/such")
    assert (done.code, "no/such" in done.err) == (3, True)


def by_hub(hub: Hub, place: Path, *args: object) -> subprocess.CompletedProcess[str]:
    """A command in a process of its own, since the hub's address is read once."""
    command = [sys.executable, "-m", "ilu_cli", *map(str, args)]
    return subprocess.run(command, env=hub.environment(place / "hf"), capture_output=True, text=True, timeout=120)


def test_fetch_mirrors_what_the_doctor_finds_on_the_hub(ilu: Ilu, root: Path, tmp_path: Path) -> None:
    own, sets = tmp_path / "mirror", ["--set", "train.steps=1", "--set", "forget.batch=1", "--set", "retain.batch=1"]
    with serving(Hub(root)) as hub:
        told = by_hub(hub, tmp_path, "doctor", "tofu-npo", "--json")
        assert told.returncode == 0, told.stderr
        facts = json.loads(told.stdout)
        assert facts["hub_in_reach"]
        sizes = {n["name"]: n["bytes"] for n in facts["needs"] if n["state"] == "hub"}
        assert set(sizes) == {"open-unlearning/tofu_Llama-3.2-1B-Instruct_full", "tofu-forget10", "tofu-retain90"}
        assert facts["download_bytes"] == sum(sizes.values())
        weights = root / "open-unlearning/tofu_Llama-3.2-1B-Instruct_full/model.safetensors"
        assert weights.stat().st_size < sizes["open-unlearning/tofu_Llama-3.2-1B-Instruct_full"] < 10**7

        done = by_hub(hub, tmp_path, "fetch", "tofu-npo", "--data-root", own, "--json")
        assert done.returncode == 0, done.stderr
        assert {n["state"] for n in json.loads(done.stdout)["needs"]} == {"here"}
        assert {"forget10.json", "retain90.json", "model.safetensors", "tokenizer.json"} <= set(hub.served)
        assert not any("forget01" in name or "perturbed" in name for name in hub.served)

        hub.served.clear()  # what is there is not fetched again
        assert by_hub(hub, tmp_path, "fetch", "tofu-npo", "--data-root", own).returncode == 0
        assert hub.served == []
    assert ilu("doctor", "tofu-npo", "--data-root", own).code == 0  # without the hub from here on
    made = ilu("unlearn", "--recipe", "tofu-npo", "--data-root", own, *sets, "--set", "train.accumulation=1", "--json")
    assert made.code == 0, made.err


def test_a_revision_is_what_is_fetched_and_what_is_trained(ilu: Ilu, root: Path, tiny: Path, tmp_path: Path) -> None:
    """`ilu fetch` got the newest, and the mirror was taken for any revision."""
    name, revision = "open-unlearning/tofu_Llama-3.2-1B-Instruct_full", "f" * 40
    own, hub_of = tmp_path / "mirror", tmp_path / "hub"
    shutil.copytree(root, hub_of)
    shutil.copytree(hub_of / name, other := hub_of / f"{name}@{revision}")
    config = tiny_model(len(tiny_tokenizer()), seed=1).config
    LlamaForCausalLM(config).save_pretrained(other)
    pinned = ["--set", f"model.revision={revision}"]
    dry = ["unlearn", "--recipe", "tofu-npo", "--data-root", own, "--dry-run"]
    with serving(Hub(hub_of)) as hub:
        assert by_hub(hub, tmp_path, "fetch", "tofu-npo", "--data-root", own).returncode == 0
        refused = ilu(*dry, *pinned)
        assert refused.code == 3 and f"is not known to be {name} at {revision}" in refused.err
        assert ilu("doctor", "tofu-npo", "--data-root", own, *pinned).code == 3
        done = by_hub(hub, tmp_path, "fetch", "tofu-npo", "--data-root", own, *pinned)
        assert done.returncode == 0, done.stderr
    assert (own / name / "model.safetensors").read_bytes() == (other / "model.safetensors").read_bytes()
    assert ilu(*dry, *pinned).code == 0 == ilu("doctor", "tofu-npo", "--data-root", own, *pinned).code
    told = ilu("unlearn", "--model", tiny, "--dry-run", *pinned)
    assert told.code == 2 and "is of a model on the hub, and" in told.err


def test_what_the_hub_does_not_give_is_named_and_the_rest_is_kept(root: Path, tmp_path: Path) -> None:
    own = tmp_path / "mirror"
    few = tmp_path / "few"
    shutil.copytree(root / "HuggingFaceH4", few / "HuggingFaceH4")
    shutil.copytree(root / "cais", few / "cais")
    with serving(Hub(few, gated=("cais/wmdp-corpora", "cais/wmdp-bio-forget-corpus"))) as hub:
        told = by_hub(hub, tmp_path, "doctor", "wmdp-rmu", "--json")
        assert told.returncode == 3, told.stderr
        needs = {n["name"]: n for n in json.loads(told.stdout)["needs"]}
        assert needs["HuggingFaceH4/zephyr-7b-beta"]["state"] == "hub"
        assert needs["wmdp-cyber-forget"]["state"] == "gated"
        assert needs["wikitext"]["state"] == "missing"
        assert "there is none of that name" in needs["wikitext"]["todo"]
        done = by_hub(hub, tmp_path, "fetch", "wmdp-rmu", "--data-root", own)
    assert done.returncode == 3
    assert "Traceback" not in done.stderr
    for name in ("cais/wmdp-corpora", "Salesforce/wikitext"):
        assert name in done.stderr
    assert (own / "HuggingFaceH4/zephyr-7b-beta/model.safetensors").is_file()


def test_the_doctor_prices_the_quickstart_and_shows_a_table(ilu: Ilu, tiny: Path) -> None:
    done = ilu("doctor", "quickstart-rmu", "--set", f"model.ref={tiny}", "--set", "train.params=['*down_proj*']")
    assert done.code == 0, done.err
    for word in ("capitals, train", "builtin", "here", "memory: at most"):
        assert word in done.out


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (["doctor", "quickstart-rmo"], 2, "Did you mean 'quickstart-rmu'?"),
        (["doctor", "suite-quick"], 2, "loads no data of its own"),
        (["doctor", "quickstart-rmu", "--data-root", "nowhere"], 3, "nowhere does not exist"),
        (["unlearn", "--data-root", "file.txt"], 3, "is a file, not a folder"),
        (["fetch", "wmdp-rmu"], 2, "no folder to download into"),
        (["fetch", "wmdp-rmu", "--data-root", "."], 3, "of what wmdp-rmu needs could not be had"),
    ],
)
def test_wrong_use_of_doctor_and_fetch(ilu: Ilu, tmp_path: Path, args: list[str], code: int, message: str) -> None:
    (tmp_path / "file.txt").write_text("x")
    done = ilu(*args)
    assert done.code == code, done.err
    assert message in done.err
