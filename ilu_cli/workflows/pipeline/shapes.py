"""What results.json of a graph holds, and the table shows."""

from __future__ import annotations

from typing import TypedDict

from ilu_cli.runs.results import Row


class Spread(TypedDict):
    """A mean over seeds with its interval; `error` is that over the questions of one seed, `how` what it is made of."""

    mean: float | None
    low: float | None
    high: float | None
    values: list[float | None]
    error: float | None
    how: str


class Kept(Spread, total=False):
    """A benchmark on the models before the attack."""

    role: str
    metric: str


class Worst(Spread):
    """The attack of the lowest worst case."""

    attack: str


class Choice(TypedDict):
    """What an attacker may choose, and what it brings: means over the seeds."""

    choice: Row
    ra: float | None
    worst: float | None


class TableRow(TypedDict):
    """An attack on a method, of the attacker's best choice; `tried` counts the choices or trials of a seed.

    Of a searched attack the best is that of each seed, on the half of the questions that the search sees.
    """

    method: str
    env: str | None
    attack: str
    choice: Row
    choices: list[Choice]
    tried: int
    seeds: list[int]
    once: bool
    before: Spread | None
    fq: Spread | None
    ra: Spread | None
    fa: Spread | None
    worst: Spread | None
    worst_elsewhere: Spread | None
    lowest: float | None
    utility: dict[str, Kept]
    steps: list[int | None]
    off_target: list[float]
    builtin: bool
    runs: list[str | None]
    recipe_sha256: list[str]


class Bounded(TypedDict):
    """The worst case of the attacks that cost utility at most `loss` (None: any), on questions that did not choose it.

    `worst` is None where no attack costs so little.
    """

    loss: float | None
    worst: Spread | None


class MethodRow(TypedDict):
    """A method under all its attacks."""

    method: str
    attacks: int
    tried: int
    ra: Spread | None
    worst: Worst
    worst_elsewhere: Spread | None
    bounded: list[Bounded]
    lowest: float
    utility: dict[str, Kept]


class Missed(TypedDict):
    """A model whose utility is not within the tolerance of its target."""

    node: str
    step: int
    target: float
    distance: float
    candidates: Row


class Failed(TypedDict):
    """A node that was not done."""

    node: str
    status: str
    error: str


class Results(TypedDict):
    """results.json."""

    format: int
    name: str
    rows: list[TableRow]
    methods: list[MethodRow]
    failed: list[Failed]
    off_target: list[Missed]
    warnings: list[Row]
    manifests: dict[str, str]


class Told(Results):
    """What `--json` prints and the table is drawn from: how many nodes there are of each status, and where they are."""

    state: dict[str, int]
    folder: str
