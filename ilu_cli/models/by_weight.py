"""Weights read from a model's files one at a time, where the files have them as the model does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open
from torch import Tensor

from ilu_cli.models.checking import not_numbers, own_names
from ilu_cli.models.code import brings_code
from ilu_cli.models.dtypes import STORED
from ilu_cli.runs.files import tensors_of, weight_files

if TYPE_CHECKING:
    from ilu_cli.models.subject import Subject

READ = {*STORED, "F64"}


def merges(model: Any) -> bool:
    """Whether some families' weights, those of experts, are merged when they are read, and parted when written."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightRenaming

    return not all(isinstance(rule, WeightRenaming) for rule in get_model_conversion_mapping(model))


def stored_weights(subject: Subject, model: Any) -> dict[str, tuple[Path, str]] | None:
    """Of each weight the file and the name that it has there; None if loading does more than to rename and to cast.

    It does where an adapter is added, where weights are merged, split or quantised, where buffers are stored that the
    model has, where tied weights are stored twice, and where the code is not transformers' own.

    Args:
        model: the subject's, with or without its weights.
    """
    if subject.base or getattr(model.config, "quantization_config", None) or brings_code(model):
        return None
    return _places(subject.folder, model)


def _places(folder: Path, model: Any) -> dict[str, tuple[Path, str]] | None:
    stored = {name: (path, t) for path in weight_files(folder) for name, t in tensors_of(path).items()}
    held = {own: name for name, own in own_names(folder, model, stored).items()}
    found, tensors = dict[str, tuple[Path, str]](), dict[int, list[tuple[str, Any]]]()
    for name, p in model.named_parameters(remove_duplicate=False):
        tensors.setdefault(id(p), []).append((name, p))
    for each in tensors.values():
        here = [held.pop(name) for name, _ in each if name in held]
        if len(here) != 1:
            return None
        path, t = stored[here[0]]
        if t["dtype"] not in READ or tuple(t["shape"]) != tuple(each[0][1].shape):
            return None
        found |= {name: (path, here[0]) for name, _ in each}
    return None if held else found


def reader_of(subject: Subject, model: Any) -> Callable[[str], Tensor] | None:
    """What gives a weight of the model by its name, float32 in main memory; None as for `stored_weights`.

    It raises UnavailableError for one that has entries that are infinite or not numbers.
    """
    places = stored_weights(subject, model)
    if places is None:
        return None
    files: dict[Path, Any] = {}

    def read(name: str) -> Tensor:
        path, own = places[name]
        if path not in files:
            files[path] = safe_open(path, framework="pt")
        found: Tensor = files[path].get_tensor(own).to(torch.float32)
        if not found.sum().isfinite() and not found.isfinite().all():
            raise not_numbers(subject.folder, [name])
        return found

    return read
