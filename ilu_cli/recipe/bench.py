"""How a recipe names a benchmark: by its name alone, or with keys of its own."""

from __future__ import annotations

from typing import Any

from pydantic import SerializerFunctionWrapHandler, model_serializer

from ilu_cli.recipe.specs import Component


class BenchmarkSpec(Component):
    """A benchmark with keys of its own; a name alone stands for one with its defaults, and is what is dumped then."""

    def given(self) -> dict[str, Any]:
        """The keys that are not at their default."""
        fields = type(self).model_fields
        return {k: v for k, v in self.params().items() if v != fields[k].get_default(call_default_factory=True)}

    @model_serializer(mode="wrap")
    def _dumped(self, dump: SerializerFunctionWrapHandler) -> Any:
        found: dict[str, Any] = dump(self)
        given = self.given()
        return {k: v for k, v in found.items() if k == "name" or k in given} if given else self.name


def plain_name(item: Any) -> Any:
    """A mapping of nothing but a name is that name."""
    return item["name"] if isinstance(item, dict) and set(item) == {"name"} and isinstance(item["name"], str) else item


def benchmark_tag(item: Any) -> str | None:
    """Which form an item of `eval.benchmarks` has: "" for a name alone, else the name of the benchmark with keys."""
    if isinstance(item, str):
        return ""
    name = item.get("name") if isinstance(item, dict) else getattr(item, "name", None)
    return name if isinstance(name, str) else None
