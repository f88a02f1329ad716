from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal

from pydantic import NonNegativeFloat, NonNegativeInt, PositiveInt

from ilu_cli.recipe.specs import Some
from ilu_cli.registry import attack

if TYPE_CHECKING:
    from torch import Tensor

    from ilu_cli.attacks import Attempt
    from ilu_cli.engine.patching import Laid
    from ilu_cli.engine.tree import Request
    from ilu_cli.recipe.source import Key

Scored = list[tuple[float, int]]  # by request the log-probability of its scored tokens, and their number


def problems(own: Any, key: Key, _recipe: Any) -> Iterator[tuple[Key, str]]:
    """Keys that choose layers twice, or need the retained model that is not named or not compared with."""
    if own.layers is not None and own.every > 1:
        yield (*key, "every"), "chooses among all layers; attack.layers names them"
    if own.retain is not None and own.into == "unlearned":
        yield (*key, "retain"), "is compared with in the original: `into: original`"
    if own.retain is None and own.threshold != type(own).model_fields["threshold"].default:
        yield (*key, "threshold"), "belongs to `retain`, a model that never knew"


@attack(strength="layer", access="activations", utility=False, original=True, problems=problems)
def patch(
    attempt: Attempt,
    *,
    into: Literal["original", "unlearned"] = "original",
    layers: Some[NonNegativeInt] | None = None,
    every: PositiveInt = 1,
    retain: str | None = None,
    threshold: NonNegativeFloat = 0.05,
) -> Iterator[int]:
    """Put one model's states into the other, layer by layer: up to which depth is the answer still inside?

    Activation patching as in the Unlearning Depth Score (arXiv 2605.24614). At the tokens that predict an answer, and
    nowhere else, the output of one layer is replaced. `into: original`: the original goes on from the unlearned model's
    states; where it still answers, unlearning has not reached what the states hold. `into: unlearned`: the unlearned
    model goes on from the original's, and where it answers, only earlier layers were changed. The curve is FQ by layer,
    and RA its mean: the one number without another model.

    With `retain`, a run, a model or a folder that never knew, `uds` stands beside the points: per right answer
    Σ Δ₁ clip(Δ₂ / Δ₁, 0, 1) / Σ Δ₁ over the layers of Δ₁ > `threshold`, averaged; Δ is the loss of mean log-probability
    of its tokens by patching, 1 from `retain` and 2 from the unlearned model. 0: all there, 1: as if never known.
    Departures: the answer is the benchmark's right choice, not a marked entity; with `layers` or `every`, the sum is
    over those.
    """
    from ilu_cli.engine.patching import Patched, given_states, lay
    from ilu_cli.engine.probe import as_answers

    scorer, depth = attempt.scorer, len(attempt.scorer.parts.layers)
    wanted = list(range((depth - 1) % every, depth, every)) if layers is None else sorted(set(layers))
    asked = [(i, n, c) for items in attempt.questions().values() for i in items for n, c in enumerate(i["choices"])]
    requests = [scorer.pair(i["question"], c) for i, _, c in asked]
    if into == "original":
        right = [at for at, (i, n, _) in enumerate(asked) if n == i["answer"]]
        tables = _into_original(attempt, requests, right, wanted, retain, threshold)
    else:
        laid = lay(scorer, requests)
        with attempt.original():
            states = given_states(scorer, laid, wanted)
        ours = Patched(scorer, requests, laid)
        tables = ((layer, ours.logps(layer, states[layer])) for layer in wanted)
    for layer, table in tables:
        attempt.read(as_answers(scorer, {r.ids: total for r, (total, _) in zip(requests, table)}))
        yield layer


def _into_original(
    attempt: Attempt, requests: list[Request], right: list[int], layers: list[int], retain: str | None, threshold: float
) -> Iterator[tuple[int, Scored]]:
    """By layer, what the original says with the unlearned model's states; `uds` is told if there is a `retain`."""
    from ilu_cli.engine.patching import Patched, given_states, lay

    scorer, known = attempt.scorer, [requests[n] for n in right]
    laid, laid_known = lay(scorer, requests), lay(scorer, known) if retain else []
    states, without = given_states(scorer, laid, layers), _of_another(attempt, retain, laid_known, layers)
    with attempt.original():
        before = [(logp, len(r.ids) - r.start) for r, (logp, _) in zip(known, scorer.score(known))] if retain else []
        ours, theirs = Patched(scorer, requests, laid), Patched(scorer, known, laid_known)
        now, lost = list[Scored](), list[Scored]()
        for layer in layers:
            table = ours.logps(layer, states.pop(layer))
            if retain:
                now.append([table[n] for n in right])
                lost.append(theirs.logps(layer, without.pop(layer)))
            yield layer, table
    if retain:
        attempt.tell("uds", uds(_losses(before, lost), _losses(before, now), threshold))


def _of_another(attempt: Attempt, ref: str | None, laid: list[Laid], layers: list[int]) -> dict[int, list[Tensor]]:
    """The states of another model, whose weights are put into the one under attack for a while."""
    from ilu_cli.engine.patching import given_states

    if ref is None:
        return {}
    theirs = attempt.weights(ref)
    attempt.mix(lambda _weight, name: theirs[name])
    found = given_states(attempt.scorer, laid, layers)
    attempt.mix(lambda weight, _name: weight)
    return found


def _losses(before: Scored, patched: list[Scored]) -> Tensor:
    """[N, L]: what patching takes from the mean log-probability of the tokens of N answers, at L layers."""
    import torch

    return torch.tensor([[(b - p) / n for (b, n), (p, _) in zip(before, layer)] for layer in patched]).T


def uds(s1: Tensor, s2: Tensor, threshold: float) -> float | None:
    """The Unlearning Depth Score, 0 to 1, from the losses [N, L] by a model that never knew and by the unlearned one.

    Answers without a layer of s1 > threshold are left out; None if that is all of them.
    """
    known = s1 > threshold
    weight = s1.where(known, 0).double()
    erased = (s2 / s1.where(known, 1)).clamp(0, 1).double()
    some = known.any(-1)
    return float(((weight * erased).sum(-1)[some] / weight.sum(-1)[some]).mean()) if some.any() else None
