"""What was freed is given back."""

from __future__ import annotations

import ctypes
import sys

import psutil
import pytest
import torch

from ilu_cli.models.heap import give_back


def held() -> int:
    return int(psutil.Process().memory_info().rss)


@pytest.mark.skipif(
    sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="the C library keeps nothing"
)
def test_small_blocks_that_were_freed_are_given_back() -> None:
    blocks = [torch.ones(16_000) for _ in range(4000)]  # 64 kB each, below any bound
    kept = blocks[::50]
    full = held()
    del blocks
    before = held()
    give_back()
    assert full - held() > 200e6
    assert before - held() > 150e6  # which the kept ones had held fast
    assert all(bool((t == 1).all()) for t in kept)
