"""Plans on H100s, from the shapes of models that are not here: Markdown for docs/scaling.md.

    python docs/bench/roofline.py models      # three models × how they are unlearned and attacked
    python docs/bench/roofline.py recipes     # JSON for docs/performance.md: shipped recipes, on one and on eight

Nothing is measured: `ilu plan` counts. The shapes are those of the models' published config.json.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from ilu_cli.recipe.load import load, shipped
from ilu_cli.recipe.schema import RECIPES
from ilu_cli.recipe.source import read_layers
from ilu_cli.workflows.fit.fit import FitAnswer
from ilu_cli.workflows.fit.plan import Planned, plan, told

SHAPES = {  # hidden, inner, layers, heads, heads of keys and values, vocabulary, tied
    "Zephyr-7B": (4096, 14336, 32, 32, 8, 32000, False),
    "Llama-3.1-8B": (4096, 14336, 32, 32, 8, 128256, False),
    "Llama-3.3-70B": (8192, 28672, 80, 64, 8, 128256, False),
    "Llama-3.2-1B": (2048, 8192, 16, 32, 8, 128256, True),
    "Llama-2-7B": (4096, 11008, 32, 32, 32, 32000, False),
    "SmolLM2-135M": (576, 1536, 30, 9, 3, 49152, True),
}
OF = {"zephyr": "Zephyr-7B", "tofu": "Llama-3.2-1B", "muse": "Llama-2-7B"}  # by what a recipe's model is called
JOBS = {  # a recipe, and what is set besides
    "RMU": ["wmdp-rmu"],
    "RMU + IRM": ["wmdp-rmu-ilu"],
    "NPO": ["wmdp-npo"],
    "NPO, adapter": ["wmdp-npo", "lora.r=16"],
    "NPO + IRM": ["wmdp-npo-ilu"],
    "attack: fine-tuning": ["quickstart-finetune"],
    "attack: adapter": ["quickstart-finetune", "attack.lora.r=16"],
}


def config(folder: Path, model: str) -> Path:
    """The configuration of a shape."""
    hidden, inner, layers, heads, pairs, words, tied = SHAPES[model]
    path = folder / model / "config.json"
    path.parent.mkdir(exist_ok=True)
    keys = {
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "dtype": "bfloat16", "hidden_size": hidden,
        "intermediate_size": inner, "num_hidden_layers": layers, "num_attention_heads": heads,
        "num_key_value_heads": pairs, "vocab_size": words, "tie_word_embeddings": tied, "max_position_embeddings": 8192,
    }  # fmt: skip
    path.write_text(json.dumps(keys))
    return path


def planned(folder: Path, model: str, devices: str, recipe: str, *sets: str) -> list[Planned]:
    """The jobs of a shipped recipe, with keys set besides, on a model's shape."""
    path = shipped()[recipe]
    command = str(read_layers(path).data["command"])
    resolved = load(RECIPES[command], path, {}, [*sets])
    return plan(recipe, command, resolved, "", devices, (model, config(folder, model))).jobs


def cell(p: Planned, a: FitAnswer) -> str:
    """`45.9 GB · 0.05 s · 9.8 s · keys`, or that it does not fit."""
    keys = " ".join(k.partition("memory.")[2] or k.partition(".")[2] for k in a.keys)
    if not a.fits:
        return f"no: {a.moment.bytes / 1e9:.0f} GB"
    times = f"{a.step:.2g} s, {told(a.seconds)}"
    return f"{a.moment.bytes / 1e9:.0f} GB; {times}" + (f"; `{keys}`" if keys else "")


def models(folder: Path) -> None:
    """One table a model: a row for each way to unlearn and attack, a column for each launch."""
    for model in ("Zephyr-7B", "Llama-3.1-8B", "Llama-3.3-70B"):
        devices = "2x8xH100-80GB" if model.endswith("70B") else "8xH100-80GB"
        found = {name: planned(folder, model, devices, *job)[0] for name, job in JOBS.items()}
        launches = [a.launch.name for a in next(iter(found.values())).answers]
        print(f"\n{model}, {devices}:\n")
        print(f"| | as it is, one GPU | {' | '.join(launches)} |\n|---|---|{'---|' * len(launches)}")
        for name, p in found.items():
            cells = " | ".join(cell(p, a) for a in p.answers)
            print(f"| {name} | {p.answers[0].unset / 1e9:.0f} GB | {cells} |", flush=True)


def recipes(folder: Path) -> None:
    """JSON, a line for each training of a shipped recipe: FLOPs of a step, one device, the best launch on eight."""
    for name, path in shipped().items():
        data: dict[str, Any] = read_layers(path).data
        if data["command"] not in ("unlearn", "attack"):
            continue
        ref = str((data.get("model") or {}).get("ref", "")).lower()
        model = next((m for word, m in OF.items() if word in ref), "SmolLM2-135M")
        for p in planned(folder, model, "8xH100-80GB", name):
            many = [a for a in p.answers if a.launch.fleet.all > 1 and a.fits]
            best = min(many, key=lambda a: a.step, default=p.answers[-1])
            where = f"{best.launch.name}, {best.launch.fleet.all}: {cell(p, best)}"
            which = f"{name}{p.job.name.removeprefix(data['command'])}"  # …, healing
            found = {"recipe": which, "model": model, "step_flops": p.answers[0].flops, "one": cell(p, p.answers[0])}
            print(json.dumps(found | {"eight": where}), flush=True)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        {"models": models, "recipes": recipes}[sys.argv[1]](Path(place))
