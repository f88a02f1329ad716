"""What is measured of each method, for `ilu list`: from what docs/study.sh and docs/methods.py wrote.

python docs/measured.py            # writes ilu_cli/data/builtin/measured.tsv
python docs/measured.py --check    # exit code 1 if that is not what it would write
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

HERE = Path(__file__).parent
TARGET = HERE.parent / "ilu_cli" / "data" / "builtin" / "measured.tsv"
HEAD = (
    "# What is measured of each method on the quickstart: FQ before an attack and after the worst, the number of"
    " attacks and of seeds (`sh docs/study.sh`, docs/study/results.json, where it has the method; else `ilu pipeline "
    "grid-methods`, docs/study/methods.json); seconds and memory of training (the latter). Written by "
    "`python docs/measured.py`. -: not measured."
)
COLUMNS = ("method", "before", "worst", "attack", "attacks", "seeds", "seconds", "memory")


def table() -> str:
    """The file's text."""
    methods = json.loads((HERE / "study" / "methods.json").read_text(encoding="utf-8"))
    found = {name: of_methods(one) for name, one in methods.items() if "seconds" in one and "+" not in name}
    study = json.loads((HERE / "study" / "results.json").read_text(encoding="utf-8"))
    before = {r["method"].lower(): r["before"]["mean"] for r in study["rows"] if r["before"] is not None}
    for one in study["methods"]:
        name, worst = one["method"].lower(), one["worst"]
        if "+" not in name:  # an objective alone, under its own name
            seeds = str(len(worst["values"]))
            found.setdefault(name, {"seconds": "-", "memory": "-"})
            found[name] |= worst_case(before[name], worst["mean"], worst["attack"], one["attacks"]) | {"seeds": seeds}
    rows = [[name, *(found[name][c] for c in COLUMNS[1:])] for name in sorted(found)]
    return "\n".join([HEAD, *("\t".join(r) for r in [list(COLUMNS), *rows])]) + "\n"


def of_methods(one: dict) -> dict[str, str]:
    """The columns, from a method of docs/study/methods.json."""
    attack = min(one["worst"], key=lambda name: one["worst"][name][0])
    memory = f"{one['peak_memory_bytes'] / 1e9:.1f} GB" if "peak_memory_bytes" in one else "-"
    slow = " (float32)" if one.get("precision") == "fp32" else ""  # which is no time of bfloat16
    cost = {"seconds": f"{one['seconds']:.0f} s{slow}", "memory": memory, "seeds": "1"}
    return worst_case(one["before"][0], one["worst"][attack][0], attack, len(one["worst"])) | cost


def worst_case(before: float, worst: float, attack: str, attacks: int) -> dict[str, str]:
    return {"before": f"{before:.2f}", "worst": f"{worst:.2f}", "attack": attack, "attacks": str(attacks)}


if __name__ == "__main__":
    wanted = table()
    if sys.argv[1:] == ["--check"]:
        sys.exit(TARGET.read_text(encoding="utf-8") != wanted)
    TARGET.write_text(wanted, encoding="utf-8")
