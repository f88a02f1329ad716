"""Models that were unlearned with several seeds, and attacked with one: each of them counts, once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from test_outcomes import Folder, forget

from ilu_cli.report.family import Family
from ilu_cli.report.headline import comparisons

RIGHT = ([1.0, 1, 1, 1], [1.0, 1, 0, 0], [0.0, 0, 0, 0])  # at the end of the attack, of the model of each seed


def family(path: Path, seeds: dict[str, tuple[int, ...]]) -> Family:
    """For each method a model of each of the seeds, all attacked with seed 0."""
    folder = Folder(path)
    for method, each in seeds.items():
        for seed, right in zip(each, RIGHT):
            value = sum(right) / 4
            fq = [{"steps": 4, "value": 1 - value}]
            result: dict[str, Any] = {"axis": "steps", "unattacked": 0, "fq": fq, "rows": {0: [0.0] * 4, 4: right}}
            parent = folder.unlearned(method, seed=seed, key=f"{method}{seed}")
            folder.attack(parent, "prune", [(0, forget(0.0, 4)), (4, forget(value, 4))], **result)
    for rows in path.rglob("capitals.rows.jsonl"):
        summary = {"benchmark": "capitals", "role": "forget", "metric": "acc", "value": 0.0}
        rows.with_name("capitals.json").write_text(json.dumps(summary))
    return folder.family()


@pytest.mark.parametrize("others", [(0, 1, 2), (3, 4, 5)], ids=["paired", "of other seeds"])
def test_the_difference_is_that_of_the_means(others: tuple[int, ...], tmp_path: Path) -> None:
    """Both methods know 1, 0.5 and 0: no difference."""
    [found] = comparisons(family(tmp_path, {"rmu": (0, 1, 2), "npo": others}))
    assert found.left.estimate.value == found.right.estimate.value == 0.5
    assert found.difference is not None
    assert (found.difference.value, found.difference.over) == (0.0, "seeds")


def test_the_worst_on_other_questions_is_the_mean_over_all_of_them(tmp_path: Path) -> None:
    assert family(tmp_path, {"rmu": (0, 1, 2)}).elsewhere("rmu", ["prune"]) == 0.5
