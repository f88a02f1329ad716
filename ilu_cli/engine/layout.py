"""How requests are laid out for a decoder: as packed trees, each kind of layer with its own mask, or as plain rows.

A 4-D mask replaces all that a decoder would have made of a 2-D one. So trees are only for decoders whose layers attend
to everything before a token or to a window of it; the window is counted along the path, in positions. Convolutions,
state spaces, and biases by distance (alibi) follow the order of the row instead, and get one path a row.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ilu_cli.engine.tree import Forest, Request, as_tensors, in_rows, who_sees_whom

FULL, SLIDING = "full_attention", "sliding_attention"  # as transformers calls them
WINDOWS = {"sliding_window", "use_sliding_window", "max_window_layers", "sliding_window_pattern"}
KEPT = 200_000  # tokens of requests whose rows are kept: 100 MB of lists at most
SHORT = 4  # tokens of a window while it is being checked


@dataclass(frozen=True)
class Layout:
    """What a decoder takes. `kinds` are those of its layers' attention; none: plain rows, and `why`.

    Requests of more than `bound` tokens stand apart: LongRoPE turns every token of a batch by its longest row. Texts to
    be continued may have padding before them if `padded`.
    """

    config: Any
    kinds: tuple[str, ...] = ()
    why: str = ""
    bound: int | None = None
    padded: bool = True

    @property
    def trees(self) -> bool:
        """Whether requests that begin alike are run as one packed tree."""
        return bool(self.kinds)

    def rows(self, requests: list[Request]) -> Iterator[list[Forest]]:
        """Lists of rows, the shortest row first; rows of different lists must not meet in a batch."""
        made = _kept if sum(len(r.ids) for r in requests) <= KEPT else _kept.__wrapped__
        for chosen in self.apart(range(len(requests)), [len(r.ids) - 1 for r in requests]):
            yield list(made(tuple(requests), tuple(chosen), self.trees))

    def apart(self, order: Iterable[int], lengths: list[int]) -> list[list[int]]:
        """Part the indices in `order` into those that may meet in a batch; `lengths` are the tokens read of each."""
        found: dict[bool, list[int]] = {}
        for i in order:
            found.setdefault(self.bound is not None and lengths[i] > self.bound, []).append(i)
        return list(found.values())

    def alike(self, tokens: int, new: int) -> int:
        """A number that texts have in common which may be continued in one batch by `new` tokens, of these lengths."""
        return tokens if not self.padded or (self.bound is not None and tokens + new > self.bound) else 0

    def inputs(
        self, rows: list[Forest], dtype: torch.dtype, device: torch.device
    ) -> tuple[Tensor, Any, dict[str, Tensor]]:
        """Ids [B, T], the mask or masks, and what else the decoder gets; masks are 2-D for plain rows."""
        ids, positions, end = (t.to(device) for t in as_tensors(rows))
        if not self.trees:
            lengths = torch.tensor([len(row) for row in rows], device=device)
            return ids, (torch.arange(ids.shape[1], device=device) < lengths[:, None]).long(), {}
        seen = who_sees_whom(end)
        masks = {kind: _bias(self._within(kind, seen, positions), dtype) for kind in self.kinds}
        return ids, masks if len(masks) > 1 else masks[self.kinds[0]], {"position_ids": positions}

    def _within(self, kind: str, seen: Tensor, positions: Tensor) -> Tensor:
        """Who sees whom [B, T, T] in a layer of this kind: a window of w tokens ends with the token itself."""
        if kind == FULL:
            return seen
        near: Tensor = positions[:, :, None] - positions[:, None, :] < self.config.sliding_window
        return seen & near


@functools.lru_cache(maxsize=8)
def _kept(requests: tuple[Request, ...], chosen: tuple[int, ...], trees: bool) -> list[Forest]:
    """See `in_rows`; the same requests are asked again at every point of an attack, and by the next attack."""
    return in_rows(list(requests), list(chosen), trees=trees)


def layout_of(decoder: nn.Module) -> Layout:
    """The layout for a decoder, as far as its configuration and its signature tell."""
    import inspect

    config: Any = decoder.config
    window = getattr(config, "sliding_window", None)
    kinds = set(getattr(config, "layer_types", None) or [SLIDING if window else FULL])
    other = [name for name, value in config.to_dict().items() if _speaks_of_window(name) and value]
    if "position_ids" not in inspect.signature(decoder.forward).parameters:
        return Layout(config, why="the model takes no positions")
    if getattr(config, "alibi", False):
        return Layout(config, why="its attention is biased by the distance in the row (alibi)")
    if unknown := sorted(kinds - {FULL, SLIDING}):
        return Layout(config, why=f"it has layers of {', '.join(unknown)}")
    if other:
        return Layout(config, why=f"its configuration has a window of another kind ({', '.join(other)})")
    return Layout(config, tuple(sorted(kinds)), bound=rope_bound(config))


@contextmanager
def short_window(config: Any) -> Iterator[bool]:
    """A window of a few tokens, so that a short row shows whether it is kept; False if the decoder has no window.

    Decoders read it from their configuration at every pass.
    """
    window = getattr(config, "sliding_window", None)
    if window:
        config.sliding_window = min(window, SHORT)
    try:
        yield bool(window)
    finally:
        if window:
            config.sliding_window = window


def _speaks_of_window(name: str) -> bool:
    return "window" in name and name.lstrip("_") not in WINDOWS


def rope_bound(config: Any) -> int | None:
    """The tokens up to which LongRoPE turns by its short factors; None if the model has no such rotation."""
    given = getattr(config, "rope_parameters", None) or {}
    each = [given] if "rope_type" in given else [r for r in given.values() if isinstance(r, dict)]
    bounds = [r["original_max_position_embeddings"] for r in each if r.get("rope_type") == "longrope"]
    return min(bounds, default=None)


def _bias(seen: Tensor, dtype: torch.dtype) -> Tensor:
    """[B, 1, T, T]: 0 where a token is seen, and the least number elsewhere."""
    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, torch.finfo(dtype).min)[:, None]
