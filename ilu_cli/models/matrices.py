"""The matrices in the layers of a model, each seen as [outputs, inputs] whatever way its module stores it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from ilu_cli.errors import UsageError
from ilu_cli.models.names import name_of
from ilu_cli.models.parts import decoder_layers


@dataclass(frozen=True)
class Matrix:
    """A matrix in the parameter `param` of a model. Of a stack of experts each is one, named `PARAMETER.NUMBER`."""

    name: str
    param: str
    expert: int | None = None
    transposed: bool = False

    def of(self, stored: Tensor) -> Tensor:
        """[outputs, inputs] as a view of the stored parameter; the inputs of a convolution are its window."""
        own = stored if self.expert is None else stored[self.expert]
        return own.T if self.transposed else own.flatten(1)


def matrices(model: Any) -> list[Matrix]:
    """The weights of linear maps, convolutions and experts in the decoder's layers.

    Left out are norms, biases (an expert's too), and routers.

    Raises:
        UsageError: if a layer holds another tensor of two or more dimensions: which are its inputs is not known.
    """
    return matrices_in(model, decoder_layers(model))


def matrices_in(root: nn.Module, layers: nn.ModuleList) -> list[Matrix]:
    """The same for a list of layers, with the names that the parameters have in `root`."""
    seen, found = set[int](), list[Matrix]()
    for prefix, module in layers.named_modules(prefix=name_of(root, layers)):
        if "Router" in type(module).__name__:
            seen |= {id(p) for p in module.parameters()}
        for name, p in module.named_parameters(prefix, recurse=False):
            if id(p) not in seen and p.ndim > 1 and not name.endswith("bias"):
                found += _stored_in(module, name, p)
            seen.add(id(p))
    return found


def _stored_in(module: nn.Module, name: str, p: nn.Parameter) -> Iterator[Matrix]:
    transposed = getattr(module, "is_transposed", None)  # transformers' experts say so themselves
    if isinstance(module, (nn.Linear, nn.Conv1d)):
        yield Matrix(name, name)
    elif isinstance(module, Conv1D):
        yield Matrix(name, name, transposed=True)
    elif isinstance(transposed, bool) and p.ndim == 3:
        yield from (Matrix(f"{name}.{n}", name, n, transposed) for n in range(len(p)))
    elif "Norm" not in type(module).__name__:
        raise UsageError(
            f"{name} ({type(module).__name__}, {' × '.join(map(str, p.shape))}) cannot be changed matrix by matrix: "
            "which of its dimensions are the inputs is not known"
        )
