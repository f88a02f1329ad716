"""The special tokens that a tokenizer puts around a text: found out by asking it, and put there once.

Everything is encoded without special tokens. A row then begins with what the tokenizer puts before a text (BOS), unless
the text itself begins so, as data and chat templates may write it. What it puts behind a text (EOS, with
`add_eos_token`) is left out: between prompt and answer it would be wrong, and an answer has its own end.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ilu_cli.errors import UnavailableError, UsageError

PROBES = ("a", "0", "the")


def bodies(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """The token ids of every text, with nothing around them but what the texts say themselves."""
    return tokenizer(list(texts), add_special_tokens=False)["input_ids"] if texts else []


def opening(tokenizer: Any) -> list[int]:
    """The ids that the tokenizer puts before a text: BOS, or nothing.

    Raises:
        UnavailableError: if it encodes the text itself otherwise when it adds special tokens.
    """
    for probe in PROBES:
        body, whole = (tokenizer(probe, add_special_tokens=special)["input_ids"] for special in (False, True))
        for k in range(len(whole) - len(body) + 1) if body else ():
            if whole[k : k + len(body)] == body:
                return list(whole[:k])
    raise UnavailableError(f"the tokenizer {tokenizer.name_or_path} encodes a text otherwise with its special tokens")


def first_token(tokenizer: Any) -> int:
    """What predicts the first token of a text without a context: BOS, else EOS (lm-eval's rule).

    Raises:
        UsageError: if the tokenizer has neither.
    """
    found = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    if found is None:
        raise UsageError(
            f"the tokenizer {tokenizer.name_or_path} has neither BOS nor EOS: nothing can stand before a text, and its "
            "first token is not predicted",
            hint="ask with a context, or name one of them in the model's tokenizer_config.json",
        )
    return int(found)


def check_rows(tokenizer: Any, largest: int, rows: int) -> None:
    """Check that a model with so many embeddings has one for the largest token id of its data.

    Raises:
        UnavailableError: if it has not.
    """
    if largest >= rows:
        raise UnavailableError(
            f"the tokenizer {tokenizer.name_or_path} has {len(tokenizer)} tokens and the model embeddings for {rows}: "
            f"{tokenizer.convert_ids_to_tokens(largest)!r} (token {largest}) has none",
            hint="put the tokenizer that the model was trained with into its folder",
        )


def framed(before: list[int], ids: list[int]) -> list[int]:
    """`ids` behind `before`, unless they begin so already."""
    return ids if ids[: len(before)] == before else before + ids


def kept(before: list[int], ids: Sequence[int]) -> int:
    """How many ids at the beginning stay when a row is cut: `before`, whether we or a chat template put it there."""
    return len(before) if list(ids[: len(before)]) == before else 0


def cut_left(ids: list[int], room: int, keep: int) -> list[int]:
    """At most `room` ids: the first `keep`, and of the others the last."""
    if len(ids) <= room:
        return ids
    return ids[:keep] + ids[len(ids) - (room - keep) :] if room > keep else ids[: max(room, 0)]


def parted(tokenizer: Any, before: list[int], prompt: str, target: str) -> tuple[list[int], int]:
    """Prompt + target as ids, and where the target begins: with the first token that reaches over the prompt's end."""
    [found] = parted_all(tokenizer, before, [(prompt, target)])
    return found


def parted_all(tokenizer: Any, before: list[int], pairs: list[tuple[str, str]]) -> list[tuple[list[int], int]]:
    """`parted` for many pairs, in one call of the tokenizer."""
    prompts = sorted({p for p, _ in pairs if p})
    alone = dict(zip(prompts, bodies(tokenizer, prompts)))
    found = []
    for ids, (prompt, _) in zip(bodies(tokenizer, [p + t for p, t in pairs]), pairs):
        whole = framed(before, ids)
        found.append((whole, len(whole) - len(ids) + _shared(ids, alone.get(prompt, []))))
    return [(whole, max(start, kept(before, whole))) for whole, start in found]


def _shared(a: list[int], b: list[int]) -> int:
    """How many tokens two rows have in common at their beginning."""
    return next((i for i, (x, y) in enumerate(zip(a, b)) if x != y), min(len(a), len(b)))


def continued(
    encode: Callable[[str], list[int]], context: str, continuation: str, white: str | None = None
) -> tuple[list[int], list[int]]:
    """The ids of a context and of what is scored after it, so that all continuations follow the same tokens.

    lm-eval's convention: white space (or what `white` names) at the end of the context is the continuation's, both are
    encoded together and parted where the context alone would end. Where a token reaches over that place, lm-eval scores
    less than the continuation, or nothing; here the continuation is then encoded by itself. `encode` gives the ids of a
    text with nothing around them.
    """
    stem = context.rstrip(white)
    rest = context[len(stem) :] + continuation
    alone, whole = encode(stem), encode(stem + rest)
    if whole[: len(alone)] == alone and len(whole) > len(alone):
        return alone, whole[len(alone) :]
    return alone, inside(encode, rest)


def inside(encode: Callable[[str], list[int]], text: str) -> list[int]:
    """The ids of a text within another, so without the space that SentencePiece puts before a text."""
    line, both = encode("\n"), encode(f"\n{text}")
    return both[len(line) :] if line and both[: len(line)] == line else encode(text)
