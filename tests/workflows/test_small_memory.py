"""Training in less memory: against the plain path, each at its own tolerance; and what is saved."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as T
from conftest import Ilu, items_of, stream, tiny_model
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor

from ilu_cli.engine.accel import backend
from ilu_cli.engine.gradients import Term
from ilu_cli.engine.loop import Trainer
from ilu_cli.engine.optimizers import optimizer_of
from ilu_cli.engine.state import load_state, save_state
from ilu_cli.models.dtypes import PIECE, lost_in
from ilu_cli.models.hold import hold, spare
from ilu_cli.models.load import add_adapter, trained_params
from ilu_cli.models.parts import parts_of
from ilu_cli.recipe.memory import MemorySpec
from ilu_cli.recipe.specs import LoraSpec, TrainSpec

pytestmark = pytest.mark.slow
DOWN = ["model.layers.[12].mlp.down_proj.weight"]


def made(memory: MemorySpec, *, lora: bool = False, params: list[str] | None = None, **keys: Any) -> Trainer:
    """A trainer of plain fine-tuning on a tiny model."""
    model = tiny_model(layers=3)
    if lora:
        add_adapter(model, LoraSpec(r=2), 0)
    named = trained_params(model, params, lora)
    spare(model, memory, named.values())
    spec = TrainSpec(steps=4, lr=1e-2, params=params, memory=memory, **{"precision": "bf16"} | keys)
    term = Term("loss", stream(items_of([9, 7, 5, 8]), 2), lambda view: view.nll, "token")
    return Trainer(parts_of(model), named, [term], [], spec, 0, backend())


def trained(trainer: Trainer) -> dict[str, Tensor]:
    norms = [log.grad_norm for log in trainer.run()]
    assert min(norms) > 0
    return {name: p.detach().clone() for name, p in trainer.params.items()}


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_checkpointing_changes_no_bit(lora: bool, precision: str) -> None:
    plain = trained(made(MemorySpec(), lora=lora, precision=precision))
    start = {n: p.detach().clone() for n, p in made(MemorySpec(), lora=lora).params.items()}
    again = trained(made(MemorySpec(checkpointing=True), lora=lora, precision=precision))
    assert all(torch.equal(plain[n], again[n]) for n in plain)
    assert all(not torch.equal(start[n], again[n]) for n in start)


def test_checkpointing_keeps_less_for_the_backward_pass() -> None:
    def kept(memory: MemorySpec) -> int:
        trainer, sizes = made(memory), []

        def pack(x: Tensor) -> Tensor:
            sizes.append(x.numel())
            return x

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            ids = torch.arange(1, 33)[None]
            trainer.grads.parts.final(ids, torch.ones_like(ids).bool())
        return sum(sizes)

    assert kept(MemorySpec(checkpointing=True)) < kept(MemorySpec()) / 4


@pytest.mark.parametrize("keys", [{"params": DOWN}, {"lora": True}])
def test_frozen_matrices_in_bf16_change_no_bit_of_a_step(keys: dict[str, Any]) -> None:
    small = made(MemorySpec(frozen="bf16"), **keys)
    inside = [p for p in small.grads.parts.layers.parameters() if p.dtype == torch.bfloat16]
    assert len(inside) == 21 - (2 if "params" in keys else 0)
    assert all(p.dtype == torch.float32 for p in small.params.values())
    plain, half = trained(made(MemorySpec(), **keys)), trained(small)
    assert all(torch.equal(plain[n], half[n]) for n in plain)


def test_without_autocast_bf16_matrices_are_the_rounded_ones() -> None:
    model, exact, ids = tiny_model(), tiny_model(), torch.arange(1, 20)[None]
    hold(model, "bf16", [])
    for layer in exact.model.layers:
        for module in layer.modules():
            if isinstance(module, torch.nn.Linear):
                module.weight.data = module.weight.data.bfloat16().float()
    assert torch.equal(model(ids).logits, exact(ids).logits)


def test_nf4_trains_the_adapter_of_the_model_that_its_numbers_stand_for() -> None:
    import bitsandbytes.functional as bnb

    model = tiny_model(layers=3)
    for layer in model.model.layers:
        for module in layer.modules():
            if isinstance(module, torch.nn.Linear):
                packed, state = bnb.quantize_4bit(module.weight.data, blocksize=64, quant_type="nf4")
                module.weight.data = bnb.dequantize_4bit(packed, state)
    add_adapter(model, LoraSpec(r=2), 0)
    named = trained_params(model, None, True)
    small = made(MemorySpec(frozen="nf4", checkpointing=True), lora=True, precision="fp32")
    spec, term = TrainSpec(steps=4, lr=1e-2, precision="fp32"), small.terms[0]
    plain = trained(Trainer(parts_of(model), named, [term], [], spec, 0, backend()))
    four = trained(small)
    assert max(float((plain[n] - four[n]).abs().max()) for n in plain) < 1e-5
    assert sum(p.dtype == torch.uint8 for p in small.grads.parts.layers.parameters()) == 21


def test_moments_in_main_memory_change_no_bit(tmp_path: Path) -> None:
    plain = trained(made(MemorySpec(), weight_decay=0.1))
    away = made(MemorySpec(offload="optimizer"), weight_decay=0.1)
    steps = away.run()
    for _ in range(2):
        next(steps)
    save_state(away, tmp_path)
    again = made(MemorySpec(offload="optimizer"), weight_decay=0.1)
    assert load_state(again, tmp_path) == 2
    found = trained(again)
    assert all(torch.equal(plain[n], found[n]) for n in plain)


def test_moments_of_8_bits_step_nearly_as_those_of_32(tmp_path: Path) -> None:
    def run(bits: Any) -> tuple[Trainer, Tensor]:
        p = torch.nn.Parameter(torch.zeros(64, 128))
        trainer = made(MemorySpec(optimizer_bits=bits))
        trainer.params.clear()
        trainer.params["w"] = p
        trainer.optimizer = optimizer_of(trainer.grads.parts, [p], trainer.spec, torch.device("cpu"))
        generator = torch.Generator().manual_seed(0)
        for _ in range(20):
            p.grad = 1 + 0.3 * torch.randn(p.shape, generator=generator)
            trainer.optimizer.step()
        return trainer, p.detach()

    (small, eight), (_, full) = run(8), run(32)
    assert float((eight - full).norm() / full.norm()) < 0.02
    assert not torch.equal(eight, full)
    assert isinstance(small.optimizer, torch.optim.Optimizer)
    state = small.optimizer.state[small.params["w"]]
    assert state["state1"].dtype == state["state2"].dtype == torch.uint8
    save_state(small, tmp_path)
    assert load_state(small, tmp_path) == 0
    assert small.optimizer.state[small.params["w"]]["state1"].dtype == torch.uint8


def test_what_storing_loses_of_an_update() -> None:
    before, after = torch.ones(4), torch.tensor([1.0, 1 + 2**-9, 1.5, 1.0])
    assert lost_in(torch.bfloat16, {"w": after}, lambda _: before) == pytest.approx(2**-9 / (0.25 + 2**-18) ** 0.5)
    assert lost_in(torch.bfloat16, {"w": before}, lambda _: before) == 0
    old, new = torch.ones(2, PIECE), torch.ones(2, PIECE)  # in two pieces
    new[0, 5], new[1, 7] = 1 + 2**-9, 1.5
    assert lost_in(torch.bfloat16, {"w": new}, lambda _: old) == pytest.approx(2**-9 / (0.25 + 2**-18) ** 0.5)


def test_moments_are_forgotten_when_steps_are_over() -> None:
    trainer = made(MemorySpec())
    trained(trainer)
    assert len(trainer.optimizer.state) == len(trainer.params)  # type: ignore[union-attr]
    trainer.let_go()
    assert not trainer.optimizer.state  # type: ignore[union-attr]


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_an_adapter_over_matrices_in_bf16_is_the_one_over_float32(device: str) -> None:
    plain, small = tiny_model(layers=3), tiny_model(layers=3)
    small.to(torch.bfloat16 if device == "meta" else torch.float32).to(device)
    hold(small, "bf16", ())
    for model in (plain, small):
        add_adapter(model, LoraSpec(r=2), 0)
    params = dict(small.named_parameters())
    for name, p in plain.named_parameters():
        assert params[name].requires_grad == p.requires_grad
        if p.requires_grad:
            assert params[name].dtype == torch.float32
            assert device == "meta" or torch.equal(params[name], p)
        elif name.endswith("proj.base_layer.weight"):
            assert params[name].dtype == torch.bfloat16 and params[name].shape == p.shape


@pytest.fixture
def halved(tiny: Path, tmp_path: Path) -> Path:
    """The tiny model, stored in bf16."""
    folder = tmp_path / "halved"
    T.AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.bfloat16).save_pretrained(folder)
    T.AutoTokenizer.from_pretrained(tiny).save_pretrained(folder)
    return folder


SMALL = ["--steps", "2", "--set", "forget.batch=2", "--set", "retain.batch=2"]


def types(folder: Path) -> set[torch.dtype]:
    return {t.dtype for t in load_file(folder / "model.safetensors").values()}


def test_a_checkpoint_has_the_type_of_its_parent_or_the_one_asked_for(ilu: Ilu, halved: Path, tiny: Path) -> None:
    def run(model: Path, *more: str) -> tuple[Path, dict[str, Any]]:
        done = ilu("unlearn", "--method", "grad_diff", "--model", model, *SMALL, "--set", "train.lr=1e-3", *more)
        assert done.code == 0, done.err
        at = Path(done.out.splitlines()[-1])
        return at / "checkpoint", json.loads((at / "manifest.json").read_text())["result"]

    half, told = run(halved)
    assert types(half) == {torch.bfloat16}
    assert json.loads((half / "config.json").read_text())["dtype"] == "bfloat16"
    assert "lm_head.weight" not in load_file(half / "model.safetensors")
    full, _ = run(halved, "--set", "train.save_dtype=fp32")
    assert types(full) == {torch.float32}
    a, b = load_file(half / "model.safetensors"), load_file(full / "model.safetensors")
    assert a.keys() == b.keys()
    assert all(torch.equal(a[n], b[n].bfloat16()) for n in a)
    before = load_file(halved / "model.safetensors")
    wrong = sum(float((a[n].double() - b[n].double()).square().sum()) for n in a)
    moved = sum(float((b[n].double() - before[n].double()).square().sum()) for n in a)
    assert told["rounding"] == pytest.approx((wrong / moved) ** 0.5)
    _, tiny_step = run(halved, "--set", "train.lr=1e-6")
    assert [w["id"] for w in tiny_step["warnings"] if w["id"] == "update-rounded"]
    assert types(run(tiny)[0]) == {torch.float32}


def test_rmu_in_less_memory_saves_what_it_saves_otherwise(ilu: Ilu, halved: Path) -> None:
    def run(*more: str) -> dict[str, Tensor]:
        params = f'train.params=["{DOWN[0].replace("12", "01")}"]'
        rmu = ["--method", "rmu", "--model", halved, *SMALL, "--set", "objective.layer=1", "--set", params]
        done = ilu("unlearn", *rmu, "--set", "train.lr=1e-2", "--set", "train.precision=bf16", *more)
        assert done.code == 0, done.err
        return load_file(Path(done.out.splitlines()[-1]) / "checkpoint" / "model.safetensors")

    plain = run()
    less = run(*(f"--set=train.memory.{k}" for k in ("frozen=bf16", "checkpointing=true", "offload=optimizer")))
    assert plain.keys() == less.keys()
    assert all(torch.equal(plain[n], less[n]) for n in plain)


def test_an_attack_by_an_adapter_on_four_bits(ilu: Ilu, halved: Path) -> None:
    four = [
        "--set",
        "attack.memory.frozen=nf4",
        "--set",
        "attack.memory.optimizer_bits=8",
        "--set",
        "attack.memory.checkpointing=true",
    ]
    asked = [
        "--task",
        "sst2",
        "--source",
        "builtin",
        "--steps",
        "2",
        "--set",
        "attack.batch=2",
        "--set",
        "attack.lora.r=2",
    ]
    done = ilu("attack", halved, *asked, *four, "--set", "eval.benchmarks=[capitals]", "--set", "eval.limit=4")
    assert done.code == 0, done.err
    saved = Path(done.out.splitlines()[-1]) / "checkpoint"
    model = PeftModel.from_pretrained(T.AutoModelForCausalLM.from_pretrained(halved), saved)
    assert any(bool(p.any()) for n, p in model.named_parameters() if "lora_B" in n)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        (["train.memory.frozen=bf16"], "every weight is trained"),
        (["train.memory.frozen=nf4", "train.params=['*down*']"], "train an adapter"),
        (["train.memory.frozen=bf16", "train.precision=fp32", "train.params=['*down*']"], "needs precision bf16"),
        (["train.memory.offload=optimizer", "train.optimizer=sgd"], "optimiser is sgd"),
        (["train.memory.frozen=bf16", "train.params=['*down*']"], "not stored in bf16"),
        (["train.memory.optimizer_bits=16"], "train.memory.optimizer_bits"),
    ],
)
def test_what_cannot_be_is_refused_in_the_plan(ilu: Ilu, tiny: Path, keys: list[str], said: str) -> None:
    sets = [x for k in keys for x in ("--set", k)]
    done = ilu("unlearn", "--method", "grad_diff", "--model", tiny, *SMALL, *sets, "--dry-run")
    assert done.code == 2
    assert said in done.err


def test_a_package_that_is_not_here_is_named(ilu: Ilu, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found: Callable[..., Any] = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda n, *a: None if n == "bitsandbytes" else found(n, *a))
    small = ["--set", "train.memory.optimizer_bits=8", "--dry-run"]
    done = ilu("unlearn", "--method", "grad_diff", "--model", tiny, *SMALL, *small)
    assert done.code == 2
    assert "pip install 'ilu[small]'" in done.err
