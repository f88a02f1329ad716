"""What a resumed run must have in common with the run that was begun: recipe, data, parents, code."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ilu_cli.errors import UsageError
from ilu_cli.recipe.source import flat
from ilu_cli.runs.files import ModelRecord, read_json, write_json
from ilu_cli.runs.ledger import seal, unseal
from ilu_cli.runs.store import Run, versions

NAME = "made_from.json"


def made_from(
    recipe: dict[str, Any], parents: list[ModelRecord], data: Sequence[Mapping[str, Any]], asked: Sequence[str] = ()
) -> dict[str, object]:
    """What decides the steps of a run and its numbers, flat: every key of the recipe, hashes of models and data,
    versions, and what is `asked`, as texts that end in a hash.
    """
    found = flat(recipe)
    found |= {f"(parent {p['role']})": p.get("digest") for p in parents}
    found |= {f"(data {i}: {d['role']} {d['name']})": d["fingerprint"] for i, d in enumerate(data)}
    found |= {f"(asked: {what})": sha for what, _, sha in (text.rpartition(": ") for text in asked)}
    return found | {f"(version of {name})": version for name, version in versions().items()}


def begin(run: Run, now: dict[str, object]) -> None:
    """Keep what a run is made from beside its states; of a run that goes on, compare it.

    Raises:
        UsageError: if something is not what it was.
        UnavailableError: if what was kept is damaged.
    """
    path = run.state / NAME
    if not path.is_file():
        path.parent.mkdir(exist_ok=True)
        write_json(path, seal({"made_from": now}))
        return
    then, now = unseal(read_json(path), path)["made_from"], seal(now)
    del now["sha256"]
    if differ := [key for key in {**then, **now} if then.get(key, ...) != now.get(key, ...)]:
        told = "; ".join(f"{key}: {_short(then.get(key))} → {_short(now.get(key))}" for key in differ[:5])
        more = f"; and {len(differ) - 5} more" if len(differ) > 5 else ""
        raise UsageError(
            f"run {run.id} cannot go on: it would be another run than was begun. {told}{more}",
            hint="put back what was changed, or start a new run without --resume",
        )


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"{text[:12]}…"
