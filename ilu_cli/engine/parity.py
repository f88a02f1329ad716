"""The model at hand against plain transformers: what is lost by our own ways of computing, looked at when it is loaded.

Losses come from the fused head, scores from packed trees; both are compared with `model(input_ids, labels)` and the
log-softmax of its logits, on a few short texts, each by itself, in float32. What was found of the same weights by the
same code is read from ILU_CACHE/states.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ilu_cli.data.encode import Encoded, collate
from ilu_cli.data.special import check_rows
from ilu_cli.engine.generation import greedy, left_padded
from ilu_cli.engine.layout import short_window
from ilu_cli.engine.tree import Request
from ilu_cli.engine.view import View
from ilu_cli.errors import UnavailableError, UsageError
from ilu_cli.models.kept import source_of, told
from ilu_cli.models.sharded import whole

if TYPE_CHECKING:
    from ilu_cli.engine.scoring import Scorer

TOLERANCE = 1e-3  # nats; float32 leaves 1e-5 to 1e-4 on trained models
TEXT = (
    "In the year 1848 a small town by the river built its first bridge of iron, and people came from 12 villages to "
    "see it. Some said that it would never stand; others danced on it all night."
)
NEW = 2  # tokens of generation that are compared: what follows a text, and what follows that
FAILURES = (
    TypeError,
    ValueError,
    LookupError,
    AttributeError,
    RuntimeError,
    AssertionError,
)  # of models that do otherwise
STEM, BRANCHES, OTHER = 6, (6, 4), 5  # tokens: what two requests share, how they go on, and one that shares nothing


@dataclass(frozen=True)
class Parity:
    """The largest differences from plain transformers, in nats a token. `why` says what speaks against trees, if so.

    `padded`: whether texts may be continued in one batch, padded on their left; `decodes`: whether step by step, with a
    cache, the model says what it says of the whole text.
    """

    loss: float
    logps: float
    tolerance: float
    trees: bool
    why: str = ""
    padded: bool = True
    decodes: bool = True

    @property
    def holds(self) -> bool:
        """Whether all that differs is rounding; numbers that are not finite never hold."""
        return self.loss <= self.tolerance and self.logps <= self.tolerance

    def facts(self) -> dict[str, object]:
        return asdict(self)


def check(scorer: Scorer, note: Callable[[str], None]) -> Parity:
    """Compare a model that was just loaded; where trees are not right, it is scored in plain rows from here on.

    What was found of the same weights is read if it is there (`Parts.identity`, `ilu_cli.models.kept`).

    Raises:
        UnavailableError: if they are not finite.
        UsageError: if its losses or scores are not those of plain transformers either way.
    """
    wanted, name = scorer.layout.trees, type(scorer.model).__name__
    found = scorer.parity = _known(scorer)
    if wanted and not found.trees:
        note(f"{name}: shared beginnings are run again for every request, since {found.why}")
    if found.decodes and not found.padded:
        note(f"{name}: only texts of one length are continued together, since padding changes what it says")
    return found


def _known(scorer: Scorer) -> Parity:
    """The comparison, read if it was made before, and the layout that it leaves; one that fails is never kept."""
    layout, identity = scorer.layout, scorer.parts.identity

    def made() -> Any:
        found = compare(scorer)
        if not found.holds:
            raise UsageError(
                f"{type(scorer.model).__name__} is not supported: on a short text its loss differs from plain "
                f"transformers' by {found.loss:.3g} nats and its log-probabilities by up to {found.logps:.3g} "
                f"(tolerance {found.tolerance:.1g})",
                hint="`ilu doctor MODEL` shows the comparison",
            )
        return found.facts(), scorer.layout.kinds, scorer.layout.why

    asked = [[r.ids for r in _requests(scorer.tokenizer)], layout.kinds, layout.why, layout.bound]
    said, kinds, why = told(source_of(scorer.model, identity and ["parity", *identity, *asked]), made)
    found = Parity(**said)
    scorer.layout = replace(layout, kinds=tuple(kinds), why=why, padded=found.padded)
    return found


@torch.no_grad()
def compare(scorer: Scorer) -> Parity:
    """Losses and scores against plain transformers: with trees if the layout has them, else, or if that fails, without.

    The scorer's layout is the one that was right.

    Raises:
        UnavailableError: if plain transformers' numbers are not finite, or the tokenizer is not the model's.
    """
    layout = scorer.layout
    exact = replace(scorer, precision="fp32", tokens=1)  # a row by itself, as in theirs
    requests = _requests(scorer.tokenizer)
    rows = scorer.model.get_input_embeddings().weight.shape[0]
    check_rows(scorer.tokenizer, max(i for r in requests for i in r.ids), rows)
    loss, *first, largest = _plain(scorer, requests[0])
    theirs = [*first, *(_plain(scorer, r)[1] for r in requests[1:])]
    if not math.isfinite(loss) or not all(t.isfinite().all() for t in theirs):
        name = type(scorer.model).__name__
        raise UnavailableError(f"this {name} answers a short text with numbers that are not finite: it is damaged")
    tolerance = TOLERANCE * max(1.0, largest / 100)  # float32 keeps 7 digits of a logit
    loss, why = abs(loss - _fused(scorer, requests[0])), layout.why
    alone, *_, longest = sorted((list(r.ids) for r in requests), key=len)
    decodes = _decoding_difference(scorer, [longest]) <= tolerance
    padded = decodes and _decoding_difference(scorer, [alone, longest]) <= tolerance
    scorer.layout = exact.layout = layout = replace(layout, padded=padded)
    if layout.trees:
        packed, failure = _packed_difference(exact, requests, theirs)
        if packed <= tolerance:
            return Parity(loss, packed, tolerance, trees=True, padded=padded, decodes=decodes)
        why = failure or f"with trees they would differ from plain transformers' by up to {packed:.3g} nats a token"
        scorer.layout = exact.layout = replace(layout, kinds=(), why=why)
    return Parity(loss, _difference(exact, requests, theirs), tolerance, False, why, padded, decodes)


def _decoding_difference(scorer: Scorer, rows: list[list[int]]) -> float:
    """How far log-probabilities of all words after each row, and after its first new token, are from plain ones."""
    ids, mask = left_padded(rows, scorer.backend.device)
    try:
        with greedy(scorer.model, scorer.tokenizer) as config:
            config.max_new_tokens, config.eos_token_id = NEW, None
            out = whole(scorer.model, lambda: scorer.model.generate(
                input_ids=ids, attention_mask=mask, generation_config=config, output_logits=True,
                return_dict_in_generate=True,
            ))  # fmt: skip
    except FAILURES as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        return torch.inf
    worst, ours = 0.0, torch.stack(out.logits, 1).float().log_softmax(-1)
    for row, said, logps in zip(rows, out.sequences, ours):
        text = said[None, ids.shape[1] - len(row) : -1]
        theirs = _run(scorer, text).logits[0, -NEW:].float().log_softmax(-1)
        worst = max(worst, float((logps - theirs).abs().nan_to_num(nan=torch.inf).max()))
    return worst


def _packed_difference(exact: Scorer, requests: list[Request], theirs: list[Tensor]) -> tuple[float, str]:
    """How far trees are from plain rows, with a window that is shorter than the requests; or why they do not run."""
    with short_window(exact.layout.config) as shorter:
        theirs = [_plain(exact, r)[1] for r in requests] if shorter else theirs
        try:
            return _difference(exact, requests, theirs), ""
        except FAILURES as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            first = str(error).partition("\n")[0]
            return torch.inf, f"the model takes no tree: {type(error).__name__}: {first[:80]}"


def _requests(tokenizer: Any) -> list[Request]:
    """Two requests with a shared beginning and a third with its own, of any tokenizer's tokens."""
    ids = tokenizer(TEXT, add_special_tokens=False)["input_ids"]
    ids = (ids * (1 + 64 // max(1, len(ids))))[: STEM + sum(BRANCHES) + OTHER]
    stem, rest = ids[:STEM], ids[STEM:]
    rows = [stem + rest[: BRANCHES[0]], stem + rest[BRANCHES[0] : sum(BRANCHES)], rest[sum(BRANCHES) :]]
    return [Request(tuple(row), 1) for row in rows]


def _plain(scorer: Scorer, request: Request) -> tuple[float, Tensor, float]:
    """Plain transformers on one text: its loss, the log-probability of each token [T − 1], the largest |logit|."""
    ids = torch.tensor([request.ids], device=scorer.backend.device)
    extra = {"output_router_logits": False} if hasattr(scorer.model.config, "output_router_logits") else {}
    out = _run(scorer, ids, labels=ids, **extra)
    logits = out.logits[0, :-1].float()
    logps = logits.log_softmax(-1).gather(-1, ids[0, 1:, None])[:, 0]
    return float(out.loss), logps, float(logits.abs().max())


def _run(scorer: Scorer, ids: Tensor, **extra: Any) -> Any:
    """Plain transformers' own forward pass."""
    return whole(scorer.model, lambda: scorer.model(input_ids=ids, use_cache=False, **extra))


def _fused(scorer: Scorer, request: Request) -> float:
    """Our training loss of the same text."""
    batch = collate([Encoded(list(request.ids), 1)]).to(scorer.backend.device)
    return float(whole(scorer.parts.decoder, lambda: View(scorer.parts, batch, 0).token_nll.mean()))


def _difference(scorer: Scorer, requests: list[Request], theirs: list[Tensor]) -> float:
    """The largest difference of a token's log-probability; every token of a request is scored by itself."""
    single = [Request(r.ids[: t + 1], t) for r in requests for t in range(1, len(r.ids))]
    ours = torch.tensor([logp for logp, _ in scorer.score(single)])
    return float((ours - torch.cat(theirs).cpu()).abs().max())
