"""A weight at a time: what is read is what loading gives, and what is written is what saving writes."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import odd
import pytest
import torch
from families import FAMILIES, make_family
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from ilu_cli.engine.loading import frame
from ilu_cli.errors import UnavailableError
from ilu_cli.models import save
from ilu_cli.models.by_weight import reader_of
from ilu_cli.models.load import checked_model, load_model, load_tokenizer
from ilu_cli.models.save import save_checkpoint, written_names
from ilu_cli.models.subject import find_model
from ilu_cli.runs.files import INDEX, weight_files
from ilu_cli.workflows import moments
from ilu_cli.workflows.moments import OnDisk

MERGED = {"mixtral", "qwen2_moe"}  # whose experts lie one by one in the files and as one tensor in the model


def stored(folder: Path) -> dict[str, torch.Tensor]:
    return {name: t for path in weight_files(folder) for name, t in load_file(path).items()}


@pytest.mark.parametrize("name", FAMILIES)
def test_what_is_read_is_what_loading_gives(name: str, tmp_path: Path) -> None:
    subject = find_model(str(make_family(name, tmp_path / "m")))
    empty, whole = frame(subject), load_model(subject)
    read = reader_of(subject, empty)
    assert (read is None) is (name in MERGED)
    for weight, p in whole.named_parameters(remove_duplicate=False):
        assert read is None or torch.equal(read(weight), p)
    for (n, ours), (m, theirs) in zip(empty.named_buffers(), whole.named_buffers()):
        assert n == m and torch.equal(ours, theirs)


@pytest.mark.parametrize("name", FAMILIES)
def test_what_is_written_is_what_saving_writes(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of 20 KB with an index: the same names, bits and configuration, and plain transformers loads them."""
    subject = find_model(str(make_family(name, tmp_path / "m")))
    model, tokenizer = load_model(subject), load_tokenizer(subject.folder)
    wide = {n for n, p in model.named_parameters() if p.ndim == 1}
    save_checkpoint(model, tokenizer, tmp_path / "whole", torch.bfloat16, wide)
    types = {
        t.ndim: {w.dtype for w in stored(tmp_path / "whole").values() if w.ndim == t.ndim} for t in model.parameters()
    }
    assert types[2] == {torch.bfloat16} and types.get(1) == ({torch.float32} if wide else None)
    assert (written_names(model) is None) is (name in MERGED)
    monkeypatch.setattr(save, "LARGEST", 20_000)
    monkeypatch.setattr(save, "is_sharded", lambda _: True)
    monkeypatch.setattr("torch.distributed.get_rank", lambda: 0)
    save_checkpoint(model, tokenizer, tmp_path / "apart", torch.bfloat16, wide)
    one, two = stored(tmp_path / "whole"), stored(tmp_path / "apart")
    assert one.keys() == two.keys() and all(torch.equal(w, two[n]) for n, w in one.items())
    files = {p.name for p in weight_files(tmp_path / "apart")}
    assert (len(files) > 1) is (name not in MERGED)
    for beside in ("config.json", "generation_config.json"):
        assert (tmp_path / "whole" / beside).read_text() == (tmp_path / "apart" / beside).read_text()
    if name not in MERGED:
        index = json.loads((tmp_path / "apart" / INDEX).read_text())
        assert set(index["weight_map"].values()) == files and index["weight_map"].keys() == one.keys()
        assert index["metadata"]["total_size"] == sum(w.nbytes for w in one.values())
    assert torch.equal(odd.logits(odd.plain(tmp_path / "whole")), odd.logits(odd.plain(tmp_path / "apart")))


def changed(folder: Path, change: Any) -> Path:
    file = folder / "model.safetensors"
    save_file({n: w.clone() for n, w in change(load_file(file)).items()}, file, {"format": "pt"})
    return folder


def test_tied_weights_that_are_stored_twice_are_not_read_by_name(tmp_path: Path) -> None:
    """Transformers looks whether they are the same; one of them alone does not tell."""
    folder = changed(
        make_family("llama-tied", tmp_path / "m"),
        lambda w: w | {"lm_head.weight": w["model.embed_tokens.weight"] + 1},
    )
    subject = find_model(str(folder))
    assert reader_of(subject, frame(subject)) is None
    assert load_model(subject).lm_head.weight is not load_model(subject).model.embed_tokens.weight


def test_what_the_model_does_not_have_is_left_where_it_is(tmp_path: Path) -> None:
    folder = changed(make_family("llama", tmp_path / "m"), lambda w: w | {"other.weight": torch.ones(2)})
    subject = find_model(str(folder))
    read = reader_of(subject, frame(subject))
    assert read is not None and read("lm_head.weight").dtype == torch.float32


def test_a_weight_that_is_no_number_is_refused_where_it_is_read(tmp_path: Path) -> None:
    folder = changed(make_family("llama", tmp_path / "m"), lambda w: {n: t / 0 for n, t in w.items()})
    subject = find_model(str(folder))
    read = reader_of(subject, frame(subject))
    assert read is not None
    with pytest.raises(UnavailableError, match=r"1 weights .* infinite or not numbers: lm_head.weight"):
        read("lm_head.weight")


def test_the_estimate_asks_the_files_of_a_sharded_launch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of several processes, the first reads whole what `reader_of` does not; a process alone reads as loading does."""
    plain = make_family("llama-tied", tmp_path / "plain")
    twice = changed(
        make_family("llama-tied", tmp_path / "twice"), lambda w: w | {"lm_head.weight": w["model.embed_tokens.weight"]}
    )
    adapter = get_peft_model(odd.plain(plain), LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM"))
    adapter.peft_config["default"].base_model_name_or_path = str(plain)
    adapter.save_pretrained(str(tmp_path / "adapter"))
    expected = {plain: True, twice: False, tmp_path / "adapter": False}
    for mesh in (None, object()):
        monkeypatch.setattr(moments, "backend", lambda mesh=mesh: SimpleNamespace(mesh=mesh))
        for folder, by_weight in expected.items():
            subject = find_model(str(folder))
            found = OnDisk.of(subject, checked_model(subject), torch.float16)
            size = (subject.root / "model.safetensors").stat().st_size
            assert found == OnDisk(size, 2, by_weight or mesh is None)
