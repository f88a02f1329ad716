"""Run the measurements of this folder that have a row in docs/performance.md, and write that page.

    python docs/bench/run.py [ROW…]      # `make bench ROWS="start gemm"`

Without rows: those whose last result is of other code than is here now, so that what was stopped goes on; `all` runs
every one, `page` none. What a script printed is kept under docs/bench/results/, a file a row, with the machine and its
load before and after.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT, RESULTS, PAGE = HERE.parent.parent, HERE / "results", HERE.parent / "performance.md"


@dataclass(frozen=True)
class Row:
    """One script. `title` for what it gives no words; `target`: what its ratio should be at least; `limit`: what holds
    it back, as a profile told.
    """

    script: str
    args: str = ""
    title: str = ""
    target: float | None = None
    limit: str = ""


ROWS = {
    "rmu": Row(
        "rmu_step.py",
        title="RMU step, 16 + 8 sequences",
        target=15,
        limit="profile: matrix products 39 %, casts and copies 22 %, attention 7 %; of layers 0 to 4 nothing is run",
    ),
    "npo": Row(
        "npo_step.py",
        "--repeats 5",
        title="NPO step, 16 + 8 sequences",
        target=2,
        limit="profile: matrix products 33 %, casts and copies 18 %, gradients zeroed and added 13 %, AdamW 5 %; "
        "before the rows of both terms were run as one",
    ),
    "together": Row(
        "together.py",
        "--repeats 5 --set train.precision=fp32",
        title="NPO step in fp32: each term's rows apart (as plain), and as one batch",
        limit="products, which both do; casts and gradients' sums are once a step",
    ),
    "ilu": Row(
        "ilu_step.py",
        "--repeats 5",
        title="RMU step (as plain) and ILU step, 8 rows of gsm8k",
        target=1 / 3,
        limit="890 tokens through layers 5 to 29 and the head, forth and back: 420 GFLOP; profile: matrix products "
        "29 %, casts and copies 20 %, attention 12 %",
    ),
    "finetune": Row(
        "finetune_step.py",
        "--repeats 5",
        title="fine-tuning, 16 rows of sst2",
        target=2,
        limit="profile: matrix products 30 %, weights cast to bf16 and their gradients back 20 %, AdamW 10 %",
    ),
    "loglik": Row("hflm.py", "--repetitions 3 --questions 200", target=3),
    "start": Row("start.py", "--repeats 3", target=1 / 1.3),
    "gemm": Row("gemm.py", target=0.75),
    "busy": Row("busy.py", "--seconds 20"),
    "growth": Row("growth.py"),
    "roofline": Row("roofline.py", "recipes"),
}


def machine() -> dict[str, object]:
    """What the figures depend on beside the code."""
    import torch
    import transformers

    info = Path("/proc/cpuinfo")
    names = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
    return {
        "cpu": names[0] if info.is_file() and names else platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
    }


def load() -> float:
    """Processes that run or wait, the mean over a minute."""
    return round(os.getloadavg()[0], 2)


def code_of(row: Row) -> str:
    """A hash of the package and of the script."""
    digest = hashlib.sha256(row.args.encode())
    for path in [*sorted((ROOT / "ilu_cli").rglob("*.py")), HERE / "measure.py", HERE / row.script]:
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def measure(name: str, row: Row) -> None:
    """Run one script and keep what it printed."""
    before, began = load(), time.monotonic()
    line = [sys.executable, str(HERE / row.script), *row.args.split()]
    done = subprocess.run(line, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(f"{name}: {row.script} ended with code {done.returncode}")
    found = [json.loads(text) for text in done.stdout.splitlines() if text.startswith("{")]
    kept = {
        "command": f"python docs/bench/{row.script} {row.args}".rstrip(), "code": code_of(row), "machine": machine(),
        "load": [before, load()], "seconds": round(time.monotonic() - began), "lines": found,
    }  # fmt: skip
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(kept, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def results() -> dict[str, dict[str, Any]]:
    """What was measured, by row."""
    files = {name: RESULTS / f"{name}.json" for name in ROWS}
    return {n: json.loads(f.read_text(encoding="utf-8")) for n, f in files.items() if f.is_file()}


def seconds(value: object) -> str:
    return f"{value:.3g} s" if isinstance(value, (int, float)) else ""


def size(value: object) -> str:
    return f"{value / 1e6:,.0f} MB" if isinstance(value, (int, float)) else ""


def comparison(name: str, result: dict[str, Any]) -> list[str]:
    """The lines of the first table: plain, ilu, ratio."""
    found, row = [], ROWS[name]
    for line in result["lines"]:
        if not isinstance(line.get("plain_s"), (int, float)):
            continue
        ratio, target = line.get("ratio"), line.get("target", row.target)
        memory = " / ".join(filter(None, (size(line.get("plain_bytes")), size(line.get("ilu_bytes")))))
        numbers = [f"{n:.2f}" if n else "" for n in (ratio, target)]
        cells = [row.title or line["name"], seconds(line["plain_s"]), seconds(line["ilu_s"]), *numbers, memory]
        cells.append(line.get("limit", row.limit))
        found.append(f"| {' | '.join(cells)} |")
    return found


def grown(line: dict[str, Any]) -> str:
    """A line of the table of growth."""
    times = [" ".join(f"{s:.3g}" for s in line.get(f"{kind}_s", [])) for kind in ("ilu", "plain")]
    powers = [f"{line[k]:.2f}" if k in line else "" for k in ("ilu_exponent", "plain_exponent")]
    held = " ".join(f"{b / 1e6:,.0f}" for b in line["ilu_bytes"])
    sizes = " ".join(f"{n:,}" for n in line["sizes"])
    cells = [line["name"], sizes, *times, *powers, held, f"{line['bytes_exponent'] + 0.0:.2f}"]
    return f"| {' | '.join(cells)} |"


def on_paper(lines: list[dict[str, Any]]) -> list[str]:
    """The section of what was counted and not measured."""
    rows = [
        f"| {r['recipe']} | {r['model']} | {r['step_flops'] / 1e12:,.3g} | {r['one']} | {r['eight']} |" for r in lines
    ]
    return ["\n## On paper: H100s\n", PAPER, "| recipe | shape | TFLOP a step | one H100 | eight, the quickest |",
            "|---|---|---|---|---|", *rows]  # fmt: skip


def page() -> str:
    """The page, from all results that there are."""
    found = results()
    out = ["<!-- Written by docs/bench/run.py from docs/bench/results; run `make bench`, do not edit this page. -->\n",
           "# How fast it is\n", INTRO]  # fmt: skip
    out += [
        "| | plain | ilu | ratio | target | memory, plain / ilu | what limits it now |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, result in found.items():
        out += comparison(name, result)
    if "gemm" in found:
        out += ["\n## Matrix products\n", "| GFLOP/s | |", "|---|---|"]
        [line] = found["gemm"]["lines"]
        told = {k: v for k, v in line.items() if k not in ("name", "ratio")}
        out += [f"| {name} | {rate} |" for name, rate in told.items()]
        out += [f"\nFine-tuning reaches {line['ratio']:.2f} of the bf16 rate of the model's shapes (target: at least "
                f"{ROWS['gemm'].target}); what it needs counts no padding, attention or optimiser."]  # fmt: skip
    if "busy" in found:
        out += ["\n## Beside other work\n", "| jobs at once | threads of each | waiting | seconds a step | cost |"]
        out += ["|---|---|---|---|---|"]
        steps = found["busy"]["lines"]
        out += [
            f"| {s['jobs']} | {s['threads']} | {s['waiting']} | {s['seconds']:.3g} | {s['cost']:.2f} |" for s in steps
        ]
        before, after = found["busy"]["load"]
        out += ["\n`ilu` is what it asks for; `cost` is by one job alone with the default. Target: two jobs at "
                f"most 2.2. Load of the machine before and after, other work included: {before}, {after}."]  # fmt: skip
    if "growth" in found:
        head = "| | sizes | seconds, ilu | seconds, plain | exponent, ilu | plain | megabytes, ilu | exponent |"
        out += ["\n## How the cost grows\n", GROWTH, head, "|---|---|---|---|---|---|---|---|"]
        out += [grown(line) for line in found["growth"]["lines"]]
    out += on_paper(found["roofline"]["lines"]) if "roofline" in found else []
    out += ["\n## Where and when\n", "| row | command | took | load before, after | CPU | cores, threads | torch |"]
    out += ["|---|---|---|---|---|---|---|"]
    for name, r in found.items():
        m = r["machine"]
        cells = [name, f"`{r['command']}`", f"{r['seconds']} s", " ".join(map(str, r["load"])), str(m["cpu"]),
                 f"{m['cores']}, {m['threads']}", m["torch"]]  # fmt: skip
        out.append(f"| {' | '.join(cells)} |")
    return "\n".join(out) + "\n"


INTRO = """\
`make bench` measures all of it again, each figure beside its plain reference in the same run, in turns; `make bench
ROWS="start gemm"` some of it. A ratio is the median over the turns of plain ÷ ilu, so that other work on the machine
touches both. Times were taken at the load that the last table tells: with a load above the number of cores they are
longer than they need be, and the ratios still hold.
"""
PAPER = """\
Arithmetic, to be checked when there is an H100: nothing of this was measured. `ilu plan` of each shipped recipe with
rows of full length ([how](scaling.md#on-machines-that-are-not-here)): bytes of one device, seconds of a step and of the
whole training by a roofline, with every row run anew, and the keys that make it fit. Of eight: the launch with
the quickest step, and how many processes it has.
"""
GROWTH = """\
`python docs/bench/growth.py`: random Llamas, each axis at 1, 2, 4 and 8 times its least size, environments 1 to 4. The
exponent k is that of cost = c · size^k; a fixed part of a step makes it less than what the work has. Work is linear in
length (attention apart), batch and vocabulary, and between linear and quadratic in the width.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"{', '.join(ROWS)}, all, or page")
    asked, known = parser.parse_args().rows, results()
    if unknown := set(asked) - {*ROWS, "all", "page"}:
        parser.error(f"no row {', '.join(sorted(unknown))}; there are {', '.join(ROWS)}")
    for name, row in ROWS.items():
        if not (HERE / row.script).is_file():
            continue
        fresh = name in known and known[name]["code"] == code_of(row)
        if name in asked or "all" in asked or not (asked or fresh):
            print(f"{name}: {row.script} {row.args}", file=sys.stderr, flush=True)
            measure(name, row)
    PAGE.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
