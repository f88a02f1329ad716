"""Which layer is read and which weights are trained, where a recipe leaves both to the model: by depth and by kind."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

from torch import nn
from transformers.pytorch_utils import Conv1D

from ilu_cli.errors import UsageError
from ilu_cli.models.names import name_of
from ilu_cli.models.parts import parts_of

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

    They are told by what they are, not by name: outside of attention and routers, of each module the last linear map
    whose outputs are the hidden units. Where some of them read other than the hidden units, only those count: a short
    convolution's own output map (LFM2) does not. Maps are those of `nn.Linear`, of GPT-2's `Conv1D`, and of stacked
    experts that say which way they are stored.

    Raises:
        UsageError: if the layer has none.
    """
    parts = parts_of(model)
    layer, found = parts.layers[n], dict[str, tuple[str, int]]()
    for prefix, module in layer.named_modules(prefix=name_of(model, layer)):
        for name, outputs, inputs in _maps(module):
            if outputs == parts.width:
                found[prefix] = (f"{prefix}.{name}", inputs)
    inner = [name for name, inputs in found.values() if inputs != parts.width]
    names = inner or [name for name, _ in found.values()]
    if not names:
        raise UsageError(
            f"train.params: in layer {n} of {type(model).__name__} no weight is known to write its MLP's output",
            hint="name what is trained, as --set train.params='[\"*.5.mlp.down_proj.weight\"]', or null for all",
        )
    return names


def _maps(module: nn.Module) -> Iterator[tuple[str, int, int]]:
    """(name, outputs, inputs) of the linear maps that a module or its linear children hold, in their order."""
    if _apart(module) or isinstance(module, (nn.Linear, Conv1D)):
        return
    turned = getattr(module, "is_transposed", None)  # transformers' experts say so themselves
    for name, p in module.named_parameters(recurse=False):
        if isinstance(turned, bool) and p.ndim == 3 and not name.endswith("bias"):
            yield (name, p.shape[2], p.shape[1]) if turned else (name, p.shape[1], p.shape[2])
    for name, child in module.named_children():
        if isinstance(child, nn.Linear):
            yield f"{name}.weight", child.out_features, child.in_features
        elif isinstance(child, Conv1D):
            yield f"{name}.weight", child.weight.shape[1], child.weight.shape[0]


def _apart(module: nn.Module) -> bool:
    name = type(module).__name__
    return "Attention" in name or "Router" in name


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
