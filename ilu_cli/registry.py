"""Where ideas register themselves: one file, one decorator, nothing else to edit.

A module inside `ilu_cli/objectives/` (retain, regularizers, attacks, tasks, benchmarks) is imported when its registry
is first read. Such modules do not import torch at the top, so that recipes are checked before anything heavy loads.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import inspect
import pkgutil
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import CodeType
from typing import Any, Generic, TypeVar, get_type_hints

from pydantic import ValidationError

from ilu_cli import trust
from ilu_cli.declarations import Attack, Declaration, Loss, Objective, Regularizer
from ilu_cli.errors import UsageError, near
from ilu_cli.paths import problem_of_name

T = TypeVar("T")
D = TypeVar("D", bound=Declaration)
PLUGINS = "ilu.plugins"  # the group of entry points by which installed packages add ideas


@dataclass(frozen=True)
class Entry(Generic[D]):
    """One registered idea: its callable or class, and what the decorator declared about it."""

    name: str
    obj: Any
    declared: D

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
            # Only these annotations are read: the others may name torch types.
            kind = get_type_hints(_one(p.annotation), vars(sys.modules[self.obj.__module__]), include_extras=True)["it"]
            found[p.name] = (kind, ... if p.default is p.empty else p.default)
        return found


def _one(annotation: Any) -> type:
    """A class with this one annotation."""
    return type("One", (), {"__annotations__": {"it": annotation}})


class Registry(Mapping[str, Entry[D]]):
    """A decorator that registers, and a mapping that finds. `kind` is the word shown to users.

    `common` are the recipe keys that all ideas of this kind have, so that none may have one of its own of that name.
    """

    def __init__(self, kind: str, package: str, declaration: type[D], common: str = "name") -> None:
        self.kind, self.package, self.declaration, self.common = kind, package, declaration, frozenset(common.split())
        self._entries: dict[str, Entry[D]] = {}
        self._loaded = False

    def __call__(self, *, name: str | None = None, **declared: Any) -> Callable[[T], T]:
        """Register the decorated function or class under `name` (default: the name of its module).

        Raises:
            UsageError: if the declarations or the signature are not what this kind needs, or the name is taken; it
                names file and line.
        """

        def register(obj: T) -> T:
            key = name or obj.__module__.rpartition(".")[2]
            if problem := problem_of_name(key):
                raise UsageError(f"{where(obj)}: files are called after the {self.kind}, whose name {key!r} {problem}")
            self._check_signature(obj)
            known = self._entries.get(key)
            if known and _place(known.obj) != _place(obj):
                raise UsageError(
                    f"{where(obj)}: the {self.kind} {key!r} is there already, from {where(known.obj)}",
                    hint="a second idea in one file needs a name of its own: name=…",
                )
            self._entries[key] = Entry(key, obj, self._declare(obj, declared))
            return obj

        return register

    def _declare(self, obj: Any, declared: dict[str, Any]) -> D:
        try:
            return self.declaration(**declared)
        except (ValidationError, AttributeError) as error:
            raise UsageError(f"{where(obj)}: {self.kind}: {_first_problem(error, self.declaration)}") from error

    def _check_signature(self, obj: Any) -> None:
        """Check that all parameters beyond what the engine gives are keyword-only, annotated, and of free names."""
        if inspect.isclass(obj) and "__init__" not in vars(obj):
            return
        parameters = list(inspect.signature(obj).parameters.values())
        for p in parameters[self.declaration.positional :]:
            if p.kind is not p.KEYWORD_ONLY:
                problem, hint = "is no keyword, so that it cannot be a recipe key", "put a * before it"
            elif p.annotation is p.empty:
                problem, hint = "has no annotation, which is what its value is checked against", f"{p.name}: float"
            elif p.name in self.common:
                problem, hint = f"is a key that every {self.kind} has", "give it another name"
            else:
                continue
            raise UsageError(f"{where(obj)}: the parameter {p.name!r} {problem}", hint=hint)

    def _load(self) -> dict[str, Entry[D]]:
        if not self._loaded:
            self._loaded = True
            for module in pkgutil.iter_modules(importlib.import_module(self.package).__path__):
                importlib.import_module(f"{self.package}.{module.name}")
            load_installed()
        return self._entries

    def __getitem__(self, name: str) -> Entry[D]:
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


def _place(obj: Any) -> tuple[str, str]:
    return obj.__module__, obj.__qualname__


def where(obj: Any) -> str:
    """`file.py:12`, where a function or class is defined."""
    try:
        return f"{inspect.getsourcefile(obj)}:{inspect.getsourcelines(obj)[1]}"
    except (OSError, TypeError):
        return str(obj.__module__)


def _first_problem(error: Exception, declaration: type[Declaration]) -> str:
    """What is wrong with a declaration, in a line."""
    if not isinstance(error, ValidationError):
        return 'needs= is a text that names what is read, as in "logps reference.logps"'
    found = error.errors()[0]
    key, known = str(found["loc"][0]), declaration.model_fields
    if found["type"] == "extra_forbidden":
        return f"there is no declaration {key!r}.{near(key, known)} Known: {', '.join(known)}"
    if found["type"] == "missing":
        return f"{key}= must be declared"
    return f"{key}={found['input']!r}: {found['msg'][0].lower()}{found['msg'][1:]}"


def code_of(obj: Any) -> str:
    """sha256 of the file that an idea was loaded from; "" for those of this package."""
    if obj.__module__.partition(".")[0] == "ilu_cli":
        return ""
    file = Path(getattr(sys.modules[obj.__module__], "__file__", None) or "").absolute()
    known = {Path(name).absolute(): sha for name, sha in trust.RAN.items()}
    return known.get(file) or (trust.digest(file) if file.is_file() else "")


@functools.cache
def load_installed() -> None:
    """Import what installed packages announce as entry points of the group `ilu.plugins`, once.

    Raises:
        UsageError: if one does not import; it names the package.
    """
    for point in metadata.entry_points(group=PLUGINS):
        with _importing(f"plugin {point.name!r} of the package {point.dist.name if point.dist else '?'}"):
            point.load()


class _AsWritten(SourceFileLoader):
    """Reads the source itself: Python takes a file of the same size and second for the one that it compiled before."""

    def get_code(self, fullname: str) -> CodeType:
        return self.source_to_code(self.get_data(self.path), self.path)


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
    trust.note(path)
    with _importing(f"plugin {path}"):
        _AsWritten(path.stem, str(path)).exec_module(module)


@contextmanager
def _importing(what: str) -> Iterator[None]:
    """Whatever the user's code raises becomes a UsageError; one that says what is wrong already is left as it is."""
    try:
        yield
    except UsageError:
        raise
    except (Exception, SystemExit) as error:
        said = f"{type(error).__name__}: {error}"
        raise UsageError(f"the {what} does not import: {said}", hint="mend that file, or leave it out") from error


ROWS = "max_length chat chat_system chat_date long"
objective = Registry("objective", "ilu_cli.objectives", Objective)
retain_term = Registry("retain term", "ilu_cli.retain", Loss, f"name weight dual data batch {ROWS}")
regularizer = Registry(
    "regularizer", "ilu_cli.regularizers", Regularizer,
    f"name env weight env_weights batch schedule until initial every {ROWS}",
)  # fmt: skip
defence = Registry("defence", "ilu_cli.defences", Declaration)
attack = Registry(
    "attack", "ilu_cli.attacks", Attack, "name optimizer warmup weight_decay max_grad_norm mix memory packing together"
)  # those that train
task = Registry("task", "ilu_cli.tasks", Declaration)
benchmark = Registry("benchmark", "ilu_cli.benchmarks", Declaration)
ALL: tuple[Registry[Any], ...] = (objective, retain_term, regularizer, defence, attack, task, benchmark)
