"""Whose weights a folder holds: tied copies, adapters of every kind, and what two folders do not share."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import present
from families import family_model, family_tokenizer
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from test_angles import SHAPES, adapter, checkpoint

from ilu_cli.errors import UnavailableError
from ilu_cli.models.subject import find_model
from ilu_cli.taskvec.delta import Adapted, Checkpoint, common_names, differences, oddities, open_checkpoint
from ilu_cli.taskvec.stored import _fill, index
from ilu_cli.taskvec.stream import Difference

EMBEDDINGS, HEAD = "model.embed_tokens.weight", "lm_head.weight"


@pytest.fixture
def tied(tiny: Path, tmp_path: Path) -> Any:
    """A copy of the tied model, and a way to store other tensors in it."""
    (tmp_path / "copy").mkdir()
    for file in tiny.iterdir():
        (tmp_path / "copy" / file.name).write_bytes(file.read_bytes())
    path = tmp_path / "copy" / "model.safetensors"

    def store(**change: Any) -> Checkpoint:
        kept = load_file(tiny / "model.safetensors") | change
        save_file({n: t for n, t in kept.items() if t is not None}, path, {"format": "pt"})
        return Checkpoint(path.parent)

    return store


def test_a_tied_head_counts_once_unless_it_differs(tied: Any, tiny: Path) -> None:
    weights = load_file(tiny / "model.safetensors")
    assert HEAD not in weights
    assert tied().names == set(weights)
    assert tied(**{HEAD: weights[EMBEDDINGS].clone()}).names == set(weights)
    other = weights[EMBEDDINGS].clone()
    other[3, 3] += 1
    both = tied(**{HEAD: other})
    assert both.names == {*weights, HEAD}
    assert both.tensor(HEAD).equal(other) and both.tensor(EMBEDDINGS).equal(weights[EMBEDDINGS])
    alone = tied(**{HEAD: other, EMBEDDINGS: None})
    assert alone.names == set(weights)
    assert alone.tensor(EMBEDDINGS).equal(other)


KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "use_dora": {"use_dora": True},
    "rank_pattern": {"rank_pattern": {"q_proj": 2}},
    "alpha_pattern": {"alpha_pattern": {"q_proj": 2}},
    "modules_to_save": {"modules_to_save": ["lm_head"]},
}


@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_of_any_kind_is_opened_as_peft_merges_it(kind: str, tmp_path: Path) -> None:
    """A plain one as factors over its base; any other is merged by peft, never read as a plain one."""
    base = family_model("llama")
    base.save_pretrained(tmp_path / "base")
    family_tokenizer().save_pretrained(tmp_path / "base")
    config = LoraConfig(r=3, lora_alpha=5, target_modules=["q_proj", "v_proj"], **KINDS[kind])
    model = get_peft_model(base, config)
    torch.manual_seed(1)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_B" in name or "modules_to_save" in name:
                p.normal_(0, 0.1)
    model.peft_config["default"].base_model_name_or_path = str(tmp_path / "base")
    model.save_pretrained(str(tmp_path / "adapter"))
    family_tokenizer().save_pretrained(tmp_path / "adapter")
    found = open_checkpoint(find_model(str(tmp_path / "adapter")))
    assert isinstance(found, Adapted) == (kind == "plain")
    expected = model.merge_and_unload().state_dict()
    plain = open_checkpoint(find_model(str(tmp_path / "base")))
    changed = {n for n in plain.names if not found.tensor(n).equal(plain.tensor(n))}
    assert sum("q_proj" in n for n in changed) == sum("v_proj" in n for n in changed) > 0
    for name in found.names:
        torch.testing.assert_close(found.tensor(name), expected[name], rtol=1e-5, atol=1e-6)
    if kind != "plain":
        with pytest.raises(UnavailableError, match=f"is not a plain LoRA adapter: .*{'' if 'save' in kind else kind}"):
            Adapted(plain, tmp_path / "adapter")


def test_an_adapter_of_weights_that_the_base_lacks_is_refused(tmp_path: Path) -> None:
    checkpoint(tmp_path / "o", 0)
    adapter(tmp_path / "l", 1)
    config = (tmp_path / "l" / "adapter_config.json").read_text()
    tensors = load_file(tmp_path / "l" / "adapter_model.safetensors")
    save_file({n.replace("11", "12"): t for n, t in tensors.items()}, tmp_path / "l" / "adapter_model.safetensors")
    (tmp_path / "l" / "adapter_config.json").write_text(config)
    with pytest.raises(UnavailableError, match=r"does not have: model\.layers\.12\.mlp\.down_proj\.weight"):
        Adapted(Checkpoint(tmp_path / "o"), tmp_path / "l")


def test_all_that_differs_is_told_with_the_folder_that_lacks_it(tmp_path: Path) -> None:
    checkpoint(tmp_path / "a", 0, only_a=torch.ones(1))
    checkpoint(tmp_path / "b", 0, only_b=torch.ones(1))
    checkpoint(tmp_path / "c", 0, only_c=torch.ones(1), **{"model.embed_tokens.weight": torch.ones(2, 2)})
    a, b, c = (Checkpoint(tmp_path / n) for n in "abc")
    assert differences([a]) == {}
    assert differences([a, b, c]) == {
        "only_a": f"is missing in {tmp_path / 'c'}",
        "only_b": f"is missing in {tmp_path / 'a'}",
        "only_c": f"is missing in {tmp_path / 'a'}",
        "model.embed_tokens.weight": f"is [7, 3] in {tmp_path / 'a'} and [2, 2] in {tmp_path / 'c'}",
    }
    assert common_names([a, b, c], None, common=True) == sorted(set(SHAPES) - {"model.embed_tokens.weight"})


@pytest.mark.parametrize("more", [12, 13, 15])
def test_twelve_differences_are_listed_and_the_rest_counted(tmp_path: Path, more: int) -> None:
    checkpoint(tmp_path / "a", 0)
    checkpoint(tmp_path / "b", 0, **{f"x{i:02}": torch.ones(1) for i in range(more)})
    with pytest.raises(UnavailableError) as refused:
        common_names([Checkpoint(tmp_path / n) for n in "ab"], None)
    lines = str(refused.value).splitlines()
    assert lines[0].endswith(f"({more} differ, {len(SHAPES)} are common to all):")
    assert [line.split()[0] for line in lines[1:13]] == [f"x{i:02}" for i in range(12)]
    assert [line.strip() for line in lines[13:]] == ([f"and {more - 12} more"] if more > 12 else [])
    assert "--common" in present(refused.value.hint)


def test_folders_that_share_nothing_are_refused_even_by_wish(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
        save_file({name: torch.ones(1)}, tmp_path / name / "model.safetensors")
    with pytest.raises(UnavailableError, match=r"\(2 differ, 0 are common to all\)") as refused:
        common_names([Checkpoint(tmp_path / n) for n in "ab"], None, common=True)
    assert "--common" not in str(refused.value.hint)  # it would not help


def test_a_whole_difference_is_of_what_is_stored_and_of_what_adapters_add(tmp_path: Path) -> None:
    name = "model.layers.0.self_attn.q_proj.weight"
    o, u = checkpoint(tmp_path / "o", 0), checkpoint(tmp_path / "u", 1)
    one, two = (adapter(tmp_path / n, seed) for n, seed in (("one", 2), ("two", 3)))
    base, other = Checkpoint(tmp_path / "o"), Checkpoint(tmp_path / "u")
    adapted, again = Adapted(base, tmp_path / "one"), Adapted(other, tmp_path / "two")

    def whole(start: Checkpoint, end: Checkpoint) -> np.ndarray:
        return Difference.of(start.weight(name), end.weight(name)).whole().numpy()

    assert whole(base, other) == pytest.approx(u[name] - o[name], abs=1e-12)
    assert whole(base, adapted) == pytest.approx(one[name], abs=1e-12)
    assert whole(adapted, base) == pytest.approx(-one[name], abs=1e-12)
    assert whole(adapted, again) == pytest.approx(u[name] + two[name] - o[name] - one[name], abs=1e-12)


def test_whole_numbers_have_no_differences_and_are_named(tmp_path: Path) -> None:
    checkpoint(tmp_path / "o", 0, dtype=torch.float32)
    save_file({"w": torch.ones(2), "q": torch.ones(2, dtype=torch.int8)}, tmp_path / "o" / "part-0.safetensors")
    with pytest.raises(UnavailableError, match=r"no floating-point numbers: q \(I8\)"):
        index(tmp_path / "o" / "part-0.safetensors", {"w", "q"})
    assert set(index(tmp_path / "o" / "part-0.safetensors", {"w"})) == {"w"}


def test_a_file_that_is_read_in_pieces_is_read_whole(tmp_path: Path) -> None:
    class Slow(io.BytesIO):
        def readinto(self, view: Any) -> Any:
            return super().readinto(memoryview(view)[:3])

    data = bytes(range(8))
    found = bytearray(8)
    _fill(Slow(data), memoryview(found), tmp_path / "a")
    assert bytes(found) == data
    with pytest.raises(UnavailableError, match=r"a was cut off while it was read"):
        _fill(Slow(data[:7]), memoryview(found), tmp_path / "a")


@pytest.mark.parametrize("key", ["use_dora", "modules_to_save", "rank_pattern", "alpha_pattern", "target_parameters"])
def test_what_is_more_than_plain_lora_is_merged(key: str) -> None:
    names = ["base_model.model.q_proj.lora_A.weight", "base_model.model.q_proj.lora_B.weight"]
    assert oddities({"peft_type": "LORA", key: None}, names) == []
    assert oddities({"peft_type": "LORA", key: ["w"]}, names) == [key]
