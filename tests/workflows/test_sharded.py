"""One process with two micro-batches, two sharded processes and two replicated ones take the same steps.

All commands of the two run in one launch (tests/launched.py), by the launch file that is shipped for it.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from conftest import made_once, tiny_model, tiny_tokenizer
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from ilu_cli.cli.app import main
from ilu_cli.cli.progress import Plain
from ilu_cli.engine.loop import StepLog
from ilu_cli.engine.reporter import Reporter
from ilu_cli.errors import UnavailableError
from ilu_cli.models.sharded import check_torch

HERE = Path(__file__).parents[1]
LAUNCH = HERE.parent / "recipes" / "launch" / "two-cpus-sharded.yaml"
SMALL = ["forget.batch=4", "retain.batch=4", "forget.max_length=24", "retain.max_length=24", "train.precision=fp32",
         "train.lr=1e-3"]  # fmt: skip
IRM = ["--irm-env", "elements", "--set", "retain.data=[prose]", "--irm-batch", "4"]
FROZEN = ("train.memory.frozen=bf16", "train.precision=bf16")
DOWN = "train.params=[model.layers.0.mlp.down_proj.weight,model.layers.1.mlp.down_proj.weight]"


def keys(*pairs: str) -> list[str]:
    return [part for pair in pairs for part in ("--set", pair)]


def unlearn(method: str, *more: str, steps: int = 2, model: str = "tied") -> list[str]:
    return ["unlearn", "--method", method, *keys(*SMALL), *more, "--steps", str(steps), "--model", model]


CASES = {
    "rmu": unlearn("rmu", *keys("objective.layer=1", DOWN), *IRM),
    "npo": unlearn("npo", model="untied"),
    "npo-tied": unlearn("npo", *keys("train.max_grad_norm=0.5"), steps=4),
    # by SGD: the gradient of some embeddings is nothing but rounding here, which Adam would scale up
    "dpo": unlearn("dpo", *keys("train.memory.checkpointing=true", "train.optimizer=sgd", "train.lr=0.1"),
                   model="untied"),
    "undial": unlearn("undial"),
    "irm": unlearn("npo", *IRM, *keys("regularizers.0.estimator=cross_halves"), steps=1),
    "irm-scale": unlearn("npo", *IRM, "--irm-variant", "param_scale", steps=1),
    "irm-norm": unlearn("npo", *IRM, "--irm-variant", "grad_norm", model="untied"),
    "share": unlearn("npo", *keys("retain.weight=share:0.5", "train.optimizer=momentum", "train.lr=0.1")),
    "sam": unlearn("npo", "--defence", "sam"),
    "tar": unlearn("npo", "--defence", "tar"),
    "lat": unlearn("npo", "--defence", "lat", *keys("defences.0.layer=0", "defences.0.inner_steps=2"), steps=1),
    "noise": unlearn("npo", "--defence", "smoothing", "--defence", "averaging",
                     *keys("defences.1.start=1", "defences.1.every=1")),
    "undo": unlearn("undo", model="one/npo-tied"),
    "lora": unlearn("npo", "--lora", "r=4,targets=q_proj+v_proj"),
    "frozen": unlearn("rmu", *keys("objective.layer=1", DOWN, *FROZEN), model="half"),
    "frozen-lora": unlearn("npo", "--lora", "r=4,targets=q_proj+v_proj", *keys(*FROZEN), model="half"),
    "heal": unlearn("npo", *keys("train.heal={data: [prose], batch: 4, max_length: 24, steps: 2, warmup: 0}")),
    "bf16": unlearn("npo", *keys("train.save_dtype=bf16"), steps=1),
    "frozen-attack": ["attack", "one/bf16", "--task", "elements", "--no-reference",
                      *keys("attack.lora={r: 4}", "attack.memory.frozen=bf16", "attack.precision=bf16",
                            "attack.steps=2", "attack.batch=4", "eval.limit=8")],
    "attack": ["attack", "one/npo-tied", "--task", "elements", "--no-reference",
               *keys("attack.steps=2", "attack.batch=4", "attack.precision=fp32", "eval.limit=8")],
    # rows for one process and not for the other
    "few": unlearn("npo", *keys("forget.batch=1", "retain.batch=3"), *IRM, "--irm-batch", "1"),
    "few-halves": unlearn("npo", *IRM, "--irm-batch", "3", *keys("regularizers.0.estimator=cross_halves"), steps=1),
    "few-scale": unlearn("npo", *IRM, "--irm-variant", "param_scale", "--irm-batch", "3", steps=1),
    "few-states": unlearn("crl", *keys("objective.layers=[1]", "forget.batch=1", "retain.batch=1")),
    "few-attack": ["attack", "one/npo-tied", "--task", "elements", "--no-reference",
                   *keys("attack.steps=2", "attack.batch=1", "attack.precision=fp32", "eval.limit=8")],
}  # fmt: skip
REPLICATED = ("rmu", "npo-tied", "irm", "irm-norm", "lora", "heal")
KINDS = ("one", "sharded")
STOPPED = unlearn("npo", *keys("train.save_every=1"), "--defence", "averaging",
                  *keys("defences.0.start=1", "defences.0.every=1"), steps=4)  # fmt: skip
EVAL = ["eval", "untied", "--limit", "6", "--bench", "capitals", "--bench", "prose", "--bench", "coherence"]


def micro(args: list[str]) -> list[str]:
    """The same for one process: two micro-batches."""
    return [*args, *keys(f"{'attack' if args[0] == 'attack' else 'train'}.accumulation=2")]


def alone(*args: str) -> int:
    """A command in this process; its exit code."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["ilu", *args])
        try:
            main()
        except SystemExit as end:
            return int(end.code or 0)
    return 0


def stopped(self: Reporter, log: StepLog) -> None:
    if log.step == 2:
        os.kill(os.getpid(), signal.SIGTERM)


def models(path: Path) -> None:
    """Embeddings tied to the LM head, not tied, and tied in a file in bf16."""
    tokenizer = tiny_tokenizer()
    for name in ("tied", "untied", "half"):
        model = tiny_model(len(tokenizer), spread=0.05)
        if name == "untied":
            model.config.tie_word_embeddings = False
            torch.manual_seed(1)
            model = LlamaForCausalLM(model.config)
        model.to(torch.bfloat16 if name == "half" else torch.float32).save_pretrained(path / name)
        tokenizer.save_pretrained(path / name)


@pytest.fixture(scope="module")
def launched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of all runs: `one/NAME`, `sharded/NAME`, `replicated/NAME`."""
    try:
        check_torch()
    except UnavailableError as reason:
        pytest.skip(str(reason))
    return made_once(tmp_path_factory, "sharded", run_all)


@contextlib.contextmanager
def at_work(path: Path) -> Iterator[None]:
    """Commands are given in this folder, and what they make stays there."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(path)
        for name, value in {"ILU_RUNS": "runs", "ILU_CACHE": "cache", "HF_HUB_OFFLINE": "1"}.items():
            patch.setenv(name, value)
        yield


def run_all(path: Path) -> None:
    """Run the cases in this process, then all in one launch of two."""
    with at_work(path):
        models(path)
        for name, args in CASES.items():
            assert alone(*micro(args), "--out", f"one/{name}") == 0, name
        assert alone(*micro(STOPPED), "--out", "one/whole") == 0
        assert alone(*EVAL) == 0
        with pytest.MonkeyPatch.context() as halt:
            halt.setattr(Reporter, "step", stopped)
            halt.setattr(Plain, "step", stopped)
            assert alone(*STOPPED, "--out", "one/stopped") == 130
        shutil.copytree("one/stopped", "sharded/resumed")
        commands = commands_of_two()
        Path("commands.json").write_text(json.dumps(commands))
        done = launch(str(HERE / "launched.py"), "commands.json")
        print(done.stdout[-3000:], done.stderr[-6000:])
        assert done.returncode == 0
        codes = {f"{kind} {name}": "0" for kind, each in commands.items() for name in each}
        for rank in (0, 1):
            said = dict(line.split(": ") for line in Path(f"said-{rank}").read_text().splitlines())
            assert said == codes | {"sharded stopped": "130", "sharded rounded": "2"}
        assert alone("unlearn", "sharded/stopped", "--resume") == 0


def commands_of_two() -> dict[str, dict[str, list[str]]]:
    """What the launch runs, by kind and name."""
    commands = {
        kind: {n: [*CASES[n], "--out", f"{kind}/{n}"] for n in names}
        for kind, names in {"sharded": [*CASES], "replicated": REPLICATED}.items()
    }
    commands["sharded"] |= {
        "stopped": [*STOPPED, "--out", "sharded/stopped"],
        "resumed": ["unlearn", "sharded/resumed", "--resume"],
        "rounded": [*CASES["frozen-lora"], "--model", "tied", "--out", "sharded/rounded"],  # stored in float32
    }
    for each in commands.values():
        each["eval"] = EVAL
    return commands


def launch(*args: str, file: Path = LAUNCH, **env: str) -> subprocess.CompletedProcess[str]:
    """`accelerate launch` with a launch file, on CPUs: only where there are GPUs too is it told so."""
    head = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(file)]
    told = {"ACCELERATE_USE_CPU": "true"} if torch.accelerator.is_available() else {}
    env = os.environ | told | {"OMP_NUM_THREADS": "1", "ILU_CACHE": "cache-of-two"} | env
    return subprocess.run([*head, *args], capture_output=True, text=True, env=env, timeout=900)


def compare(one: Path, two: Path, rel: float = 1e-5) -> None:
    """The same losses to `rel`, and the same weights."""
    rows = [(path / "metrics.jsonl").read_text().splitlines() for path in (one, two)]
    assert len(rows[0]) == len(rows[1]) > 0
    for a, b in zip(*(map(json.loads, lines) for lines in rows)):
        del a["seconds"], b["seconds"]
        assert a == pytest.approx(b, rel=rel, abs=1e-7)
    mine, theirs = weights(one), weights(two)
    assert mine and mine.keys() == theirs.keys()
    for name, w in mine.items():
        torch.testing.assert_close(w, theirs[name], rtol=1e-5, atol=1e-5 if w.dtype == torch.float32 else 1e-3)


def weights(run: Path) -> dict[tuple[Path, str], torch.Tensor]:
    """All weights that a run has saved, by their folder and name."""
    files = sorted(run.rglob("*.safetensors"))
    return {(f.parent.relative_to(run), name): w for f in files for name, w in load_file(f).items()}


def close(a: object, b: object) -> bool:
    """Whether two trees of lists and mappings are the same, numbers to 1e-4."""
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(close(a[k], b[k]) for k in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(close(x, y) for x, y in zip(a, b))
    return a == pytest.approx(b, rel=1e-4, abs=1e-5) if isinstance(a, float) else a == b


@pytest.mark.parametrize("name", CASES)
def test_two_sharded_processes_are_one_with_two_micro_batches(launched: Path, name: str) -> None:
    rel = 1e-3 if name.startswith("frozen") else 1e-5  # in bf16
    compare(launched / "one" / name, launched / "sharded" / name, rel)


@pytest.mark.parametrize("kind", KINDS)
def test_both_run_batches_without_their_padding(launched: Path, kind: str) -> None:
    for name in ("npo", "lora", "attack"):
        assert json.loads((launched / kind / name / "manifest.json").read_text())["result"]["batches"] == "packed"


@pytest.mark.parametrize("name", REPLICATED)
def test_two_replicated_processes_are_too(launched: Path, name: str) -> None:
    compare(launched / "one" / name, launched / "replicated" / name)


def test_a_run_that_was_stopped_goes_on_with_another_number_of_processes(launched: Path) -> None:
    """Two that were stopped by a signal to the second are gone on from by one, and one that was stopped by two."""
    for name in ("stopped", "resumed"):
        manifest = json.loads((launched / "sharded" / name / "manifest.json").read_text())
        assert manifest["status"] == "complete"
        compare(launched / "one" / "whole", launched / "sharded" / name)


def test_scores_and_written_answers_are_the_same(launched: Path) -> None:
    caches = ("cache", "cache-of-two", "cache-of-two-replicated")
    found = [sorted((launched / cache / "eval").rglob("*.jsonl")) for cache in caches]
    assert {f.name for f in found[0]} == {f"{bench}.rows.jsonl" for bench in EVAL[5::2]}
    for kind in found[1:]:
        assert [f.name for f in found[0]] == [f.name for f in kind]
        for a, b in zip(found[0], kind):
            ours, theirs = ([json.loads(line) for line in f.read_text().splitlines()] for f in (a, b))
            assert len(ours) == len(theirs) > 1
            assert close(ours, theirs)


def test_what_is_saved_loads_in_plain_transformers_in_the_type_that_was_asked_for(launched: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(launched / "sharded" / "bf16" / "checkpoint", dtype="auto")
    assert model.dtype == torch.bfloat16 and model.get_output_embeddings().weight is model.get_input_embeddings().weight
    rounding = [json.loads((launched / k / "bf16" / "manifest.json").read_text())["result"]["rounding"] for k in KINDS]
    assert 0 < rounding[0] == pytest.approx(rounding[1], rel=1e-4)


def test_no_process_has_the_whole_model_when_it_is_read_or_written(launched: Path) -> None:
    """Of a sharded launch a weight at a time is read, and what is written as several files is gathered file by file."""
    loaded = json.loads((launched / "filled-0.json").read_text())["whole"]
    assert {name.partition(" ")[0] for name in loaded} == {"replicated"}
    saved = launched / "sharded" / "bf16" / "checkpoint"
    index = json.loads((saved / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) > 1
    assert {f.name for f in saved.glob("*.safetensors")} == set(index["weight_map"].values())


def test_matrices_that_are_not_trained_take_two_bytes_a_weight_and_all_others_four(launched: Path) -> None:
    ranks = [json.loads((launched / f"filled-{rank}.json").read_text())["bytes"] for rank in (0, 1)]
    model = AutoModelForCausalLM.from_pretrained(launched / "half")
    every = sum(p.numel() for p in model.parameters())
    linear = {n: p.numel() for n, p in model.named_parameters() if n.endswith("proj.weight")}
    trained = sum(linear[f"model.layers.{n}.mlp.down_proj.weight"] for n in (0, 1))
    for name, wide in (("rmu", every), ("frozen", every - sum(linear.values()) + trained),
                       ("frozen-lora", every - sum(linear.values()))):  # fmt: skip
        held = sum(each[f"sharded {name}"] for each in ranks)
        assert held == 4 * wide + 2 * (every - wide)


def test_reference_caches_are_filled_once_by_each_process_its_share(launched: Path) -> None:
    """Four steps of four rows, two a batch, are eight batches; the same rows of the same model are not run again."""
    for rank in (0, 1):
        filled = json.loads((launched / f"filled-{rank}.json").read_text())
        assert filled["sharded npo-tied"] == filled["replicated npo-tied"] == 4
        assert not {"sharded stopped", "sharded resumed"} & filled.keys()
