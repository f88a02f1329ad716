"""How many threads a command takes, and how they wait."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Ilu

from ilu_cli.errors import UsageError


def test_threads_are_those_that_were_asked_for_and_for_this_command_only(
    ilu: Ilu, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, str | None]] = []

    def look(*_: Any, **__: Any) -> None:
        seen.append((torch.get_num_threads(), os.environ.get("OMP_NUM_THREADS")))
        raise UsageError("seen")

    monkeypatch.setattr("ilu_cli.workflows.unlearn.plan", look)
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    before = torch.get_num_threads()
    for given in (["--threads", 3], []):
        assert ilu("unlearn", "--method", "rmu", *given).code == 2
    assert seen == [(3, "3"), (before, "2")]
    assert torch.get_num_threads() == before
    assert ilu("unlearn", "--threads", 0).code == 2


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="GNU OpenMP tells its settings")
def test_threads_soon_sleep_while_they_wait_unless_the_environment_says_otherwise(tiny: Path) -> None:
    args = [sys.executable, "-m", "ilu_cli", "eval", str(tiny), "--bench", "capitals", "--limit", "1"]
    asked_for: list[tuple[dict[str, str], str, bool]] = [
        ({}, "PASSIVE", True),
        ({"OMP_WAIT_POLICY": "active"}, "ACTIVE", False),
    ]
    for asked, policy, short in asked_for:
        done = subprocess.run(
            args, env={**os.environ, "OMP_DISPLAY_ENV": "verbose", **asked}, text=True, capture_output=True
        )
        assert f"OMP_WAIT_POLICY = '{policy}'" in done.stderr, done.stderr
        assert ("GOMP_SPINCOUNT = '3000'" in done.stderr) == short, done.stderr


LARGE = """
from ilu_cli.__main__ import main
try:
    main()
except SystemExit:
    import torch
    held = torch.ones(1 << 26)
    print(next(line for line in open("/proc/self/smaps_rollup") if line.startswith("AnonHugePages:")).split()[1])
"""


def leaves_it_to_programs() -> bool:
    switch = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    return switch.is_file() and "[madvise]" in switch.read_text()


@pytest.mark.skipif(not leaves_it_to_programs(), reason="large pages are for all programs here, or for none")
def test_large_tensors_take_large_pages_unless_the_environment_says_otherwise() -> None:
    env = {k: v for k, v in os.environ.items() if k != "THP_MEM_ALLOC_ENABLE"}
    line = [sys.executable, "-c", LARGE, "--version"]
    held = {}
    for asked in ("1", "0", ""):
        given = {"THP_MEM_ALLOC_ENABLE": asked} if asked else {}
        done = subprocess.run(line, env=env | given, text=True, capture_output=True, check=True)
        held[asked] = int(done.stdout.splitlines()[-1])
    assert held["0"] < 50_000 < 200_000 < min(held["1"], held[""]), held
