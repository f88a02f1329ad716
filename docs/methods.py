"""What every method and combination of `ilu pipeline grid-methods` costs and holds: the table of docs/methods.md.

    ilu pipeline grid-methods && python docs/methods.py     # docs/study/methods.json, and the table
    python docs/methods.py page                             # the table alone, from docs/study/methods.json

The pipeline may be stopped at any time: what it has attacked so far is in the table, and a method that the file holds
already stays as it is: take it out to have it anew. The time is that of training: the number of steps × the lower
quartile of a step's time, which other work on the machine stretches less than the whole.
"""

from __future__ import annotations

import json
import re
import statistics
import sys
from pathlib import Path

import yaml

from ilu_cli.recipe.load import find
from ilu_cli.runs.files import write_json
from ilu_cli.runs.store import Store, open_run

HERE = Path(__file__).parent
KEPT, PAGE = HERE / "study" / "methods.json", HERE / "methods.md"
BEGIN, END = "<!-- what docs/methods.py wrote -->\n", "<!-- until here -->\n"
ATTACKS = ("relearn_benign", "relearn")
TOLD = ["FQ before", "text on the topic, worst FQ", "60 samples, worst FQ", "elements", "prose"]
COLUMNS = ["method", *TOLD, "time", "operations of a step, × RMU", "memory"]


def found(runs: Path) -> dict[str, dict]:
    """What the pipeline's results hold so far, by method: figures with their intervals, and the cost of training."""
    methods: dict[str, dict] = {}
    for row in json.loads((runs / "grid-methods" / "results.json").read_text(encoding="utf-8"))["rows"]:
        one = methods.setdefault(row["method"], {"before": interval(row["before"]), "worst": {}})
        one["worst"][row["attack"]] = interval(row["worst"])
        one |= {name: interval(row["utility"][name]) for name in ("elements", "prose")}
        if row["method"] != "original":
            one |= cost(Path(open_run(runs / row["runs"][0]).manifest.parents[-1]["path"]))
    return {name: one for name, one in methods.items() if set(ATTACKS) <= set(one["worst"])}


def interval(figure: dict) -> list[float]:
    """Mean, and the ends of its 95 % interval."""
    return [round(figure[key], 4) for key in ("mean", "low", "high")]


def cost(run: Path) -> dict:
    """Seconds that training took, the process's peak of memory in bytes, and the type it was trained in."""
    steps = [json.loads(line)["seconds"] for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    peak = open_run(run).manifest.result["peak_memory_bytes"]
    precision = yaml.safe_load((run / "recipe.yaml").read_text(encoding="utf-8"))["train"]["precision"]
    seconds = round(len(steps) * statistics.quantiles(steps)[0], 1)
    return {"seconds": seconds, "peak_memory_bytes": peak, "precision": precision}


def operations() -> dict[str, float]:
    """Operations that are counted of a step, in 10^12, by method: the roofline of docs/performance.md."""
    text = (HERE / "performance.md").read_text(encoding="utf-8")
    found = re.findall(r"^\| quickstart-(\w+) \| SmolLM2-135M \| ([\d.]+) \|", text, re.MULTILINE)
    return {name: float(count) for name, count in found}


def line(name: str, one: dict, counted: dict[str, float]) -> str:
    """A row of the table."""
    told = f"{name} (float32)" if one.get("precision") == "fp32" else name
    cells = [told, *(shown(one[key] if key == "before" else one["worst"][key]) for key in ("before", *ATTACKS))]
    cells += [shown(one["elements"]), f"{one['prose'][0]:.1f}"]
    if "seconds" in one:
        share = f"{counted[name] / counted['rmu']:.1f}" if name in counted else ""
        memory = f"{one['peak_memory_bytes'] / 1e9:.1f} GB" if "peak_memory_bytes" in one else ""
        cells += [f"{one['seconds']:.0f} s", share, memory]
    else:
        cells += ["", "", ""]
    return f"| {' | '.join(cells)} |"


def shown(figure: list[float]) -> str:
    mean, low, high = figure
    return f"{mean:.3f} [{low:.3f}, {high:.3f}]"


def table(methods: dict[str, dict]) -> str:
    """In the recipe's order, the original first."""
    counted = operations()
    rows = [line(name, one, counted) for name, one in methods.items()]
    return "\n".join([f"| {' | '.join(COLUMNS)} |", "|" + "---|" * len(COLUMNS), *rows]) + "\n"


def main() -> None:
    methods = json.loads(KEPT.read_text(encoding="utf-8")) if KEPT.exists() else {}
    if sys.argv[1:] != ["page"]:
        methods = found(Store().root) | methods
        order = ["original", *yaml.safe_load(find("grid-methods").read_text(encoding="utf-8"))["methods"]]
        methods = {name: methods[name] for name in order if name in methods}
        write_json(KEPT, methods)
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    PAGE.write_text(before + BEGIN + table(methods) + END + rest.partition(END)[2], encoding="utf-8")


if __name__ == "__main__":
    main()
