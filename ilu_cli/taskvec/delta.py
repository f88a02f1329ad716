"""Checkpoints as lazily read tensors, with or without adapters, and which of their tensors can be compared."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ilu_cli.errors import UnavailableError, UsageError
from ilu_cli.models.checking import own_names
from ilu_cli.models.load import empty_model
from ilu_cli.models.save import merged
from ilu_cli.models.subject import Subject
from ilu_cli.runs.files import read_json, tensors_of, weight_files
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
    """The weights of a checkpoint folder, under the names that transformers gives them.

    What the files hold beside them (masks, rotary frequencies) is no weight. Tied weights are counted once, even if
    both are stored, unless they differ: then transformers does not tie them.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        files = weight_files(folder)
        names = {name: name for path in files for name in tensors_of(path)}
        tied = dict[str, str]()
        if names and (folder / "config.json").is_file():
            model = empty_model(folder)
            names, tied = own_names(folder, model, names), model.all_tied_weights_keys
        if not names:
            raise UnavailableError(f"{folder} has no *.safetensors weights")
        self._stored = {names[key]: stored for path in files for key, stored in index(path, names).items()}
        for copy, source in tied.items():
            if copy in self._stored and self._same(copy, source):
                self._stored.setdefault(source, self._stored.pop(copy))

    def _same(self, copy: str, source: str) -> bool:
        both = [self._stored[n].tensor() for n in (copy, source) if n in self._stored]
        return all(torch.equal(both[0], other) for other in both)

    @property
    def names(self) -> set[str]:
        return set(self._stored)

    def weight(self, name: str) -> Weight:
        """The weight of this name, which is not read yet."""
        return Weight(self._stored[name])

    def shape(self, name: str) -> list[int]:
        """The shape of a weight, from the file's header."""
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
        config = read_json(folder / "adapter_config.json")
        if odd := oddities(config, self._stored):
            raise UnavailableError(f"{folder} is not a plain LoRA adapter: {', '.join(odd)}")
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
        """The base's weight with this adapter's product added, which is not read yet."""
        below = self.base.weight(name)
        mine = self._factors.get(name)
        return Weight(below.stored, (*below.added, mine)) if mine else below


def oddities(config: dict[str, Any], names: Iterable[str]) -> list[str]:
    """What about an adapter is not W + s·B·A with one s: its configuration, and the names of its tensors."""
    keys = ("use_dora", "modules_to_save", "rank_pattern", "alpha_pattern", "target_parameters")
    odd = [k for k in keys if config.get(k)] or [n for n in names if "lora_A" not in n and "lora_B" not in n]
    return sorted(odd) if config.get("peft_type") == "LORA" else [str(config.get("peft_type"))]


def open_checkpoint(subject: Subject) -> Checkpoint:
    """The weights of a model, with its adapter if it has one. What is more than plain LoRA, peft merges into a copy."""
    if subject.base is None:
        return Checkpoint(subject.folder)
    names = [name for path in weight_files(subject.folder) for name in tensors_of(path)]
    if oddities(read_json(subject.folder / "adapter_config.json"), names):
        return Checkpoint(merged(subject))
    return Adapted(open_checkpoint(subject.base), subject.folder)


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
            changed += int((a.tensor(name) != b.tensor(name)).count_nonzero())
    return changed / total
