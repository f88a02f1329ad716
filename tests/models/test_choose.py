"""`auto`: the layer by depth and the weights by what they are; at the shipped depth, those of before."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import Ilu, tiny_model
from families import DEPTH, FAMILIES, family_model
from torch import nn

from ilu_cli.errors import UsageError
from ilu_cli.models.choose import layer_for, mlp_params, params_for, patterns, writers
from ilu_cli.models.load import select_params

MLP = {  # by hand, from the sources of transformers: the last map of each family's MLP
    "phi": "mlp.fc2.weight", "gpt2": "mlp.c_proj.weight", "gpt_neox": "mlp.dense_4h_to_h.weight", "opt": "fc2.weight",
    "bloom": "mlp.dense_4h_to_h.weight", "falcon": "mlp.dense_4h_to_h.weight", "mpt": "ffn.down_proj.weight",
    "mixtral": "mlp.experts.down_proj", "qwen2_moe": "mlp.experts.down_proj mlp.shared_expert.down_proj.weight",
    "gpt_oss": "mlp.experts.down_proj", "lfm2": "feed_forward.w2.weight", "mamba": "mixer.out_proj.weight",
}  # fmt: skip
LISTS = {
    "gpt2": "transformer.h", "gpt_neox": "gpt_neox.layers", "opt": "model.decoder.layers", "bloom": "transformer.h",
    "falcon": "transformer.h", "mpt": "transformer.blocks", "mamba": "backbone.layers",
}  # fmt: skip


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_what_writes_the_mlps_output_is_found_in_every_family(family: str) -> None:
    model, stack = family_model(family), LISTS.get(family, "model.layers")
    wanted = [f"{stack}.2.{name}" for name in MLP.get(family, "mlp.down_proj.weight").split()]
    assert sorted(writers(model, 2)) == sorted(wanted)
    reading = params_for(model, [DEPTH - 1])  # and two below
    matched = select_params(model, reading, "train.params")
    assert sorted(matched) == sorted(w.replace(".2.", f".{n}.", 1) for n in (1, 2, 3) for w in wanted)


MAPS = {  # by hand, from the sources of transformers: all matrices of a layer outside of attention and routers
    "phi": "mlp.fc1.weight mlp.fc2.weight", "gpt2": "mlp.c_fc.weight mlp.c_proj.weight",
    "gpt_neox": "mlp.dense_h_to_4h.weight mlp.dense_4h_to_h.weight", "opt": "fc1.weight fc2.weight",
    "mixtral": "mlp.experts.gate_up_proj mlp.experts.down_proj",
    "phi3": "mlp.gate_up_proj.weight mlp.down_proj.weight",
    "llama": "mlp.gate_proj.weight mlp.up_proj.weight mlp.down_proj.weight",
    "qwen2_moe": "mlp.experts.gate_up_proj mlp.experts.down_proj mlp.shared_expert.gate_proj.weight "
    "mlp.shared_expert.up_proj.weight mlp.shared_expert.down_proj.weight",
}  # fmt: skip


@pytest.mark.parametrize("family", sorted(MAPS))
def test_the_mlps_matrices_are_found_by_what_they_are(family: str) -> None:
    model, stack = family_model(family), LISTS.get(family, "model.layers")
    assert sorted(mlp_params(model)) == sorted(f"{stack}.*.{name}" for name in MAPS[family].split())
    matched = select_params(model, mlp_params(model), "train.params")
    assert len(matched) == DEPTH * len(MAPS[family].split())


def test_the_layer_is_the_last_of_the_first_quarter() -> None:
    found = {depth: layer_for(depth) for depth in (1, 2, 3, 4, 8, 9, 12, 24, 30, 32, 60, 80)}
    assert found == {1: 0, 2: 1, 3: 1, 4: 1, 8: 1, 9: 2, 12: 2, 24: 5, 30: 7, 32: 7, 60: 14, 80: 19}


def test_at_the_depth_of_the_quickstart_the_weights_are_those_of_before() -> None:
    model = tiny_model(layers=30)
    assert params_for(model, [layer_for(30)]) == ["model.layers.[567].mlp.down_proj.weight"]


def test_layers_of_two_digits_have_a_pattern_each() -> None:
    names = [f"model.layers.{n}.mlp.down_proj.weight" for n in (8, 9, 10)]
    assert patterns(names) == ["model.layers.[89].mlp.down_proj.weight", names[2]]
    assert patterns(names[:1]) == names[:1]


def test_square_maps_are_told_by_their_place() -> None:
    """With an MLP as wide as the model, up and down have one shape; what comes last is what writes."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(vocab_size=16, hidden_size=8, intermediate_size=8, num_hidden_layers=2, num_attention_heads=2)
    assert writers(LlamaForCausalLM(config), 1) == ["model.layers.1.mlp.down_proj.weight"]


def test_a_layer_without_such_a_weight_is_refused_by_name() -> None:
    model = tiny_model()
    model.model.layers[1].mlp = nn.Identity()
    with pytest.raises(UsageError, match=r"train\.params: in layer 1 of LlamaForCausalLM no weight is known"):
        writers(model, 1)


SMALL = ["--steps", 1, "--set", "forget.batch=2", "--set", "retain.batch=2"]


def dry(ilu: Ilu, *args: object) -> Any:
    done = ilu("unlearn", *SMALL, *args, "--dry-run", "--json")
    assert done.code == 0, done.err
    return json.loads(done.out)


def test_what_was_chosen_is_said_in_plan_run_and_recipe(ilu: Ilu, tiny: Path) -> None:
    wanted = {"objective.layer": 1, "train.params": ["model.layers.[01].mlp.down_proj.weight"]}
    plan = dry(ilu, "--model", tiny)
    assert plan["chosen"] == wanted
    assert plan["recipe"]["objective"]["layer"] == 1
    text = ilu("unlearn", *SMALL, "--model", tiny, "--dry-run").out
    assert "chosen      objective.layer 1, train.params ['model.layers.[01].mlp.down_proj.weight']" in text
    written = dry(ilu, "--model", tiny, "--set", "objective.layer=1", "--set", f"train.params={wanted['train.params']}")
    assert "chosen" not in written
    assert written["recipe_sha256"] == plan["recipe_sha256"]
    done = ilu("unlearn", *SMALL, "--model", tiny)
    assert "chosen for this model: objective.layer 1" in done.err
    manifest = json.loads((Path(done.out.strip()) / "manifest.json").read_text())
    assert manifest["result"]["chosen"] == wanted
    assert manifest["recipe_sha256"] == plan["recipe_sha256"]


def test_a_number_stays_a_number_and_an_adapter_needs_no_weights(ilu: Ilu, tiny: Path) -> None:
    plan = dry(ilu, "--model", tiny, "--set", "objective.layer=2")
    assert plan["chosen"] == {"train.params": ["model.layers.[012].mlp.down_proj.weight"]}
    plan = dry(ilu, "--model", tiny, "--set", "lora={r: 2}")
    assert plan["chosen"] == {"objective.layer": 1, "train.params": None}
    plan = dry(ilu, "--model", tiny, "--method", "npo", "--set", "train.params=auto")
    assert plan["chosen"] == {"train.params": None}
    assert plan["trainable_parameters"] == plan["model"]["parameters"]


def test_what_does_not_go_with_the_chosen_layer_is_refused(ilu: Ilu, tiny: Path) -> None:
    done = ilu("unlearn", *SMALL, "--model", tiny, "--set", "defences=[{name: lat, layer: 1}]", "--dry-run")
    assert done.code == 2
    assert "defences.0.layer: rmu reads layer 1" in done.err
    assert "chosen for this model: objective.layer 1" in done.err
