"""What the steps of a training tell: a loss that did not move, a zero, a D that temperature alone explains."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from math import sqrt
from statistics import fmean, median, stdev
from typing import Any

from ilu_cli.care import Warned

StepRows = Sequence[Mapping[str, Any]]
TEMPERATURE_SHARE = 0.1  # less of |D|'s fall than this coming with a lower NLL means: re-tempered
FIFTH, LEAST = 5, 2  # a fifth of the steps, and steps in it at least
ERRORS = 2
LEAST_PULL = 0.01  # of the length of a step's gradient
ROUNDED = 0.5  # error of storing, as a share of the update
TOLD = ("step", "lr", "grad_norm", "tokens", "seconds")  # columns of metrics.jsonl that are no loss


def noise(values: Sequence[float]) -> float:
    """Standard deviation of a series about its trend: √(Σ (x_{t+1} − x_t)² / 2(n−1)).

    von Neumann's estimate from successive differences (Ann. Math. Stat. 12, 1941), which a slow trend hardly enters.
    """
    return sqrt(sum((b - a) ** 2 for a, b in pairwise(values)) / (2 * (len(values) - 1)))


def unmoved(what: str, steps: StepRows, term: str = "loss") -> Warned | None:
    """The loss of an attack is at its end what it was at its beginning, by the noise between steps.

    The means of the first and last fifth, of m steps each, differ by noise alone with a standard error of σ√(2/m).
    """
    values = [float(s[term]) for s in steps if term in s]
    m = len(values) // FIFTH
    if m < LEAST:
        return None
    first, last, error = fmean(values[:m]), fmean(values[-m:]), noise(values) * sqrt(2 / m)
    if first - last > ERRORS * error or (error == 0 and first > last):
        return None
    return Warned(
        "attack-learned-nothing",
        f"The attack learned nothing: the loss of {what} went from {first:.4g} to {last:.4g} in {len(values)} steps, "
        f"and steps differ by so much that ±{ERRORS * error:.2g} means nothing.",
    )


def zeros(what: str, steps: StepRows) -> Iterator[Warned]:
    """Losses of exactly 0 at every step that has them, and gradients at half of all steps."""
    for term in dict.fromkeys(k for s in steps for k in s if k not in TOLD and "[" not in k):
        values = [s[term] for s in steps if term in s]  # a lazy penalty is not in every row
        if len(values) >= LEAST and not any(values):
            yield Warned("zero-loss", f"Loss of zero: `{term}` of {what} is exactly 0 at all {len(values)} steps.")
    none = sum(s.get("grad_norm") == 0 for s in steps)
    if none and 2 * none >= len(steps):
        text = f"Gradient of zero: at {none} of {len(steps)} steps of {what} the gradient is exactly 0."
        yield Warned("zero-gradient", text)


def weak_penalties(what: str, steps: StepRows) -> Iterator[Warned]:
    """Penalties whose gradient is in the median less than `LEAST_PULL` of the step's."""
    for key in dict.fromkeys(k for s in steps for k in s if k.startswith("gradient[")):
        shares = [s[key] / s["grad_norm"] for s in steps if s.get(key) and s.get("grad_norm")]
        if len(shares) >= LEAST and (share := median(shares)) < LEAST_PULL:
            told = f"the gradient of {key[9:-1]} is {share:.2g} of the step's in {what}"
            yield Warned("penalty-too-weak", f"Penalty too weak: {told}: it does nothing.")


def temperature_alone(
    what: str, env: str, steps: StepRows, calibrated: Mapping[str, Any] | None = None
) -> Warned | None:
    """|D| fell, and what the environment costs at the best temperature did not.

    Let ℓ(β) be the mean NLL of an environment with all logits times β. Then D = NLL − H = ℓ′(1). ℓ is convex, as
    ℓ″(β) is the variance of the logits under the model, so scaling alone brings D to 0, at β* = argmin ℓ; NLL falls by
    about D²/2ℓ″ only. C = ℓ(β*) does not depend on the scale of the logits. Hence a fall of |D| with the same C is one
    that temperature alone gives, and one that comes with a lower C is more than that.

    |D| must have fallen significantly and by half between the first and the last fifth of the steps. `calibrated`, if
    it was measured, are the means of C over the same sequences `before` and `after` and the `stderr` of their
    difference: C must not have fallen by 2 errors. Without it, the fall of NLL must be less than a tenth of |D|'s.
    """
    rows = [s for s in steps if f"D[{env}]" in s and f"nll[{env}]" in s]
    n = len(rows) // FIFTH
    if n < LEAST:
        return None
    gap = [float(r[f"D[{env}]"]) for r in rows]
    nll = [float(r[f"nll[{env}]"]) for r in rows]
    first, last = fmean(gap[:n]), fmean(gap[-n:])
    error = ((stdev(gap[:n]) ** 2 + stdev(gap[-n:]) ** 2) / n) ** 0.5
    fall, better = abs(first) - abs(last), fmean(nll[:n]) - fmean(nll[-n:])
    if fall < ERRORS * error or fall < abs(first) / 2:
        return None
    told = f"the environment's NLL changed by {-better:+.3f}"
    if calibrated is None:
        if better >= TEMPERATURE_SHARE * fall:
            return None
    else:
        before, after, error = (float(calibrated[k]) for k in ("before", "after", "stderr"))
        if before - after >= ERRORS * error:
            return None
        told = f"its NLL at the best temperature went from {before:.3f} to {after:.3f} (±{error:.2g})"
    return Warned(
        "temperature-alone",
        f"D satisfied by temperature alone: in {what}, D[{env}] went from {first:+.3f} to {last:+.3f} while {told}. "
        "Flatter or sharper logits do that without any invariance.",
    )


def unchanged(what: str, share: float | None) -> Warned | None:
    """The `share` of the weights that differ is 0; None: it is not known."""
    if share != 0:
        return None
    return Warned("weights-unchanged", f"Weights unchanged: training left every weight of {what} as it was.")


def rounded(what: str, lost: float | None, dtype: object) -> Warned | None:
    """The checkpoint's type has lost so much of the update, ‖rounding‖ / ‖update‖; None: not known, or float32."""
    if lost is None or lost < ROUNDED:
        return None
    text = f"Rounded away: storing {what} in {dtype} has an error of {lost:.0%} of the update that was trained."
    return Warned("update-rounded", text)
