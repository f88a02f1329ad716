"""Checkpoints as lazily read tensors, and sums over their differences."""

from __future__ import annotations

import fnmatch
import json
from collections.abc import Iterator
from pathlib import Path

from safetensors import safe_open
from torch import Tensor

from ilu_cli.errors import UnavailableError, UsageError
from ilu_cli.models.subject import Subject
from ilu_cli.runs.files import weight_files

BLOCK = 1 << 22  # elements that are widened to float64 at a time


class Checkpoint:
    """The tensors of a checkpoint folder, read when asked for. Tied weights are stored, and so counted, once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._files = [safe_open(p, framework="pt") for p in weight_files(folder)]
        self._where = {name: f for f in self._files for name in f.keys()}  # noqa: SIM118
        if not self._where:
            raise UnavailableError(f"{folder} has no *.safetensors weights")

    @property
    def names(self) -> set[str]:
        return set(self._where)

    def shape(self, name: str) -> list[int]:
        return list(self._where[name].get_slice(name).get_shape())

    def tensor(self, name: str) -> Tensor:
        return self._where[name].get_tensor(name)


class Adapted(Checkpoint):
    """A checkpoint with a LoRA adapter over it: W + s·B·A, s = α/r, worked out a tensor at a time.

    Raises:
        UnavailableError: if the adapter is not plain LoRA.
    """

    def __init__(self, base: Checkpoint, folder: Path) -> None:
        super().__init__(folder)
        config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        odd = [k for k in ("use_dora", "modules_to_save", "rank_pattern", "alpha_pattern") if config.get(k)]
        if config.get("peft_type") != "LORA" or odd:
            raise UnavailableError(f"{folder} is not a plain LoRA adapter: {', '.join(odd) or config.get('peft_type')}")
        rank = config["r"] ** 0.5 if config.get("use_rslora") else config["r"]
        self.base, self.scale, self.transposed = base, config["lora_alpha"] / rank, bool(config.get("fan_in_fan_out"))
        pairs = {
            k.removeprefix("base_model.model.").removesuffix(".lora_A.weight"): k for k in self._where if "lora_A" in k
        }
        self._pairs = {f"{module}.weight": (key, key.replace("lora_A", "lora_B")) for module, key in pairs.items()}
        if lost := set(self._pairs) - base.names:
            raise UnavailableError(
                f"{folder} adapts weights that {base.folder} does not have: {', '.join(sorted(lost))}"
            )

    @property
    def names(self) -> set[str]:
        return self.base.names

    def shape(self, name: str) -> list[int]:
        return self.base.shape(name)

    def tensor(self, name: str) -> Tensor:
        plain = self.base.tensor(name)
        if name not in self._pairs:
            return plain
        a, b = (super(Adapted, self).tensor(key).to(plain.dtype) for key in self._pairs[name])
        low_rank = self.scale * (b @ a)
        return plain + (low_rank.t() if self.transposed else low_rank)


def open_checkpoint(subject: Subject) -> Checkpoint:
    """The tensors of a model, with its adapter if it has one."""
    return Adapted(open_checkpoint(subject.base), subject.folder) if subject.base else Checkpoint(subject.folder)


def common_names(checkpoints: list[Checkpoint], include: list[str] | None) -> list[str]:
    """Names of the tensors to compare, in order.

    Raises:
        UnavailableError: if the checkpoints do not have the same tensors; all differences are listed.
        UsageError: if a pattern of `include` matches nothing.
    """
    first, wrong = checkpoints[0], []
    for other in checkpoints[1:]:
        wrong += [f"{n} is missing in {other.folder}" for n in sorted(first.names - other.names)]
        wrong += [f"{n} is missing in {first.folder}" for n in sorted(other.names - first.names)]
        wrong += [
            f"{n} is {first.shape(n)} in {first.folder} and {other.shape(n)} in {other.folder}"
            for n in sorted(first.names & other.names)
            if first.shape(n) != other.shape(n)
        ]
    if wrong:
        raise UnavailableError("the checkpoints do not have the same weights:\n  " + "\n  ".join(wrong))
    if include is None:
        return sorted(first.names)
    for pattern in include:
        if not fnmatch.filter(first.names, pattern):
            raise UsageError(f"include: {pattern!r} matches no weight")
    return sorted(n for n in first.names if any(fnmatch.fnmatch(n, p) for p in include))


def deltas(base: Tensor, others: list[Tensor]) -> Iterator[list[Tensor]]:
    """Yield θ_i − θ_0 for each other, in float64, a block of elements at a time."""
    flat, rest = base.reshape(-1), [t.reshape(-1) for t in others]
    for i in range(0, flat.numel(), BLOCK):
        origin = flat[i : i + BLOCK].double()
        yield [t[i : i + BLOCK].double() - origin for t in rest]


def changed_fraction(a: Checkpoint, b: Checkpoint) -> float:
    """The share of all weights that differ between two checkpoints."""
    names = common_names([a, b], None)
    changed = total = 0
    for name in names:
        x, y = a.tensor(name), b.tensor(name)
        changed += int((x != y).sum())
        total += x.numel()
    return changed / total
