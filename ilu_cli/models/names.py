"""Where a weight lies: before the layers of a model, in one of them, or after the last."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from torch import nn

from ilu_cli.models.parts import decoder_layers

STORED = re.compile(r"(?:^|\.)(?:layers?|h|blocks?)\.(\d+)\.")
EARLY = ("embeddings", "project_in", "per_layer")  # names of what some families put between embedding and first layer


def stored_layer(name: str) -> int | None:
    """The layer that a weight's name in a file tells, for where there is no model to ask; None outside the layers.

    A stack of experts within a layer is numbered too: the first number counts.
    """
    match = STORED.search(name)
    return int(match[1]) if match else None


def name_of(model: nn.Module, part: nn.Module) -> str:
    """The name that a module has in a model: `transformer.h`.

    Raises:
        KeyError: if it is not in it.
    """
    for name, module in model.named_modules():
        if module is part:
            return str(name)
    raise KeyError(type(part).__name__)


def places(model: Any) -> dict[str, int]:
    """The layer of every parameter: −1 if it acts before the first one, the number of layers if after the last.

    The model itself says which list holds its layers, whatever it is called. Embeddings, those of positions too, act
    before; so does a head that is tied to them. The final norm and a head of its own act after.

    Raises:
        UsageError: if the model has no list of layers.
    """
    layers, found = decoder_layers(model), dict[str, int]()
    inside = name_of(model, layers) + "."
    embedded = {
        id(p)
        for module in model.modules()
        if isinstance(module, nn.Embedding) or module is model.get_input_embeddings()
        for p in module.parameters()
    }
    for name, p in model.named_parameters():
        if name.startswith(inside):
            found[name] = int(name.removeprefix(inside).partition(".")[0])
        else:
            early = id(p) in embedded or any(word in name for word in EARLY)
            found[name] = -1 if early else len(layers)
    return found


def first_place(model: Any, trained: Iterable[str]) -> int:
    """The lowest of the `places` of some parameters."""
    where = places(model)
    return min(where[name] for name in trained)
