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
