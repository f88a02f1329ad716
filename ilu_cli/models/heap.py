"""Main memory that was freed goes back to the system."""

from __future__ import annotations

import ctypes
import os
import sys

BOUND = 1 << 20  # bytes of a block from which on it is mapped by itself
MMAP_THRESHOLD, VARIABLE = -3, "MALLOC_MMAP_THRESHOLD_"  # mallopt(3), and what sets the bound from outside


def give_back() -> None:
    """Let the system have what is free; nothing where the C library is none that keeps it.

    glibc maps blocks above a bound by themselves and unmaps them when they are freed; the bound grows to 32 MB with
    what is freed (mallopt(3), M_MMAP_THRESHOLD). Smaller ones, of a model of some hundred million parameters nearly all
    gradients, it keeps for itself, and no larger block can take their place.
    """
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
    if sys.platform != "linux" or os.environ.get(VARIABLE):
        return False
    option = getattr(ctypes.CDLL(None), "mallopt", None)
    return bool(option and option(MMAP_THRESHOLD, BOUND))
