"""Python code that a model brings along: transformers runs what `auto_map` names, if it is allowed to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ilu_cli import trust
from ilu_cli.errors import IluError, UnavailableError, UsageError
from ilu_cli.runs.files import read_json

NAMED_IN = ("config.json", "tokenizer_config.json")


def own_code(folder: Path) -> list[str]:
    """What `auto_map` names in the configurations of a folder, as `modeling.Model` or `owner/name--modeling.Model`."""
    found: list[str] = []
    for name in NAMED_IN:
        named: Any = read_json(folder / name).get("auto_map") if (folder / name).is_file() else None
        for value in named.values() if isinstance(named, dict) else []:
            found += [v for v in (value if isinstance(value, list) else [value]) if isinstance(v, str)]
    return found


def check_code(folder: Path) -> None:
    """What is run must lie beside the weights, where it is hashed with them.

    Raises:
        UsageError: if code may run, and is of another repository.
    """
    if trust.remote() and (other := [name for name in own_code(folder) if "--" in name]):
        raise UsageError(
            f"{folder} takes its Python code from another repository: {other[0]}",
            hint="put the code beside the weights, and name it there in auto_map",
        )


def failed(folder: Path, what: str, error: Exception) -> IluError:
    """The error for what does not load; one that only asks for leave to run code says how to give it."""
    if "trust_remote_code" not in str(error):
        return UnavailableError(f"{folder} {what}: {error}")
    code = ", ".join(dict.fromkeys(own_code(folder))) or "no file that is there"
    return UsageError(
        f"{folder} works only with Python code that it brings along ({code}), which is not run unasked",
        hint="read that code; --trust-remote-code runs it, in this one run",
    )


def brings_code(model: object) -> bool:
    """Whether a model, or a part of one, is of a class that is not transformers' own, so that no digest tells it."""
    return not type(model).__module__.startswith("transformers.")
