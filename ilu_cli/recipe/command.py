"""What commands were called before. Recipes and manifests of then are read under the names of today."""

from __future__ import annotations

BEFORE = {"taskvec apply": "apply"}


def today(name: str) -> str:
    """Today's name of a command."""
    return {before: now for now, before in BEFORE.items()}.get(name, name)


def hashed(name: str) -> str:
    """The name that stands in a recipe's sha256: the first one, so that a new name makes no other recipe."""
    return BEFORE.get(name, name)
