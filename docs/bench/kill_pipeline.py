"""Kill a pipeline at random moments, go on each time, and compare with a run that was never stopped.

    python docs/bench/kill_pipeline.py                    # a tiny model, 20 kills
    python docs/bench/kill_pipeline.py grid.yaml --kills 5

Each kill is a SIGKILL of the command at a moment drawn uniformly from the time that an undisturbed run takes; a
pipeline that ends first is begun again in a new folder. After each kill every run that was complete must still be,
unchanged; at the end the tables must be equal, number for number. Exit code 1 if anything was lost or differs.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

TINY = {
    "grid.yaml": """
command: pipeline
model: {ref: model}
environments: [elements]
methods:
  GD: {recipe: base.yaml}
  GD+ILU: {recipe: base.yaml, set: {regularizers: [{name: irm, batch: 4}]}}
match: {benchmark: elements, target: 1.0, tolerance: 0.5}
attacks:
  - attack: {name: finetune, task: elements, steps: 12, batch: 4, save_every: 5}
    best_of: {lr: [1.0e-4, 1.0e-2]}
eval: {benchmarks: [capitals, elements], limit: 24}
""",
    "base.yaml": """
command: unlearn
objective: {name: grad_diff}
forget: {data: capitals, batch: 4, max_length: 24}
retain: {name: nll, data: [prose], batch: 4, max_length: 24}
train: {steps: 24, lr: 3.0e-3, points: [8], save_every: 5}
""",
}


def make_tiny(folder: Path) -> Path:
    """A Llama of three small layers with random weights, and a grid for it."""
    from tokenizers import ByteLevelBPETokenizer
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    from ilu_cli import registry

    trained = ByteLevelBPETokenizer()
    texts = [row["text"] for name in ("capitals", "elements") for row in registry.task[name].obj().builtin("train")]
    trained.train_from_iterator(texts, vocab_size=400, special_tokens=["<eos>"], show_progress=False)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=trained._tokenizer, eos_token="<eos>")
    config = LlamaConfig(vocab_size=len(tokenizer), hidden_size=16, intermediate_size=24, num_hidden_layers=3,
                         num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=True,
                         bos_token_id=None, eos_token_id=0)  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    for name, text in TINY.items():
        (folder / name).write_text(text, encoding="utf-8")
    return folder / "grid.yaml"


def begin(recipe: Path, runs: Path) -> subprocess.Popen:
    """Start the pipeline in its recipe's folder."""
    env = os.environ | {"ILU_RUNS": str(runs.absolute()), "ILU_CACHE": str(runs.absolute().parent / "cache")}
    return subprocess.Popen(
        [sys.executable, "-m", "ilu_cli", "pipeline", recipe.name],
        cwd=recipe.parent, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def finish(recipe: Path, runs: Path) -> float:
    """Run the pipeline to its end; return the seconds it took."""
    began = time.monotonic()
    process = begin(recipe, runs)
    _, err = process.communicate()
    if process.returncode:
        sys.exit(f"the pipeline failed:\n{err}")
    return time.monotonic() - began


def complete(runs: Path) -> dict[str, str]:
    """The manifests of the finished runs."""
    found = {p.parent.name: p.read_text(encoding="utf-8") for p in runs.glob("*/manifest.json")}
    return {name: text for name, text in found.items() if json.loads(text)["status"] == "complete"}


def table(runs: Path, recipe: Path) -> dict:
    """The rows of results.json, weights and all, and the weights of every run; without times."""
    results = json.loads((runs / recipe.stem / "results.json").read_text(encoding="utf-8"))
    weights = {name: json.loads(text)["weights"] for name, text in complete(runs).items()}
    return {"rows": results["rows"], "methods": results["methods"], "weights": weights}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipe", nargs="?", type=Path)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    draw = random.Random(args.seed)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        recipe = args.recipe or make_tiny(folder)
        seconds = finish(recipe, folder / "whole")
        wanted, size = table(folder / "whole", recipe), len(complete(folder / "whole"))
        print(f"undisturbed: {seconds:.1f} s, {size} runs")
        kills = lost = different = rounds = 0
        while kills < args.kills:
            rounds += 1
            runs = folder / f"killed-{rounds}"
            known: dict[str, str] = {}
            while kills < args.kills:
                process, wait = begin(recipe, runs), draw.uniform(0, seconds)
                try:
                    process.communicate(timeout=wait)
                    break  # it ended before the moment came
                except subprocess.TimeoutExpired:
                    process.send_signal(signal.SIGKILL)
                    process.communicate()
                kills += 1
                now = complete(runs)
                lost += sum(now.get(name) != text for name, text in known.items())
                print(f"kill {kills} after {wait:.1f} s: {len(now)} of {size} runs complete")
                known = now
            finish(recipe, runs)
            after = complete(runs)
            lost += sum(after.get(name) != text for name, text in known.items())
            different += table(runs, recipe) != wanted
    print(f"{kills} kills in {rounds} pipelines: {lost} finished runs lost, {different} tables or weights differ")
    return int(bool(lost or different))


if __name__ == "__main__":
    sys.exit(main())
