"""What a model gave of rows, kept on disk by content, so that a second run reads it instead of running the model."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ilu_cli.engine.accel import BUCKET, Backend
from ilu_cli.models.checking import tell
from ilu_cli.runs.files import cache_dir

LAYOUT = 1  # of the files, and of what is computed; raise it when either changes
DEFAULT = 4.0  # GB that all files together take at most
VARIABLE = "ILU_CACHE_GB"

Tensors = dict[str, Tensor]


class Blocks:
    """Tensors [length, ...] of rows whose lengths are known, each a part of one block [Σ lengths, ...]."""

    def __init__(self, lengths: Sequence[int]) -> None:
        self.lengths, self.ends = list(lengths), torch.tensor([0, *lengths]).cumsum(0).tolist()
        self.block: Tensor | None = None

    def put(self, row: int, value: Tensor) -> None:
        """Copy a row's tensor to its place, from whatever device; the first one tells type and width."""
        if self.block is None:
            self.block = torch.zeros(self.ends[-1], *value.shape[1:], dtype=value.dtype)
        self.block[self.ends[row] : self.ends[row + 1]] = value

    def join(self, b: Backend) -> None:
        """Put in what the other processes have put to their places, each row by one; a part at a time."""
        if b.world == 1:
            return
        known = [None if self.block is None else (self.block.shape, self.block.dtype)]
        if not (made := [k for k in b.gather(known) if k is not None]):
            return
        self.block = torch.zeros(made[0][0], dtype=made[0][1]) if self.block is None else self.block
        for part in self.block.view(-1).split(BUCKET):
            part.copy_(b.sum(part.clone()))

    def rows(self, block: Tensor) -> list[Tensor]:
        """Each row's part of such a block, as a view."""
        return list(block.split(self.lengths))


def kept(source: Any, compute: Callable[[], Tensors], together: Backend | None = None) -> Tensors:
    """What `compute` gives, read from ILU_CACHE/states if it was computed of the same `source` before.

    Args:
        source: all that the tensors depend on beside the versions of the libraries and the device, as JSON; None or
            ILU_CACHE_GB=0: nothing is read or kept.
        compute: the tensors, on the CPU.
        together: the processes that compute them together, and so all do or none; each has all of them then. One of
            each machine writes the file.

    A file appears whole or not at all, and has the hash of its tensors, so that one that was damaged is made again. Of
    all files those that were not used for longest go first when they come to more than ILU_CACHE_GB, 4 at first.
    """
    limit = int(1e9 * float(os.environ.get(VARIABLE) or DEFAULT))
    off = source is None or limit <= 0
    file = cache_dir() / "states" / f"{_key(source)}.safetensors"
    found = None if off else _load(file)
    if together and not all(together.gather([found is not None])):
        found = None  # which another process lacks
    if found is not None:
        return found
    found = compute()
    if not off and (together is None or os.environ.get("LOCAL_RANK", "0") == "0"):
        with contextlib.suppress(OSError, SafetensorError):  # a cache that cannot be written costs time, nothing else
            _save(file, found, limit)
    return found


def rows_key(rows: Iterable[tuple[Sequence[int], int]]) -> str:
    """A hash of rows of tokens, each with its first target, in their order."""
    digest = hashlib.sha256()
    for ids, start in rows:
        digest.update(json.dumps([list(ids), start]).encode())
    return digest.hexdigest()


def _key(source: Any) -> str:
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    made_by = [LAYOUT, torch.__version__, transformers.__version__, device]
    return hashlib.sha256(json.dumps([made_by, source], sort_keys=True).encode()).hexdigest()


def _digest(tensors: Tensors) -> str:
    digest = hashlib.sha256()
    for name, t in sorted(tensors.items()):
        digest.update(f"{name} {t.dtype} {tuple(t.shape)}".encode())
        digest.update(t.contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _load(file: Path) -> Tensors | None:
    """Read a file; None if there is none, or it is damaged."""
    if not file.is_file():
        return None
    try:
        with safe_open(file, framework="pt") as f:
            known = (f.metadata() or {}).get("sha256")
            found = {name: f.get_tensor(name) for name in list(f.keys())}
        if _digest(found) == known:
            os.utime(file)
            return found
    except (OSError, SafetensorError):
        pass
    tell(f"{file} was damaged; what it held is computed again")
    return None


def _save(file: Path, tensors: Tensors, limit: int) -> None:
    size = sum(t.nbytes for t in tensors.values())
    file.parent.mkdir(parents=True, exist_ok=True)
    if size > limit or 2 * size > shutil.disk_usage(file.parent).free:
        return
    _make_room(file.parent, limit - size)
    handle, name = tempfile.mkstemp(dir=file.parent, prefix=".part-")
    os.close(handle)
    try:
        save_file(tensors, name, {"sha256": _digest(tensors)})
        Path(name).replace(file)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _make_room(folder: Path, room: int) -> None:
    """Remove what was not used for longest until the files come to `room` bytes."""
    files = sorted(folder.glob("*.safetensors"), key=lambda f: f.stat().st_mtime, reverse=True)
    for file in files:
        room -= file.stat().st_size
        if room < 0:
            file.unlink(missing_ok=True)
