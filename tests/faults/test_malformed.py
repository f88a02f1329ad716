"""Malformed inputs, each by itself; `make faults` tries all and counts them."""

from __future__ import annotations

import multiprocessing
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from malformed import KINDS, serve

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="forks, and limits of memory")]
PARTS = 2  # a kind is tried in so many parts, which may run at once
EVERY = 2  # of all inputs the suite tries every second one
Failed = list[tuple[str, str, str]]  # name, what is wrong, what was said
Tried = Callable[[str, slice], Failed]


@pytest.fixture(scope="module")
def tried(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tried]:
    """A process of its own judges them: forks of one that has run other tests would copy all that it holds."""
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe()
    judge = spawn.Process(
        target=serve, args=(theirs, tmp_path_factory.mktemp("malformed"), Path(__file__).parent.parent)
    )
    judge.start()
    theirs.close()

    def ask(kind: str, which: slice) -> Failed:
        ours.send((kind, which.start, which.step))
        found: Failed = ours.recv()
        return found

    yield ask
    ours.close()
    judge.kill()  # it has nothing to put away, and to end by itself takes seconds
    judge.join()


@pytest.mark.parametrize("part", range(PARTS))
@pytest.mark.parametrize("kind", KINDS)
def test_every_input_is_refused_with_one_message(kind: str, part: int, tried: Tried) -> None:
    assert tried(kind, slice(part * EVERY, None, PARTS * EVERY)) == []


def test_there_are_eight_hundred_of_them() -> None:
    assert sum(len(list(make())[::EVERY]) for make in KINDS.values()) >= 800
