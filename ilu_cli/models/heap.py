"""Main memory that was freed goes back to the system; how often Python looks for what can be."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

BOUND = 1 << 20  # bytes of a block from which on it is mapped by itself
HIGHEST = 1 << 25  # to which glibc raises that bound by itself
MMAP_THRESHOLD, TRIM_THRESHOLD, VARIABLE = -3, -1, "MALLOC_MMAP_THRESHOLD_"  # mallopt(3), and what sets it from outside

USUAL = gc.get_threshold()
RARELY = 1_000_000  # objects made and not freed


def collect_rarely() -> None:
    """Let Python look for garbage at each `RARELY` objects only, until `collect_as_usual`.

    While packages are imported a million objects are made and nearly all stay. Python, which looks at each 700 and at
    all there are now and then, takes a fifth of the time of importing torch and transformers for it.
    """
    gc.set_threshold(RARELY, *USUAL[1:])


def collect_as_usual() -> None:
    """End that. What has been made by now is not looked at any more; it is what stays until the process ends."""
    if gc.get_threshold()[0] == RARELY:
        gc.freeze()
        gc.set_threshold(*USUAL)


def give_back() -> None:
    """Let the system have what is free; nothing where the C library is none that keeps it.

    glibc maps blocks above a bound by themselves and unmaps them when they are freed; the bound grows to 32 MB with
    what is freed (mallopt(3), M_MMAP_THRESHOLD). Smaller ones, of a model of some hundred million parameters nearly all
    gradients, it keeps for itself, and no larger block can take their place.
    """
    import ctypes  # not at the top, as every start reads this file

    if sys.platform == "linux" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)):
        trim(0)


def map_blocks() -> bool:
    """Let blocks of `BOUND` bytes and more be mapped by themselves from now on, so that what is freed is given back.

    For a sharded model on CPUs: a layer's weights, gradients and what is sent of them are gathered and freed all the
    time, in sizes that leave holes between each other. Mapping costs time, as each new page is zeroed; whoever sets
    `MALLOC_MMAP_THRESHOLD_` has chosen another bound.

    Returns:
        Whether it is so from now on.
    """
    global _always
    _always = _always or _set(MMAP_THRESHOLD, BOUND)
    return _always


@contextmanager
def mapped() -> Iterator[None]:
    """The same meanwhile, and as a decorator; afterwards the bound is where glibc raises it to by itself.

    PyTorch asks for blocks at multiples of 64 bytes, and glibc looks for 96 bytes more than it then uses, so that a
    hole is too small for the next block of its size as soon as something small lies beside it. A pass that keeps
    nothing takes up to twice its bytes by that.
    """
    ours = not _always and _set(MMAP_THRESHOLD, BOUND)
    try:
        yield
    finally:
        if ours:
            _set(MMAP_THRESHOLD, HIGHEST)
            _set(TRIM_THRESHOLD, 2 * HIGHEST)


_always = False


def _set(which: int, size: int) -> bool:
    import ctypes

    if sys.platform != "linux" or os.environ.get(VARIABLE):
        return False
    option = getattr(ctypes.CDLL(None), "mallopt", None)
    return bool(option and option(which, size))
