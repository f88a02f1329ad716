"""What a model gave of rows, and what was found of it by trying, kept on disk by content: a second run reads it."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
import torch.distributed as dist
import transformers
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.backends.cpu import get_cpu_capability

from ilu_cli.errors import tell
from ilu_cli.models.code import brings_code
from ilu_cli.runs.files import cache_dir

LAYOUT = 1  # of the files, and of what is computed; raise it when either changes
DEFAULT = 4.0  # GB that all files together take at most
VARIABLE = "ILU_CACHE_GB"

Tensors = dict[str, Tensor]
T = TypeVar("T")


class Gathers(Protocol):
    """Processes that compute something together."""

    def gather(self, items: list[Any]) -> list[Any]:
        """What all of them have."""


def kept(source: Any, compute: Callable[[], Tensors], together: Gathers | None = None) -> Tensors:
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


def told(source: Any, find: Callable[[], T]) -> T:
    """What `find` says, as JSON has it, read if our code said it before of the same `source` on such a processor.

    `source` is as for `kept`. What is raised is not kept.
    """

    def written() -> Tensors:
        return {"json": torch.tensor(list(json.dumps(find()).encode()), dtype=torch.uint8)}

    made_by = [code(), torch.get_num_threads(), get_cpu_capability()]
    found = kept(None if source is None else ["told", made_by, source], written)["json"]
    said: T = json.loads(found.numpy().tobytes())
    return said


def source_of(model: Any, facts: list[Any] | None) -> list[Any] | None:
    """The `source` of what is told of a model with these facts; None if there are none, or they do not tell it all.

    They do not where a model's code is not transformers' own. Nor is anything read where processes run a model
    together, of which all or none may do so.
    """
    launched = dist.is_available() and dist.is_initialized()
    if facts is None or launched or brings_code(model):
        return None
    return [type(model).__name__, str(model.device), model.config._attn_implementation, *facts]


@functools.cache
def code() -> str:
    """A hash of our own code, which is one half of every comparison."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.parent.rglob("*.py")):
        digest.update(path.read_bytes())
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
