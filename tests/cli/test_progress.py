"""The live view: sparklines, widths, and what is drawn on a real terminal."""

from __future__ import annotations

import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
from fcntl import ioctl
from pathlib import Path
from typing import Any

import pytest
from conftest import Ilu
from test_chain import npo

from ilu_cli.cli.console import clock, size
from ilu_cli.cli.progress import STOPPING, Course, facts, frame, sparkline
from ilu_cli.engine.loop import StepLog

pytestmark = pytest.mark.slow


def course(steps: int = 30, total: int = 80) -> Course:
    c = Course("rmu-irm-gsm8k-winogrande-with-a-long-name", total, 0)
    for i in range(1, steps + 1):
        losses = {"forget": 1 / i, "retain": 0.01 * i, "irm": 2.0, "D[a_dataset_with_a_long_name]": -1.25}
        c.add(StepLog(i, total, losses, 1e-3, 1.5, 1200, 0.5))
    return c


def test_sparklines() -> None:
    assert sparkline([], 10) == ""
    assert sparkline([3.0], 10) == "▁"
    assert sparkline([1.0, 1.0, 1.0], 10) == "▁▁▁"
    assert sparkline([0, 1, 2, 3, 4, 5, 6, 7], 8) == "▁▂▃▄▅▆▇█"
    assert sparkline([0, 0, 7, 7], 2) == "▁█"
    assert sparkline([0, 2, 2, 4], 2) == "▁█"  # means 1 and 3
    assert len(sparkline(list(range(1000)), 37)) == 37
    assert sparkline([1.0, 2.0], 0) == ""


def test_times_and_sizes() -> None:
    assert [clock(s) for s in (0, 42, 725, 11045)] == ["0:00", "0:42", "12:05", "3:04:05"]
    assert [size(b) for b in (900, 2.5e6, 16e9)] == ["1 kB", "2.5 MB", "16.0 GB"]


@pytest.mark.parametrize("width", [40, 50, 80, 120, 300])
def test_no_line_is_wider_than_the_terminal(width: int) -> None:
    lines = frame(course(), 1_300_000_000, width).plain.splitlines()
    assert len(lines) == 6
    assert max(map(len, lines)) <= width
    assert "30/80" in lines[0]
    assert "0:25 left" in lines[0]  # 50 steps of half a second
    assert "0.03333" in lines[1]
    assert re.search(r"█[▁-▆]+$", lines[1])
    assert lines[-1].startswith("  1.3 GB peak")


def test_a_stop_under_way_is_said() -> None:
    c = course()
    c.stopping = True
    assert facts(c, 0, 80) == STOPPING
    assert facts(c, 0, 38) == "stopping after this step"


def on_terminal(
    args: list[str], columns: int, env: dict[str, str], during: Any = lambda child, seen: None
) -> tuple[int, str]:
    """Run ilu with stderr on a pseudo-terminal; return its exit code and what was written there."""
    here, there = pty.openpty()
    ioctl(there, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    environment = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "COLUMNS")}
    environment |= {"TERM": "xterm-256color", "OMP_NUM_THREADS": "1"} | env
    child = subprocess.Popen(
        [sys.executable, "-m", "ilu_cli", *args], stdout=subprocess.DEVNULL, stderr=there, env=environment
    )
    os.close(there)
    seen = b""
    while True:
        try:
            chunk = os.read(here, 65536)
        except OSError:  # Linux says so when the other side has closed
            break
        if not chunk:
            break
        seen += chunk
        during(child, seen.decode(errors="replace"))
    os.close(here)
    return child.wait(), seen.decode()


def visible(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text).replace("\r", "\n")


def test_on_a_narrow_terminal_nothing_wraps_and_colours_can_be_refused(tiny: Path) -> None:
    code, seen = on_terminal(npo(tiny, 6), 40, {"NO_COLOR": "1"})
    assert code == 0, seen
    assert max(len(line) for line in visible(seen).splitlines()) <= 40
    assert "6/6" in visible(seen)
    assert "next  ilu attack" in visible(seen)
    assert not re.search(r"\x1b\[[0-9;]*3[0-9]m", seen)  # no foreground colour
    assert seen.count("\x1b[?25l") == seen.count("\x1b[?25h") > 0  # the cursor comes back


def test_ctrl_c_on_a_terminal_stops_cleanly_and_the_run_resumes(tiny: Path, ilu: Ilu) -> None:
    metrics = Path("stopped") / "metrics.jsonl"

    def stop(child: Any, seen: Any) -> None:
        if metrics.exists() and metrics.read_text().count("\n") > 3 and not hasattr(child, "told"):
            child.told = True
            child.send_signal(signal.SIGINT)

    code, seen = on_terminal([*npo(tiny, 120), "--out", "stopped"], 80, {}, stop)
    assert code == 130, visible(seen)
    assert "stopped after step" in visible(seen)
    assert "--resume" in visible(seen)
    assert "\x1b[?25h" in seen[seen.rindex("\x1b[?25l") :]
    assert re.search(r"\x1b\[[0-9;]*3[0-9]m", seen)  # in colour, this time
    assert list(Path("stopped/state").glob("step-*.pt"))
    done = ilu("unlearn", "stopped", "--resume")
    assert done.code == 0, done.err
    assert "continuing after step" in done.err
