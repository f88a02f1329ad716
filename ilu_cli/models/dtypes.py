"""The number types that weights are stored in, and what storing in fewer bits loses of a training."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from ilu_cli.errors import UsageError
from ilu_cli.models.checking import own_names
from ilu_cli.models.sharded import gathered
from ilu_cli.recipe.memory import MemorySpec
from ilu_cli.runs.files import tensors_in

PIECE = 1 << 18  # numbers that are in float64 at a time
STORED = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def saved_dtype(asked: str, folder: Path) -> torch.dtype:
    """The type that a checkpoint is written in: the one `asked`, or that of most weights stored in the `folder`.

    A parent in other types (quantised, float64) is followed by float32.
    """
    if asked != "stored":
        return DTYPES[asked]
    counts: Counter[str] = Counter()
    for tensor in tensors_in(folder).values():
        counts[tensor["dtype"]] += math.prod(tensor["shape"])
    return STORED.get(counts.most_common(1)[0][0], torch.float32) if counts else torch.float32


def kept_wide(model: nn.Module, folder: Path, dtype: torch.dtype) -> frozenset[str]:
    """The model's names of what a `folder` stores in float32, where most of it is in `dtype`, which has fewer bits.

    Routers' biases are, and state spaces' decays: rounded they are others, whether they are trained or not.
    """
    stored = {name: t["dtype"] for name, t in tensors_in(folder).items()}
    own = own_names(folder, model, stored) if dtype != torch.float32 and "F32" in stored.values() else {}
    return frozenset(name for file, name in own.items() if stored[file] == "F32")


def rounds(memory: MemorySpec, stored: torch.dtype, saved: torch.dtype, *, adapter: bool, spread: bool) -> bool:
    """Whether keeping weights in bf16 that nobody trains would change them where it must not; see `check_frozen`."""
    if memory.frozen != "bf16" or stored == torch.bfloat16:
        return False
    return spread or not (adapter or saved == torch.bfloat16)


def check_frozen(
    memory: MemorySpec, saved: torch.dtype, folder: Path, adapter: bool, key: str, *, spread: bool
) -> None:
    """Refuse to round weights that nobody trains in a checkpoint of the whole model. `key` is that of `memory`.

    Raises:
        UsageError: if they are kept in bf16, and neither stored so nor to be `saved` so; or not stored so, and the
            model is `spread` over processes, for which they are put into bf16 before the model is first asked.
    """
    if not rounds(memory, saved_dtype("stored", folder), saved, adapter=adapter, spread=spread):
        return
    if spread:
        raise UsageError(
            f"{key}.frozen: the weights in {folder} are not stored in bf16, so a sharded launch would measure the "
            "original with rounded ones",
            hint="leave it out, or launch with --multi_gpu",
        )
    raise UsageError(
        f"{key}.frozen: the weights in {folder} are not stored in bf16, so those that are not trained would be rounded",
        hint="leave it out, or train an adapter (lora)" + (", or add train.save_dtype=bf16" * (key[:5] == "train")),
    )


@torch.no_grad()
def lost_in(dtype: torch.dtype, trained: Mapping[str, Tensor], before: Callable[[str], Tensor]) -> float:
    """‖round(θ) − θ‖ / ‖θ − θ₀‖ over all `trained` weights θ, rounded to `dtype`; `before` gives each θ₀ by its name.

    0: nothing of the update is lost; 1: as much is wrong as was learned. 0 if nothing was learned.
    """
    wrong, moved = [], []
    for name, p in trained.items():
        pieces = (t.flatten().split(PIECE) for t in (gathered(p.detach()).cpu(), before(name)))
        for now, old in zip(*pieces):
            exact = now.double()  # not on a device, which may have no float64
            wrong.append(float((now.to(dtype).double() - exact).square().sum()))
            moved.append(float((exact - old.double()).square().sum()))
    total = math.fsum(moved)
    return math.sqrt(math.fsum(wrong) / total) if total else 0.0
