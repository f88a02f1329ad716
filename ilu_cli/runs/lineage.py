"""Which runs belong together: the same attack on another model, and the reference line that it is held against."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from ilu_cli import trust
from ilu_cli.runs.files import ModelRecord, same_model
from ilu_cli.runs.store import Manifest, Run

NEVER = "never knew"
"""What the model of `model.never` is called where it stands beside the original."""


def attacked_rows(m: Manifest) -> list[str]:
    """The fingerprints of the rows that an attack trained on; none if it trains on nothing."""
    return [str(d["fingerprint"]) for d in m.data if d["role"] == "attack"]


def same_recipe(a: Manifest, b: Manifest) -> bool:
    """Whether two attacks had the same recipe with everything filled in.

    Runs of before kept only the hash of the recipe as it was asked for.
    """
    if a.asked_sha256 and b.asked_sha256:
        return a.recipe_sha256 == b.recipe_sha256
    return bool({a.recipe_sha256, a.asked_sha256} & {b.recipe_sha256, b.asked_sha256} - {""})


def same_attack(a: Manifest, b: Manifest) -> bool:
    """Whether two runs are the same attack: one recipe, trained on the same rows, by the same code of plug-ins."""
    same = a.command == b.command == "attack" and same_recipe(a, b) and attacked_rows(a) == attacked_rows(b)
    return same and not trust.changed(a.trust, b.trust)


def reference_lines(attack: Manifest, original: ModelRecord, runs: Iterable[Run]) -> Iterator[Run]:
    """The finished runs of the same attack, on the same rows, on the original model itself.

    Args:
        attack: what is attacked with: its recipes' hashes and rows.
        original: a record of the original model, as manifests keep it.
        runs: to choose from, in this order.
    """
    for run in runs:
        if not (run.complete and same_attack(run.manifest, attack)):
            continue
        target = run.manifest.parents[0]
        if (target["kind"] != "run" or original["kind"] == "run") and same_model(target, original):
            yield run
