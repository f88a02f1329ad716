"""Norms and cosines of task vectors: overall, by layer, by type of module, and where unlearning changed something."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ilu_cli.models.names import stored_layer
from ilu_cli.taskvec.delta import Checkpoint
from ilu_cli.taskvec.stream import products


def layer_of(name: str) -> str:
    """`layer 7` for a weight of decoder layer 7, `other` for embeddings, final norm and head."""
    layer = stored_layer(name)
    return "other" if layer is None else f"layer {layer}"


def type_of(name: str) -> str:
    """`q_proj`, `down_proj`, …: the module that a weight or bias belongs to; or `norms`, `embeddings`, `head`."""
    module = name.rpartition(".")[0].rpartition(".")[2] or name
    if "norm" in module or module.startswith("ln_"):
        return "norms"
    if module in ("lm_head", "embed_out"):
        return "head"
    return "embeddings" if "embed" in module or module in ("wte", "wpe") else module


@dataclass
class Gram:
    """Inner products of vectors by name, in float64: `products[i][j]` = ⟨v_i, v_j⟩."""

    names: list[str]
    products: Tensor

    def inner(self, a: str, b: str) -> float:
        """⟨a, b⟩ of two vectors by name, over all their weights."""
        return float(self.products[self.names.index(a), self.names.index(b)])

    def norm(self, name: str) -> float:
        """‖a‖₂; zero where rounding makes ⟨a, a⟩ negative."""
        return math.sqrt(max(0.0, self.inner(name, name)))

    def cosine(self, a: str, b: str) -> float | None:
        """The cosine, or None if one of the vectors is zero (a cosine with it is not defined)."""
        scale = self.norm(a) * self.norm(b)
        return self.inner(a, b) / scale if scale else None

    def pairs(self) -> list[tuple[str, str]]:
        """Every two vectors once, in the order of `names`."""
        return [(a, b) for i, a in enumerate(self.names) for b in self.names[i + 1 :]]

    def only(self, names: list[str]) -> Gram:
        """The same for some of the vectors."""
        at = torch.tensor([self.names.index(n) for n in names])
        return Gram(names, self.products[at[:, None], at])

    def as_dict(self) -> dict[str, dict[str, float | None]]:
        """Norms of all vectors and cosines of all pairs."""
        return {
            "norms": {n: self.norm(n) for n in self.names},
            "cosines": {f"{a}·{b}": self.cosine(a, b) for a, b in self.pairs()},
        }


@dataclass
class Grams:
    """The inner products of vectors, one matrix for every weight."""

    names: list[str]
    by_weight: dict[str, Tensor]

    def total(self, of: Callable[[str], bool] = lambda _: True) -> Gram:
        """Over all weights whose name is wanted."""
        parts = [g for name, g in self.by_weight.items() if of(name)]
        none = torch.zeros(len(self.names), len(self.names), dtype=torch.float64)
        return Gram(self.names, torch.stack(parts).sum(0) if parts else none)

    def by(self, group_of: Callable[[str], str]) -> dict[str, Gram]:
        """One sum for each group of weights."""
        members: dict[str, set[str]] = {}
        for name in self.by_weight:
            members.setdefault(group_of(name), set()).add(name)
        return {group: self.total(members[group].__contains__) for group in sorted(members, key=_in_order)}

    def only(self, names: list[str]) -> Grams:
        """The same for some of the vectors."""
        return Grams(names, {weight: Gram(self.names, g).only(names).products for weight, g in self.by_weight.items()})

    def touched(self, vector: str) -> list[str]:
        """The weights in which a vector is not zero."""
        i = self.names.index(vector)
        return [name for name, g in self.by_weight.items() if float(g[i, i]) > 0]


def _in_order(group: str) -> tuple[bool, int, str]:
    return group == "other", int(group.split()[1]) if group.startswith("layer ") else -1, group


def measure(checkpoints: dict[str, Checkpoint], vectors: dict[str, tuple[str, str]], names: list[str]) -> Grams:
    """Inner products of the vectors θ_end − θ_start, given as name: (start, end), over the weights `names`."""
    at = {role: i for i, role in enumerate(checkpoints)}
    pairs = [(at[start], at[end]) for start, end in vectors.values()]
    return Grams(list(vectors), dict(products(list(checkpoints.values()), pairs, names)))
