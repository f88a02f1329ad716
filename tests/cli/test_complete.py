"""Completion as the shell asks for it, in a process of its own; and the JSON Schema that editors complete with."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from conftest import Ilu

from ilu_cli.recipe.load import shipped
from ilu_cli.recipe.schema import RECIPES, json_schema
from ilu_cli.runs.store import Store


def offered(line: str) -> list[str]:
    """What bash is given for the last word of `line`."""
    code = (
        "import sys; from ilu_cli.cli.app import main\n"
        "try: main()\n"
        "finally: assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    )
    words = line.split(" ")
    env = os.environ | {"_ILU_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1)}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    return done.stdout.split()


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("ilu un", {"unlearn"}),
        ("ilu unlearn --method sim", {"simnpo"}),
        ("ilu unlearn --irm-env gs", {"gsm8k"}),
        ("ilu unlearn --defence sa", {"sam"}),
        ("ilu unlearn --recipe quickstart-rm", {"quickstart-rmu"}),
        ("ilu attack --kind fine", {"finetune"}),
        ("ilu attack attack-", {"attack-b"}),
        ("ilu eval --bench cap", {"capitals"}),
        ("ilu runs show ", {"unlearn-a", "attack-b"}),
        ("ilu runs d", {"diff"}),
    ],
)
def test_the_shell_is_offered(tmp_path: Path, line: str, expected: Any) -> None:
    for name in ("unlearn-a", "attack-b"):
        Store().create("unlearn", name, tmp_path / "runs" / name)
    assert set(offered(line)) == expected


def test_completion_answers_in_well_under_a_second() -> None:
    """Measured against the start of the interpreter with typer, so that a loaded machine is no reason to fail."""

    def seconds(args: Any, env: Any) -> Any:
        began = time.perf_counter()
        subprocess.run(args, env=os.environ | env, check=True, stdout=subprocess.DEVNULL)
        return time.perf_counter() - began

    ask = {"_ILU_COMPLETE": "complete_bash", "COMP_WORDS": "ilu unlearn --method ", "COMP_CWORD": "3"}
    pairs = [
        (seconds([sys.executable, "-m", "ilu_cli"], ask), seconds([sys.executable, "-c", "import typer, pydantic"], {}))
        for _ in range(3)
    ]
    assert min(ours / floor for ours, floor in pairs) < 4


@pytest.mark.parametrize("name", sorted(shipped()))
def test_every_shipped_recipe_follows_the_json_schema(name: str) -> None:
    recipe = yaml.safe_load(shipped()[name].read_text())
    own = validator(recipe["command"])
    own.validate(recipe)
    validator(None).validate(recipe)
    with pytest.raises(jsonschema.ValidationError):
        own.validate(recipe | {"no_such_key": 1})


@functools.cache
def validator(command: str | None) -> Any:
    """That of a command's recipes, or of all, whose schema is itself valid."""
    schema = json_schema(command) if command else json_schema()
    kind = jsonschema.validators.validator_for(schema)
    kind.check_schema(schema)
    return kind(schema)


def test_schema_prints_descriptions_from_the_code(ilu: Ilu) -> None:
    found = json.loads(ilu("schema", "unlearn").out)
    assert "eq. 3" in found["$defs"]["Objective_npo"]["description"]
    assert "softplus" in found["$defs"]["Objective_npo"]["description"]  # the whole docstring, not its first line
    assert found["$defs"]["TrainSpec"]["properties"]["warmup"]["description"] == "steps of linear warm-up"
    everything = json.loads(ilu("schema").out)
    assert set(everything["discriminator"]["mapping"]) == set(RECIPES)
    wrong = ilu("schema", "unlaern")
    assert wrong.code == 2
    assert "Did you mean 'unlearn'?" in wrong.err
