"""How long a dataset takes to be tokenised, and to be read back from the cache of tokenised corpora.

    python docs/bench/tokenise_cache.py [rows] [model]

Rows are word problems of the built-in generator, read from a jsonl file by the loading code that recipes use; the cache
is an empty folder. The times of the second load include the hash of all rows, and are the median of five.
"""

from __future__ import annotations

import json
import os
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path

from ilu_cli import registry
from ilu_cli.data.cache import tokenised
from ilu_cli.data.sources import load_dataset
from ilu_cli.models.load import load_tokenizer
from ilu_cli.models.subject import find_model
from ilu_cli.recipe.refs import DataRef
from ilu_cli.recipe.specs import DEFAULT_MODEL, Form


def main(rows: int, model: str) -> None:
    tokenizer, form, rng = load_tokenizer(find_model(model).folder), Form(max_length=256), random.Random(0)
    task = registry.task["gsm8k"].obj()
    with tempfile.TemporaryDirectory() as folder:
        os.environ |= {"ILU_CACHE": folder, "ILU_DATA": folder}
        file = Path(folder) / "gsm8k" / "train.jsonl"
        file.parent.mkdir()
        file.write_text("".join(json.dumps(task.generate(rng)) + "\n" for _ in range(rows)))
        began = time.perf_counter()
        data = load_dataset(DataRef(name="gsm8k"), "train")
        read = time.perf_counter() - began
        times, corpora = [], []
        for _ in range(6):
            began = time.perf_counter()
            corpora.append(tokenised(tokenizer, data.examples(), form, "gsm8k"))
            times.append(time.perf_counter() - began)
        size = sum(p.stat().st_size for p in (Path(folder) / "tokens").iterdir())
    first, second = times[0], statistics.median(times[1:])
    tokens = int(corpora[0].items.ends[-1])
    assert list(corpora[0].items[:9]) == list(corpora[-1].items[:9])
    print(f"{rows:,} rows, {tokens:,} tokens; reading the rows {read:.2f} s")
    print(f"first {first:.2f} s, second {second:.3f} s: {second / first:.1%} of it; {size / 1e6:.0f} MB on disk")


if __name__ == "__main__":
    arguments = dict(enumerate(sys.argv[1:]))
    main(int(arguments.get(0, 50_000)), arguments.get(1, DEFAULT_MODEL))
