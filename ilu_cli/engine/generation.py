"""Decoding that is nothing but a model's arg max, or a draw from it, whatever its generation_config.json says."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, StoppingCriteria

from ilu_cli.models.sharded import whole


def generate(
    model: Any, tokenizer: Any, rows: list[list[int]], max_new_tokens: int, stop: tuple[str, ...] = (),
    *, within: bool = False,
) -> list[str]:  # fmt: skip
    """What follows each row of token ids, as text without special tokens; a row is done once it has said a `stop`.

    Args:
        within: as it stands behind the row (`behind`), and not as a text of its own.
    """
    ids, mask = left_padded(rows, model.device)
    with greedy(model, tokenizer) as config:
        config.max_new_tokens = max_new_tokens
        said = [Said(tokenizer, stop, ids.shape[1])] if stop else None

        def write() -> Tensor:
            found: Tensor = model.generate(
                input_ids=ids, attention_mask=mask, generation_config=config, stopping_criteria=said
            )
            return found

        out = whole(model, write)[:, ids.shape[1] :]
    return behind(tokenizer, rows, out) if within else list(tokenizer.batch_decode(out, skip_special_tokens=True))


def sample(
    model: Any, tokenizer: Any, rows: list[list[int]], max_new_tokens: int, seed: int, temperature: float, top_p: float
) -> list[str]:
    """What follows each row of token ids, drawn, as it stands behind the row (`behind`).

    It is the same for the same rows and seed on one machine.

    Args:
        top_p: of the most probable tokens as many are drawn from as have this probability together (arXiv 1904.09751).
    """
    ids, mask = left_padded(rows, model.device)
    devices = [model.device] if model.device.type == "cuda" else []
    with greedy(model, tokenizer) as config, torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        config.max_new_tokens, config.do_sample = max_new_tokens, True
        config.temperature, config.top_p, config.top_k = temperature, top_p, 0
        out = model.generate(input_ids=ids, attention_mask=mask, generation_config=config)
    return behind(tokenizer, rows, out[:, ids.shape[1] :])


def behind(tokenizer: Any, rows: list[list[int]], out: Tensor) -> list[str]:
    """New tokens [B, T] as text that goes on where each row's text ends.

    SentencePiece's decoders drop the space that a text begins with; behind `The cat`, `▁sat` is ` sat`, not `sat`.
    """
    found = []
    for row, new in zip(rows, out.tolist()):
        end, both, alone = (
            tokenizer.decode(ids, skip_special_tokens=True) for ids in (row[-1:], [*row[-1:], *new], new)
        )
        found.append(both.removeprefix(end) if both.startswith(end) else alone)
    return found


@contextmanager
def greedy(model: Any, tokenizer: Any) -> Iterator[GenerationConfig]:
    """A generation config of which the model's own says only where a text ends.

    What else stands in its generation_config.json (penalties, forced or suppressed tokens, lengths, a temperature)
    would act on greedy decoding too; `generate` takes from there all that is not given to it, so it is put away.
    """
    own = model.generation_config
    end = tokenizer.eos_token_id if own.eos_token_id is None else own.eos_token_id
    pad = (end[0] if isinstance(end, list) else end) or 0
    model.generation_config = GenerationConfig(do_sample=False, num_beams=1, eos_token_id=end, pad_token_id=pad)
    try:
        yield model.generation_config
    finally:
        model.generation_config = own


def left_padded(rows: list[list[int]], device: torch.device | str) -> tuple[Tensor, Tensor]:
    """Ids and mask [B, T], so that every row ends where its continuation begins."""
    length = max(map(len, rows))
    ids, mask = (torch.zeros(len(rows), length, dtype=torch.long) for _ in range(2))
    for i, row in enumerate(rows):
        ids[i, length - len(row) :] = torch.tensor(row)
        mask[i, length - len(row) :] = 1
    return ids.to(device), mask.to(device)


class Said(StoppingCriteria):
    """Stops each row by itself once it has said one of the strings. `start` is where generation began."""

    def __init__(self, tokenizer: Any, strings: tuple[str, ...], start: int) -> None:
        self.tokenizer, self.strings, self.start = tokenizer, strings, start
        self.window = max(len(s.encode()) for s in strings) + 1  # a token is at least one byte

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: object) -> Tensor:
        texts = self.tokenizer.batch_decode(input_ids[:, self.start :][:, -self.window :])
        return torch.tensor([any(s in text for s in self.strings) for text in texts], device=input_ids.device)
