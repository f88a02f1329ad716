"""Checkpoints as lazily read tensors, with or without adapters, and which of their tensors can be compared."""

from __future__ import annotations

import fnmatch
import json
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from ilu_cli.errors import UnavailableError, UsageError
from ilu_cli.models.subject import Subject
from ilu_cli.runs.files import weight_files
from ilu_cli.taskvec.stored import Stored, index

SHOWN = 12  # differences that an error lists


@dataclass(frozen=True)
class Factors:
    """s·B·A of one adapted weight, in the files of the adapter; `transposed` for weights stored as [in, out]."""

    a: Stored
    b: Stored
    scale: float
    transposed: bool

    def matrices(self) -> tuple[Tensor, Tensor]:
        """(left [m, r], right [r, n]) in float64; their product is what the adapter adds to the weight [m, n]."""
        a, b = self.a.tensor().double(), self.scale * self.b.tensor().double()
        return (a.t(), b.t()) if self.transposed else (b, a)


@dataclass(frozen=True)
class Weight:
    """One weight of a model: a stored tensor, and what adapters add to it."""

    stored: Stored
    added: tuple[Factors, ...] = ()

    def exact(self) -> Tensor:
        """The whole weight in float64, adapters included."""
        plain = self.stored.tensor().double()
        for factors in self.added:
            left, right = factors.matrices()
            plain += left @ right
        return plain


class Checkpoint:
    """The tensors of a checkpoint folder. Tied weights are counted once, even if both are stored."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._stored: dict[str, Stored] = {}
        for path in weight_files(folder):
            self._stored |= index(path)
        if not self._stored:
            raise UnavailableError(f"{folder} has no *.safetensors weights")
        config = folder / "config.json"
        tied = config.is_file() and json.loads(config.read_text(encoding="utf-8")).get("tie_word_embeddings")
        if tied and any("embed" in n for n in self._stored):
            self._stored.pop("lm_head.weight", None)

    @property
    def names(self) -> set[str]:
        return set(self._stored)

    def weight(self, name: str) -> Weight:
        return Weight(self._stored[name])

    def shape(self, name: str) -> list[int]:
        return list(self.weight(name).stored.shape)

    def tensor(self, name: str) -> Tensor:
        """The whole weight in its stored type, adapters included."""
        weight = self.weight(name)
        plain = weight.stored.tensor()
        return weight.exact().to(plain.dtype) if weight.added else plain


class Adapted(Checkpoint):
    """A checkpoint with a LoRA adapter over it: W + s·B·A, s = α/r (α/√r for rsLoRA).

    Raises:
        UnavailableError: if the adapter is not plain LoRA.
    """

    def __init__(self, base: Checkpoint, folder: Path) -> None:
        super().__init__(folder)
        config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        odd = [k for k in ("use_dora", "modules_to_save", "rank_pattern", "alpha_pattern") if config.get(k)]
        odd += sorted(n for n in self._stored if "lora_A" not in n and "lora_B" not in n)
        if config.get("peft_type") != "LORA" or odd:
            raise UnavailableError(f"{folder} is not a plain LoRA adapter: {', '.join(odd) or config.get('peft_type')}")
        rank = config["r"] ** 0.5 if config.get("use_rslora") else config["r"]
        self.base, scale, transposed = base, config["lora_alpha"] / rank, bool(config.get("fan_in_fan_out"))
        self._factors = {
            key.removeprefix("base_model.model.").replace(".lora_A.weight", ".weight"): Factors(
                stored, self._stored[key.replace("lora_A", "lora_B")], scale, transposed
            )
            for key, stored in self._stored.items()
            if "lora_A" in key
        }
        if lost := set(self._factors) - base.names:
            raise UnavailableError(
                f"{folder} adapts weights that {base.folder} does not have: {', '.join(sorted(lost))}"
            )

    @property
    def names(self) -> set[str]:
        return self.base.names

    def weight(self, name: str) -> Weight:
        below = self.base.weight(name)
        mine = self._factors.get(name)
        return Weight(below.stored, (*below.added, mine)) if mine else below


def open_checkpoint(subject: Subject) -> Checkpoint:
    """The tensors of a model, with its adapter if it has one."""
    return Adapted(open_checkpoint(subject.base), subject.folder) if subject.base else Checkpoint(subject.folder)


def differences(checkpoints: list[Checkpoint]) -> dict[str, str]:
    """The tensors that not all checkpoints have in the same shape, each with what is the matter."""
    first, wrong = checkpoints[0], dict[str, str]()
    for other in checkpoints[1:]:
        wrong |= dict.fromkeys(sorted(first.names - other.names), f"is missing in {other.folder}")
        wrong |= dict.fromkeys(sorted(other.names - first.names), f"is missing in {first.folder}")
        wrong |= {
            n: f"is {first.shape(n)} in {first.folder} and {other.shape(n)} in {other.folder}"
            for n in sorted(first.names & other.names)
            if first.shape(n) != other.shape(n)
        }
    return wrong


def common_names(checkpoints: list[Checkpoint], include: list[str] | None, *, common: bool = False) -> list[str]:
    """Names of the tensors to compare, in order; with `common` those that all checkpoints share.

    Raises:
        UnavailableError: if the checkpoints do not have the same tensors, without `common`; or have none in common.
        UsageError: if a pattern of `include` matches nothing.
    """
    wrong = differences(checkpoints)
    names = sorted(set.union(*(c.names for c in checkpoints)) - set(wrong))
    if wrong and (not common or not names):
        lines = [f"{name} {what}" for name, what in sorted(wrong.items())]
        more = [f"and {len(lines) - SHOWN} more"] if len(lines) > SHOWN else []
        raise UnavailableError(
            f"the checkpoints do not have the same weights ({len(wrong)} differ, {len(names)} are common to all):\n  "
            + "\n  ".join(lines[:SHOWN] + more),
            hint="--common compares what they share, and lists the rest" if names else None,
        )
    if include is None:
        return names
    for pattern in include:
        if not fnmatch.filter(names, pattern):
            raise UsageError(f"include: {pattern!r} matches no weight")
    return [n for n in names if any(fnmatch.fnmatch(n, p) for p in include)]


def changed_fraction(a: Checkpoint, b: Checkpoint) -> float:
    """The share of all weights that differ between two checkpoints."""
    names = common_names([a, b], None)
    changed = total = 0
    for name in names:
        total += a.weight(name).stored.numel
        if a.weight(name) != b.weight(name):
            changed += int((a.tensor(name) != b.tensor(name)).sum())
    return changed / total
