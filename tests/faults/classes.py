"""The classes of faults. Each yields its cases: a name, and whether it held."""

from __future__ import annotations

import errno
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from bench import ATTACK, COMPARE, Bench, Case, Ended, hash_of, limit_memory
from places import PLACES


def users(name: str) -> list[list[str]]:
    """The commands that use a file of the run `u` or `a`, given as `u/eval/capitals.json`."""
    run, _, file = name.partition("/")
    verify = [["runs", "verify", "--all"]]
    if file == "README.md":  # it is written anew, and read by people
        return verify
    verify += [] if file.startswith("eval/") and "/" in file[5:] else [COMPARE]  # those of a point are an attack's own
    if file == "metrics.jsonl":
        verify.pop()
    if file.startswith(("checkpoint/", "eval/")) or file in ("recipe.yaml", "manifest.json", "files.json"):
        verify += [["push", f"runs/{run}", "me/model", "--yes"]]
    if file in ("recipe.yaml", "manifest.json", "files.json") or file.startswith("checkpoint/"):
        uses = [["eval", f"runs/{run}", "--limit", "6"], ["attack", f"runs/{run}", *ATTACK, "--dry-run"],
                ["taskvec", f"runs/{run}"]]  # fmt: skip
        return [*uses, *verify, *([["report"]] if not file.startswith("checkpoint/") and file != "files.json" else [])]
    return [["report"], *verify]


def flips(bench: Bench, count: int, seed: int = 0) -> Iterator[Case]:
    """One bit of one file of a finished run, and each command that uses the file next."""
    rng = random.Random(seed)
    files = sorted(p for r in "ua" for p in (bench.clean / "runs" / r).rglob("*") if p.is_file())
    names = [p.relative_to(bench.clean / "runs").as_posix() for p in files if not p.name.startswith(".")]
    cases = [(name, command) for name in names for command in users(name)]
    rng.shuffle(cases)
    for name, command in (cases * (1 + count // len(cases)))[:count]:
        bench.reset()
        path = bench.place / "runs" / name
        data = bytearray(path.read_bytes())
        at, bit = rng.randrange(len(data)), rng.randrange(8)
        data[at] ^= 1 << bit
        path.write_bytes(bytes(data))
        done = bench.run(command)
        if command[0] == "push" and "HF_HUB_OFFLINE is set" in done.text:  # it got as far as the hub
            done = Ended(0, done.text)
        left_out = name.endswith("manifest.json") and "left out" in done.text  # a report of the others, which says so
        yield Case(f"{name}@{at}.{bit}: {' '.join(command[:2])}", done.refused(3, 4) or (done.told and left_out), done)


def added(bench: Bench, count: int, seed: int = 0) -> Iterator[Case]:
    """A file put beside those of a checkpoint or taken away, and the next command."""
    rng = random.Random(seed)
    listed = sorted(p for r in "ua" for p in (bench.clean / "runs" / r / "checkpoint").iterdir())
    for i in range(count):
        bench.reset()
        folder = bench.place / "runs" / rng.choice("ua") / "checkpoint"
        path = bench.place / rng.choice(listed).relative_to(bench.clean)
        if i % 2:
            path.unlink()
        else:
            path = folder / rng.choice(["pytorch_model.bin", "vocab.txt", "model.safetensors.index.json", "extra.py"])
            path.write_text("{}")
        done = bench.run(rng.choice(users(path.relative_to(bench.place / "runs").as_posix())))
        yield Case(f"{path.name} {'gone' if i % 2 else 'added'}", done.refused(3, 4), done)


def kills(bench: Bench, count: int, seed: int = 0) -> Iterator[Case]:
    """SIGKILL of `ilu unlearn` at any moment; resumed, it comes to the same bits. Every third time killed again."""
    rng = random.Random(seed)
    bench.reset()
    command = bench.unlearn("--set", "train.save_every=3", steps=24)
    began = time.monotonic()
    whole = bench.run([*command, "--out", "runs/whole"])
    seconds = time.monotonic() - began
    assert whole.code == 0, whole.text
    wanted = hash_of(bench.place / "runs/whole/checkpoint/model.safetensors")
    for i in range(count):
        bench.reset()
        bench.killed([*command, "--out", "runs/k"], rng.uniform(0, seconds))
        run = bench.place / "runs/k"
        if i % 3 == 0 and (run / "recipe.yaml").exists():
            bench.killed(["unlearn", "runs/k", "--resume"], rng.uniform(0, seconds))
        if not (run / "recipe.yaml").exists():  # before it began: nothing of it may stand in the way of others
            done = bench.run(["attack", "runs/u", *ATTACK, "--dry-run"])
            yield Case("before it began", done.code == 0, done)
            continue
        done = bench.run(["unlearn", "runs/k", "--resume"])
        finished = done.code == 2 and "is finished" in done.text
        same = (run / "checkpoint/model.safetensors").exists() and hash_of(
            run / "checkpoint/model.safetensors"
        ) == wanted
        lines = len((run / "metrics.jsonl").read_text().splitlines()) if (run / "metrics.jsonl").exists() else 0
        yield Case("unlearn", same and lines == 24 and (done.code == 0 or finished), done)


def kills_of_others(bench: Bench, count: int, seed: int = 0) -> Iterator[Case]:
    """SIGKILL of `ilu attack`, in the reference line too, and of `ilu eval`; what was asked for is there in the end."""
    rng = random.Random(seed)
    for i in range(count):
        bench.reset()
        if i % 3 == 2:
            for file in (bench.place / "runs/u/eval").glob("*"):
                shutil.rmtree(file) if file.is_dir() else file.unlink()
            bench.killed(["eval", "runs/u", "--limit", "6"], rng.uniform(0, 1.0))
            done = bench.run(["eval", "runs/u", "--limit", "6"])
            yield Case("eval", done.code == 0, done)
            continue
        shutil.rmtree(bench.place / "runs/a")
        for other in (bench.place / "runs").glob("attack-*"):
            shutil.rmtree(other)
        bench.killed(["attack", "runs/u", *ATTACK, "--out", "runs/b"], rng.uniform(0, 2.5))
        done = bench.run(["attack", "--resume"])
        if done.code == 3 and "no unfinished attack" in done.text:  # between two runs, or when all was done
            done = Ended(0, "") if _attacked(bench) else bench.run(["attack", "runs/u", *ATTACK])
        yield Case("attack", done.code == 0 and _attacked(bench), done)


def _attacked(bench: Bench) -> bool:
    from ilu_cli.runs.store import Store

    runs = Store(bench.place / "runs").runs()
    return any(r.complete and r.manifest.command == "attack" and r.manifest.made_from == ["u"] for r in runs)


def _killed_with_states(bench: Bench, steps: int) -> Path:
    """A run `k` that was killed when it had two states; their folder."""
    pid, log = bench.start([*bench.unlearn("--set", "train.save_every=3", steps=steps), "--out", "runs/k"])
    states, until = bench.place / "runs/k/state", time.monotonic() + 60
    while len(list(states.glob("step-*.json"))) < 2 and time.monotonic() < until:
        time.sleep(0.005)
    os.kill(pid, signal.SIGKILL)
    bench.wait(pid, log)
    return states


def doubles(bench: Bench, count: int, seed: int = 0) -> Iterator[Case]:
    """Two `--resume` of one run at once: one of them, and the other is told who has it."""
    rng = random.Random(seed)
    for _ in range(count):
        bench.reset()
        _killed_with_states(bench, 400)
        first = bench.start(["unlearn", "runs/k", "--resume"])
        time.sleep(rng.choice([0, 0.01, 0.1, 0.3]))
        second = bench.start(["unlearn", "runs/k", "--resume"])
        ended = [bench.wait(*first), bench.wait(*second)]
        good = [e for e in ended if e.code == 0]
        other = next((e for e in ended if e.code != 0), None)
        lines = len((bench.place / "runs/k/metrics.jsonl").read_text().splitlines())
        says = other is not None and other.refused(2) and ("is held by" in other.text or "is finished" in other.text)
        yield Case("resume", len(good) == 1 and says and lines == 400, other)


def changed(bench: Bench, count: int, seed: int = 0) -> Iterator[Case]:
    """A run that was killed, with its recipe, its parent or its states changed: refused by name, or one state back."""
    rng = random.Random(seed)
    for i in range(count):
        bench.reset()
        states = _killed_with_states(bench, 300)
        if i % 2:
            recipe = bench.place / "runs/k/recipe.yaml"
            key, value = rng.choice([("lr", "0.5"), ("steps", "301"), ("max_grad_norm", "0.25")])
            text = "\n".join(f"  {key}: {value}" if line.startswith(f"  {key}:") else line
                             for line in recipe.read_text().splitlines())  # fmt: skip
            recipe.write_text(text + "\n")
            done = bench.run(["unlearn", "runs/k", "--resume"])
            yield Case(f"train.{key}", done.refused(2) and f"train.{key}" in done.text, done)
        else:
            newest = sorted(states.glob("step-*.pt"))[-1]
            data = bytearray(newest.read_bytes())
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
            newest.write_bytes(bytes(data))
            done = bench.run(["unlearn", "runs/k", "--resume"])
            yield Case("state", done.code == 0 and "is damaged" in done.text, done)


def _small_files() -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000))


def _full_disk() -> None:
    def no_space(fd: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    os.fsync = no_space


def _nobody() -> None:
    if os.getuid() == 0:
        os.setegid(65534)
        os.seteuid(65534)


HELD: list[bytearray] = []


def _no_memory() -> None:
    """Two megabytes are left, whatever the process that was forked had freed before."""
    limit_memory(4 << 20)
    try:
        while True:
            HELD.append(bytearray(1 << 18))
    except MemoryError:
        del HELD[-8:]


def system(bench: Bench, count: int, seed: int = 0) -> Iterator[Case]:
    """Full disks, folders and files without a right to them, names that are too long, no memory."""
    long = "n" * 300
    cases: list[tuple[str, list[str], Callable[[], None] | None, tuple[int, ...]]] = [
        ("files may not grow: unlearn", bench.unlearn("--out", "runs/n"), _small_files, (5,)),
        ("files may not grow: attack", ["attack", "runs/u", *ATTACK, "--no-reference"], _small_files, (5,)),
        ("disk full: unlearn", bench.unlearn("--out", "runs/n"), _full_disk, (5,)),
        ("disk full: attack", ["attack", "runs/u", *ATTACK], _full_disk, (5,)),
        ("disk full: eval", ["eval", "runs/u", "--limit", "7"], _full_disk, (5,)),
        ("disk full: report", ["report"], _full_disk, (5,)),
        ("read-only: unlearn", bench.unlearn("--out", "runs/n"), _nobody, (3,)),
        ("read-only: eval", ["eval", "runs/u", "--limit", "7"], _nobody, (3,)),
        ("name: unlearn --out", bench.unlearn("--out", long), None, (2, 3)),
        ("name: --model", ["unlearn", "--model", long], None, (2, 3)),
        ("name: --recipe", ["unlearn", "--recipe", long], None, (2, 3)),
        ("name: eval", ["eval", long], None, (2, 3)),
        ("name: runs show", ["runs", "show", long], None, (2, 3)),
        ("name: report", ["report", long], None, (2, 3)),
        ("no memory: unlearn", bench.unlearn("--out", "runs/n"), _no_memory, (5,)),
    ]
    for name, command, before, codes in cases[:count]:
        bench.reset()
        if before is _nobody and os.getuid() == 0:
            for p in (bench.root, bench.root.parent, *bench.place.rglob("*")):
                p.chmod(p.stat().st_mode | 0o055)
        done = bench.run(command, before)
        yield Case(name, done.refused(*codes) and "hint: " in done.text, done)


def stops(bench: Bench, count: int, seed: int = 0) -> Iterator[Case]:
    """SIGINT, SIGTERM, SIGHUP at any moment of a process that begins from nothing: a message, and 130 or the result."""
    rng = random.Random(seed)
    env = os.environ | {"ILU_RUNS": str(bench.place / "runs"), "ILU_CACHE": str(bench.place / "cache")}
    for i in range(count):
        bench.reset()
        args = [sys.executable, "-m", "ilu_cli", *bench.unlearn(steps=400)]
        pipe = subprocess.PIPE
        process = subprocess.Popen(args, cwd=bench.place, env=env, stdout=pipe, stderr=subprocess.STDOUT, text=True)
        after = rng.uniform(0.06, 0.2) if i % 2 == 0 else rng.uniform(0.2, 6)
        time.sleep(after)
        number = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)[i % 3]
        process.send_signal(number)
        done = Ended(process.wait(60), process.stdout.read() if process.stdout else "")
        begun = "step 1/" in done.text
        held = done.code == 0 or (done.refused(130) and ("--resume" in done.text or not begun))
        yield Case(f"{number.name} after {after:.2f} s", held, done)


# A class: its cases, and how many in the suite and at length.
CLASSES: dict[str, tuple[Callable[..., Iterator[Case]], int, int]] = {
    "a bit of a finished run's file flipped": (flips, 30, 600),
    "a file of a checkpoint added or gone": (added, 6, 60),
    "SIGKILL of unlearn": (kills, 3, 40),
    "SIGKILL of attack and eval": (kills_of_others, 3, 40),
    "two resumes at once": (doubles, 1, 20),
    "recipe or state changed before a resume": (changed, 2, 20),
    "disks, rights, names, memory": (system, 15, 15),
    "SIGINT, SIGTERM, SIGHUP": (stops, 3, 30),
    **PLACES,
}
