"""A model that takes less memory: matrices that are not trained in fewer bits, layers that are computed again."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from ilu_cli.errors import UsageError
from ilu_cli.models.heap import give_back
from ilu_cli.models.parts import decoder_layers
from ilu_cli.recipe.memory import MemorySpec

BLOCK = 64  # weights that share a scale in NF4, as in arXiv 2305.14314
BYTES = {"fp32": 4.0, "bf16": 2.0, "nf4": 0.5 + 4 / BLOCK}


def held(model: nn.Module, trained: Iterable[nn.Parameter]) -> Iterator[nn.Linear]:
    """The linear maps of the decoder's layers whose matrix is not trained; embeddings and LM head are none of them."""
    own = {id(p) for p in trained}
    for layer in decoder_layers(model):
        for module in layer.modules():
            if isinstance(module, nn.Linear) and id(module.weight) not in own:
                yield module


def hold(model: nn.Module, kind: str, trained: Iterable[nn.Parameter]) -> None:
    """Keep matrices that are not trained in `bf16` or `nf4` from now on; `fp32` leaves all as it is.

    Under bf16 autocast bf16 changes nothing, bit by bit: the copies that it would make are all that is kept. Without
    autocast they are widened where they are used. NF4 is bitsandbytes', in blocks of 64, its scales in float32. Those
    that are in bf16 already are left.

    Raises:
        UsageError: if no matrix is of the kind that we know to keep so.
    """
    if kind == "fp32":
        return
    modules: list[Any] = list(held(model, trained))
    if not modules:
        raise UsageError(
            f"memory.frozen: {kind} is for linear maps of layers, and none is left frozen in {type(model).__name__}",
            hint="leave memory.frozen out",
        )
    for module in modules:
        module.weight.requires_grad_(False)
        if kind == "bf16":
            if module.weight.dtype == torch.bfloat16:  # of a sharded model, before it was spread
                continue
            module.weight.data = module.weight.data.bfloat16()
            module.forward = functools.partial(_widened, module)
        else:
            _quantise(module)
    give_back()


@contextmanager
def as_if_wide(model: nn.Module) -> Iterator[None]:
    """Meanwhile matrices in bf16 look as if they were empty and float32: peft rounds an adapter to their type."""
    small = [m for m in model.modules() if isinstance(m, nn.Linear) and m.weight.dtype == torch.bfloat16]
    weights: list[Any] = [m.weight for m in small]
    for module, w in zip(small, weights):
        module._parameters["weight"] = nn.Parameter(torch.empty(0, device=w.device), requires_grad=w.requires_grad)
    try:
        yield
    finally:
        for module, w in zip(small, weights):
            module._parameters["weight"] = w.requires_grad_(module.weight.requires_grad)  # peft may have frozen it


def _widened(module: nn.Linear, x: Tensor) -> Tensor:
    w, bias = module.weight, module.bias
    if torch.is_autocast_enabled(x.device.type):
        return functional.linear(x, w, bias)
    return functional.linear(x, w.to(x.dtype), bias)


def _quantise(module: Any) -> None:
    import bitsandbytes.functional as nf4

    packed, state = nf4.quantize_4bit(module.weight.data, blocksize=BLOCK, quant_type="nf4")
    module.weight = nn.Parameter(packed, requires_grad=False)
    module.forward = functools.partial(_dequantised, module, state)


def _dequantised(module: nn.Linear, state: Any, x: Tensor) -> Tensor:
    """x · Wᵀ + b with W taken out of its 4 bits for this product, and again for its backward pass."""
    import bitsandbytes

    wide = torch.get_autocast_dtype(x.device.type) if torch.is_autocast_enabled(x.device.type) else x.dtype
    found: Tensor = bitsandbytes.matmul_4bit(x.to(wide), module.weight.t(), state)
    return found if module.bias is None else found + module.bias.to(found.dtype)


def checkpointed(model: nn.Module) -> None:
    """Keep of each decoder layer only its input, from now on; where gradients are taken, its inside is run again.

    transformers' own switch does nothing in eval mode, in which models are trained here (no dropout).
    """
    for layer in decoder_layers(model):
        layer.forward = functools.partial(computed_again, layer.forward)


def computed_again(forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """What `forward` gives; where gradients are taken, its inside is not kept, but run again in the backward pass."""
    if not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    return checkpoint(forward, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)


def spare(model: nn.Module, spec: MemorySpec, trained: Iterable[nn.Parameter]) -> None:
    """`hold` and `checkpointed`, as a recipe asks."""
    hold(model, spec.frozen, trained)
    if spec.checkpointing:
        checkpointed(model)
