"""Which files a model is, their hashes, atomic writes, and the cache folder."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any, TypedDict

import platformdirs

from ilu_cli import trust
from ilu_cli.errors import RunFailed, UnavailableError
from ilu_cli.paths import leads_out, problem_of_path

WEIGHTS, INDEX, ADAPTER = "model.safetensors", "model.safetensors.index.json", "adapter_model.safetensors"
BESIDE = (
    "config.json", "generation_config.json", "adapter_config.json", "tokenizer*", "special_tokens_map.json",
    "added_tokens.json", "vocab.*", "merges.txt", "*.model", "*.tiktoken", "chat_template*",
    "additional_chat_templates/*",
)  # fmt: skip
"""What decides an answer beside the weights: configuration, tokenizer, chat templates, defaults of generation."""


class ModelRecord(TypedDict, total=False):
    """How a manifest names a model. `revision` is of the original alone; `alpha`, how much of its task vector is added;
    `out`, the folder for the run that a reference line is made for.
    """

    role: str
    kind: str
    id: str
    path: str
    weights: dict[str, str]
    digest: str | None
    revision: str | None
    alpha: float
    out: str | None


class TensorEntry(TypedDict):
    """Where a tensor lies in a safetensors file; `start` is its first byte."""

    dtype: str
    shape: tuple[int, ...]
    start: int


def cache_dir() -> Path:
    """`ILU_CACHE`, or the platform's cache folder: what is in it can be made again."""
    return Path(os.environ.get("ILU_CACHE") or platformdirs.user_cache_dir("ilu"))


def sha256(path: Path) -> str:
    """The sha256 of a file, as hex."""
    with path.open("rb") as f:
        digest = hashlib.sha256()
        while block := f.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


def write_text(path: Path, text: str) -> None:
    """Write a file so that a reader sees the old content or the new, never a half, even after a power cut."""
    part = path.with_name(f".{path.name}.part")
    with part.open("w", encoding="utf-8") as f:
        f.write(text)
        f.flush()
        os.fsync(f.fileno())
    part.replace(path)


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def weight_files(folder: Path) -> list[Path]:
    """The files that transformers, or peft for an adapter, reads the weights of a folder from, sorted by name.

    A single file goes before an index and its shards. Whatever else lies beside them is not read (`stray_files`).

    Raises:
        UnavailableError: if the index is damaged, or a shard that it names is missing.
    """
    if (folder / "adapter_config.json").is_file():
        return [p for p in (folder / ADAPTER,) if p.is_file()]
    config = read_json(folder / "config.json") if (folder / "config.json").is_file() else {}
    named = config.get("transformers_weights")
    first = next((folder / n for n in filter(None, (named, WEIGHTS, INDEX)) if (folder / n).is_file()), None)
    if first is None or first.suffix != ".json":
        return [first] if first else []
    shards = [_shard(folder, name) for name in _indexed(first)]
    if lost := [p.name for p in shards if not p.is_file()]:
        raise UnavailableError(
            f"{folder} lacks {', '.join(lost)}: {first.name} names {len(shards)} files of weights, {len(lost)} missing",
            hint="copy or download the missing files",
        )
    return shards


def _shard(folder: Path, name: str) -> Path:
    """A file that an index names, which lies in its folder.

    Raises:
        UnavailableError: if it does not.
    """
    if problem := problem_of_path(name):
        raise UnavailableError(f"{folder}: the index of the weights names {name!r}, which {problem}")
    if leads_out(folder / name, folder):
        raise UnavailableError(
            f"{folder / name} is a link to what lies outside of {folder}", hint="copy the file there"
        )
    return folder / name


def _indexed(index: Path) -> list[str]:
    """The files that an index names.

    Raises:
        UnavailableError: if it names none in the form that it should.
    """
    named = read_json(index).get("weight_map", {})
    if not isinstance(named, dict) or not all(isinstance(name, str) for name in named.values()):
        raise UnavailableError(f"{index} is damaged: its weight_map is no mapping of weights to files")
    return sorted(set(named.values()))


def stray_files(folder: Path) -> list[str]:
    """The other files of weights in a folder: old copies, shards of an earlier save, a vendor's own format."""
    return sorted({p.name for p in folder.glob("*.safetensors")} - {p.name for p in weight_files(folder)})


def read_json(path: Path) -> dict[str, Any]:
    """An object in a JSON file.

    Raises:
        UnavailableError: if it is none.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UnavailableError(f"{path} is damaged: {error}") from error
    if not isinstance(found, dict):
        raise UnavailableError(f"{path} is damaged: it holds no object")
    return found


def tensors_of(path: Path) -> dict[str, TensorEntry]:
    """What a safetensors file holds, by name, without reading it.

    Raises:
        UnavailableError: if the file is damaged or cut off.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np"):  # checks the header and that the file has all bytes it announces
            pass
        with path.open("rb") as f:
            length = int.from_bytes(f.read(8), "little")
            header = json.loads(f.read(length))
    except (SafetensorError, OSError, ValueError) as error:
        raise UnavailableError(f"{path} is damaged: {error}") from error
    header.pop("__metadata__", None)
    return {
        name: {"dtype": t["dtype"], "shape": tuple(t["shape"]), "start": 8 + length + t["data_offsets"][0]}
        for name, t in header.items()
    }


def tensors_in(folder: Path) -> dict[str, TensorEntry]:
    """What all files of weights in a checkpoint folder hold, by name.

    Raises:
        UnavailableError: as `tensors_of`.
    """
    return {name: t for path in weight_files(folder) for name, t in tensors_of(path).items()}


def weight_hashes(folder: Path) -> dict[str, str]:
    """sha256 of every file of weights in a checkpoint folder."""
    return {p.name: sha256(p) for p in weight_files(folder)}


def beside_files(folder: Path) -> list[Path]:
    """The files in a checkpoint folder that decide an answer beside the weights; its Python code too, where it runs."""
    patterns = (*BESIDE, "*.py") if trust.remote() else BESIDE
    return sorted({p for pattern in patterns for p in folder.glob(pattern) if p.is_file()})


def beside_hashes(folder: Path) -> dict[str, str]:
    """sha256 of every file in a checkpoint folder that decides an answer beside the weights."""
    return {p.relative_to(folder).as_posix(): sha256(p) for p in beside_files(folder)}


def combined(hashes: dict[str, str]) -> str:
    """One digest for a set of files."""
    return hashlib.sha256(json.dumps(sorted(hashes.items())).encode()).hexdigest()


def digest_of(weights: dict[str, str], beside: dict[str, str], base: str | None = None) -> str:
    """One hash of everything that decides an answer of a model; of an adapter its base's digest is a part."""
    return combined(weights | beside | ({"base": base} if base else {}))


def same_model(one: ModelRecord, other: ModelRecord) -> bool:
    """Whether two records of parents are the same model. What was recorded without a digest is known by its weights.

    The configuration of a built-in model names the version of transformers that wrote it; its weights tell it.
    """
    a, b = one.get("digest"), other.get("digest")
    if a and b and "builtin" not in (one.get("kind"), other.get("kind")):
        return bool(a == b)
    return bool(one.get("weights") == other.get("weights"))


def check_disk(folder: Path, needed: int) -> None:
    """Refuse to start what cannot be saved.

    Raises:
        RunFailed: if the disk has less than `needed` bytes free.
    """
    existing = next(p for p in [folder, *folder.absolute().parents] if p.exists())
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise RunFailed(
            f"the disk of {folder} has {free / 1e9:.2f} GB free; this run writes up to {needed / 1e9:.2f} GB",
            hint="free some space, or choose another folder with --out or ILU_RUNS",
        )
