"""Malformed inputs, each by itself; `make faults` tries all and counts them."""

from __future__ import annotations

import sys
from typing import Any

import pytest
from malformed import KINDS, Judge

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="forks, and limits of memory")]
PARTS = 2  # a kind is tried in so many parts, which may run at once
EVERY = 2  # of all inputs the suite tries every second one


@pytest.fixture(scope="module")
def judge(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return Judge(tmp_path_factory.mktemp("malformed"))


@pytest.mark.parametrize("part", range(PARTS))
@pytest.mark.parametrize("kind", KINDS)
def test_every_input_is_refused_with_one_message(kind: str, part: int, judge: Any) -> None:
    found = list(judge.tried(list(KINDS[kind]())[part * EVERY :: PARTS * EVERY]))
    assert [(i.name, wrong, done.text[-300:]) for i, done, wrong in found if wrong] == []


def test_there_are_eight_hundred_of_them() -> None:
    assert sum(len(list(make())[::EVERY]) for make in KINDS.values()) >= 800
