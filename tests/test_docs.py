"""The documentation is true: reference pages follow the code, commands run, recipes are valid, links lead somewhere.

Commands are those of the pages, letter by letter. Only the world is small: the built-in model is a tiny one, and what a
recipe asks for is cut down (steps, batches, rows) on its way into validation.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import Ilu, tiny_model, tiny_tokenizer

from ilu_cli import registry
from ilu_cli.cli.app import app
from ilu_cli.models import builtin
from ilu_cli.recipe import load
from ilu_cli.recipe.grid import AnyRecipe
from ilu_cli.recipe.schema import RECIPES
from ilu_cli.recipe.source import Layers
from ilu_cli.runs.files import weight_hashes, write_json

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
FENCE = re.compile(r"^```(\w+)([^\n]*)\n(.*?)^```$", re.M | re.S)
LAYERS = 9  # RMU of the quickstart reads layer 7
PREPARES = ("printf ", "mkdir ", "cp ")


def blocks(page: Path, language: str) -> list[tuple[str, str]]:
    """The fenced blocks of a language: what stands behind its name, and the text."""
    return [(info.strip(), text) for name, info, text in FENCE.findall(page.read_text("utf-8")) if name == language]


def lines(text: str) -> list[str]:
    """Commands, one a line, with continued lines joined."""
    joined = re.sub(r"\\\n\s*", " ", text).splitlines()
    return [line.strip() for line in joined if line.strip() and not line.strip().startswith("#")]


def test_the_reference_pages_are_those_that_the_code_gives_now() -> None:
    done = subprocess.run([sys.executable, ROOT / "docs/generate.py", "--check"], capture_output=True, text=True)
    assert done.returncode == 0, f"run `python docs/generate.py`: {done.stdout}{done.stderr}"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_between_pages_lead_somewhere(page: Any) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", FENCE.sub("", page.read_text("utf-8"))):
        if re.match(r"https?:", target):
            continue
        name, _, anchor = target.partition("#")
        found = (page.parent / name).resolve() if name else page
        assert found.exists(), f"{page.name}: {target}"
        if anchor:
            headings = re.findall(r"^#+ (.*)$", found.read_text("utf-8"), re.M)
            slugs = [re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings]
            assert anchor in slugs, f"{page.name}: {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_recipes_in_the_pages_are_valid(page: Any) -> None:
    for _, text in blocks(page, "yaml"):
        data = yaml.safe_load(text)
        if isinstance(data, dict) and "command" in data:
            load.validate(RECIPES[data["command"]], Layers(data))


@dataclass
class Shell:
    """As much of a shell as the pages use: VAR=$(ilu …), "$VAR", > file, and preparations by printf, mkdir and cp."""

    ilu: Ilu
    variables: dict[str, str] = field(default_factory=dict)

    def expand(self, text: str) -> str:
        return re.sub(r"\$(\w+)", lambda m: self.variables[m[1]], text)

    def run(self, line: str) -> None:
        if line.startswith(PREPARES):
            subprocess.run(["sh", "-c", line], check=True)
            return
        if line.startswith("make "):
            target = shlex.split(line, comments=True)[1]
            assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.M), line
            return
        if caught := re.fullmatch(r"(\w+)=\$\((ilu .*)\)", line):
            self.variables[caught[1]] = self.command(caught[2]).strip().splitlines()[-1]
            return
        assert line.startswith("ilu "), f"{line!r}: not a command of ilu; fence it as `sh no-run: why`"
        self.command(line)

    def command(self, line: str) -> str:
        words = shlex.split(self.expand(line), comments=True)
        target = words[words.index(">") + 1] if ">" in words else None
        done = self.ilu(*words[1 : words.index(">") if target else None])
        assert done.code == 0, f"{line}\n{done.err}"
        if target:
            Path(target).write_text(done.out)
        return done.out


@pytest.fixture(scope="session")
def built_in(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A package that ships no weights, and a cache in which its tiny model is converted already."""
    packages, cache = tmp_path_factory.mktemp("packages"), tmp_path_factory.mktemp("cache")
    (packages / "tiny_weights").mkdir()
    (packages / "tiny_weights" / "__init__.py").touch()
    (packages / "tiny_weights" / "tiny.gguf").touch()
    folder = cache / "models" / "smollm2-135m"
    tokenizer = tiny_tokenizer()
    tiny_model(len(tokenizer), spread=0.05, layers=LAYERS).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    write_json(folder / "ilu.json", {"source": "tiny.gguf", "size": 0, "weights": weight_hashes(folder)})
    return packages, cache


@pytest.fixture
def small(built_in: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """The built-in model is tiny, and recipes are cut down before they are validated."""
    packages, cache = built_in
    monkeypatch.syspath_prepend(packages)
    monkeypatch.setenv("ILU_CACHE", str(cache))
    name, _, hub = "smollm2-135m", None, builtin.MODELS["smollm2-135m"][2]
    monkeypatch.setitem(builtin.MODELS, name, ("tiny_weights", "tiny.gguf", hub))
    validate = load.validate

    def cut(kind: type[AnyRecipe], layers: Any) -> Any:
        data, command = layers.data, kind.model_fields["command"].default
        if command == "unlearn":
            data["train"] = dict(data.get("train") or {}) | {"steps": 2, "save_every": 0}
            for part in (data.get("forget"), data.get("retain"), *(data.get("regularizers") or [])):
                if isinstance(part, dict):
                    part |= {"batch": 2, "max_length": 24}
        if command == "attack":
            keys = {"steps": 2, "batch": 2, "max_length": 24, "test_rows": 3}
            known = registry.attack[data["attack"]["name"]].keys()
            data["attack"] |= {k: v for k, v in keys.items() if k in known}
        if command in ("attack", "eval"):
            data["eval"] = dict(data.get("eval") or {}) | {"limit": 4}
        return validate(kind, layers)

    monkeypatch.setattr(load, "validate", cut)
    for known in registry.ALL:  # what plugins register is forgotten afterwards
        len(known)
        monkeypatch.setattr(known, "_entries", dict(known._entries))


@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p, "sh")], ids=lambda p: p.name)
def test_every_command_of_the_page_runs(page: Any, small: None, ilu: Ilu) -> None:
    shell = Shell(ilu)
    for info, text in blocks(page, "sh"):
        if not info.startswith("no-run"):
            for line in lines(text):
                shell.run(line)


def options(command: Any) -> set[str]:
    return {o for p in command.params for o in (*p.opts, *p.secondary_opts)}


def options_of(words: list[str]) -> set[str]:
    """The options of the command, or subcommand, that these words call."""
    from typer.main import get_command

    command = get_command(app)
    known = {"--help", *options(command)}
    if " ".join(words[:2]) in command.commands:  # type: ignore[attr-defined]
        words = [" ".join(words[:2]), *words[2:]]
    for word in words:
        if word.startswith("-") or not hasattr(command, "commands"):
            continue
        assert word in command.commands, f"there is no command {word!r}"
        command = command.commands[word]
        known |= options(command)
    return known


def test_commands_that_are_not_run_exist_with_their_options() -> None:
    seen = 0
    for page in PAGES:
        for info, text in blocks(page, "sh"):
            if not info.startswith("no-run"):
                continue
            assert re.fullmatch(r"no-run: .{5,}", info), f"{page.name}: say why after `no-run:`"
            for line in lines(text):
                found = re.search(r"(?:^|\s|\()(?:ilu|-m ilu_cli) (.*?)\)?$", line)
                if found is None:
                    continue
                words, seen = shlex.split(found[1], comments=True), seen + 1
                unknown = {w.partition("=")[0] for w in words if w.startswith("--")} - options_of(words)
                assert not unknown, f"{page.name}: {line}: {unknown}"
    assert seen > 0
