"""The mutants of a file, by mutmut's operators and the rules of `mutants.md`, and how a process gets to run one."""

from __future__ import annotations

import importlib.abc
import importlib.util
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "ilu_cli"
UNTOUCHED_CALLS = {"len", "isinstance", "cast", "TypeVar"}


def mutants_of(source: str) -> Iterator[tuple[int, str]]:
    """(line, changed source) of every mutant of a file."""
    import libcst as cst
    from libcst.metadata import MetadataWrapper, PositionProvider, WhitespaceInclusivePositionProvider
    from mutmut.mutation.mutators import mutation_operators

    def untouched(node: cst.CSTNode) -> bool:
        """Rules of `tests/mutants.md`."""
        if isinstance(node, cst.If):
            return isinstance(node.test, cst.Name) and node.test.value == "TYPE_CHECKING"
        if isinstance(node, (cst.Call, cst.Decorator)):
            call = node if isinstance(node, cst.Call) else node.decorator
            name = call.func if isinstance(call, cst.Call) else call
            known = UNTOUCHED_CALLS if isinstance(node, cst.Call) else {"dataclass"}
            return isinstance(name, cst.Name) and name.value in known
        if isinstance(node, cst.Expr):
            return isinstance(node.value, (cst.SimpleString, cst.ConcatenatedString))
        return isinstance(node, (cst.Annotation, cst.Import, cst.ImportFrom, cst.Raise, cst.Assert))

    class Changes(cst.CSTVisitor):
        METADATA_DEPENDENCIES = (PositionProvider, WhitespaceInclusivePositionProvider)

        def __init__(self) -> None:
            super().__init__()
            self.found: list[tuple[int, int, int, str]] = []  # line, span that is replaced, by what

        def on_visit(self, node: cst.CSTNode) -> bool:
            if untouched(node):
                return False
            for kind, operator in mutation_operators:
                for new in operator(node) if isinstance(node, kind) else ():
                    if not isinstance(new, cst.SimpleString) or ("XX" in new.value and " " not in new.value):
                        span = self.get_metadata(WhitespaceInclusivePositionProvider, node)
                        start, end = (starts[at.line - 1] + at.column for at in (span.start, span.end))
                        line = self.get_metadata(PositionProvider, node).start.line
                        self.found.append((line, start, end, wrapper.module.code_for_node(new)))
            return True

    wrapper, changes = MetadataWrapper(cst.parse_module(source)), Changes()
    starts = [0, *itertools.accumulate(map(len, source.splitlines(keepends=True)))]
    wrapper.visit(changes)
    seen = {source}
    for line, start, end, new in changes.found:
        changed = source[:start] + new + source[end:]
        if changed not in seen:
            seen.add(changed)
            yield line, changed


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


class Instead(importlib.abc.SourceLoader):
    """Loads one module of the package from a changed source."""

    def __init__(self, path: Path, source: str) -> None:
        self.path, self.source = str(path), source.encode()
        self.module = module_of(path)

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        return importlib.util.spec_from_file_location(name, self.path, loader=self) if name == self.module else None

    def get_filename(self, fullname: str) -> str:
        return self.path

    def get_data(self, path: str) -> bytes:
        return self.source
