from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt

from ilu_cli.recipe.specs import Some
from ilu_cli.registry import attack

if TYPE_CHECKING:
    from ilu_cli.attacks import Attempt
    from ilu_cli.recipe.source import Key


def problems(own: Any, key: Key, _recipe: Any) -> Iterator[tuple[Key, str]]:
    """Keys that choose layers twice, or belong to the other readout."""
    if own.layers is not None and own.every > 1:
        yield (*key, "every"), "chooses among all layers; attack.layers names them"
    for name in ("folds", "l2"):
        if own.readout == "head" and getattr(own, name) != type(own).model_fields[name].default:
            yield (*key, name), "belongs to `readout: linear`; with `head` nothing is fitted"


@attack(strength="layer", access="activations", utility=False, problems=problems)
def logit_lens(
    attempt: Attempt,
    *,
    readout: Literal["head", "linear"] = "head",
    layers: Some[NonNegativeInt] | None = None,
    every: PositiveInt = 1,
    folds: Annotated[int, Field(ge=2)] = 5,
    l2: PositiveFloat = 0.1,
) -> Iterator[int]:
    """Read the answers out of every layer's hidden states: is the knowledge inside, and only not said?

    `head` is the logit lens (nostalgebraist, 2020; on unlearned models arXiv 2402.16835 and 2409.18025): the final norm
    and the LM head on the output of a layer, without anything fitted. `linear` is a probe: a linear score of the state
    at the end of question and choice, fitted as a softmax over the choices with penalty `l2`, on `folds` − 1 parts of
    the questions and tested on the other, in turn. `layers` are counted from 0; null: all, or the last and `every`
    n-th before it.
    """
    from dataclasses import replace

    from ilu_cli.engine.probe import Lens, choice_states, cross_fitted

    scorer, questions = attempt.scorer, attempt.questions()
    depth = len(scorer.parts.layers)
    wanted = list(range((depth - 1) % every, depth, every)) if layers is None else layers
    states = {name: choice_states(scorer, items) for name, items in questions.items()} if readout == "linear" else {}
    for layer in wanted:
        if readout == "head":
            attempt.read(replace(scorer, parts=Lens.of(scorer.parts, layer + 1)))
        else:
            attempt.read(cross_fitted(scorer, questions, states, layer, folds, l2, attempt.seed))
        yield layer
