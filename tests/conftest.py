"""A tiny model with a real tokenizer, a clean place for runs and cache, and the command line in this process."""

from __future__ import annotations

import functools
import importlib
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pytest
import torch
import typer.main
from filelock import FileLock
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from ilu_cli import registry
from ilu_cli.data.encode import Corpus, Encoded
from ilu_cli.engine.accel import backend
from ilu_cli.engine.loop import Trainer
from ilu_cli.engine.stream import TrainStream
from ilu_cli.models import traced
from ilu_cli.models.parts import parts_of
from ilu_cli.recipe.specs import TrainSpec
from ilu_cli.workflows import traces

T = TypeVar("T")
LAYERS = 3

# absl closes the stream that it was made with when another package configures logging: not that of pytest's capture.
importlib.import_module("absl.logging").get_absl_handler().python_handler.stream = sys.__stderr__
# Threads get in each other's way on a tiny model, and where several processes have as many as there are cores: also in
# a fixture of a whole session, which is made before `place` is. (Those that wait for one another run all the while.)
torch.set_num_threads(1)

CHAT = (
    "{% for m in messages %}[{{ m.role }}] {{ m.content }}<eos>\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}"
)


RMU = ["--method", "rmu", "--set", "objective.layer=1", "--set",
       'train.params=["model.layers.[01].mlp.down_proj.weight"]']  # fmt: skip
"""Options of `ilu unlearn` that fit a tiny model."""


def tiny_model(vocab: int = 61, *, seed: int = 0, spread: float = 0.3, layers: int = LAYERS) -> LlamaForCausalLM:
    """A few Llama layers of 16 hidden units, tied embeddings, weights large enough that logits are not flat."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocab,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        initializer_range=spread,
        bos_token_id=None,
        eos_token_id=0,
    )
    model = torch.nn.Module.to(LlamaForCausalLM(config), torch.get_default_dtype())
    model.eval()
    if torch.get_default_dtype() == torch.float64:  # transformers' own norm computes in float32
        for name in [n for n, _ in model.named_modules()]:
            if name.endswith("norm"):
                exact = torch.nn.RMSNorm(16, eps=config.rms_norm_eps)
                model.get_submodule(name.rpartition(".")[0]).register_module(name.rpartition(".")[2], exact)
    return model


def tiny_tokenizer(vocab: int = 400) -> PreTrainedTokenizerFast:
    """A byte-level BPE trained on the built-in sentences."""
    from tokenizers import ByteLevelBPETokenizer

    trained = ByteLevelBPETokenizer()
    texts = [row["text"] for name in ("capitals", "elements") for row in registry.task[name].obj().builtin("train")]
    trained.train_from_iterator(texts, vocab_size=vocab, special_tokens=["<eos>"], show_progress=False)
    return PreTrainedTokenizerFast(tokenizer_object=trained._tokenizer, eos_token="<eos>")


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model as a folder that transformers loads."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    tokenizer = tiny_tokenizer()
    tiny_model(len(tokenizer), spread=0.05).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], None]) -> Path:
    """A folder for all processes of the suite: the first that needs it makes it, the others wait.

    A module's tests may run in several processes, of which each would have its own fixture.
    """
    root = factory.getbasetemp()
    folder = (root.parent if "PYTEST_XDIST_WORKER" in os.environ else root) / name
    with FileLock(folder.with_suffix(".lock")):
        if not (made := folder.with_suffix(".made")).exists():
            shutil.rmtree(folder, ignore_errors=True)  # of one that failed
            folder.mkdir()
            make(folder)
            made.touch()
    return folder


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Work in an empty folder, without a hub."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ILU_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    real = "real" in request.keywords
    alone = real and "PYTEST_XDIST_WORKER" not in os.environ
    torch.set_num_threads(os.cpu_count() or 1 if alone else 1)
    if not alone:
        monkeypatch.setenv("OMP_NUM_THREADS", "1")
    if not real:
        monkeypatch.setenv("ILU_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(traces, "told", told_before)
    monkeypatch.setattr(traced, "traced", traced_with_data)
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # no test cuts the power, and it waits for the disk


TOLD: dict[str, Any] = {}


def told_before(source: Any, find: Callable[[], T]) -> T:
    """Trace a model once in a process, though each test has an empty cache: a tenth of tests that run commands."""
    name = json.dumps(source, sort_keys=True)
    if source is None or name not in TOLD:
        TOLD[name] = find()
    found: T = TOLD[name]
    return found


SMALL = 1 << 20  # weights of a model that may have data


def with_data(model: Any, *form: Any) -> Any:
    """`trace` on tensors with data. Raises whatever the model's code does."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(traced, "FakeTensorMode", nullcontext)
        return traced.trace(model, *form)


def traced_with_data(model: Any, *form: Any, without: Callable[..., Any] = traced.traced) -> Any:
    """A tiny model's trace in a fifth of the time, and the same (tests/models/test_traced.py)."""
    if sum(p.numel() for p in model.parameters()) < SMALL:
        with suppress(Exception):
            return with_data(model, *form)
    return without(model, *form)


@pytest.fixture
def float64() -> Iterator[None]:
    """Everything in float64, with an attention that can be differentiated twice."""
    torch.set_default_dtype(torch.float64)
    with sdpa_kernel(SDPBackend.MATH):
        yield
    torch.set_default_dtype(torch.float32)


@dataclass
class Outcome:
    """What a command left behind."""

    code: int
    out: str
    err: str


Ilu = Callable[..., Outcome]


command_of = functools.cache(typer.main.get_command)  # a process builds its command line once, and so does this one


@pytest.fixture
def ilu(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Ilu:
    """Run the command line in this process; the workers of its pipelines begin at once."""
    from workers import begin_at_once

    from ilu_cli.cli.app import main

    begin_at_once(monkeypatch)
    monkeypatch.setattr(typer.main, "get_command", command_of)

    def run(*args: object) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["ilu", *map(str, args)])
        capsys.readouterr()
        code = 0
        try:
            main()
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        found = capsys.readouterr()
        assert "Traceback" not in found.err
        return Outcome(code, found.out, found.err)

    return run


def present(value: T | None) -> T:
    """The value, which must be there."""
    assert value is not None
    return value


def noted(into: list[Any], what: Any, then: T) -> T:
    """Keep `what` and give `then`, so that a lambda can look at what passes through it."""
    into.append(what)
    return then


def items_of(lengths: list[int], vocab: int = 61, *, start: int = 1, seed: int = 7) -> list[Encoded]:
    """Random token rows."""
    g = torch.Generator().manual_seed(seed)
    return [Encoded(torch.randint(1, vocab, (n,), generator=g).tolist(), start) for n in lengths]


def stream(items: list[Encoded], batch: int | None = None, name: str = "forget", seed: int = 0) -> TrainStream:
    """A stream whose step is all items, in a seeded order."""
    return TrainStream(name, [Corpus(items, 0)], batch or len(items), seed)


def trainer(model: LlamaForCausalLM, terms: list[Any], penalties: list[Any], **spec: object) -> Trainer:
    """A trainer of all weights on this process."""
    given: dict[str, Any] = {"precision": "fp32", **spec}
    train = TrainSpec(**given)
    return Trainer(parts_of(model), dict(model.named_parameters()), terms, penalties, train, 0, backend())


def gradient(t: Trainer) -> torch.Tensor:
    """The gradient of the trainer's current step, as one vector."""
    t.backward()
    return torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in t.params.values()])
