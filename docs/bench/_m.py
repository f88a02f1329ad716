"""The estimate of memory against what processes take: random Llamas, trained for two steps, each in its own process.

    python docs/bench/memory.py [--folder DIR] [--sizes 15M 60M] [--shapes 4x64] [--kinds LoRA RMU] [--table]

Four sizes × three shapes of a batch × five ways to train, `ilu unlearn` from its plan to its last file, and one of them
by two sharded processes. Measured is the most that a process held (`Backend.peak_memory`; of two the larger) beyond
what it held when the plan was made; the estimate is the plan's, of one process. A case that is in DIR/cases.jsonl is
not run again, so that the script may be stopped; `--table` runs none, and estimates those anew. Prints Markdown.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import psutil

SIZES = {  # hidden, inner, layers, vocabulary
    "15M": (256, 704, 8, 16_384),
    "60M": (512, 1408, 12, 16_384),
    "200M": (1024, 2816, 12, 32_768),
    "600M": (1536, 4096, 16, 49_152),
}
SHAPES = {f"{rows}x{length}": (rows, length) for rows, length in ((4, 64), (2, 32), (2, 256))}
SHARDED = "sharded"
KINDS: dict[str, tuple[str, list[str]]] = {
    "dense NPO": ("npo", []),
    "RMU": ("rmu", []),
    "LoRA": ("npo", ["lora.r=8"]),
    "checkpointed": ("npo", ["train.memory.checkpointing=true"]),
    "frozen bf16": ("rmu", ["train.memory.frozen=bf16"]),
    SHARDED: ("npo", []),
}


class Quiet:
    """A reporter that says nothing."""

    def __getattr__(self, name: str) -> Any:
        return lambda *_args, **_keys: None


def make(folder: Path, size: str) -> None:
    """A random Llama in bf16 with a small tokenizer, and texts long enough for every shape; once."""
    import torch
    from tokenizers import ByteLevelBPETokenizer
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    path, (hidden, inner, layers, words) = folder / size, SIZES[size]
    if path.is_dir():
        return
    names = {"forget": "stone", "retain": "river"}
    texts = {name: [" ".join(f"{i} {word} {j}" for j in range(200)) for i in range(16)] for name, word in names.items()}
    for name, lines in texts.items():
        (folder / f"{name}.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in lines))
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(texts["forget"], vocab_size=300, special_tokens=["<eos>"], show_progress=False)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=words, hidden_size=hidden, intermediate_size=inner, num_hidden_layers=layers, bos_token_id=None,
        num_attention_heads=hidden // 64, num_key_value_heads=hidden // 128, eos_token_id=0, tie_word_embeddings=False,
    )  # fmt: skip
    LlamaForCausalLM(config).bfloat16().save_pretrained(path)
    PreTrainedTokenizerFast(tokenizer_object=bpe._tokenizer, eos_token="<eos>").save_pretrained(path)


def planned(folder: Path, size: str, shape: str, kind: str) -> Any:
    """The plan of a case, whose model is made."""
    from ilu_cli.recipe.load import find, load
    from ilu_cli.recipe.schema import UnlearnRecipe
    from ilu_cli.runs.store import Store
    from ilu_cli.workflows import unlearn

    (method, keys), (batch, length) = KINDS[kind], SHAPES[shape]
    rows = [f"{s}.{k}={v}" for s in ("forget", "retain") for k, v in (("batch", batch), ("max_length", length))]
    data = [f"{name}.data={folder / name}.jsonl" for name in ("forget", "retain")]
    sets = [
        "train.steps=2",
        "train.save_every=0",
        "train.together=false",
        "train.precision=bf16",
        f"model.ref={folder / size}",
        *data,
        *rows,
        *keys,
    ]
    return unlearn.plan(load(UnlearnRecipe, find(f"quickstart-{method}"), {}, sets), Store())


def train(folder: Path, size: str, shape: str, kind: str, *, run: bool) -> dict[str, Any]:
    """One case in this process: bytes of the estimate, by kind; if it is to `run`, also bytes beyond those of the plan.

    In a launch they are those of the process that took most.
    """
    from ilu_cli.engine.accel import backend
    from ilu_cli.runs.store import Store
    from ilu_cli.workflows import unlearn

    plan, b = planned(folder, size, shape, kind), backend()
    most, before = plan.memory.highest, psutil.Process().memory_info().rss
    found = {
        "size": size, "shape": shape, "kind": kind, "parameters": plan.parameters, "estimate": plan.peak_memory,
        "when": most.when, "kinds": most.kinds(), "processes": b.world,
    }  # fmt: skip
    if run:
        unlearn.run(plan, Store(), Quiet())  # type: ignore[arg-type]
        found["measured"] = max(b.gather([b.peak_memory() - before]))
    return found if b.main else {}


def case(folder: Path, size: str, shape: str, kind: str, *, run: bool) -> dict[str, Any]:
    """The same in processes of its own, whose runs are thrown away."""
    from ilu_cli.recipe.load import recipes_dir

    make(folder, size)
    launch = recipes_dir() / "launch" / "two-cpus-sharded.yaml"
    start = ["-m", "accelerate.commands.launch", "--config_file", launch] if kind == SHARDED else []
    words = [sys.executable, *start, __file__, "--folder", folder, "--one", size, shape, kind]
    with tempfile.TemporaryDirectory() as runs:
        env = os.environ | {"ILU_RUNS": runs, "ILU_CACHE": runs, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        env |= {"ACCELERATE_USE_CPU": "true"} if start else {}
        done = subprocess.run(
            [*map(str, words), *([] if run else ["--table"])], env=env, capture_output=True, text=True
        )
    if done.returncode:
        sys.exit(f"{size} {shape} {kind}: {done.stderr}")
    found: dict[str, Any] = next(json.loads(line) for line in done.stdout.splitlines()[::-1] if line.startswith('{"'))
    return found


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: measured MB and how far the estimate is off, a column for each kind of training."""
    kinds = [k for k in KINDS if any(r["kind"] == k for r in rows)]
    lines = ["| parameters, batch | " + " | ".join(kinds) + " |", "|---|" + "---|" * len(kinds)]
    for size in SIZES:
        for shape in SHAPES:
            found = {r["kind"]: r for r in rows if r["size"] == size and r["shape"] == shape}
            if found:
                off = {
                    k: f"{r['measured'] / 1e6:,.0f} ({r['estimate'] / r['measured'] - 1:+.0%})"
                    for k, r in found.items()
                }
                count = next(iter(found.values()))["parameters"] / 1e6
                cells = " | ".join(off.get(k, "") for k in kinds)
                lines.append(f"| {count:.0f} M, {shape.replace('x', ' × ')} | {cells} |")
    worst = max(abs(r["estimate"] / r["measured"] - 1) for r in rows)
    return "\n".join([*lines, "", f"{len(rows)} cases, the worst {worst:.0%} off."])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "ilu-bench-memory")
    parser.add_argument("--sizes", nargs="*", default=list(SIZES))
    parser.add_argument("--shapes", nargs="*", default=list(SHAPES))
    parser.add_argument("--kinds", nargs="*", default=list(KINDS))
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    if given.one:
        if found := train(given.folder, *given.one, run=not given.table):
            print(json.dumps(found), flush=True)
        return
    log = given.folder / "cases.jsonl"
    rows = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    known = {(r["size"], r["shape"], r["kind"]) for r in rows}
    if given.table:
        print(table([r | case(given.folder, r["size"], r["shape"], r["kind"], run=False) for r in rows]))
        return
    for shape, size, kind in itertools.product(given.shapes, given.sizes, given.kinds):
        if (size, shape, kind) in known:
            continue
        rows.append(case(given.folder, size, shape, kind, run=True))
        with log.open("a") as f:
            f.write(json.dumps(rows[-1]) + "\n")
        print(rows[-1], file=sys.stderr, flush=True)
    print(table(rows))


if __name__ == "__main__":
    main()
