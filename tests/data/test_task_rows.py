"""The row that a built-in task's docstring shows is one of its rows."""

from __future__ import annotations

import pytest

from ilu_cli import registry


@pytest.mark.parametrize("name", [n for n in registry.task if registry.task[n].obj.has_builtin()])
def test_the_row_of_the_docstring_is_real(name: str) -> None:
    shown = " ".join(registry.task[name].doc.partition("A row: ")[2].split())
    assert shown in {" ".join(repr(row).split()) for row in registry.task[name].obj().builtin("train")}
