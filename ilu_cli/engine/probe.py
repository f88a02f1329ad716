"""Hidden states, and what can be read out of them: the logit lens and linear probes over a question's choices."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor, nn

from ilu_cli.data.encode import Batch, Encoded, collate
from ilu_cli.data.sampling import seed_of
from ilu_cli.engine.head import wide
from ilu_cli.engine.scoring import Scorer
from ilu_cli.engine.tree import Request
from ilu_cli.models.parts import Parts, changed, shortened

BATCH = 16  # sequences per forward pass
TEXT_TOKENS = 64  # tokens of a text that are looked at


@dataclass(frozen=True)
class Lens(Parts):
    """A model that ends after its first `depth` layers: the final norm and the LM head read what the last one gives."""

    depth: int = 0

    @classmethod
    def of(cls, parts: Parts, depth: int) -> Lens:
        return cls(parts.decoder, parts.layers, parts.head, depth)

    def final(self, input_ids: Tensor, attention_mask: Tensor, **extra: Any) -> Tensor:
        """The normed output [B, T, D] of layer `depth` − 1; the layers above it are not run."""
        with shortened(self.layers, self.depth):
            return super().final(input_ids, attention_mask, **extra)


@torch.no_grad()
def states(parts: Parts, batch: Batch, pick: Tensor) -> Tensor:
    """The outputs of all layers [L, N, D] at the N positions where `pick` [B, T] is set, in float32 on the CPU."""
    found: dict[int, Tensor] = {}

    def keep(n: int) -> Callable[[Tensor], Tensor]:
        def run(output: Tensor) -> Tensor:
            found[n] = wide(output[pick]).cpu()
            return output

        return run

    with changed(parts.layers, {n: keep(n) for n in range(len(parts.layers))}):
        parts.final(batch.ids, batch.mask)
    return torch.stack([found[n] for n in range(len(parts.layers))])


def text_states(scorer: Scorer, texts: list[str]) -> Tensor:
    """[L, N, D]: the states of all layers at every token of the texts but the first."""
    encoded = [Encoded(scorer.encode(t)[:TEXT_TOKENS], 1) for t in texts]
    return _in_batches(scorer, encoded, lambda batch: batch.scored)


def choice_states(scorer: Scorer, items: list[dict[str, Any]]) -> list[Tensor]:
    """Per item [L, C, D]: the states at the last token of the question with each of its C choices."""
    ids = [list(scorer.pair(i["question"], c).ids) for i in items for c in i["choices"]]
    encoded = [Encoded(row, len(row) - 1) for row in ids]
    found = _in_batches(scorer, encoded, lambda batch: batch.scored)
    return list(found.split([len(i["choices"]) for i in items], dim=1))


def _in_batches(scorer: Scorer, encoded: list[Encoded], pick: Callable[[Batch], Tensor]) -> Tensor:
    found = []
    for i in range(0, len(encoded), BATCH):
        batch = collate(encoded[i : i + BATCH]).to(scorer.backend.device)
        with scorer.backend.autocast(scorer.precision):
            found.append(states(scorer.parts, batch, pick(batch)))
    return torch.cat(found, dim=1)


@dataclass
class Answers(Scorer):
    """A scorer that has a score for the tokens of every question with every choice already."""

    scores: dict[tuple[int, ...], float] = field(default_factory=dict)

    def score(self, requests: list[Request]) -> list[tuple[float, bool]]:
        return [(self.scores[r.ids], False) for r in requests]


def cross_fitted(
    scorer: Scorer, questions: dict[str, list[dict[str, Any]]], found: dict[str, list[Tensor]], layer: int, folds: int,
    l2: float, seed: int,
) -> Answers:  # fmt: skip
    """Score every question by a probe of one layer that was fitted on the questions of the other folds."""
    scores: dict[tuple[int, ...], float] = {}
    for name, items in questions.items():
        order = torch.randperm(len(items), generator=torch.Generator().manual_seed(seed_of(seed, "folds", name)))
        x = [s[layer] for s in found[name]]
        answers = [i["answer"] for i in items]
        for k in range(folds):
            test = order[k::folds].tolist()
            train = sorted(set(order.tolist()) - set(test))
            score = fit_choices([x[i] for i in train], [answers[i] for i in train], l2)
            for i in test:
                ids = [scorer.pair(items[i]["question"], c).ids for c in items[i]["choices"]]
                scores |= zip(ids, score(x[i]).tolist())
    return as_answers(scorer, scores)


def as_answers(scorer: Scorer, scores: dict[tuple[int, ...], float]) -> Answers:
    """The scorer with these scores in place of its own."""
    return Answers(**{f.name: getattr(scorer, f.name) for f in fields(Scorer)}, scores=scores)


def fit_choices(x: list[Tensor], answers: list[int], l2: float) -> Callable[[Tensor], Tensor]:
    """Fit w in P(choice c of question i) = softmax_c(w · z_ic), z the standardised features (conditional logit).

    Minimises mean NLL + l2/2 · ‖w‖² by L-BFGS from 0; convex. x: per question [C, D]; answers: the index of the right
    choice. Returns the map from features [C, D] to scores [C].
    """
    every = torch.cat(x).double()
    mean, std = every.mean(0), every.std(0).clamp(min=1e-12)
    z = [(f.double() - mean) / std for f in x]
    width = max(len(f) for f in z)
    padded = torch.stack([nn.functional.pad(f, (0, 0, 0, width - len(f))) for f in z])
    real = torch.tensor([[c < len(f) for c in range(width)] for f in z])
    target, w = torch.tensor(answers), torch.zeros(every.shape[1], dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([w], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        scores = (padded @ w).masked_fill(~real, -torch.inf)
        value = nn.functional.cross_entropy(scores, target) + l2 / 2 * w @ w
        value.backward()
        return value

    optimizer.step(loss)
    fitted = w.detach()
    return lambda features: (features.double() - mean) / std @ fitted
