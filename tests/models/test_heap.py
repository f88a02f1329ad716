"""What was freed is given back."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import torch
from families import make_family

from ilu_cli.models.heap import BOUND, VARIABLE, give_back


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


WORK = """
import sys, psutil, torch
from ilu_cli.models.heap import map_blocks
def held(): return psutil.Process().memory_info().rss
torch.ones(4_000_000)  # 16 MB: below the bound that it moves up to, and freed
said, before = map_blocks(), held()
blocks = [torch.ones(500_000) for _ in range(200)]  # 2 MB each
kept = blocks[::10]
del blocks
print(int(said), held() - before)
"""


def held_after(**env: str) -> tuple[int, int]:
    """What a new process says: whether blocks are mapped, and bytes that it holds beside twenty of 2 MB."""
    words = [sys.executable, "-c", WORK]
    done = subprocess.run(words, env=os.environ | env, capture_output=True, text=True, check=True)
    said, more = map(int, done.stdout.split())
    return said, more - 20 * 2_000_000


@pytest.mark.skipif(sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "mallopt"), reason="another C library")
def test_mapped_blocks_leave_no_holes_unless_another_bound_is_set() -> None:
    assert BOUND < 2_000_000
    said, more = held_after()
    assert said == 1
    assert more < 20e6
    said, more = held_after(**{VARIABLE: str(1 << 25)})
    assert said == 0
    assert more > 200e6  # of the 400 MB between those that are kept


MEANWHILE = """
import psutil, torch
from ilu_cli.models.heap import mapped
def held(): return psutil.Process().memory_info().rss
def grown():
    before, kept = held(), []
    for _ in range(100):
        beside, passing = torch.ones(4), torch.ones(500_000)  # 2 MB
        kept += [beside, torch.ones(4)]
        if len(kept) % 20 == 0:
            kept.append(torch.ones(65_000))
        alive.append(passing)
        if len(alive) > 2:
            alive.pop(0)
    alive.clear()
    return held() - before, kept
alive = []
torch.ones(4_000_000)
with mapped():
    inside, kept = grown()
outside, more = grown()
print(inside, outside)
"""


@pytest.mark.skipif(sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "mallopt"), reason="another C library")
def test_blocks_are_mapped_meanwhile_alone() -> None:
    done = subprocess.run([sys.executable, "-c", MEANWHILE], capture_output=True, text=True, check=True)
    inside, outside = map(int, done.stdout.split())
    assert inside < 10e6  # ten blocks of 0.26 MB are kept
    assert outside > inside + 5e6  # blocks that the heap has kept


def test_garbage_is_looked_for_rarely_until_a_model_is_loaded(tmp_path: Path) -> None:
    """Whole, in a process of its own: the thresholds when packages have been imported, and when the model is there."""
    folder = make_family("llama", tmp_path / "m")
    code = f"""
import gc, sys
from ilu_cli import __main__
from ilu_cli.cli import app

def look():
    from ilu_cli.models.load import load_model
    from ilu_cli.models.subject import find_model
    from ilu_cli.models.heap import RARELY, USUAL
    assert USUAL[0] < 10_000 and gc.get_threshold() == (RARELY, *USUAL[1:]), gc.get_threshold()
    load_model(find_model({str(folder)!r}))
    assert gc.get_threshold() == USUAL and gc.get_freeze_count() > 100_000
    gc.set_threshold(5)
    load_model(find_model({str(folder)!r}))  # what somebody else has set stays
    print(gc.get_threshold()[0])

app.main = look
__main__.main()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["5"]
