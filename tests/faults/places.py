"""Classes of faults in what lies around a run: its parents, its folder, its lock, the disk, the memory."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from bench import ATTACK, COMPARE, Bench, Case, limit_memory

Kind = tuple[Callable[..., Iterator[Case]], int, int]


def steps_of(run: Path) -> int:
    """How many steps a run has written."""
    metrics = run / "metrics.jsonl"
    return len(metrics.read_text().splitlines()) if metrics.exists() else 0


def begun(
    bench: Bench, args: list[str], run: Path, steps: int = 3, before: Callable[[], None] | None = None
) -> tuple[int, Path]:
    """Start a command, and come back when its run has done some steps."""
    pid, log = bench.start(args, before)
    until = time.monotonic() + 90
    while steps_of(run) < steps and time.monotonic() < until:
        time.sleep(0.005)
    return pid, log


def parents(bench: Bench, count: int, seed: int = 0) -> Iterator[Case]:
    """A model that goes away while its child trains: exit 3 with its name, soon; put back, the child goes on."""
    for i in range(count):
        bench.reset()
        child, steps = bench.place / "runs/k", 600
        if i % 2:
            parent, command = bench.place / "runs/u", "attack"
            args = ["attack", "runs/u", *ATTACK, "--no-reference", "--steps", str(steps), "--out", "runs/k"]
        else:
            parent, command = bench.place / "parent", "unlearn"
            shutil.copytree(bench.model, parent)
            args = [*bench.unlearn("--model", str(parent), steps=steps), "--out", "runs/k"]
        pid, log = begun(bench, args, child)
        parent.rename(bench.place / "away")
        at = steps_of(child)
        done = bench.wait(pid, log)
        soon = steps_of(child) <= at + 60
        held = done.refused(3) and parent.name in done.text and "is gone" in done.text and soon
        (bench.place / "away").rename(parent)
        if i < 2:
            resumed = bench.run([command, "runs/k", "--resume"])
            held, done = held and resumed.code == 0, done if resumed.code == 0 else resumed
        yield Case(f"{command} after {at} steps", held, done)


def removals(bench: Bench, count: int, seed: int = 0) -> Iterator[Case]:
    """`runs rm` of a run that a process works in, by its name or as a child of another: refused, with the process."""
    for i in range(count):
        bench.reset()
        run = bench.place / "runs/k"
        if i % 2:
            args = ["attack", "runs/u", *ATTACK, "--no-reference", "--steps", "600", "--out", "runs/k"]
        else:
            args = [*bench.unlearn(steps=600), "--out", "runs/k"]
        pid, log = begun(bench, args, run)
        named = ["runs/u", "--children"] if i % 4 == 3 else ["runs/k"]
        done = bench.run(["runs", "rm", *named, "--yes"])
        there = (run / "manifest.json").exists() and (bench.place / "runs/u/manifest.json").exists()
        os.kill(pid, signal.SIGKILL)
        bench.wait(pid, log)
        yield Case(" ".join(named), there and done.refused(2) and f"process {pid}" in done.text, done)


def _no_flock() -> None:
    def refuse(_fd: int, _how: int) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    setattr(fcntl, "flock", refuse)  # noqa: B010


def locks(bench: Bench, count: int, seed: int = 0) -> Iterator[Case]:
    """A file system without `flock`, and a holder on another host."""
    for i in range(count):
        bench.reset()
        run, resume = bench.place / "runs/k", ["unlearn", "runs/k", "--resume"]
        before = _no_flock if i % 2 == 0 else None
        pid, log = begun(
            bench, [*bench.unlearn("--set", "train.save_every=3", steps=300), "--out", "runs/k"], run, before=before
        )
        if before:
            second = bench.run(resume, before)
            os.kill(pid, signal.SIGKILL)
            bench.wait(pid, log)
            third = bench.run(resume, before)
            held = second.refused(2) and f"process {pid}" in second.text and third.code == 0
            yield Case("without flock", held and steps_of(run) == 300, third if second.refused(2) else second)
            continue
        os.kill(pid, signal.SIGKILL)
        bench.wait(pid, log)
        holder = run / ".holder.json"
        found = json.loads(holder.read_text())
        holder.write_text(json.dumps(found | {"host": "elsewhere"}))
        refused = bench.run(resume)
        removed = bench.run(["runs", "rm", "runs/k", "--yes"])
        said = all(d.refused(2) and "elsewhere" in d.text and ".holder.json" in d.text for d in (refused, removed))
        holder.unlink()
        done = bench.run(resume)
        yield Case("of another host", said and done.code == 0 and steps_of(run) == 300, done if said else refused)


def unbegun(bench: Bench, count: int, seed: int = 0) -> Iterator[Case]:
    """A run that was killed before it wrote its recipe: every later command does what it does without it."""
    commands: list[tuple[list[str], tuple[int, ...]]] = [
        (["attack", *ATTACK, "--dry-run"], (0,)),
        (["attack", "runs/u", *ATTACK], (0,)),
        (["eval", "--limit", "6"], (0,)),
        (["report"], (0,)),
        (["runs"], (0,)),
        (["runs", "tree"], (0,)),
        (["runs", "show", "k"], (0,)),
        (["runs", "diff", "k", "u"], (0,)),
        (["runs", "verify", "--all"], (0,)),
        (["runs", "rm", "k", "--yes"], (0,)),
        (["taskvec"], (0,)),
        (COMPARE, (0,)),
        (["unlearn", "--resume"], (3,)),
        (["attack", "--resume"], (3,)),
        (["unlearn", "k", "--resume"], (2,)),
        (["attack", "k", "--resume"], (2,)),
        (["eval", "k"], (3,)),
        (["attack", "k"], (3,)),
        (["reproduce", "k"], (3,)),
        (["report", "k"], (3,)),
        (["push", "k", "me/model", "--yes"], (3,)),
    ]
    for i in range(count):
        command, codes = commands[i % len(commands)]
        bench.reset()
        kind = "attack" if i // len(commands) % 2 else "unlearn"
        made = bench.place / "runs/k"
        made.mkdir()
        manifest = {
            "id": "k",
            "command": kind,
            "status": "running",
            "created": "2099-01-01T00:00:00+00:00",
            "format": 1,
        }
        (made / "manifest.json").write_text(json.dumps(manifest))
        done = bench.run(command)
        yield Case(" ".join(command[:3]), done.told and done.code in codes, done)


def can_mount() -> bool:
    """Whether this user may mount a file system."""
    tried = subprocess.run(["unshare", "-m", "mount", "-t", "tmpfs", "tmpfs", "/mnt"], capture_output=True)
    return tried.returncode == 0


@contextmanager
def disk(place: Path, size: str = "9m") -> Iterator[Path]:
    """A small file system of its own at a folder."""
    place.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def fill(place: Path) -> Path:
    """Leave not a byte on a disk."""
    filler = place / "filler"
    with filler.open("wb", buffering=0) as f:
        for block in (1 << 16, 1 << 10, 1):
            try:
                while f.write(b"x" * block) == block:
                    pass
            except OSError:
                continue
    return filler


def disks(bench: Bench, count: int, seed: int = 0) -> Iterator[Case]:
    """File systems that are full, or become so in the middle, or were mounted to be read only."""
    full = [["eval", "small/u", "--limit", "7"], ["report", "u", "--out", "small/page"],
            [*bench.unlearn(), "--out", "small/n"], ["attack", "small/u", *ATTACK, "--no-reference"],
            ["taskvec", "apply", "runs/u", "--out", "small/p"]]  # fmt: skip
    for i in range(count):
        bench.reset()
        with disk(bench.place / "small") as small:
            if i % 4 == 0:
                run = small / "k"
                args = [*bench.unlearn("--set", "train.save_every=1", steps=400), "--out", "small/k"]
                pid, log = begun(bench, args, run)
                filler = fill(small)
                done = bench.wait(pid, log)
                filler.unlink()
                after = bench.run(["unlearn", "small/k", "--resume"])
                held = done.refused(5) and "hint: " in done.text and after.code == 0 and steps_of(run) == 400
                yield Case("becomes full", held, done if after.code == 0 else after)
                continue
            shutil.copytree(bench.place / "runs/u", small / "u")
            command = full[i // 4 % len(full)]
            if i % 4 == 1:
                fill(small)
                done = bench.run(command)
                yield Case(f"full: {command[0]}", done.refused(5) and "hint: " in done.text, done)
            elif i % 4 == 2:
                subprocess.run(["mount", "-o", "remount,ro", str(small)], check=True)
                done = bench.run(command)
                yield Case(f"read-only: {command[0]}", done.refused(3) and "small" in done.text, done)
            else:
                cache = bench.place / "cache"
                shutil.rmtree(cache, ignore_errors=True)
                with disk(cache, "64k"):
                    fill(cache)
                    done = bench.run([*bench.unlearn(), "--out", "runs/n"])
                # what cannot be kept there is worked out again
                yield Case("cache full", done.code == 0 or (done.refused(5) and "ILU_CACHE" in done.text), done)


def memory(bench: Bench, count: int, seed: int = 0) -> Iterator[Case]:
    """A limit of memory that is reached somewhere: what was asked for, or exit 5 with a remedy."""
    rng = random.Random(seed)
    commands = [[*bench.unlearn(), "--out", "runs/n"], ["attack", "runs/u", *ATTACK, "--no-reference"],
                ["eval", "runs/u", "--limit", "7"], ["taskvec"], COMPARE, ["taskvec", "apply", "runs/u"],
                ["report"], ["runs", "verify", "--all"], ["reproduce", "runs/u"]]  # fmt: skip
    for i in range(count):
        bench.reset()
        left = int(2 ** rng.uniform(19, 26))
        command = commands[i % len(commands)]
        done = bench.run(command, partial(limit_memory, left))
        held = done.code == 0 or (done.refused(5, 3) and "hint: " in done.text)
        yield Case(f"{command[0]} with {left >> 10} kB", done.told and held, done)


PLACES: dict[str, Kind] = {
    "a parent that goes away while its child trains": (parents, 2, 20),
    "a live run removed": (removals, 1, 20),
    "no flock, or a holder on another host": (locks, 2, 20),
    "killed before its recipe": (unbegun, 3, 42),
    "disks that fill, or are read-only": (disks, 4, 20),
    "memory that runs out": (memory, 3, 45),
}
MOUNTS = "disks that fill, or are read-only"
