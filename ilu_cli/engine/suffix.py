"""Tokens after a question that make a model give its answer, searched by the gradient of the embeddings."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ilu_cli.data.encode import Encoded, collate
from ilu_cli.engine.head import token_stats
from ilu_cli.engine.scoring import Question, Scorer
from ilu_cli.errors import UsageError

TRIES = 8  # substitutions drawn for each that is wanted: many are no tokens any more once they are text


@dataclass(frozen=True)
class Suffix:
    """Token ids, and the text that the tokenizer cuts into them behind a question."""

    ids: tuple[int, ...]
    text: str


@dataclass(frozen=True)
class Search:
    """What a search goes by.

    `allowed` [V] are the tokens that may stand in a suffix: printable ASCII and none of the special ones. `lead` is put
    before the text where the tokenizer drops a first space.
    """

    scorer: Scorer
    allowed: Tensor
    lead: str
    rng: random.Random

    def suffix(self, ids: Sequence[int]) -> Suffix:
        """The ids as text."""
        said = self.scorer.tokenizer.decode(list(ids), clean_up_tokenization_spaces=False)
        return Suffix(tuple(ids), self.lead + said)

    def holds(self, suffix: Suffix, pairs: Sequence[tuple[str, str]]) -> bool:
        """Whether the tokenizer finds these very tokens again behind each of the questions."""
        return all(self.place(suffix, *pair) is not None for pair in pairs)

    def place(self, suffix: Suffix, question: str, answer: str) -> int | None:
        """Where the suffix begins in the row of a question and its answer; None if its tokens are not there."""
        row, n = self.scorer.pair(question + suffix.text, answer), len(suffix.ids)
        return next((i for i in range(row.start - n, -1, -1) if row.ids[i : i + n] == suffix.ids), None)

    def slopes(self, suffix: Suffix, pairs: Sequence[tuple[str, str]]) -> Tensor:
        """[K, V]: what the answers' summed NLL changes by, to first order, as a token moves towards another.

        This is the gradient by the one-hot vectors of the suffix (arXiv 2307.15043, section 2.2), up to a positive
        factor: the embedding of a one-hot vector is linear in it, so it is the gradient by the K embeddings, [K, E],
        times the embeddings of all words.
        """
        scorer, k = self.scorer, len(suffix.ids)
        rows = [scorer.pair(question + suffix.text, answer) for question, answer in pairs]
        batch = collate([Encoded(list(r.ids), r.start) for r in rows]).to(scorer.backend.device)
        embedding, seen = scorer.model.get_input_embeddings(), list[Tensor]()

        def keep(_module: object, _args: object, output: Tensor) -> Tensor:
            seen.append(output.detach().requires_grad_())
            return seen[0]

        with torch.enable_grad(), scorer.backend.autocast(scorer.precision):
            hook = embedding.register_forward_hook(keep)
            try:
                final = scorer.parts.final(batch.ids, batch.mask.long())
            finally:
                hook.remove()
            nll, _ = token_stats(final[:, :-1][batch.scored[:, 1:]], scorer.parts.head, batch.ids[batch.scored])
            [slope] = torch.autograd.grad(nll.sum(), seen)
        places = [self.place(suffix, *pair) for pair in pairs]
        total = torch.stack([slope[b, p : p + k] for b, p in enumerate(places) if p is not None]).sum(0)
        found: Tensor = total.float() @ embedding.weight.detach().float().T
        return found

    def losses(self, suffixes: Sequence[Suffix], pairs: Sequence[tuple[str, str]]) -> list[float]:
        """The answers' summed NLL behind each of the suffixes."""
        asked = [Question(question + s.text, (answer,)) for s in suffixes for question, answer in pairs]
        found = replace(self.scorer, known={}).loglikelihoods(asked)
        n = len(pairs)
        return [-sum(logp for [logp] in found[i : i + n]) for i in range(0, len(found), n)]

    def candidates(
        self, suffix: Suffix, slopes: Tensor, pairs: Sequence[tuple[str, str]], width: int, top: int
    ) -> list[Suffix]:
        """At most `width` suffixes with one other token, drawn from the `top` of each place by their slope."""
        best = slopes.masked_fill(~self.allowed.to(slopes.device), torch.inf).topk(top, largest=False).indices.tolist()
        found: dict[tuple[int, ...], Suffix] = {}
        for _ in range(TRIES * width):
            place = self.rng.randrange(len(suffix.ids))
            ids = (*suffix.ids[:place], self.rng.choice(best[place]), *suffix.ids[place + 1 :])
            other = self.suffix(ids)
            if ids != suffix.ids and ids not in found and self.holds(other, pairs):
                found[ids] = other
            if len(found) == width:
                break
        return list(found.values())


def search(
    scorer: Scorer, pairs: Sequence[tuple[str, str]], *, tokens: int, steps: int, batch: int, width: int, top: int,
    seed: int,
) -> Iterator[Suffix]:  # fmt: skip
    """Greedy coordinate gradient: after each step the suffix that is best so far on the questions of that step.

    arXiv 2307.15043, algorithm 1, as nanoGCG has it (one token a step, printable text that survives its own
    tokenizer). Each step takes other questions, `batch` of them, and the suffix stays where no candidate is better on
    them; the paper takes the best candidate even if it is worse.

    Args:
        pairs: questions and their answers, as text.
        tokens: K, of the suffix.
        width: candidates that are tried in a step.
        top: tokens of each place from which they are drawn.

    Raises:
        UsageError: if the tokenizer keeps no repeated token behind the questions.
    """
    rng = random.Random(f"gcg-{seed}")
    found = _begun(replace(scorer, known={}), pairs, tokens, rng)
    current, going = found
    for _ in range(steps):
        chosen = rng.sample(list(pairs), min(batch, len(pairs)))
        if going.holds(current, chosen):
            tried = [current, *going.candidates(current, going.slopes(current, chosen), chosen, width, top)]
            losses = going.losses(tried, chosen)
            current = tried[losses.index(min(losses))]
        yield current


def _begun(scorer: Scorer, pairs: Sequence[tuple[str, str]], tokens: int, rng: random.Random) -> tuple[Suffix, Search]:
    """A suffix of one token, again and again, that the tokenizer keeps behind all questions."""
    allowed = printable(scorer)
    words = allowed.nonzero().flatten().tolist()
    for word in rng.sample(words, len(words)):
        for lead in ("", " "):
            going = Search(scorer, allowed, lead, rng)
            suffix = going.suffix([word] * tokens)
            if going.holds(suffix, pairs[:1]) and going.holds(suffix, pairs):
                return suffix, going
    raise UsageError("attack.tokens: the tokenizer keeps no repeated token behind the questions, so nothing can begin")


def printable(scorer: Scorer) -> Tensor:
    """[V]: which tokens are printable ASCII text, and none of the special ones."""
    size, tokenizer = len(scorer.model.get_input_embeddings().weight), scorer.tokenizer
    texts = tokenizer.batch_decode([[i] for i in range(min(size, len(tokenizer)))])
    allowed = torch.zeros(size, dtype=torch.bool)
    allowed[: len(texts)] = torch.tensor([bool(t.strip()) and t.isascii() and t.isprintable() for t in texts])
    allowed[[i for i in tokenizer.all_special_ids if i < size]] = False
    return allowed
