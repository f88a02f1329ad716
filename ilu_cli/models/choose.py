"""Which layer is read and which weights are trained, where a recipe leaves both to the model: by depth and by kind."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from ilu_cli.errors import UsageError
from ilu_cli.models.maps import maps_in, written_by
from ilu_cli.models.names import name_of
from ilu_cli.models.parts import decoder_layers, parts_of

BELOW = 2  # layers below the one that is read, of which weights are trained too
NUMBER = re.compile(r"\.(\d+)\.")


def layer_for(depth: int) -> int:
    """The layer that RMU reads in a model of so many: the last of the first quarter, and not the very first of several.

    7 of 30 and of 32, as in the quickstart and as the authors of arXiv 2403.03218 have it for Zephyr-7B; for the 60
    layers of Yi-34B it is 14, where they have 15.
    """
    return max((depth - 1) // 4, min(1, depth - 1))


def writers(model: Any, n: int) -> list[str]:
    """The weights of layer `n` that write the output of its MLP, or of its experts, into the residual stream.

    They are told by what they are, not by name: see `ilu_cli.models.maps`.

    Raises:
        UsageError: if the layer has none.
    """
    parts = parts_of(model)
    layer = parts.layers[n]
    names = written_by(layer, parts.width, name_of(model, layer))
    if not names:
        raise UsageError(
            f"train.params: in layer {n} of {type(model).__name__} no weight is known to write its MLP's output",
            hint="name what is trained, as --set train.params='[\"*.5.mlp.down_proj.weight\"]', or null for all",
        )
    return names


def patterns(names: Iterable[str]) -> list[str]:
    """Names of weights as glob patterns for `train.params`: `model.layers.[567].mlp.down_proj.weight` for three.

    Those that differ in the layer alone are one pattern where its number has one digit.
    """
    found = dict[str, list[str]]()
    for name in names:
        match = NUMBER.search(name)
        short = match is not None and len(match[1]) == 1
        key = f"{name[: match.start(1)]}[%s]{name[match.end(1) :]}" if match and short else name
        found.setdefault(key, []).append(match[1] if match and short else "")
    return [key.replace("[%s]", f"[{''.join(n)}]" if len(n) > 1 else n[0], 1) for key, n in found.items()]


def params_for(model: Any, read: Iterable[int]) -> list[str]:
    """Patterns of what an objective trains that reads these layers: the `writers` of each and of the two below it."""
    chosen = sorted({n for layer in read for n in range(max(0, layer - BELOW), layer + 1)})
    return patterns(name for n in chosen for name in writers(model, n))


def mlp_params(model: Any) -> list[str]:
    """Patterns of the MLPs' matrices of all layers, experts' too: one for all layers that have a weight of that name.

    Raises:
        UsageError: if there are none.
    """
    found = dict[str, None]()
    for layer in decoder_layers(model):
        path = name_of(model, layer)
        found |= {f"{path.rpartition('.')[0]}.*{name.removeprefix(path)}": None for name in maps_in(layer, path)}
    if not found:
        raise UsageError(
            f"train.params: in the layers of {type(model).__name__} no matrix is known to be an MLP's",
            hint="name what is trained, as --set train.params='[\"*.mlp.down_proj.weight\"]', or null for all",
        )
    return list(found)
