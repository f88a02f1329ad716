"""What is measured of each objective, for `ilu list methods`: from what docs/study.sh and docs/methods.py wrote.

python docs/measured.py            # writes ilu_cli/data/builtin/measured.tsv
python docs/measured.py --check    # exit code 1 if that is not what it would write
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

HERE = Path(__file__).parent
TARGET = HERE.parent / "ilu_cli" / "data" / "builtin" / "measured.tsv"
HEAD = (
    "# What is measured of each objective on the quickstart: FQ before an attack and after the worst, "
    "their number and that of the seeds (`sh docs/study.sh`, docs/study/results.json); seconds and memory of training "
    "(`python docs/methods.py`, docs/methods.md). Written by `python docs/measured.py`. -: not measured."
)
COLUMNS = ("method", "before", "worst", "attack", "attacks", "seeds", "seconds", "memory")


def table() -> str:
    """The file's text."""
    found: dict[str, dict[str, str]] = {}
    study = json.loads((HERE / "study" / "results.json").read_text(encoding="utf-8"))
    before = {r["method"]: r for r in study["rows"] if r["before"] is not None}
    for m in study["methods"]:
        if m["method"].lower() in _costs():  # an objective alone, under its own name
            row, worst = before[m["method"]], m["worst"]
            found[m["method"].lower()] = {
                "before": f"{row['before']['mean']:.2f}",
                "worst": f"{worst['mean']:.2f}",
                "attack": worst["attack"],
                "attacks": str(m["attacks"]),
                "seeds": str(len(worst["values"])),
            }
    for name, (seconds, memory) in _costs().items():
        found.setdefault(name, {}).update(seconds=seconds, memory=memory)
    rows = [[name, *(found[name].get(c, "-") for c in COLUMNS[1:])] for name in sorted(found)]
    return "\n".join([HEAD, *("\t".join(r) for r in [list(COLUMNS), *rows])]) + "\n"


def _costs() -> dict[str, tuple[str, str]]:
    text = (HERE / "methods.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\w+) \|.*\| ([\d,]+ s) \| ([\d.]+ GB) \|$", text, re.MULTILINE)
    return {name: (seconds, memory) for name, seconds, memory in rows}


if __name__ == "__main__":
    wanted = table()
    if sys.argv[1:] == ["--check"]:
        sys.exit(TARGET.read_text(encoding="utf-8") != wanted)
    TARGET.write_text(wanted, encoding="utf-8")
