"""Where ideas register themselves: one file, one decorator, nothing else to edit.

A module inside `ilu_cli/objectives/` (retain, regularizers, attacks, tasks, benchmarks) is imported when its registry
is first read. Such modules do not import torch at the top, so that recipes are checked before anything heavy loads.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import pkgutil
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from ilu_cli.errors import UsageError, near

T = TypeVar("T")


@dataclass(frozen=True)
class Entry:
    """One registered idea: its callable or class, and what the decorator declared about it."""

    name: str
    obj: Any
    declared: Mapping[str, Any] = field(default_factory=dict)

    @property
    def help(self) -> str:
        """The first line of the docstring; `ilu list` shows it."""
        return self.doc.partition("\n")[0]

    @property
    def doc(self) -> str:
        """The whole docstring."""
        return inspect.getdoc(self.obj) or ""

    def keys(self) -> dict[str, tuple[Any, Any]]:
        """The keyword-only parameters as `{name: (annotation, default)}`; `...` marks a required one."""
        found: dict[str, tuple[Any, Any]] = {}
        for p in inspect.signature(self.obj).parameters.values():
            if p.kind is not p.KEYWORD_ONLY:
                continue
            kind = p.annotation
            if isinstance(kind, str):  # only these annotations are evaluated: the others may name torch types
                kind = eval(kind, vars(sys.modules[self.obj.__module__]))
            found[p.name] = (kind, ... if p.default is p.empty else p.default)
        return found


class Registry(Mapping[str, Entry]):
    """A decorator that registers, and a mapping that finds. `kind` is the word shown to users."""

    def __init__(self, kind: str, package: str) -> None:
        self.kind, self.package = kind, package
        self._entries: dict[str, Entry] = {}
        self._loaded = False

    def __call__(self, *, name: str | None = None, **declared: Any) -> Callable[[T], T]:
        """Register the decorated function or class under `name` (default: the name of its module)."""

        def register(obj: T) -> T:
            module = obj.__module__
            key = name or module.rpartition(".")[2]
            known = self._entries.get(key)
            if known and known.obj.__module__ != module:
                raise UsageError(f"{self.kind} {key!r} is defined twice: {known.obj.__module__} and {module}")
            self._entries[key] = Entry(key, obj, declared)
            return obj

        return register

    def _load(self) -> dict[str, Entry]:
        if not self._loaded:
            self._loaded = True
            for module in pkgutil.iter_modules(importlib.import_module(self.package).__path__):
                importlib.import_module(f"{self.package}.{module.name}")
        return self._entries

    def __getitem__(self, name: str) -> Entry:
        entries = self._load()
        if name not in entries:
            raise UsageError(
                f"unknown {self.kind} {name!r}.{near(name, entries)}",
                hint=f"known: {', '.join(sorted(entries)) or 'none'}",
            )
        return entries[name]

    def __contains__(self, name: object) -> bool:
        return name in self._load()

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._load()))

    def __len__(self) -> int:
        return len(self._load())


def load_plugin(path: Path) -> None:
    """Import a file of the user's, whose decorators register what it defines.

    Raises:
        UsageError: if it is not there or does not import.
    """
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if not path.is_file() or spec is None or spec.loader is None:
        raise UsageError(f"there is no plugin {path}", hint="a plugin is a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # whatever the user's code raises
        raise UsageError(f"the plugin {path} does not import: {type(error).__name__}: {error}") from error


objective = Registry("objective", "ilu_cli.objectives")
retain_term = Registry("retain term", "ilu_cli.retain")
regularizer = Registry("regularizer", "ilu_cli.regularizers")
defence = Registry("defence", "ilu_cli.defences")
attack = Registry("attack", "ilu_cli.attacks")
task = Registry("task", "ilu_cli.tasks")
benchmark = Registry("benchmark", "ilu_cli.benchmarks")
ALL = (objective, retain_term, regularizer, defence, attack, task, benchmark)
