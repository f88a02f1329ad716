"""Where datasets lie on disk: the data root, a user's folder, a hub snapshot. Names and paths only; nothing is read.

A split is `<split>.parquet`, `<split>-00000-of-00001.parquet`, or `<split>/0000.parquet` (or jsonl, json, csv) in the
folder itself, in its config's or in `data/`; or what the README's `configs` say; or a `save_to_disk` folder.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ilu_cli.errors import UnavailableError, brief
from ilu_cli.paths import leads_out, problem_of_path
from ilu_cli.recipe.yaml_text import YamlError, read_yaml

SHARD = re.compile(r"(.+)-(\d+)-of-(\d+)\.\w+")
FRONT = 1_000_000  # characters of a README's front matter
SUFFIXES = (".jsonl", ".json", ".parquet", ".csv")


@dataclass(frozen=True)
class Found:
    """The files of one split, all of one kind, or one `save_to_disk` folder."""

    paths: tuple[Path, ...]

    @property
    def kind(self) -> str:
        """`.parquet`, `.jsonl`, `.json`, `.csv`, or `saved`."""
        return "saved" if self.paths[0].is_dir() else self.paths[0].suffix

    @property
    def name(self) -> str:
        """The path, relative to the data root if it lies there."""
        first, root = self.paths[0], data_root()
        shown = first.relative_to(root) if root and first.is_relative_to(root) else first
        return f"{shown}" if len(self.paths) == 1 else f"{shown} and {len(self.paths) - 1} more"


def data_root() -> Path | None:
    """The folder that mirrors datasets and models: ILU_DATA, which `--data-root` sets.

    Raises:
        UnavailableError: if it is not a folder.
    """
    text = os.environ.get("ILU_DATA")
    return checked_root(Path(text)) if text else None


def checked_root(folder: Path, *, make: bool = False) -> Path:
    """The absolute path of a data root, which `make` makes if there is none.

    Raises:
        UnavailableError: if it is not a folder, or cannot be made.
    """
    root = folder.absolute()
    if make and not root.exists():
        try:
            root.mkdir(parents=True)
        except OSError as error:
            raise UnavailableError(f"the data root {root} cannot be made: {error.strerror}") from error
    if not root.is_dir():
        what = "is a file, not a folder" if root.exists() else "does not exist"
        raise UnavailableError(f"the data root {root} {what}", hint="--data-root and ILU_DATA name a folder")
    return root


def in_root(names: list[str], config: str | None, split: str) -> Found | None:
    """Find a split under one of these names in the data root."""
    root = data_root()
    for name in filter(None, names if root else []):
        assert root is not None
        if problem_of_path(name):  # it is no place below the root
            continue
        found = locate(root / name, config, split)
        if found:
            return found
    return None


def locate(folder: Path, config: str | None, split: str) -> Found | None:
    """Find the files of a split in a folder. A README that lists the config has the last word about it.

    Raises:
        UnavailableError: if they are of several kinds, not all shards are there, or a name leads out of the folder.
    """
    if not folder.is_dir():
        return None
    for part in filter(None, (config, split)):
        if problem := problem_of_path(part):
            raise UnavailableError(f"{folder} has no config or split {part!r}, which {problem}")
    for saved in (folder, folder / split, *((folder / config, folder / config / split) if config else ())):
        if (saved / "state.json").is_file() and (saved / "dataset_info.json").is_file():
            return Found((saved,))
    listed = readme_patterns(folder, config).get(split)
    if listed is not None:
        return _all_of(folder, listed)
    for patterns in _patterns(config, split):
        found = [paths for pattern in patterns if (paths := _files(folder, pattern))]
        if len(found) > 1:
            raise _either(found[0][0], found[1][0])
        if found:
            _check_whole(found[0])
            return Found(tuple(found[0]))
    return None


def _files(folder: Path, pattern: str) -> list[Path]:
    return sorted(p for p in folder.glob(pattern) if p.is_file() and p.suffix in SUFFIXES)


def _all_of(folder: Path, listed: list[str]) -> Found | None:
    """The files of all patterns that a README lists, in its order; None if it has none of them.

    Raises:
        UnavailableError: if a pattern, or a link that it finds, leads out of the folder.
    """
    for pattern in listed:
        if problem := problem_of_path(pattern):
            raise UnavailableError(
                f"{folder}/README.md lists {pattern!r}, which {problem}", hint="mend data_files there"
            )
    by_pattern = {pattern: _files(folder, pattern) for pattern in listed}
    paths = list(dict.fromkeys(p for paths in by_pattern.values() for p in paths))
    if out := next((p for p in paths if leads_out(p, folder)), None):
        raise UnavailableError(f"{out} is a link to what lies outside of {folder}", hint="copy the file there")
    if not paths:
        return None
    if lost := [pattern for pattern, found in by_pattern.items() if not found]:
        raise UnavailableError(f"{folder}/README.md lists {lost[0]}, which is not there", hint="copy or download it")
    _check_whole(paths)
    return Found(tuple(paths))


def _either(one: Path, other: Path) -> UnavailableError:
    return UnavailableError(
        f"{one} and {other} are both there, and only one of them is read",
        hint="move the other away, or name the file itself",
    )


def _check_whole(paths: list[Path]) -> None:
    """Check that the files are of one kind, and that of a file in n shards all n are there."""
    other = next((p for p in paths if p.suffix != paths[0].suffix), None)
    if other:
        raise _either(paths[0], other)
    there: dict[tuple[Path, str, int], set[int]] = {}
    for path in paths:
        if match := SHARD.fullmatch(path.name):
            there.setdefault((path.parent, match[1], int(match[3])), set()).add(int(match[2]))
    for (folder, name, total), numbers in there.items():
        if lost := sorted(set(range(total)) - numbers):
            raise UnavailableError(
                f"{folder} lacks {len(lost)} of the {total} files of {name}: the first is number {lost[0]}",
                hint="copy or download the missing files",
            )


def _patterns(config: str | None, split: str) -> Iterator[list[str]]:
    """Where a split may lie, a config's own place first; of those in one list it must lie in one."""
    for places in ([f"{config}/"], ["", "data/"]) if config else (["", "data/"],):
        forms = (f"{split}.*", f"{split}-[0-9]*-of-[0-9]*.*", f"{split}/*")
        yield [place + form for place in places for form in forms]
    if config and split == "train":
        yield [f"{config}.*"]


def _configs(folder: Path) -> list[dict[str, Any]]:
    """What the front matter of a README says of its configs.

    Raises:
        UnavailableError: if it is no YAML.
    """
    try:
        head = re.match(r"---\n(.*?)\n---", (folder / "README.md").read_text(encoding="utf-8-sig"), re.DOTALL)
    except (OSError, UnicodeDecodeError):
        return []
    try:
        said = read_yaml(head[1], FRONT)[1] if head else None
    except YamlError as error:
        where = f"{folder}/README.md:{error.line + 1}"
        raise UnavailableError(f"{where}: {error.what}", hint="mend the front matter, or name a file") from error
    configs = said.get("configs") if isinstance(said, dict) else None
    return [c for c in (configs if isinstance(configs, list) else []) if isinstance(c, dict)]


def readme_patterns(folder: Path, config: str | None) -> dict[str, list[str]]:
    """The globs by split that the README's front matter gives for a config; without a name, for the default one.

    Raises:
        UnavailableError: if it has another form.
    """
    entries = _configs(folder)
    wanted = [c for c in entries if config is None or c.get("config_name") == config]
    chosen = next((c for c in wanted if c.get("default")), wanted[0] if wanted else None)
    try:
        return _by_split(chosen.get("data_files")) if chosen else {}
    except (TypeError, KeyError, ValueError) as error:
        raise UnavailableError(
            f"{folder}/README.md: data_files is no glob, list of globs, or mapping of splits to them: {error}",
            hint="mend data_files there, or name a file",
        ) from error


def _by_split(files: Any) -> dict[str, list[str]]:
    """The forms that `data_files` takes: a glob, a list of globs, a mapping, a list of `{split, path}`.

    Raises:
        TypeError, KeyError, ValueError: if it has none of them.
    """
    if isinstance(files, dict):
        return {str(split): _globs(globs) for split, globs in files.items()}
    if isinstance(files, list) and files and all(isinstance(item, dict) for item in files):
        return {str(item["split"]): _globs(item["path"]) for item in files}
    items = _globs(files)
    return {"train": items} if items else {}


def _globs(value: Any) -> list[str]:
    items = value if isinstance(value, list) else [value] if value else []
    for item in items:
        if not isinstance(item, str) or not item:
            raise TypeError(f"{brief(item)} is no glob")
        if any("**" in part and part != "**" for part in item.split("/")):
            raise ValueError(f"{brief(item)} is no glob")
    return items
