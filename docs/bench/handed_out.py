"""What each process of a sharded launch holds while it loads a model: read a weight at a time, and read whole.

    ACCELERATE_USE_CPU=true accelerate launch --config_file recipes/launch/two-cpus-sharded.yaml \
        docs/bench/handed_out.py FOLDER [--whole]

FOLDER: a model, or the name of a built-in one, whose weights should be bfloat16: of float32 files, which can be mapped,
reading whole takes no memory of its own. Told are megabytes of anonymous memory (Linux, smaps_rollup) beyond those
before, at the highest and afterwards, and seconds.
"""

from __future__ import annotations

import argparse
import os
import threading
import time
from pathlib import Path

from ilu_cli.engine import loading
from ilu_cli.engine.accel import SHARDED, backend
from ilu_cli.models.load import checked_model
from ilu_cli.models.subject import find_model


def anonymous() -> int:
    """Bytes of this process that are no file's."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("Anonymous:"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--whole", action="store_true", help="as where weights are merged")
    options = parser.parse_args()
    os.environ[SHARDED] = "true"
    if options.whole:
        vars(loading)["reader_of"] = lambda *_: None
    b, subject = backend(), find_model(options.model)
    checked_model(subject)  # as a plan does, which imports its code
    before, highest, ended = anonymous(), [0], threading.Event()

    def watch() -> None:
        while not ended.wait(0.005):
            highest[0] = max(highest[0], anonymous())

    watcher, began = threading.Thread(target=watch), time.perf_counter()
    watcher.start()
    model = loading.load(subject, b)
    took = time.perf_counter() - began
    ended.set()
    watcher.join()
    most, left = ((n - before) / 1e6 for n in (highest[0], anonymous()))
    how = f"{type(model).__name__}, {'whole' if options.whole else 'a weight at a time'}"
    print(f"{how}, process {b.rank}: {most:.0f} MB, then {left:.0f} MB; {took:.1f} s", flush=True)


if __name__ == "__main__":
    main()
