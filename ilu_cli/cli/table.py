"""The table of a graph's results as text, for the terminal and for Markdown."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from ilu_cli.errors import plain

if TYPE_CHECKING:
    from ilu_cli.workflows.pipeline.shapes import Spread, Told


def cells(found: Told) -> tuple[list[str], list[list[str]]]:
    """The table as text: titles and rows. The last rows are those of all attacks of a method."""
    benchmarks = list(found["rows"][0]["utility"]) if found["rows"] else []
    kept = [b for b in benchmarks if found["rows"][0]["utility"][b]["role"] != "forget"]
    head = [
        "method",
        "attack",
        "attacker's choice",
        "tried",
        "FQ before",
        "RA",
        "worst",
        "worst, other questions",
        "lowest",
        "FA",
        *kept,
    ]
    body = []
    for row in found["rows"]:
        choice = ", ".join(f"{k}={v}" for k, v in row["choice"].items())
        numbers = [_range(s) for s in (row["before"], row["ra"], row["worst"], row["worst_elsewhere"])]
        lowest = "-" if row["lowest"] is None else f"{row['lowest']:.3f}"
        body.append(
            [row["method"], row["attack"], choice, str(row["tried"]), *numbers, lowest, _range(row["fa"])]
            + [_range(row["utility"][b]) for b in kept]
        )
    for m in found["methods"]:
        body.append(
            [
                m["method"],
                f"all {m['attacks']}",
                m["worst"]["attack"],
                str(m["tried"]),
                "",
                _range(m["ra"]),
                _range(m["worst"]),
                _range(m["worst_elsewhere"]),
            ]
            + [f"{m['lowest']:.3f}", ""]
            + [_range(m["utility"][b]) for b in kept]
        )
    return head, body


def _most(loss: float | None) -> str:
    return "any loss" if loss is None else f"at most {loss:g}"


def _range(value: Spread | None) -> str:
    if value is None:
        return "-"
    if value["mean"] is None:
        return "∞"
    spread = "" if value["low"] is None or value["high"] is None else f" [{value['low']:.3f}, {value['high']:.3f}]"
    return f"{value['mean']:.3f}{spread}"


def notes(found: Told) -> list[str]:
    """What one must know to read the table."""
    lines = [
        "FQ = 1 - accuracy on the forget benchmarks; RA = its mean over the attack's points; worst = its lowest point, "
        "mean over seeds; lowest = that of any seed; `original` is the reference line.",
        "worst is the luckiest of all points, too: it lies below what it stands for. `worst, other questions` does "
        "not: the point is chosen on one half of the questions and reported on the other, and the other way round.",
        "[ ] are 95 % intervals over seeds and questions, or with one seed over the questions alone.",
        "tried counts what an attacker may choose from. A search sees one half of the questions only; its row is the "
        "trial that is best there, and `worst, other questions` is of the other half.",
        "Of an attack's choices the row shows the attacker's best, by mean RA over the seeds that all choices have; "
        "worst and lowest are over all choices. Chosen on the same questions, that RA is a little low.",
    ]
    for m in found["methods"]:
        told = [f"{_most(b['loss'])}: {_range(b['worst'])}" for b in m["bounded"]]
        if told:
            lines.append(f"{m['method']}: worst on other questions, by what the attack may cost: {'; '.join(told)}")
    if any(row["builtin"] for row in found["rows"]):
        lines.append("data: builtin stand-ins")
    lines += [
        f"warning: {o['node']}: utility {o['target'] + o['distance']:.3f} at step {o['step']} is "
        f"{abs(o['distance']):.3f} from the target {o['target']:.3f}"
        for o in found["off_target"]
    ]
    lines += [f"{f['status']}: {f['node']}: {f['error']}" for f in found["failed"]]
    lines.append("state: " + ", ".join(f"{n} {status}" for status, n in found["state"].items()))
    return lines


def to_markdown(found: Told) -> str:
    """The table and its notes as Markdown."""
    head, body = cells(found)
    lines = ["| " + " | ".join(map(escaped, line)) + " |" for line in (head, ["---"] * len(head), *body)]
    return "\n".join([f"# {found['name']}", "", *lines, "", *(f"- {escaped(n)}" for n in notes(found))]) + "\n"


def escaped(text: str) -> str:
    """Text in a line of Markdown: no cell, line, HTML or link begins in it."""
    return re.sub(r"([\\|<]|(?<=\])\()", r"\\\1", " ".join(plain(text).split()))
