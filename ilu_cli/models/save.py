"""Checkpoints that plain transformers loads, written whole; of a sharded model a file at a time."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors.torch import save_file
from torch import Tensor, nn

from ilu_cli.errors import tell
from ilu_cli.models.load import load_model, load_tokenizer
from ilu_cli.models.sharded import gathered, is_sharded
from ilu_cli.models.subject import Subject
from ilu_cli.runs.files import INDEX, cache_dir, write_text

LARGEST = 5 * 10**9  # bytes of a file of a sharded model, all of which are in main memory while it is written
WRITTEN = "model{suffix}.safetensors"


def save_checkpoint(
    model: Any, tokenizer: Any, folder: Path, dtype: torch.dtype = torch.float32, wide: Collection[str] = (), *,
    write: bool = True,
) -> None:  # fmt: skip
    """Write a checkpoint that plain transformers loads. The folder appears only when all its files are written.

    A whole model is written in `dtype`, but for `wide` weights, which are in float32; an adapter stays as it is. Of a
    sharded model all processes call this, and the first is to `write`: a file of `LARGEST` bytes at a time, if the
    files have weights as the model has them.
    """
    part = folder.with_name(f".{folder.name}.part")
    if write:
        shutil.rmtree(part, ignore_errors=True)
    if not is_sharded(model) or hasattr(model, "peft_config"):  # an adapter is not sharded
        if write:
            _whole(model, part, dtype, wide)
    elif names := written_names(model):
        _by_file(model, part, dtype, names, wide, write=write)
    else:
        weights = _gathered(model, dtype, wide)
        if write:
            _beside(model, part, dtype, weights)
    if not write:
        return
    tokenizer.init_kwargs.pop("local_files_only", None)  # whether HF_HUB_OFFLINE was set is no part of a model
    tokenizer.save_pretrained(part)
    shutil.rmtree(folder, ignore_errors=True)
    part.rename(folder)


def written_names(model: Any) -> dict[str, str] | None:
    """The name in a file of each weight, tensors that have several once; None where saving does more than to rename.

    It merges or splits weights of experts in some families, and leaves the model's own names in most.
    """
    from transformers.core_model_loading import revert_weight_conversion

    ignored, copies = model._keys_to_ignore_on_save or (), model.all_tied_weights_keys
    state, once = model.state_dict(keep_vars=True), dict[int, str]()
    for name in sorted(state, key=lambda name: name in copies):
        if name not in ignored:
            once.setdefault(id(state[name]), name)
    empty = {n: torch.empty(state[n].shape, device="meta") for n in state if n in set(once.values())}
    written = revert_weight_conversion(model, dict(empty))
    if written.keys() == empty.keys():
        return {n: n for n in empty}
    if len(written) != len(empty):
        return None
    alone = {n: dict(revert_weight_conversion(model, {n: t})) for n, t in empty.items()}
    if any(len(each) != 1 or next(iter(each.values())).shape != empty[n].shape for n, each in alone.items()):
        return None
    found = {n: next(iter(each)) for n, each in alone.items()}
    return found if set(found.values()) == written.keys() else None


def _whole(model: Any, part: Path, dtype: torch.dtype, wide: Collection[str]) -> None:
    if hasattr(model, "peft_config") or {p.dtype for p in model.parameters()} == {dtype}:
        model.save_pretrained(part)
    else:
        _beside(model, part, dtype, _cast(model.state_dict(), dtype, wide))


def _type(name: str, t: Tensor, dtype: torch.dtype, wide: Collection[str]) -> torch.dtype:
    """In which a weight is written; integers stay."""
    return t.dtype if not t.is_floating_point() else torch.float32 if name in wide else dtype


def _beside(model: Any, part: Path, dtype: torch.dtype, weights: dict[str, Tensor]) -> None:
    """Write weights, none too, with a configuration that tells their type."""
    model.save_pretrained(part, state_dict=weights)
    config = copy.deepcopy(model.config)
    config.dtype = dtype
    config.save_pretrained(part)


def _by_file(
    model: Any, part: Path, dtype: torch.dtype, names: dict[str, str], wide: Collection[str], *, write: bool
) -> None:
    """Gather what one file holds, write it, let it go; the index last. `names`: those in the files, by the model's."""
    held_as = model.state_dict(keep_vars=True)
    state = {written: held_as[own] for own, written in names.items()}
    types = {written: _type(own, held_as[own], dtype, wide) for own, written in names.items()}
    sizes = {n: torch.empty(t.shape, dtype=types[n], device="meta") for n, t in state.items()}
    split = split_torch_state_dict_into_shards(sizes, filename_pattern=WRITTEN, max_shard_size=LARGEST)
    if write:
        _beside(model, part, dtype, {})
    for file, inside in split.filename_to_tensors.items():
        held = dict[str, Tensor]()
        for name in inside:
            full = gathered(state[name])
            if write:
                held[name] = full.detach().to("cpu", types[name], copy=True).contiguous()
        if write:
            save_file(held, part / file, {"format": "pt"})
    if write and split.is_sharded:
        total = {"total_parameters": sum(t.numel() for t in sizes.values())}
        index = {"metadata": split.metadata | total, "weight_map": split.tensor_to_filename}
        write_text(part / INDEX, json.dumps(index, indent=2, sort_keys=True) + "\n")


def _gathered(model: nn.Module, dtype: torch.dtype, wide: Collection[str]) -> dict[str, Tensor]:
    """All weights of a sharded model in main memory in this type; on other processes than the first, none.

    Tensors are gathered one by one. Names of one tensor share one copy, and integers stay.
    """
    state: Mapping[str, Tensor] = model.state_dict(keep_vars=True)
    made: dict[int, Tensor] = {}
    for key, (name, t) in {id(t): (name, t) for name, t in state.items()}.items():
        full = gathered(t)
        if dist.get_rank() == 0:
            made[key] = full.to("cpu", _type(name, full, dtype, wide), copy=True)
    return {name: made[id(t)] for name, t in state.items()} if made else {}


def _cast(weights: dict[str, Tensor], dtype: torch.dtype, wide: Collection[str]) -> dict[str, Tensor]:
    """Copies in another type; names of one tensor share one copy, and integers stay."""
    made: dict[int, Tensor] = {}
    for name, w in weights.items():
        if w.data_ptr() not in made:
            made[w.data_ptr()] = w.to(_type(name, w, dtype, wide))
    return {name: made[w.data_ptr()] for name, w in weights.items()}


def merged(subject: Subject) -> Path:
    """A copy of an adapted model in the cache, its adapter merged by peft; made once."""
    folder = cache_dir() / "merged" / subject.digest[:16]
    if not folder.is_dir():
        tell(f"merging {subject.label} once into {folder}")
        folder.parent.mkdir(parents=True, exist_ok=True)
        save_checkpoint(load_model(subject), load_tokenizer(subject.folder), folder)
    return folder
