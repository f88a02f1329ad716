"""A model of which the lower layers alone are loaded; its checkpoint: the parent's files, what was trained in place.

What ends at a layer needs no weight above it. Those stay as they are in the parent's files, byte by byte.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ilu_cli.errors import UsageError
from ilu_cli.models.dtypes import STORED
from ilu_cli.models.names import name_of, stored_layer
from ilu_cli.models.parts import decoder_layers
from ilu_cli.runs.files import INDEX, tensors_in, tensors_of, weight_files

KEY = "train.loaded"
WITH = (INDEX, "config.json", "generation_config.json")  # copied beside the weights
PLAIN = (bool, int, float, str, type(None))  # of what a module knows of itself


def shorten(config: Any, depth: int) -> Any:
    """The configuration with `depth` layers, and with as much of each list that has an entry for every layer."""
    whole = config.num_hidden_layers
    for name, value in list(vars(config).items()):
        if isinstance(value, (list, tuple)) and len(value) == whole:
            setattr(config, name, value[:depth])
    config.num_hidden_layers = depth
    return config


def above(depth: int | None, names: list[str]) -> list[str]:
    """Of names in files those of weights in layers that are not loaded."""
    return [] if depth is None else [n for n in names if (stored_layer(n) or 0) >= depth]


def check_lower(whole: nn.Module, lower: nn.Module) -> None:
    """Compare a model of fewer layers with the whole one, both without their weights.

    Raises:
        UsageError: if it has other weights than the lower layers of the whole, or its modules are told otherwise what
            they are: a rotary embedding left out in each fourth layer, a sliding window.
    """
    refuse = f"{KEY}: the lower layers of {type(whole).__name__} cannot be loaded by themselves"
    inside, depth = name_of(whole, decoder_layers(whole)) + ".", len(decoder_layers(lower))
    wanted = {
        n: p.shape
        for n, p in whole.named_parameters()
        if not n.startswith(inside) or int(n.removeprefix(inside).partition(".")[0]) < depth
    }
    if wanted != {n: p.shape for n, p in lower.named_parameters()}:
        raise UsageError(f"{refuse}: a shorter model has other weights", hint="leave it out")
    for name, module in lower.named_modules():
        other = whole.get_submodule(name)
        if type(module) is not type(other) or _told(module) != _told(other):
            raise UsageError(f"{refuse}: in a shorter model {name} is another", hint="leave it out")


def _told(module: nn.Module) -> dict[str, Any]:
    return {name: value for name, value in vars(module).items() if isinstance(value, PLAIN)}


def check_stored_as(trained: Mapping[str, Tensor], folder: Path, dtype: torch.dtype) -> None:
    """Look whether each trained weight lies in the parent's files as it will be written: by name, shape and type.

    Raises:
        UsageError: if one does not.
    """
    stored = tensors_in(folder)
    for name, p in trained.items():
        entry = stored.get(name)
        if entry is None or entry["shape"] != tuple(p.shape):
            raise UsageError(f"{KEY}: {name} is not stored in {folder} as such", hint="leave it out")
        if STORED.get(entry["dtype"]) != dtype:
            raise UsageError(
                f"{KEY}: {folder} stores {name} as {entry['dtype']}, and the checkpoint would be in {dtype}",
                hint="leave it out, or train.save_dtype",
            )


def save_lower(model: nn.Module, trained: Mapping[str, Tensor], tokenizer: Any, parent: Path, folder: Path) -> None:
    """Write a checkpoint: copies of the parent's files, with the trained weights in their places.

    A weight is put in under each name that the `model` has for it: some files hold tied ones twice, and if they were
    unlike each other, would no longer be read as tied. Call `check_stored_as` before training. No file is shared with
    the parent's folder, where the disk can by the blocks that neither changes. The folder appears only when all its
    files are written.
    """
    part = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    own = {id(p) for p in trained.values()}
    named = {n: p for n, p in model.named_parameters(remove_duplicate=False) if id(p) in own}
    for path in [*weight_files(parent), *(parent / name for name in WITH if (parent / name).is_file())]:
        _copy(path, part / path.name)
    for path in weight_files(part):
        entries = tensors_of(path)
        with path.open("r+b") as f:
            for name in sorted(entries.keys() & named.keys()):
                entry, p = entries[name], named[name]
                f.seek(entry["start"])
                value = p.detach().to(STORED[entry["dtype"]]).cpu().contiguous()
                f.write(value.view(-1).view(torch.uint8).numpy().data)
    tokenizer.init_kwargs.pop("local_files_only", None)  # whether HF_HUB_OFFLINE was set is no part of a model
    tokenizer.save_pretrained(part)
    shutil.rmtree(folder, ignore_errors=True)
    part.rename(folder)


def _copy(source: Path, target: Path) -> None:
    """Copy a file within the kernel, which shares blocks where the file system can; else byte by byte."""
    try:
        with source.open("rb") as a, target.open("wb") as b:
            left = source.stat().st_size
            while left > 0 and (done := os.copy_file_range(a.fileno(), b.fileno(), left)):
                left -= done
        if left == 0:
            return
    except (OSError, AttributeError):  # other file systems, other systems than Linux
        pass
    shutil.copyfile(source, target)
