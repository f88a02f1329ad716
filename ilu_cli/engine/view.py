"""What a loss term sees of one micro-batch, each quantity computed on first use and once."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ilu_cli.data.encode import Batch
from ilu_cli.data.sampling import seed_of
from ilu_cli.engine.head import distillation, margins, token_stats, wide
from ilu_cli.models.logits import LMHead
from ilu_cli.models.parts import Parts

if TYPE_CHECKING:
    from ilu_cli.engine.joined import Joined

OUT = 1e6  # taken off a logit, it leaves the token no probability at all


@dataclass
class Reference:
    """The same sequences under the original model, from the cache.

    logps: [B], summed log-probability of each target. hidden: [B, T, D] at the layer. norm: median ‖hidden‖ over
    retain tokens, a number. final: [N, D], the last hidden states that predict the N scored tokens. head: its LM head.
    states, mlp: [L, B, T, D] at the L layers.
    """

    logps: Tensor | None = None
    hidden: Tensor | None = None
    norm: float | None = None
    final: Tensor | None = None
    head: LMHead | None = None
    states: Tensor | None = None
    mlp: Tensor | None = None


@dataclass
class View:
    """One micro-batch of a stream. B sequences, T tokens, N scored tokens, D hidden units.

    `chosen` holds the sequences that should be said instead, for objectives that need pairs. `topics` [B] tells which
    dataset of the stream each sequence is from; without it, all are from the first. `mean` is what `centre` tells.
    `joined`: the batch that the rows are run in, and which part of it they are. `counts`: no, where they are another
    process's, run in place of rows of which this one has none.
    """

    parts: Parts
    batch: Batch
    seed: int
    layer: int | None = None
    reference: Reference = field(default_factory=Reference)
    chosen: View | None = None
    topics: Sequence[int] = ()
    layers: Sequence[int] = ()
    mean: Tensor | None = None
    joined: tuple[Joined, int] | None = None
    counts: bool = True

    def _run(self, what: str, *at: Any) -> Tensor:
        """[B, T, D], what `Parts.what` gives of these rows, alone or in a batch with those of other views."""
        if self.joined is None:
            found: Tensor = getattr(self.parts, what)(*at, self.batch.ids, self.batch.mask)
            return found
        rows, n = self.joined
        return rows.of(n, self.batch.ids.shape[1], what, *at)

    @functools.cached_property
    def hidden(self) -> Tensor:
        """[B, T, D], the output of `layer`; the layers above it are not run."""
        assert self.layer is not None, "a term that needs hidden states has a layer"
        return wide(self._run("hidden_at", self.layer))

    @functools.cached_property
    def states(self) -> Tensor:
        """[L, B, T, D], the outputs of the L `layers`; those above the deepest are not run."""
        assert self.layers, "a term that needs states has layers"
        return wide(torch.stack(self.parts.states_at(self.layers, self.batch.ids, self.batch.mask)))

    @functools.cached_property
    def mlp(self) -> Tensor:
        """[L, B, T, D], the outputs of the MLPs in the L `layers`; the layers above the deepest are not run."""
        assert self.layers, "a term that needs MLP outputs has layers"
        return wide(torch.stack(self.parts.mlp_at(self.layers, self.batch.ids, self.batch.mask)))

    @property
    def centre(self) -> Tensor:
        """[L, D], the mean of the `states` of the step's forget rows, over all tokens but the first, held fixed."""
        assert self.mean is not None, "a term that needs the centre has a stream for it"
        return self.mean

    @property
    def hidden_mask(self) -> Tensor:
        """[B, T] as float: real tokens but the first, which is an attention sink of huge norm in many models."""
        mask = self.batch.mask.clone()
        mask[:, 0] = False
        return mask.to(torch.get_default_dtype())

    @functools.cached_property
    def final(self) -> Tensor:
        """[N, D], the last hidden states that predict the scored tokens."""
        return self._run("final")[:, :-1][self.batch.scored[:, 1:]]

    @property
    def targets(self) -> Tensor:
        """[N], the scored tokens."""
        return self.batch.ids[:, 1:][self.batch.scored[:, 1:]]

    @functools.cached_property
    def _stats(self) -> tuple[Tensor, Tensor]:
        return self._read(self.final, self.targets)

    def _read(self, final: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """[M] each: negative log-likelihood and entropy of what the LM head makes of states [M, D]."""
        return token_stats(final, self.parts.head, targets)

    @property
    def token_nll(self) -> Tensor:
        """[N], negative log-likelihood of every scored token."""
        return self._stats[0]

    def per_sequence(self, values: Tensor) -> Tensor:
        """Sum values [N] of the scored tokens to [B]."""
        rows = self.batch.scored[:, 1:].nonzero()[:, 0]
        return values.new_zeros(len(self.batch.ids)).index_add(0, rows, values)

    def distillation(self, shift: float = 0.0) -> tuple[Tensor, Tensor]:
        """[N] each: cross-entropy from the original model's distribution q to ours, and the entropy of q.

        q has `shift` taken off the logit of the target; see `ilu_cli.engine.head.distillation`.
        """
        teacher = self.reference
        assert teacher.final is not None and teacher.head is not None
        states = teacher.final.to(self.final.dtype)
        return distillation(self.final, self.parts.head, states, teacher.head, self.targets, shift)

    @functools.cached_property
    def lens(self) -> Tensor:
        """[L, N], NLL of every scored token where the final norm and the LM head read the `states` of the L layers."""
        picked = self.states[:, :, :-1][:, self.batch.scored[:, 1:]]
        found = self._read(self.parts.ended(picked).flatten(0, 1), self.targets.repeat(len(picked)))[0]
        return found.view(len(picked), -1)

    @property
    def margins(self) -> Tensor:
        """[N], the largest logit less the mean of all, which predict every scored token."""
        return margins(self.final, self.parts.head)

    @property
    def elsewhere(self) -> Tensor:
        """[N], cross-entropy to our own distribution without the target, which is held fixed."""
        head = self.parts.head
        return distillation(self.final, head, self.final.detach(), head, self.targets, OUT)[0]

    @property
    def lengths(self) -> Tensor:
        """[B], the number of scored tokens."""
        return self.batch.scored.sum(-1)

    @functools.cached_property
    def nll(self) -> Tensor:
        """[B], negative log-likelihood summed over the scored tokens."""
        return self.per_sequence(self.token_nll)

    @property
    def logps(self) -> Tensor:
        """[B], log-probability of each target, summed over its tokens."""
        return -self.nll

    @functools.cached_property
    def entropy(self) -> Tensor:
        """[B], entropy of the predictions summed over the scored tokens."""
        return self.per_sequence(self._stats[1])

    @functools.cached_property
    def gap(self) -> Tensor:
        """[B], NLL − H summed over the scored tokens; its mean over tokens is the D of IRM."""
        return self.per_sequence(self._stats[0] - self._stats[1])

    def afresh(self) -> View:
        """The same batch with nothing computed yet."""
        return replace(self, joined=None)

    def direction(self, name: str, topic: int = 0) -> Tensor:
        """[D], a fixed random unit vector: the same for this seed, name and topic at every step and on every process.

        Drawn uniformly from [0, 1) per coordinate, as in RMU's published code.
        """
        names = (name, topic) if topic else (name,)
        generator = torch.Generator().manual_seed(seed_of(self.seed, "direction", *names))
        u = torch.rand(self.hidden.shape[-1], generator=generator)
        return u.div(u.norm()).to(self.hidden.device)

    def directions(self, name: str) -> Tensor:
        """[B, D], of every sequence the `direction` of its topic."""
        topics = self.topics or [0] * len(self.batch.ids)
        known = {topic: self.direction(name, topic) for topic in set(topics)}
        return torch.stack([known[topic] for topic in topics])

    def values(self, need: str) -> Any:
        """The quantity of this name."""
        return getattr(self, need)
