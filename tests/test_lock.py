"""The lock of CI is of what pyproject.toml and constraints.txt ask for, with a hash for each, and names no place."""

from __future__ import annotations

import re
import sys
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
HERE = {"python_version": "3.11", "python_full_version": "3.11.9", "sys_platform": "linux", "platform_system": "Linux",
        "platform_machine": "x86_64", "extra": "dev"}  # fmt: skip


def locked() -> dict[str, tuple[str, list[str]]]:
    """Version and hashes by name."""
    found: dict[str, tuple[str, list[str]]] = {}
    for entry in re.split(r"\n(?=\S)", (ROOT / "requirements.lock").read_text()):
        if not entry.startswith("#"):
            asked = Requirement(entry.partition("\\")[0].strip())
            hashes = re.findall(r"--hash=sha256:([0-9a-f]{64})(?= |\n|$)", entry)
            found[canonicalize_name(asked.name)] = (next(iter(asked.specifier)).version, hashes)
    return found


def requirements(lines: list[str]) -> list[Requirement]:
    asked = [Requirement(line) for line in lines if line and not line.startswith("#")]
    return [r for r in asked if r.marker is None or r.marker.evaluate(HERE)]


def direct() -> list[Requirement]:
    """What pyproject.toml asks for, as the installed package tells it."""
    return requirements(metadata.requires("ilu") or [])


def test_every_package_of_the_lock_has_hashes() -> None:
    found = locked()
    assert len(found) > 100
    assert [name for name, (_, hashes) in found.items() if not hashes] == []


@pytest.mark.parametrize("r", requirements((ROOT / "constraints.txt").read_text().splitlines()), ids=lambda r: r.name)
def test_the_lock_has_the_versions_of_the_constraints(r: Requirement) -> None:
    version, _ = locked()[canonicalize_name(r.name)]
    assert r.specifier.contains(version), f"constraints.txt says {r}, requirements.lock {version}: run `make lock`"


def test_the_lock_has_what_is_asked_for() -> None:
    found = locked()
    missing = [r.name for r in direct() if canonicalize_name(r.name) not in found]
    assert missing == [], "run `make lock`"


@pytest.mark.skipif(sys.version_info[:2] != (3, 11) or sys.platform != "linux", reason="the lock is for 3.11 on Linux")
def test_it_is_closed() -> None:
    """Whatever a package of the lock needs on this platform is in it too, in a version that fits."""
    found, wrong = locked(), []
    for name in found:
        for r in requirements(metadata.requires(name) or []):
            if r.marker and not r.marker.evaluate(HERE | {"extra": ""}):
                continue
            version = found.get(canonicalize_name(r.name), ("", []))[0]
            if not version or not r.specifier.contains(version, prereleases=True):
                wrong.append(f"{name}: {r}, locked {version or 'not'}")
    assert wrong == []


@pytest.mark.parametrize("file", ["requirements.lock", "requirements-model.lock", "constraints.txt"])
def test_it_names_no_index_and_no_path(file: str) -> None:
    assert not re.search(r"://|--(index|extra-index|find-links|trusted)|(^|\s)-[ief]\s|@ ", (ROOT / file).read_text())
