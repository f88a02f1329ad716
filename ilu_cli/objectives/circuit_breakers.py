from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import NonNegativeInt

from ilu_cli.recipe.specs import Some
from ilu_cli.registry import objective

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from ilu_cli.engine.view import View
    from ilu_cli.recipe.source import Key


def problems(own: Any, key: Key, _recipe: Any) -> Iterator[tuple[Key, str]]:
    """A layer that is named twice."""
    if len(set(own.layers)) < len(own.layers):
        yield (*key, "layers"), "a layer is named twice"


@objective(needs="states reference.states", per="hidden token", problems=problems)
def circuit_breakers(forget: View, *, layers: Some[NonNegativeInt] = [10, 20]) -> Tensor:  # noqa: B006
    """Representation rerouting: turn hidden states away from where they were (circuit breakers, arXiv 2406.04313).

    relu(cos(h′, h⁰)) at every token, averaged over `layers`, h⁰ the original model's states (the paper's L_s). Its own
    retain term is `hidden_norm`. The authors take layers 10 and 20 of 32, an adapter (r = 16, all linear modules) at
    lr 1e-4 for 150 steps of 16, and α = 10 (Llama-3: 10, Mistral: 5).

    Departures: the authors fade this term out, and the retain term in, along the training, by α(1 − t/2T) and αt/2T;
    here both weights are constant. The first position, an attention sink, is left out. At the original weights the
    cosine is at its maximum and has no slope: there only rounding starts the way, as the authors' dropout does theirs.

    Returns:
        [B], averaged over layers and summed over tokens.
    """
    from torch.nn.functional import cosine_similarity

    assert forget.reference.states is not None
    cosine = cosine_similarity(forget.states, forget.reference.states, dim=-1)
    return (cosine.relu().mean(0) * forget.hidden_mask).sum(-1)
