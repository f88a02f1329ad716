"""The linear maps of a layer, told by what they are: which write its MLP's output, and so where its MLP is."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn
from transformers.pytorch_utils import Conv1D

from ilu_cli.errors import UsageError


def written_by(layer: nn.Module, width: int, prefix: str = "") -> list[str]:
    """The names of the weights that write the output of a layer's MLP, or of its experts, into the residual stream.

    Outside of attention and routers, of each module the last linear map whose outputs are the hidden units, `width` of
    them. Where some of them read other than the hidden units, only those count: a short convolution's own output map
    (LFM2) does not. Maps are those of `nn.Linear`, of GPT-2's `Conv1D`, and of stacked experts that say which way they
    are stored.
    """
    found = dict[str, tuple[str, int]]()
    for at, module in layer.named_modules(prefix=prefix):
        for name, outputs, inputs in _maps(module):
            if outputs == width:
                found[at] = (f"{at}.{name}" if at else name, inputs)
    inner = [name for name, inputs in found.values() if inputs != width]
    return inner or [name for name, _ in found.values()]


def maps_in(layer: nn.Module, prefix: str = "") -> list[str]:
    """The names of the weights of a layer's maps outside of attention and routers, experts' too; no mere gates."""
    found = ((at, each) for at, module in layer.named_modules(prefix=prefix) for each in _maps(module))
    return [f"{at}.{name}" if at else name for at, (name, outputs, _) in found if outputs > 1]


def mlp_of(layer: nn.Module, width: int, n: int) -> nn.Module:
    """The module in layer `n` whose output is that of its MLP.

    Raises:
        UsageError: if none is known to be that.
    """
    names = {name.partition(".")[0] for name in written_by(layer, width)}
    if len(names) != 1:
        raise UsageError(
            f"objective.layers: layer {n} ({type(layer).__name__}) has {len(names)} modules that write as an MLP does",
            hint="choose layers with an MLP, or another objective",
        )
    return layer.get_submodule(names.pop())


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
