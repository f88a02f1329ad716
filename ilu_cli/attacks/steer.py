from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import TYPE_CHECKING

from pydantic import NonNegativeInt, PositiveInt

from ilu_cli.recipe.refs import DataRefs, TaskRef
from ilu_cli.recipe.specs import Some
from ilu_cli.registry import attack

if TYPE_CHECKING:
    from torch import Tensor

    from ilu_cli.attacks import Attempt


@attack(strength="scale", access="activations", unattacked=0.0, original=True)
def steer(
    attempt: Attempt,
    *,
    data: DataRefs | None = None,
    contrast: TaskRef | None = None,
    layers: Some[NonNegativeInt] | None = None,
    scales: Some[float] = [0.5, 1.0, 2.0],
    prompts: PositiveInt = 64,
) -> Iterator[float]:
    """Add a difference of means to the hidden states of a layer: can a single vector bring the topic back?

    h ← h + scale · v at every token, v = mean h' − mean h over tokens (activation addition, arXiv 2308.10248 and
    2312.06681; on unlearned models arXiv 2411.02631). Without `contrast`, h' are the states of the original on the same
    texts of `data`: what unlearning took away from the mean is put back, an audit. With one, h' are the model's own
    states on the texts of that dataset, which needs no original: a positive scale leads the topic to where the model is
    not disturbed, a negative one further into it. Texts are chosen as in `ablate`. `layers: null` is the one at which
    ‖v‖, as a share of the states' norm, grows the most; of several, each gets its own vector.

    Raises:
        UsageError: if no text is left to fit on.
    """
    from ilu_cli.attacks import texts_to_fit
    from ilu_cli.attacks.ablate import enters, moved_by
    from ilu_cli.engine.probe import text_states

    texts = texts_to_fit(attempt, data or [], prompts, "steer")
    now = text_states(attempt.scorer, texts)
    if contrast is None:
        with attempt.original():
            to = text_states(attempt.scorer, texts)
    else:
        to = text_states(attempt.scorer, texts_to_fit(attempt, [contrast], prompts, "steer"))
    vectors = to.mean(1) - now.mean(1)
    share = moved_by(vectors, now)
    wanted = [enters(share)] if layers is None else layers
    for n in wanted:
        attempt.note(f"steer: at layer {n} the vector has {share[n]:.0%} of the states' norm")
    for scale in scales:
        attempt.hook({n: functools.partial(added, vector=scale * vectors[n]) for n in wanted})
        yield scale


def added(hidden: Tensor, vector: Tensor) -> Tensor:
    """h + v for hidden states [..., D] and a vector [D]."""
    return hidden + vector.to(hidden)
