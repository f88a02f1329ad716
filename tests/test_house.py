"""The rules of the house: imports point downward, torch comes late, every shipped recipe parses, help is fast."""

from __future__ import annotations

import ast
import os
import re
import statistics
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
from radon.complexity import cc_visit
from radon.visitors import Class

import ilu_cli
from ilu_cli import registry
from ilu_cli.recipe.load import load, shipped
from ilu_cli.recipe.schema import RECIPES
from ilu_cli.recipe.source import read_layers

PACKAGE = Path(ilu_cli.__file__).parent
# A module may import from its own level and those below it.
LEVELS = [
    {"cli", "__main__"},
    {"workflows"},
    {"report"},
    {"attacks", "benchmarks", "harness", "taskvec"},
    {"objectives", "retain", "regularizers", "defences"},
    {"engine"},
    {"models"},
    {"data"},
    {"tasks"},
    {"recipe", "runs", "metrics", "care"},
    {"registry", "declarations", "errors", "stopping", "trust", "paths", "__init__"},
]
LIGHT = {
    "recipe",
    "runs",
    "registry",
    "declarations",
    "errors",
    "stopping",
    "trust",
    "paths",
    "tasks",
    "__init__",
    "__main__",
}
HEAVY = ("torch", "transformers", "accelerate", "datasets", "peft", "lm_eval", "safetensors", "matplotlib")
# These read names only (a data table, a reference to a dataset), and are lighter than what they read.
ALLOWED = {("tasks", "data"), ("recipe", "data")}


def level_of(part: str) -> int:
    return next(i for i, names in enumerate(LEVELS) if part in names)


def imports(path: Path, *, top_only: bool = False) -> set[str]:
    """Modules that a file imports, leaving out what only a type checker reads."""
    tree = ast.parse(path.read_text())
    skip = {
        id(n)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for n in ast.walk(node)
    }
    nodes = tree.body if top_only else ast.walk(tree)
    found = set()
    for node in nodes:
        if id(node) in skip:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def test_the_map_in_the_architecture_is_the_one_that_is_enforced() -> None:
    text = (PACKAGE.parent / "ARCHITECTURE.md").read_text()
    drawn = [
        set(line.split("  ")[0].split()) for line in text.partition("```text\n")[2].partition("```")[0].splitlines()
    ]
    assert drawn == [{name for name in names if not name.startswith("__")} for names in LEVELS]


def test_every_file_that_the_architecture_names_is_there() -> None:
    text = (PACKAGE.parent / "ARCHITECTURE.md").read_text()
    named = set(re.findall(r"`(?:ilu_cli/)?([\w/]+\.py)\b", text)) - {"tests/test_house.py"}
    here = [f"/{path.relative_to(PACKAGE).as_posix()}" for path in FILES]
    assert len(named) > 20
    assert sorted(name for name in named if not any(path.endswith(f"/{name}") for path in here)) == []
    rooms = [name.rstrip("/") for name in re.findall(r"`([\w/]+/)`", text)]
    assert [name for name in rooms if not (PACKAGE / name).is_dir()] == []


def part_of_path(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


FILES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_downward(path: Path) -> None:
    here = part_of_path(path)
    for name in imports(path):
        parts = name.split(".")
        if parts[0] != "ilu_cli" or len(parts) == 1 or parts[1].startswith("__"):
            continue
        if (here, parts[1]) in ALLOWED:
            continue
        assert level_of(parts[1]) >= level_of(here), f"{here} imports {name}, which stands above it"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_light_modules_import_nothing_heavy_at_the_top(path: Path) -> None:
    here = part_of_path(path)
    idea = here in ("objectives", "retain", "regularizers", "attacks", "benchmarks", "defences")
    if here in LIGHT or here == "cli" or idea:
        assert not [n for n in imports(path, top_only=True) if n.split(".")[0] in HEAVY]


LINES_OF_FILE, LINES_OF_FUNCTION, COMPLEXITY = 300, 60, 15
UNTYPED = 95  # `dict[str, Any]` in the whole package
SILENCED = {"type: ignore": 4, "noqa": 10}  # at most so often in the whole package


def lengths() -> list[tuple[str, int]]:
    """The lines of every function, from `def` to its end."""
    return [
        (f"{path.relative_to(PACKAGE)}: {node.name}", (node.end_lineno or 0) - node.lineno + 1)
        for path in FILES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
    ]


def complexities() -> list[tuple[str, int]]:
    """The cyclomatic complexity of every function and method; one inside another counts with that."""
    return [
        (f"{path.relative_to(PACKAGE)}: {f.fullname}", f.complexity)
        for path in FILES
        for block in cc_visit(path.read_text())
        for f in (block.methods if isinstance(block, Class) else [block])
    ]


def test_no_file_is_too_long() -> None:
    lengths = {str(p.relative_to(PACKAGE)): len(p.read_text().splitlines()) for p in FILES}
    assert {name: n for name, n in lengths.items() if n > LINES_OF_FILE} == {}


def test_no_function_is_too_long() -> None:
    assert {name: n for name, n in lengths() if n > LINES_OF_FUNCTION} == {}


def test_no_function_is_tangled() -> None:
    assert {name: n for name, n in complexities() if n > COMPLEXITY} == {}


def uses(path: Path) -> set[str]:
    """The modules of the package that a module imports anywhere, but for its types alone."""
    tree = ast.parse(path.read_text())
    typing = [n for n in ast.walk(tree) if isinstance(n, ast.If) and "TYPE_CHECKING" in ast.unparse(n.test)]
    left_out = {id(inner) for n in typing for stmt in n.body for inner in ast.walk(stmt)}
    found: set[str] = set()
    for n in ast.walk(tree):
        if isinstance(n, ast.ImportFrom) and n.module and id(n) not in left_out:
            for name in n.names:
                inner = f"{n.module}.{name.name}"
                found.add(inner if inner in MODULES else n.module)
    return found & MODULES.keys()


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")


def types_in(path: Path) -> Iterator[str]:
    """The names of classes, and those that a file gives to types: `Row = dict[str, Any]`."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            yield node.name
    for node in tree.body:
        names = node.targets if isinstance(node, ast.Assign) else []
        yield from (n.id for n in names if isinstance(n, ast.Name) and re.fullmatch(r"[A-Z]+[a-z]\w*", n.id))


def test_a_type_name_means_one_thing() -> None:
    """A task and the benchmark of the same dataset may share its name, and two commands that of an option."""
    found: dict[str, list[str]] = {}
    for path in FILES:
        for name in types_in(path):
            if path.parent.name != "benchmarks" and not name.endswith(("Option", "Argument")):
                found.setdefault(name, []).append(str(path.relative_to(PACKAGE)))
    assert {name: files for name, files in found.items() if len(files) > 1} == {}


def undocumented() -> list[str]:
    """Public functions, classes and methods without a docstring. A method is told once, by any class that has it."""
    found: list[tuple[str, str | None]] = []
    told = set()
    for path in FILES:
        for node in ast.parse(path.read_text()).body:
            inner = node.body if isinstance(node, ast.ClassDef) and not node.name.startswith("_") else []
            for outer, n in [("", node), *((f"{getattr(node, 'name', '')}.", n) for n in inner)]:
                if not isinstance(n, (ast.FunctionDef, ast.ClassDef)) or n.name.startswith("_"):
                    continue
                if ast.get_docstring(n):
                    told.add(n.name if outer else "")
                else:
                    found.append((f"{path.relative_to(PACKAGE)}: {outer}{n.name}", n.name if outer else None))
    return [name for name, method in found if method not in told]


def test_every_public_name_says_what_it_is() -> None:
    assert undocumented() == []


MODULES = {module_of(path): path for path in FILES}


def test_imports_go_in_no_circle() -> None:
    """Also those within functions; `graphlib` names the modules of a circle."""
    graph = {name: uses(path) - {name} for name, path in MODULES.items()}
    TopologicalSorter(graph).prepare()


def test_what_flows_between_files_has_types() -> None:
    found = {str(path.relative_to(PACKAGE)): path.read_text().count("dict[str, Any]") for path in FILES}
    assert sum(found.values()) <= UNTYPED, sorted(found.items(), key=lambda item: -item[1])[:10]


@pytest.mark.parametrize("mark", SILENCED)
def test_the_tools_are_rarely_silenced(mark: str) -> None:
    found = [
        f"{path.relative_to(PACKAGE)}:{n}"
        for path in FILES
        for n, line in enumerate(path.read_text().splitlines(), 1)
        if mark in line.partition("#")[2]
    ]
    assert len(found) <= SILENCED[mark], f"{mark}: {found}"


@pytest.mark.parametrize("name", sorted(shipped()))
def test_every_shipped_recipe_parses(name: str) -> None:
    command = read_layers(shipped()[name]).data["command"]
    assert load(RECIPES[command], shipped()[name], {}, []).model_dump()["command"] == command


def test_every_registered_idea_says_what_it_is() -> None:
    for known in registry.ALL:
        for name in known:
            assert len(known[name].help) > 20, f"{known.kind} {name} has no first line"


def test_a_wrong_recipe_is_refused_before_torch_is_imported(tmp_path: Path) -> None:
    code = (
        "import sys; sys.argv = ['ilu', 'unlearn', '--method', 'rmuu']\n"
        "from ilu_cli.cli.app import main\n"
        "try: main()\n"
        "except SystemExit as e: print(e.code, 'torch' in sys.modules)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.split() == ["2", "False"]


def test_help_answers_at_once() -> None:
    """`ilu --help` takes at most 1.5 × the time of importing the packages that it cannot do without: a processor's,
    as other processes of the suite take theirs meanwhile.
    """

    def seconds(args: list[str]) -> float:
        before = os.times()
        subprocess.run(args, check=True, stdout=subprocess.DEVNULL)
        return sum(os.times()[2:4]) - sum(before[2:4])

    ours, floor = [], []
    for _ in range(5):
        ours.append(seconds([sys.executable, "-m", "ilu_cli", "--help"]))
        floor.append(seconds([sys.executable, "-c", "import typer, rich, pydantic, yaml"]))
    assert statistics.median(o / f for o, f in zip(ours, floor)) < 1.5
