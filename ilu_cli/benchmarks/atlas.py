from __future__ import annotations

from typing import Any

from ilu_cli.benchmarks import Row
from ilu_cli.benchmarks.capitals import Capitals, asked
from ilu_cli.registry import benchmark
from ilu_cli.tasks.atlas import invented
from ilu_cli.tasks.capitals import Country


@benchmark()
class Atlas(Capitals):
    """The capitals of 170 invented countries, four choices from the same continent (forget benchmark of `atlas`)."""

    def table(self) -> list[Country]:
        return invented()

    def variants(self, kind: str, items: list[Row]) -> dict[str, list[Row]]:
        return self.rephrasings(items) if kind == "rephrase" else {}


def dataset(**_: object) -> dict[str, Any]:
    """The questions, as atlas.yaml asks for them."""
    return asked(invented())
