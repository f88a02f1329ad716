"""Every class of faults in its quick form; `make faults` is the long one."""

from __future__ import annotations

import sys
from typing import Any

import pytest
from bench import Bench
from classes import CLASSES
from places import MOUNTS, can_mount

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform == "win32", reason="forks")]


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Any:
    made = Bench(tmp_path_factory.mktemp("faults"))
    made.prepare()
    return made


@pytest.mark.parametrize("name", CLASSES)
def test_what_was_tried_held(name: str, bench: Any) -> None:
    if name == MOUNTS and not can_mount():
        pytest.skip("a file system can be mounted only by root")
    cases, few, _ = CLASSES[name]
    found = list(cases(bench, few))
    assert len(found) == few
    assert [(c.name, c.ended) for c in found if not c.held] == []
