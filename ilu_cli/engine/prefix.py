"""What lies below the first trained layer never changes: its output is computed once a row, the rest from there."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from ilu_cli.data.encode import Encoded, collate
from ilu_cli.engine.accel import Backend
from ilu_cli.engine.blocks import Blocks, rows_key
from ilu_cli.models.heap import mapped
from ilu_cli.models.kept import Tensors, kept, source_of, told
from ilu_cli.models.logits import instead
from ilu_cli.models.parts import Parts

BATCH = 16  # sequences per forward pass while rows are computed
FLOAT = 4  # bytes
TRIED = 24  # tokens, at most, of the two rows that both ways are compared on
CLOSE = 1e-5  # of the largest value; float32 leaves 1e-7 a layer

Unpadded = Sequence[tuple[int, ...]]
"""The tokens of sequences, without padding."""


@dataclass(frozen=True)
class Begun(Parts):
    """A model whose first `depth` layers are not run for rows that are `known`: what they gave is put in place.

    Embeddings, masks and positions are the decoder's own; only these layers are passed over. `known` [T, D] are by the
    bytes of a row's int64 tokens, computed under autocast or not, as `half` says; under the other everything is run,
    and so it is while someone else has hooks in these layers. `tuples`: how many things each layer returns; 0: states
    alone.
    """

    depth: int = field(default=0, kw_only=True)
    half: bool = field(default=False, kw_only=True)
    tuples: tuple[int, ...] = field(default=(), kw_only=True)
    known: dict[bytes, Tensor] = field(default_factory=dict, kw_only=True, repr=False)

    def run(self, input_ids: Tensor, attention_mask: Tensor, **extra: Any) -> Any:
        device = input_ids.device.type
        if extra or attention_mask.dim() != 2 or self.half != torch.is_autocast_enabled(device) or self._watched(True):
            return super().run(input_ids, attention_mask, **extra)
        states = self._put_together(input_ids, attention_mask)
        if states is None:
            return super().run(input_ids, attention_mask)
        with passed_over(self.layers, self.tuples, states):
            return super().run(input_ids, attention_mask)

    def _put_together(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor | None:
        """[B, T, D], what the first layers give, of rows that are not known by running them; None if none is known."""
        lengths = attention_mask.sum(-1).tolist()
        names = [row[:n].tobytes() for row, n in zip(input_ids.cpu().numpy(), lengths)]
        lost = [i for i, name in enumerate(names) if name not in self.known]
        if len(lost) == len(names) or (lost and self._watched(False)):
            return None
        fresh = dict(zip(lost, self.begun(input_ids[lost], attention_mask[lost]).cpu())) if lost else {}
        rows = [fresh[i][:n] if i in fresh else self.known[name] for i, (n, name) in enumerate(zip(lengths, names))]
        states = pad_sequence(rows, batch_first=True)
        states = nn.functional.pad(states, (0, 0, 0, input_ids.shape[1] - states.shape[1]))
        return states.to(input_ids.device)

    @torch.no_grad()
    def begun(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """[B, T, D], what the last of the first layers gives; all of them are run."""
        plain = Parts(self.decoder, self.layers, self.head, ends_early=self.ends_early)
        return plain.hidden_at(self.depth - 1, input_ids, attention_mask)

    def _watched(self, within: bool) -> bool:
        """Whether there are hooks `within` the first layers, whose calls would fail to come, or on what they give."""
        last = self.layers[self.depth - 1]
        if not within:
            return bool(last._forward_hooks)
        inside = (m for layer in self.layers[: self.depth] for m in layer.modules())
        return any(m._forward_pre_hooks or (m._forward_hooks and m is not last) for m in inside)


@contextmanager
def passed_over(layers: nn.ModuleList, tuples: Sequence[int], states: Tensor) -> Iterator[None]:
    """Let the first layers do nothing, as many as `tuples` has, and the last of them return `states` [B, T, D].

    `tuples`: how many things each layer returns; 0: states alone.
    """

    def give(n: int) -> Callable[..., Any]:
        def forward(*args: Any, **kwargs: Any) -> Any:
            if n == len(tuples) - 1:
                given = rows.pack(states) if (rows := kwargs.get("rows")) else states
            else:
                given = args[0] if args else kwargs["hidden_states"]
            return (given, *[None] * (tuples[n] - 1)) if tuples[n] else given

        return forward

    with ExitStack() as stack:
        for n in range(len(tuples)):
            stack.enter_context(instead(layers[n], give(n)))
        yield


def begin(parts: Parts, depth: int, rows: Unpadded, backend: Backend, precision: str, source: Any = None) -> Parts:
    """The parts with what the first `depth` layers, none of which is trained, give of these rows.

    It is kept in host memory in the type that the layers compute, mostly float32: 4·D bytes a token. A decoder that
    does not give the same that way is returned as it is.

    Args:
        source: what tells the model, as JSON: then it is kept on disk too, see `ilu_cli.models.kept`.
    """
    if not rows or not (found := fitting(parts, depth, rows, backend, precision == "bf16")):
        return parts
    if source is not None:
        source = ["prefix", source, depth, precision, rows_key((row, 0) for row in rows)]
    places = Blocks([len(row) for row in rows])
    block = kept(source, lambda: _states(found, rows, places, backend, precision))["states"]
    found.known.update(zip(map(_name, rows), places.rows(block)))
    return found


@mapped()
@torch.no_grad()
def _states(parts: Begun, rows: Unpadded, places: Blocks, backend: Backend, precision: str) -> Tensors:
    """What the first layers give of all rows, in their order."""
    for i in range(0, len(rows), BATCH):
        part = rows[i : i + BATCH]
        batch = collate([Encoded(list(row), 1) for row in part]).to(backend.device)
        with backend.autocast(precision):
            states = parts.begun(batch.ids, batch.mask).cpu()
        for j, row in enumerate(part):
            places.put(i + j, states[j, : len(row)])
    assert places.block is not None
    return {"states": places.block}


def within(rows: Unpadded, width: int, limit: float) -> Unpadded:
    """Of the rows, shortest first, those whose states [T, `width`] take `limit` bytes at most."""
    found, used = list[tuple[int, ...]](), 0
    for row in sorted(set(rows), key=lambda row: (len(row), row)):
        used += FLOAT * width * len(row)
        if used > limit:
            break
        found.append(row)
    return found


def _name(row: tuple[int, ...]) -> bytes:
    return torch.tensor(row).numpy().tobytes()


def fitting(parts: Parts, depth: int, rows: Unpadded, backend: Backend, half: bool) -> Begun | None:
    """Parts that begin after `depth` layers, if that gives of two short rows what the whole decoder gives."""
    two = max(rows, key=len)[:TRIED], min(rows, key=len)[: TRIED // 2]
    shape: dict[str, Any] = {"depth": depth, "ends_early": parts.ends_early, "half": half, "identity": parts.identity}
    if Begun(parts.decoder, parts.layers, parts.head, **shape)._watched(True):
        return None
    source = source_of(parts.decoder, parts.identity and ["prefix", depth, two, *parts.identity])
    tuples = told(source, lambda: _tuples(parts, depth, two, backend))
    return None if tuples is None else Begun(parts.decoder, parts.layers, parts.head, tuples=tuple(tuples), **shape)


def _tuples(parts: Parts, depth: int, rows: Unpadded, backend: Backend) -> list[int] | None:
    """How many things each of the first `depth` layers returns, 0 for states alone; None if they cannot be passed over.

    They can if that gives of these rows what the whole decoder gives.
    """
    batch = collate([Encoded(list(row), 1) for row in rows]).to(backend.device)
    tuples: list[int] = []

    def count(_module: nn.Module, _args: Any, output: Any) -> None:
        tuples.append(len(output) if isinstance(output, tuple) else 0)

    with backend.autocast("fp32"):
        with ExitStack() as stack:
            for layer in parts.layers[:depth]:
                stack.callback(layer.register_forward_hook(count).remove)
            whole = parts.final(batch.ids, batch.mask)
        shape: dict[str, Any] = {"depth": depth, "tuples": tuple(tuples), "ends_early": parts.ends_early}
        tried = Begun(parts.decoder, parts.layers, parts.head, **shape)
        states = tried.begun(batch.ids, batch.mask)
        tried.known.update({_name(row): states[j, : len(row)] for j, row in enumerate(rows)})
        try:
            found = tried.final(batch.ids, batch.mask)
        except torch.OutOfMemoryError:
            raise
        except Exception:  # whatever a decoder may raise that hands more from layer to layer than states
            return None
    apart, largest = (found - whole)[batch.mask].abs().max(), whole[batch.mask].abs().max()
    alike = len(tuples) == depth and bool(apart <= CLOSE * largest)
    return tuples if alike else None
