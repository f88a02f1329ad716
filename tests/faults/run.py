"""The attack on reliability (`make faults`): what was tried, and what held.

python tests/faults/run.py                # everything, at length
python tests/faults/run.py --quick        # as many as the suite tries
python tests/faults/run.py --only resume  # the classes with this word in their name; --count N: N of each
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[2])]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", default="")
    parser.add_argument("--count", type=int, help="how often each class is tried")
    given = parser.parse_args()

    from bench import Bench
    from classes import CLASSES
    from places import MOUNTS, can_mount

    lost = 0
    with tempfile.TemporaryDirectory(prefix="ilu-faults-") as root:
        bench = Bench(Path(root))
        bench.prepare()
        print("| class | tried | held | seconds |\n|---|---|---|---|", flush=True)
        for name, (cases, few, many) in CLASSES.items():
            if given.only not in name:
                continue
            if name == MOUNTS and not can_mount():
                print(f"  not tried: {name}: file systems are mounted by root only", file=sys.stderr)
                continue
            began, found = time.monotonic(), []
            for case in cases(bench, given.count or (few if given.quick else many)):
                found.append(case)
                if not case.held:
                    said = f"exit {case.ended.code}: {case.ended.text[-600:]}" if case.ended else ""
                    print(f"  not held: {name}: {case.name}: {said}", file=sys.stderr)
            held = sum(case.held for case in found)
            lost += len(found) - held
            print(f"| {name} | {len(found)} | {held} | {time.monotonic() - began:.0f} |", flush=True)
        lost += _malformed(given.only, Path(root) / "malformed")
    return 1 if lost else 0


def _malformed(only: str, root: Path) -> int:
    """The malformed inputs by kind; how many did not hold."""
    from malformed import KINDS, Judge

    kinds = {f"malformed input: {kind}": make for kind, make in KINDS.items() if only in f"malformed input: {kind}"}
    if not kinds:
        return 0
    root.mkdir()
    judge, lost = Judge(root), 0
    for name, make in kinds.items():
        began, tried, bad = time.monotonic(), 0, 0
        for given, done, wrong in judge.tried(make()):
            tried, bad = tried + 1, bad + bool(wrong)
            if wrong:
                print(f"  not held: {name}: {given.name}: {wrong}: {done.text[-300:]}", file=sys.stderr)
        print(f"| {name} | {tried} | {tried - bad} | {time.monotonic() - began:.0f} |", flush=True)
        lost += bad
    return lost


if __name__ == "__main__":
    sys.exit(main())
