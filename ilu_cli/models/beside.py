"""Low-rank products beside linear maps: W + B·A, of which only B and A are trained."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional

from ilu_cli.models.logits import instead
from ilu_cli.models.matrices import Matrix


def linear_maps(decoder: nn.Module, matrices: Sequence[Matrix]) -> list[nn.Linear] | None:
    """The plain linear maps that these are the weights of; None if one is another module's, or a stack's."""
    found: list[nn.Linear] = []
    for m in matrices:
        module = decoder.get_submodule(m.param.rpartition(".")[0])
        if m.expert is not None or type(module) is not nn.Linear or "forward" in module.__dict__:
            return None
        found.append(module)
    return found


@contextmanager
def beside(
    maps: Sequence[nn.Linear], pairs: Sequence[tuple[Tensor, Tensor]], dtype: torch.dtype | None
) -> Iterator[None]:
    """Let the maps give (W + B·A)·x + b for their pairs B [outputs, r], A [r, inputs], and W be without a gradient.

    dtype: in which W is kept for that long, as autocast would turn it into at each pass; None: as it is.
    """
    with ExitStack() as stack:
        for module, (b, a) in zip(maps, pairs):
            w = module.weight.detach() if dtype is None else module.weight.detach().to(dtype)
            stack.enter_context(instead(module, functools.partial(_both, w, module.bias, b, a)))
        yield


def _both(w: Tensor, bias: Tensor | None, b: Tensor, a: Tensor, x: Tensor) -> Tensor:
    return functional.linear(x, w, bias) + functional.linear(functional.linear(x, a), b)
