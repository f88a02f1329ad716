"""Recipes of published experiments over mirrors: `ilu doctor`, `ilu fetch`, and two steps of training."""

import json
import time
from pathlib import Path

import pytest
from conftest import tiny_model, tiny_tokenizer
from mirrors import HUB, mirror_all
from transformers import LlamaForCausalLM

from ilu_cli.recipe.load import load, shipped

PUBLISHED = sorted(n for n in shipped() if n.startswith(("wmdp-", "muse-", "tofu-")))
CHAT = (
    "{% for m in messages %}[{{ m.role }}] {{ m.content }}<eos>\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}"
)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data root with all datasets, and under the name of each published model a tiny one of eight layers."""
    folder = mirror_all(tmp_path_factory.mktemp("root"))
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = CHAT
    config = tiny_model(len(tokenizer)).config
    config.num_hidden_layers = 8
    for name in {load("unlearn", shipped()[n], {}, []).model.ref for n in PUBLISHED}:
        LlamaForCausalLM(config).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    return folder


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_recipe_trains_on_what_the_doctor_finds(ilu, root, name):
    done = ilu("doctor", name, "--data-root", root, "--json")
    assert done.code == 0, done.out
    facts = json.loads(done.out)
    assert facts["ready"]
    assert {n["state"] for n in facts["needs"]} == {"here"}
    assert facts["memory_bytes"] > 0
    recipe = load("unlearn", shipped()[name], {}, [])
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


def test_a_task_named_by_a_flag_comes_from_the_data_root(ilu, tiny, root, tmp_path, monkeypatch):
    monkeypatch.setenv("ILU_DATA", str(root))
    args = ["--model", tiny, "--set", "objective.layer=1", "--set", "train.params=['*down_proj*']", "--steps", 1]
    done = ilu("unlearn", *args, "--irm-env", "gsm8k", "--forget", "tofu-forget01", "--json")
    assert done.code == 0, done.err
    told = json.loads(done.out)
    found = {d["name"]: d for d in told["data"]}
    assert found["gsm8k"]["path"] == "openai/gsm8k/main/train-00000-of-00001.parquet"
    assert found["tofu-forget01"]["path"] == "locuslab/TOFU/forget01.json"
    assert found["prose"]["source"] == "builtin"
    own = tmp_path / "own"
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


def test_without_a_mirror_the_doctor_says_at_once_what_is_missing(ilu, tmp_path):
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


def test_nothing_hangs_on_a_hub_that_does_not_answer(ilu, monkeypatch):
    """A server that takes the connection and is silent, as a broken proxy is."""
    import socket

    from huggingface_hub import constants

    from ilu_cli.workflows import needs

    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("HF_HUB_OFFLINE", "0")
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setattr(needs, "PATIENCE", 0.3)
        began = time.monotonic()
        assert not needs.hub_in_reach()
        assert time.monotonic() - began < 3


def test_the_doctor_prices_the_quickstart_and_shows_a_table(ilu, tiny):
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
def test_wrong_use_of_doctor_and_fetch(ilu, tmp_path, args, code, message):
    (tmp_path / "file.txt").write_text("x")
    done = ilu(*args)
    assert done.code == code, done.err
    assert message in done.err
