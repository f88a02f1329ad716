"""What the scripts of this folder share: work in turns, peaks of memory, exponents, and the line that each prints."""

from __future__ import annotations

import json
import math
import statistics
import time
from collections.abc import Callable, Sequence


def turns(works: dict[str, Callable[[], object]], repeats: int, warm: int = 1) -> dict[str, list[float]]:
    """The seconds of each work, one after the other and so again; the first `warm` rounds are left out."""
    found: dict[str, list[float]] = {name: [] for name in works}
    for i in range(warm + repeats):
        for name, work in works.items():
            began = time.perf_counter()
            work()
            if i >= warm:
                found[name].append(time.perf_counter() - began)
    return found


def tell(name: str, plain: Sequence[float], ilu: Sequence[float], **more: object) -> None:
    """Print the line of one row: medians of seconds, and the median of the ratios pair by pair.

    Args:
        plain: seconds of plain transformers (or whatever the row compares with), in turns with `ilu`.
        more: `plain_bytes`, `ilu_bytes`, `limit` (what holds it back now), and whatever else was found.
    """
    pairs = [p / i for p, i in zip(plain, ilu)]
    found = {"plain_s": statistics.median(plain), "ilu_s": statistics.median(ilu), "ratio": statistics.median(pairs)}
    print(json.dumps({"name": name, **{k: round(v, 4) for k, v in found.items()}, **more}), flush=True)


def peak(work: Callable[[], object]) -> int:
    """The most bytes that `work` has allocated at a time, beyond what it leaves behind."""
    import torch

    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        kept = work()
    held = most = 0
    events = profile.profiler.kineto_results.events()  # type: ignore[union-attr]
    for event in sorted((e for e in events if e.name() == "[memory]"), key=lambda e: e.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    del kept
    return most - held


def exponent(sizes: Sequence[float], values: Sequence[float]) -> float:
    """k of the power law value = c · size^k that fits best, by least squares of the logarithms."""
    x, y = [math.log(s) for s in sizes], [math.log(v) for v in values]
    middle = statistics.mean(x)
    return sum((a - middle) * b for a, b in zip(x, y)) / sum((a - middle) ** 2 for a in x)
