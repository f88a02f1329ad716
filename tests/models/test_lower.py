"""Lower layers by themselves: what they give is what they give in the whole model, and the rest is copied, not read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Ilu
from families import DEPTH, FAMILIES, make_family
from safetensors.torch import load_file

from ilu_cli.errors import UsageError
from ilu_cli.models.load import empty_model, load_model
from ilu_cli.models.lower import check_lower, save_lower
from ilu_cli.models.parts import parts_of
from ilu_cli.models.subject import find_model

IDS = torch.tensor([[5, 9, 7, 30, 12, 44, 8, 61, 17, 90, 6, 21, 33, 4, 11]])
RMU = ["unlearn", "--method", "rmu", "--steps", 2, "--set", "objective.layer=1", "--set", "forget.batch=2", "--set",
       "retain.batch=2", "--set", "forget.max_length=24", "--set", "retain.max_length=24", "--set",
       "retain.data=[elements]", "--set", "train.precision=fp32"]  # fmt: skip
NEEDED = ["--set", "train.loaded=needed"]


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_the_lower_layers_alone_give_what_they_give_in_the_whole(family: str, tmp_path: Path) -> None:
    subject = find_model(str(make_family(family, tmp_path / family)))
    check_lower(empty_model(subject.folder), empty_model(subject.folder, 2))
    whole, lower = (parts_of(load_model(subject, depth=depth)) for depth in (None, 2))
    assert (len(whole.layers), len(lower.layers)) == (DEPTH, 2)
    with torch.no_grad():
        one, other = (p.states_at([0, 1], IDS, torch.ones_like(IDS).bool()) for p in (whole, lower))
    assert all(torch.equal(a, b) for a, b in zip(one, other))


@pytest.mark.parametrize("family", ["llama", "llama-tied", "gpt2", "smollm3", "gemma2"])
def test_the_run_is_the_same_and_the_rest_is_the_parents_bytes(family: str, ilu: Ilu, tmp_path: Path) -> None:
    model, runs = make_family(family, tmp_path / family), []
    for more in ([], NEEDED):
        done = ilu(*RMU, "--model", model, *more)
        assert done.code == 0, done.err
        runs.append(Path(done.out.strip()))
    facts: list[Any] = [json.loads((run / "manifest.json").read_text())["result"] for run in runs]
    assert facts[1]["parity"]["layers"] == 2
    assert "layers" not in facts[0]["parity"]
    assert facts[0]["changed_fraction"] == pytest.approx(facts[1]["changed_fraction"]) != 0
    parent, one, other = (load_file(f / "model.safetensors") for f in (model, *(r / "checkpoint" for r in runs)))
    assert parent.keys() == other.keys()
    moved = [name for name in parent if not torch.equal(parent[name], other[name])]
    assert moved
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=1e-5, atol=1e-6)
    assert (runs[1] / "checkpoint" / "model.safetensors").stat().st_nlink == 1
    asked = ilu("eval", runs[1], "--alone", "--bench", "capitals", "--limit", 2, "--json")
    assert asked.code == 0, asked.err


def test_layers_above_are_not_read(ilu: Ilu, tmp_path: Path) -> None:
    """Their weights may be anything: they are copied as they are."""
    folder = make_family("llama", tmp_path / "m")
    from safetensors.torch import save_file

    weights = load_file(folder / "model.safetensors")
    top = f"model.layers.{DEPTH - 1}.mlp.up_proj.weight"
    weights[top] = torch.full_like(weights[top], torch.nan)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    assert "not numbers" in ilu(*RMU, "--model", folder).err
    done = ilu(*RMU, "--model", folder, *NEEDED)
    assert done.code == 0, done.err
    assert load_file(Path(done.out.strip()) / "checkpoint" / "model.safetensors")[top].isnan().all()


def test_embeddings_that_are_stored_twice_stay_tied(ilu: Ilu, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    folder = make_family("llama-tied", tmp_path / "m")
    weights, embedded = load_file(folder / "model.safetensors"), "model.embed_tokens.weight"
    save_file(weights | {"lm_head.weight": weights[embedded].clone()}, folder / "model.safetensors", {"format": "pt"})
    done = ilu(*RMU, "--model", folder, *NEEDED, "--set", f"train.params=[{embedded}]")
    assert done.code == 0, done.err
    model = load_model(find_model(str(Path(done.out.strip()) / "checkpoint")))
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert not torch.equal(model.lm_head.weight, weights[embedded])


def test_the_plan_prices_what_is_loaded(ilu: Ilu, tmp_path: Path) -> None:
    model = make_family("llama", tmp_path / "m")
    whole, lower = (json.loads(ilu(*RMU, "--model", model, *more, "--dry-run", "--json").out) for more in ([], NEEDED))
    assert whole["model"]["parameters"] == lower["model"]["parameters"]
    assert lower["peak_memory_bytes"] < whole["peak_memory_bytes"]
    assert whole["recipe_sha256"] != lower["recipe_sha256"]


@pytest.mark.parametrize(
    ("more", "why"),
    [
        (["--irm-env", "prose"], "environments are read by the LM head"),
        (["--set", "retain.name=nll"], "nll reads what comes after the layers"),
        (["--set", "train.params=null"], "which weights are trained must be said"),
        (["--set", 'train.params=["*mlp*"]'], "is trained, which lies above"),
        (["--set", "train.save_dtype=bf16"], "the checkpoint would be in torch.bfloat16"),
        (["--lora", "r=2"], "an adapter lies in all layers"),
        (["--defence", "sam"], "a defence may read the LM head"),
    ],
)
def test_what_needs_the_rest_is_refused(more: list[str], why: str, ilu: Ilu, tmp_path: Path) -> None:
    model = make_family("llama", tmp_path / "m")
    done = ilu(*RMU, "--model", model, *more, *NEEDED, "--dry-run")
    assert done.code == 2
    assert "train.loaded" in done.err
    assert why in " ".join(done.err.split())


def test_a_shorter_model_with_other_modules_is_refused(tmp_path: Path) -> None:
    folder = make_family("llama", tmp_path / "m")
    whole, lower = empty_model(folder), empty_model(folder, 2)
    lower.model.layers[1].self_attn.is_causal = False
    with pytest.raises(UsageError, match=r"in a shorter model model.layers.1.self_attn is another"):
        check_lower(whole, lower)
    with pytest.raises(UsageError, match="a shorter model has other weights"):
        check_lower(make_other(tmp_path), empty_model(folder, 2))


def make_other(tmp_path: Path) -> Any:
    return empty_model(make_family("gpt2", tmp_path / "other"))


def test_shards_are_copied_too(tmp_path: Path) -> None:
    subject = find_model(str(make_family("llama", tmp_path / "m")))
    model = load_model(subject)
    model.save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    parts = sorted(p.name for p in (tmp_path / "shards").glob("*.safetensors"))
    assert len(parts) > 1
    name = "model.layers.1.mlp.down_proj.weight"
    expected = {n: p.detach() + (n == name) for n, p in model.named_parameters()}
    trained = {name: model.get_parameter(name)}
    trained[name].data += 1

    class NoTokenizer:
        init_kwargs: dict[str, Any] = {}

        def save_pretrained(self, folder: Path) -> None:
            (folder / "tokenizer.json").write_text("{}")

    save_lower(model, trained, NoTokenizer(), tmp_path / "shards", tmp_path / "out")
    assert sorted(p.name for p in (tmp_path / "out").glob("*.safetensors")) == parts
    found = load_model(find_model(str(tmp_path / "out")))
    for n, p in found.named_parameters():
        assert torch.equal(p, expected[n])
