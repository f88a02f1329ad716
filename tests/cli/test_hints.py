"""Messages advise only what there is: every `--option` that a text of the package names exists."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest
from conftest import Ilu
from typer.main import get_command

import ilu_cli
from ilu_cli.cli.app import app

PACKAGE = Path(ilu_cli.__file__).parent
OTHERS = {  # options of other programs that messages name
    "--no-deps": "pip",
    "--local-dir": "hf download",
    "--multi_gpu": "accelerate launch",
    "--use_fsdp": "accelerate launch",
    "--fsdp_version": "accelerate launch",
    "--config_file": "accelerate launch",
    "--num_processes": "accelerate launch",
    "--num_machines": "accelerate launch",
    "--machine_rank": "accelerate launch",
    "--main_process_ip": "accelerate launch",
    "--main_process_port": "accelerate launch",
    "--head": "ray start",
    "--apply_chat_template": "lm-eval",
}


@cache
def options() -> set[str]:
    """The options of every command."""
    found, left = {"--help"}, [get_command(app)]
    while left:
        command = left.pop()
        left += getattr(command, "commands", {}).values()
        found |= {name for p in command.params for name in (*p.opts, *p.secondary_opts)}
    return found


def named(path: Path) -> set[str]:
    """The options that the texts of a module name, docstrings included."""
    texts = [
        n.value
        for n in ast.walk(ast.parse(path.read_text()))
        if isinstance(n, ast.Constant) and isinstance(n.value, str)
    ]
    found = {name for text in texts for name in re.findall(r"(?<![\w-])--[a-z][\w-]*", text)}
    return {name for name in found if not name.endswith("-")}  # the beginning of several, as in --irm-*


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_the_options_that_texts_name_exist(path: Path) -> None:
    if path.parent.name == "harness" or path.name in ("canvas.py",):
        return  # lm-eval's own command line; variables of a style sheet
    assert sorted(named(path) - options() - OTHERS.keys()) == []


def test_the_list_is_not_empty(ilu: Ilu) -> None:
    assert {"--resume", "--parent", "--children", "--no-reference"} <= options()
    assert named(PACKAGE / "cli" / "failures.py") >= {"--set", "--resume", "--out"}
    assert ilu("unlearn", "--no-such").code == 2


def test_commands_are_told_apart_by_a_whole_sentence(ilu: Ilu, monkeypatch: pytest.MonkeyPatch) -> None:
    """At 80 columns no summary of `ilu --help` is cut."""
    monkeypatch.setenv("COLUMNS", "80")
    said = ilu("--help")
    assert said.code == 0 and "compare " in said.out
    assert not [line for line in said.out.splitlines() if line.endswith("...") and "COMMAND" not in line]


def test_what_is_not_there_is_named_as_what_it_would_be(ilu: Ilu) -> None:
    missing = ilu("unlearn", "--recipe", "mine.yaml")
    assert (missing.code, missing.err.splitlines()[0]) == (2, "error: there is no file mine.yaml")
    suite = ilu("attack", "--suite", "quik")
    assert suite.code == 2 and "no suite 'quik'. Did you mean 'quick'?" in suite.err
    assert "hint:  shipped suites: paper, quick, " in suite.err and "wmdp" not in suite.err
