"""Norms and cosines of task vectors, overall and by layer, in one pass over the files."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

import torch

from ilu_cli.taskvec.delta import Checkpoint, common_names, deltas

LAYER = re.compile(r"(?:layers|h|blocks)\.(\d+)\.")


def group_of(name: str) -> str:
    """`layer 7` for a weight of decoder layer 7, `other` for embeddings, norms and head."""
    match = LAYER.search(name)
    return f"layer {match[1]}" if match else "other"


@dataclass
class Gram:
    """Inner products of vectors by name, in float64: `products[i][j]` = ⟨v_i, v_j⟩."""

    names: list[str]
    products: torch.Tensor

    def norm(self, name: str) -> float:
        i = self.names.index(name)
        return math.sqrt(max(0.0, float(self.products[i, i])))

    def cosine(self, a: str, b: str) -> float | None:
        """The cosine, or None if one of the vectors is zero (a cosine with it is not defined)."""
        scale = self.norm(a) * self.norm(b)
        if scale == 0:
            return None
        return float(self.products[self.names.index(a), self.names.index(b)]) / scale

    def as_dict(self) -> dict[str, Any]:
        """Norms of all vectors and cosines of all pairs."""
        pairs = [(a, b) for i, a in enumerate(self.names) for b in self.names[i + 1 :]]
        return {
            "norms": {n: self.norm(n) for n in self.names},
            "cosines": {f"{a}·{b}": self.cosine(a, b) for a, b in pairs},
        }


def task_vectors(
    origin: Checkpoint,
    unlearned: Checkpoint,
    finetuned: Checkpoint | None,
    attacked: Checkpoint | None,
    include: list[str] | None = None,
) -> dict[str, Gram]:
    """Inner products of the task vectors that these checkpoints define, by group and under `all`.

    τ_u = θ_u − θ_o; τ_ft = θ_o^ft − θ_o; τ_u→ft = θ_u^ft − θ_u (arXiv 2506.01339, sec. 5).

    Raises:
        UnavailableError: if the checkpoints differ in names or shapes of their weights.
    """
    others = [c for c in (unlearned, finetuned, attacked) if c is not None]
    vectors = ["u"] + ["ft"] * (finetuned is not None) + ["u→ft"] * (attacked is not None)
    grams: dict[str, Gram] = {}
    for name in common_names([origin, *others], include):
        partial = torch.zeros(len(vectors), len(vectors), dtype=torch.float64)
        for found in deltas(origin.tensor(name), [c.tensor(name) for c in others]):
            if attacked is not None:
                found[-1] -= found[0]  # (θ_u^ft − θ_o) − (θ_u − θ_o)
            for i, a in enumerate(found):
                for j, b in enumerate(found[: i + 1]):
                    partial[i, j] += torch.dot(a, b)
        partial = partial + partial.tril(-1).t()
        for group in ("all", group_of(name)):
            gram = grams.setdefault(group, Gram(vectors, torch.zeros_like(partial)))
            gram.products += partial
    return grams
