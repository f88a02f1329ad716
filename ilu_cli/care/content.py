"""What the rows of datasets tell, before they are tokens: copies, rows that nobody sees, rows that are elsewhere."""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from ilu_cli.care import Warned
from ilu_cli.care.overlap import Wanted, keys

HALF = 0.5
BLANK = set("\u115f\u1160\u2800\u3164\uffa0")  # letters and symbols by category that print nothing


def visible(text: str) -> bool:
    """Whether a text has a letter, digit, mark of punctuation or symbol that prints."""
    return any(unicodedata.category(c)[0] in "LNPS" and c not in BLANK for c in text)


@dataclass(frozen=True)
class Lines:
    """A dataset as it is read: how it is called, where it lies, its whole texts and the part that is learned."""

    role: str
    name: str
    texts: Sequence[str]
    targets: Sequence[str] = ()
    place: str | None = None

    @property
    def label(self) -> str:
        """`retain data elements`."""
        return f"{self.role} data {self.name}"

    @cached_property
    def keys(self) -> list[str]:
        return keys(self.texts)

    @cached_property
    def digest(self) -> str:
        """sha256 of the texts."""
        return hashlib.sha256(json.dumps(list(self.texts)).encode()).hexdigest()

    @cached_property
    def wanted(self) -> Wanted:
        """What is searched for in another dataset."""
        return Wanted(self.texts)

    def facts(self) -> dict[str, object]:
        """What a manifest keeps: how many rows, different ones, and those that nobody sees."""
        hidden = sum(not visible(t) for t in self.targets)
        return {"role": self.role, "name": self.name, "rows": len(self.texts), "distinct": len(set(self.keys)),
                "invisible": hidden}  # fmt: skip

    def warned(self) -> Iterator[Warned]:
        """Copies, and rows of invisible characters. One row alone is no copy."""
        n, times = len(self.texts), Counter(self.keys)
        if not n:
            return
        row, most = times.most_common(1)[0]
        if n > 1 and most >= HALF * n and most > 1:
            where = [i for i, k in enumerate(self.keys) if k == row]
            told = f"{most} of {n} rows of the {self.label} are the same{_rows(where)}: {_short(self.texts[where[0]])}"
            yield Warned("one-row-repeated", f"One row repeated: {told}")
        elif n * n < HALF * n * sum(c * c for c in times.values()):
            told = f"the {self.label} has {n} rows and only {len(times)} different ones"
            yield Warned("duplicate-rows", f"Duplicate rows: {told}.")
        if hidden := [i for i, t in enumerate(self.targets) if not visible(t)]:
            told = f"{len(hidden)} of {n} rows of the {self.label} have nothing to read{_rows(hidden)}"
            yield Warned("invisible-rows", f"Invisible rows: {told}.")


@dataclass(frozen=True)
class Shared:
    """The rows of `left` that are in `right`, both counted from 0."""

    left: Lines
    right: Lines
    rows: dict[int, int] = field(default_factory=dict)

    @classmethod
    def of(cls, left: Lines, right: Lines) -> Shared:
        return cls(left, right, left.wanted.within(right.texts))

    @property
    def share(self) -> float:
        return len(self.rows) / max(1, len(self.left.texts))

    def facts(self) -> dict[str, object]:
        """What a manifest keeps."""
        return {"of": self.left.label, "in": self.right.label, "rows": len(self.rows), "of_rows": len(self.left.texts)}

    def told(self) -> str:
        """`2 of 40 rows of the forget data f.jsonl (rows 1, 2) are in the retain data r.jsonl (rows 7, 8)`."""
        mine, theirs = sorted(self.rows), sorted(set(self.rows.values()))
        verb = "is" if len(mine) == 1 else "are"
        return (
            f"{len(mine)} of {len(self.left.texts)} rows of the {_where(self.left)}{_rows(mine)} {verb} in the "
            f"{_where(self.right)}{_rows(theirs)}, such as {_short(self.left.texts[mine[0]])}"
        )

    def warned(self, why: str) -> Warned | None:
        return Warned("rows-overlap", f"Rows overlap: {self.told()}. {why}") if self.rows else None


def _where(rows: Lines) -> str:
    return f"{rows.label} ({rows.place})" if rows.place and rows.place != rows.name else rows.label


def _rows(numbers: Sequence[int], most: int = 5) -> str:
    """` (rows 1, 2 and 3 more)`, counted from 1 as editors count lines."""
    first = ", ".join(str(i + 1) for i in numbers[:most])
    more = f" and {len(numbers) - most} more" if len(numbers) > most else ""
    return f" (row{'s' if len(numbers) > 1 else ''} {first}{more})"


def _short(text: str, most: int = 80) -> str:
    """The beginning of a text on one line, with nothing that a terminal would act on."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return repr(line if len(line) <= most else f"{line[:most]}…")
