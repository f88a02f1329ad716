"""Unlearn the built-in benchmark by every method and combination below, and print a page with their table.

    python docs/methods.py > docs/methods.md

Runs that are already there (same resolved recipe, in ILU_RUNS) are not repeated, so that it may be stopped at any
time. The time is that of training: the number of steps × the lower quartile of a step's time, which other work on the
machine stretches less than the whole.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from pathlib import Path

from ilu_cli.recipe.load import load
from ilu_cli.recipe.schema import UnlearnRecipe
from ilu_cli.recipe.source import flat
from ilu_cli.runs.store import Store

FORGOTTEN, KEPT = 0.40, 0.80  # capitals at most, elements at least
HEAD = """# Methods on the quickstart

`python docs/methods.py > docs/methods.md`: every objective with its shipped defaults (`ilu unlearn --method NAME`), and
RMU with the regularisers, the defences and an adapter. SmolLM2-135M-Instruct, two cores, one seed, built-in data, ±
standard error over the questions; chance is 0.25. Training time is the number of steps × the lower quartile of a step's
time, on a machine that did other work at times (beside LAT most of the time); memory is the peak of the whole process.
(The row of TAR is older than the rows that are now held out from its attacker.)
This is what is forgotten and kept *before* any attack: how well it stays forgotten is a question for
[attacks](attacks.md). What each method is: [reference](methods-reference.md).
"""
CASES = {
    "grad_ascent": ["--method", "grad_ascent"],
    "grad_diff": ["--method", "grad_diff"],
    "npo": ["--method", "npo"],
    "simnpo": ["--method", "simnpo"],
    "dpo": ["--method", "dpo"],
    "idk_po": ["--method", "idk_po"],
    "undial": ["--method", "undial"],
    "wga": ["--method", "wga"],
    "rmu": ["--method", "rmu"],
    "rmu + irm(gsm8k)": ["--method", "rmu", "--irm-env", "gsm8k"],
    "rmu + env_ce(gsm8k)": [
        "--method",
        "rmu",
        "--set",
        "regularizers.0.name=env_ce",
        "--set",
        "regularizers.0.env=gsm8k",
    ],
    "rmu + sam": ["--method", "rmu", "--defence", "sam"],
    "rmu + smoothing": ["--method", "rmu", "--defence", "smoothing"],
    "rmu + averaging": ["--method", "rmu", "--defence", "averaging"],
    "rmu + lat": ["--method", "rmu", "--defence", "lat"],
    "rmu + tar": ["--method", "rmu", "--defence", "tar"],
    "rmu, LoRA": ["--method", "rmu", "--lora", "r=16,targets=down_proj,layers=5+6+7"],
}


def ilu(*args: str) -> dict:
    """The JSON that a command prints."""
    done = subprocess.run([sys.executable, "-m", "ilu_cli", *args, "--json"], stdout=subprocess.PIPE, check=True)
    return json.loads(done.stdout)


def known(args: list[str]) -> str | None:
    """A finished run of the same resolved recipe; whether it names the built-in data or finds them is all one."""
    wanted = keys(ilu("unlearn", *args, "--dry-run")["recipe"])
    finished = [run for run in Store().runs() if run.complete and run.manifest.command == "unlearn"]
    recipes = {str(run.path): load(UnlearnRecipe, run.path / "recipe.yaml", {}, []) for run in finished}
    return next((path for path, recipe in recipes.items() if keys(recipe.model_dump(mode="json")) == wanted), None)


def keys(recipe: dict) -> dict:
    """The recipe's keys, but for `source`."""
    return {name: value for name, value in flat(recipe).items() if not name.endswith(".source")}


def row(name: str, path: str) -> tuple[str, bool]:
    """A line of the table, and whether the method forgot and kept enough."""
    found = ilu("eval", path, "--alone")["results"]
    result = json.loads((Path(path) / "manifest.json").read_text())["result"]
    cells = [f"{found[b]['value']:.3f} ± {found[b]['stderr']:.3f}" for b in ("capitals", "elements")]
    cells += [f"{found['prose']['value']:.1f} ± {found['prose']['stderr']:.1f}"]
    steps = [json.loads(line)["seconds"] for line in (Path(path) / "metrics.jsonl").read_text().splitlines()]
    cells += [f"{len(steps) * statistics.quantiles(steps)[0]:.0f} s", f"{result['peak_memory_bytes'] / 1e9:.1f} GB"]
    enough = found["capitals"]["value"] <= FORGOTTEN and found["elements"]["value"] >= KEPT
    return f"| {name} | {' | '.join(cells)} |", enough


def main() -> None:
    print(HEAD)
    print("| method | capitals (forget) | elements | prose perplexity | training time | peak memory |")
    print("|---|---|---|---|---|---|")
    before = ilu("eval", "smollm2-135m")["results"]
    cells = [f"{before[b]['value']:.3f} ± {before[b]['stderr']:.3f}" for b in ("capitals", "elements")]
    print(f"| original | {' | '.join(cells)} | {before['prose']['value']:.1f} ± {before['prose']['stderr']:.1f} | | |")
    missed = []
    for name, args in CASES.items():
        line, enough = row(name, known(args) or ilu("unlearn", *args)["path"])
        print(line, flush=True)
        missed += [] if enough else [name]
    print(f"\nOutside of capitals ≤ {FORGOTTEN:.2f} and elements ≥ {KEPT:.2f}: {', '.join(missed) or 'none'}.")


if __name__ == "__main__":
    main()
