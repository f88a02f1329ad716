"""The configuration of `make mutants`: what it names is there, and its rules leave out what they say."""

from __future__ import annotations

from mutants import TESTS
from mutations import PACKAGE, ROOT, mutants_of

SOURCE = '''\
"""A docstring."""
from __future__ import annotations
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from x import y

@dataclass(frozen=True)
class A:
    b: int = 3

@objective(per="token")
def f(a: list[int]) -> int:
    "Another."
    assert a == 1
    if a:
        raise ValueError(f"no {a}", 5)
    print("some text")
    return a + 1
'''


def test_every_pattern_names_files_and_every_file_has_tests() -> None:
    for pattern, tests in TESTS.items():
        assert list(PACKAGE.glob(pattern)), pattern
        assert any(list((ROOT / "tests").glob(f"{name}.py")) for name in tests.split()), tests


def test_the_operators_change_what_counts_and_nothing_else() -> None:
    lines = SOURCE.splitlines()
    found = {(n, changed.splitlines()[n - 1].strip()) for n, changed in mutants_of(SOURCE)}
    assert {lines[n - 1].strip() for n, _ in found} == {
        "b: int = 3",
        '@objective(per="token")',
        'print("some text")',
        "return a + 1",
    }
    assert {new for _, new in found} == {
        "b: int = None",
        "b: int = 4",
        "@objective(per=None)",
        '@objective(per="XXtokenXX")',
        "print(None)",
        "return a - 1",
        "return a + 2",
    }
