"""What the shell offers after TAB. Names are read from folders and registries; torch is never imported."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ilu_cli.registry import Registry

Offer = list[tuple[str, str]]


def _names(kind: str) -> Callable[[str], Offer]:
    """A completion over the registry of that name, with the first lines of the docstrings."""

    def offer(incomplete: str) -> Offer:
        from ilu_cli import registry

        known: Registry[Any] = getattr(registry, kind)
        return [(name, known[name].help) for name in known if name.startswith(incomplete)]

    return offer


methods = _names("objective")
defences = _names("defence")
attacks = _names("attack")
benchmarks = _names("benchmark")
tasks = _names("task")


def trackers(incomplete: str) -> Offer:
    """Where steps can be reported to."""
    from typing import get_args

    from ilu_cli.recipe.specs import Tracker

    return [(name, "") for name in get_args(Tracker) if name.startswith(incomplete)]


def recipes(incomplete: str) -> Offer:
    """The shipped recipes, with their first line."""
    from ilu_cli.recipe.load import about, shipped

    return [(name, about(path)) for name, path in shipped().items() if name.startswith(incomplete)]


def runs(incomplete: str) -> Offer:
    """The ids of the runs; their manifests are not read, so that thousands cost nothing."""
    from ilu_cli.runs.store import Store

    return [(name, "") for name in Store().ids() if name.startswith(incomplete)]


def models(incomplete: str) -> Offer:
    """Built-in models and runs."""
    from ilu_cli.models.builtin import MODELS

    return [(name, hub) for name, (_, _, hub) in MODELS.items() if name.startswith(incomplete)] + runs(incomplete)
