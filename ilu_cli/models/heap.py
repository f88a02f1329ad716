"""Main memory that was freed goes back to the system."""

from __future__ import annotations

import ctypes
import sys


def give_back() -> None:
    """Let the system have what is free; nothing where the C library is none that keeps it.

    glibc maps blocks above a bound by themselves and unmaps them when they are freed; the bound grows to 32 MB with
    what is freed (mallopt(3), M_MMAP_THRESHOLD). Smaller ones, of a model of some hundred million parameters nearly all
    gradients, it keeps for itself, and no larger block can take their place.
    """
    if sys.platform == "linux" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)):
        trim(0)
