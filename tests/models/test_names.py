"""The layer of a weight, read from the model and from names in files; layers that do not exist are refused."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as T
from conftest import Ilu
from families import DEPTH, FAMILIES, family_model, make_family

from ilu_cli.errors import UsageError
from ilu_cli.models.load import add_adapter
from ilu_cli.models.names import places, stored_layer
from ilu_cli.models.parts import parts_of
from ilu_cli.recipe.specs import LoraSpec

TOP = {  # a module of layer 3 in each way of naming the layers, and what acts after it
    "llama": ("model.layers.3.mlp", "model.norm.*"),
    "gpt2": ("transformer.h.3.mlp", "transformer.ln_f.*"),
    "mpt": ("transformer.blocks.3.ffn", "transformer.norm_f.*"),
    "opt": ("model.decoder.layers.3.fc1", "model.decoder.final_layer_norm.*"),
    "gpt_neox": ("gpt_neox.layers.3.mlp", "lm_head.*"),
    "lfm2": ("model.layers.3.feed_forward", "model.embedding_norm.*"),
    "mixtral": ("model.layers.3.mlp.experts", "lm_head.*"),
}
RMU = ["--method", "rmu", "--set", "objective.layer=1", "--steps", 1, "--set", "forget.batch=2", "--set",
       "retain.batch=2", "--set", "train.precision=fp32", "--set", "retain.data=[elements]"]  # fmt: skip


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_a_weight_lies_before_a_layer_just_if_it_changes_what_enters_it(family: str) -> None:
    """By autograd: the input of layer n depends on the weights before it, and on no others."""
    model = family_model(family)
    parts, where, inputs = parts_of(model), places(model), {}
    for n, layer in enumerate(parts.layers):
        layer.register_forward_pre_hook(
            lambda _m, args, kwargs, n=n: inputs.update({n: (args or [kwargs["hidden_states"]])[0]}), with_kwargs=True
        )
    out = model(input_ids=torch.tensor([[5, 6, 7, 8]]), use_cache=False).logits
    for n, h in {**inputs, DEPTH: out}.items():
        params = list(model.named_parameters())
        grads = torch.autograd.grad(h.square().sum(), [p for _, p in params], retain_graph=True, allow_unused=True)
        reached = {name for (name, _), g in zip(params, grads) if g is not None}
        if n < DEPTH:
            assert reached <= {name for name, at in where.items() if at < n}
            assert {at for name, at in where.items() if name in reached} == set(range(-1, n))
        else:
            assert {name for name, at in where.items() if at == DEPTH} <= reached


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("model.layers.12.mlp.down_proj.weight", 12),
        ("transformer.h.3.mlp.c_fc.weight", 3),
        ("h.3.mlp.c_fc.weight", 3),
        ("transformer.blocks.5.ffn.up_proj.weight", 5),
        ("model.layers.2.block_sparse_moe.experts.7.w1.weight", 2),
        ("encoder.layer.4.attention.self.query.weight", 4),
        ("model.embed_tokens.weight", None),
        ("lm_head.weight", None),
        ("mesh.3.weight", None),
    ],
)
def test_the_layer_that_a_stored_name_tells(name: str, layer: int | None) -> None:
    assert stored_layer(name) == layer


@pytest.mark.parametrize("family", sorted(TOP))
def test_training_that_cannot_reach_the_objective_is_refused(family: Any, ilu: Ilu, tmp_path: Path) -> None:
    model, (above, after) = make_family(family, tmp_path / family), TOP[family]
    for trained in ([f"{above}.*"], [after], [f"{above}.*", after]):
        text = ",".join(f'"{t}"' for t in trained)
        done = ilu("unlearn", *RMU, "--model", model, "--set", f"train.params=[{text}]", "--dry-run")
        assert done.code == 2, trained
        assert "no trained weight lies at or below layer 1" in done.err
    below = above.replace(".3.", ".1.")
    for reaching in (f"{below}.*", "*embed*" if family not in ("gpt2", "mpt") else "*wte*"):
        done = ilu("unlearn", *RMU, "--model", model, "--set", f'train.params=["{reaching}"]', "--dry-run")
        assert done.code == 0, done.err


def test_an_adapter_above_the_objective_is_refused(ilu: Ilu, tmp_path: Path) -> None:
    model = make_family("gpt2", tmp_path / "m")
    for layers, code in (([2, 3], 2), ([1], 0)):
        done = ilu("unlearn", *RMU, "--model", model, "--set", "lora.r=2", "--set", f"lora.layers={layers}",
                   "--set", "train.params=null", "--dry-run")  # fmt: skip
        assert done.code == code, done.err
        assert ("lora: no trained weight lies at or below layer 1" in done.err) == (code == 2)


@pytest.mark.parametrize("targets", [["all-linear"], ["c_attn", "c_fc", "c_proj"]])
def test_an_adapter_of_some_layers_is_in_those_alone(targets: list[str]) -> None:
    model = family_model("gpt2")
    add_adapter(model, LoraSpec(r=2, targets=targets, layers=[1, 3]), 0)
    trained = {places(model)[name] for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {1, 3}
    assert sum(p.requires_grad for p in model.parameters()) == 2 * 4 * 2  # two layers of four modules, A and B


@pytest.mark.parametrize("targets", [["all-linear"], ["c_attn"]])
def test_layers_that_do_not_exist_are_refused(targets: list[str]) -> None:
    with pytest.raises(UsageError, match=r"lora\.layers: 4 does not exist, the model has layers 0 to 3"):
        add_adapter(family_model("gpt2"), LoraSpec(targets=targets, layers=[1, 4]), 0)


def test_a_defence_at_a_layer_that_does_not_exist_is_refused(ilu: Ilu, tmp_path: Path) -> None:
    model = make_family("llama", tmp_path / "m")
    sets = ["--set", "defences=[{name: lat, layer: 9}]"]
    done = ilu("unlearn", "--method", "npo", *sets, "--model", model, "--dry-run")
    assert done.code == 2
    assert "defences.0.layer: 9 does not exist, the model has layers 0 to 3" in done.err


def test_position_embeddings_act_before_the_layers() -> None:
    assert places(T.GPT2LMHeadModel(FAMILIES["gpt2"]()).eval())["transformer.wpe.weight"] == -1


def test_an_attack_on_the_last_layer_keeps_activations_of_that_one_only(ilu: Ilu, tmp_path: Path) -> None:
    model = make_family("gpt2", tmp_path / "m")
    memory = []
    for n in range(DEPTH):
        args = ["--kind", "finetune", "--set", f'attack.weights=["transformer.h.{n}.*"]', "--set", "attack.steps=1",
                "--set", "attack.precision=bf16"]  # fmt: skip
        memory.append(
            json.loads(ilu("attack", model, *args, "--source", "builtin", "--dry-run", "--json").out)[
                "peak_memory_bytes"
            ]
        )
    steps = [a - b for a, b in itertools.pairwise(memory[1:])]  # the dearest moment is not the same one in all
    assert 0 < min(steps) <= max(steps) <= 1.05 * min(steps)
    assert memory[0] > memory[1]
