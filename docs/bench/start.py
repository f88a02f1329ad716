"""From the shell to the first step, against the bare import of torch and transformers and `from_pretrained`.

    python docs/bench/start.py [--repeats 5]

`bare` imports both, loads the built-in model and its tokenizer, and says so. A command begins its first step when it
prints how many steps it will take. `first`: with an empty cache of rows and references, once; `again`: with those that
it left, in turns with `bare`. What has said its line is ended.
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from measure import tell

from ilu_cli.models.subject import find_model
from ilu_cli.recipe.specs import DEFAULT_MODEL
from ilu_cli.runs.files import cache_dir

BARE = """
import sys, torch, transformers
transformers.AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32)
transformers.AutoTokenizer.from_pretrained(sys.argv[1])
print("bare: 0 steps", file=sys.stderr)
"""
COMMANDS = {"rmu": ["--method", "rmu"], "rmu + irm over gsm8k": ["--method", "rmu", "--irm-env", "gsm8k"]}


def seconds(line: list[str], cache: Path) -> tuple[float, float]:
    """How long a process takes until its model is loaded, when it says which rows were cut, and until its steps."""
    with tempfile.TemporaryDirectory() as runs:
        env = os.environ | {"ILU_RUNS": runs, "ILU_CACHE": str(cache)}
        began = time.perf_counter()
        process = subprocess.Popen(line, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        assert process.stderr is not None
        said: list[str] = []
        loaded = 0.0
        for text in process.stderr:
            said.append(text)
            if " were cut" in text:
                loaded = loaded or time.perf_counter() - began
            if re.search(r": \d+ steps$", text):
                took = time.perf_counter() - began
                process.kill()
                process.communicate()
                return loaded, took
    sys.exit("".join(said))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    repeats, folder = parser.parse_args().repeats, find_model(DEFAULT_MODEL).folder
    bare = [sys.executable, "-c", BARE, str(folder)]
    seconds(bare, cache_dir())  # reads the files into memory
    for name, options in COMMANDS.items():
        line = [sys.executable, "-m", "ilu_cli", "unlearn", *options]
        found: dict[str, list[tuple[float, float]]] = {"bare": [], "first": [], "again": []}
        with tempfile.TemporaryDirectory() as cache:
            (Path(cache) / "models").symlink_to(folder.parent)
            found["first"].append(seconds(line, Path(cache)))
            for _ in range(repeats):
                found["bare"].append(seconds(bare, Path(cache)))
                found["again"].append(seconds(line, Path(cache)))
        for which in ("first", "again"):
            loaded = statistics.median(said for said, _ in found[which])
            limit = f"{loaded:.1f} s until the model is loaded; the rest, what the original says of the rows"
            ended = [[end for _, end in found[kind]] for kind in ("bare", which)]
            tell(f"start, {name}, {which}", *ended, loaded_s=round(loaded, 2), limit=limit)


if __name__ == "__main__":
    main()
