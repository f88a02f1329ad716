"""Numbers that mean nothing: the declared list of warnings, and the record of one that was found.

What looks for them is beside: `measured` (results), `steps` (training), `content` and `overlap` (data). All are pure
functions of what a run has, and stay silent where it has too little to tell.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class WarningKind:
    """A warning by its id: what it tells, when it is given and why there, and what to do.

    `strict` is False for what limits a result without making it void; `--strict` lets that pass.
    """

    tells: str
    when: str
    remedy: str
    strict: bool = True


KINDS: dict[str, WarningKind] = {
    "benchmark-at-chance": WarningKind(
        "the original model does not know what a benchmark asks, so nothing can be seen to be lost",
        "n ≥ 20 and accuracy ≤ chance c + 2·√(c(1−c)/n): two standard errors of guessing, which unlike s/√n "
        "are not 0 at 0 % or 100 %",
        "choose a benchmark that the original answers, a larger model, or more rows (eval.limit)",
    ),
    "attack-learned-nothing": WarningKind(
        "an attack that trains has learned nothing, so what did not come back says nothing",
        "FA ≤ chance + 2 standard errors, as above, chance being the most that one constant answer gets; or the mean "
        "loss of the first and last fifth of the steps (10 at least) differ by less than 2 standard errors of the "
        "noise between steps",
        "raise attack.lr or attack.steps until the attack learns its task",
    ),
    "weights-unchanged": WarningKind(
        "a training left every weight as it was",
        "not one bit of the trained weights (of an unlearned model, of its checkpoint) differs",
        "raise the learning rate or the weight of the objective; see what train.params or lora train",
    ),
    "update-rounded": WarningKind(
        "a checkpoint in 16 bits has lost much of what was trained",
        "‖rounding error‖ is at least half of ‖update‖, over the trained weights",
        "--set train.save_dtype=fp32",
    ),
    "zero-loss": WarningKind(
        "a term of the loss is exactly 0 at every step, and so pulls at nothing",
        "exactly 0, and in every step: floating-point losses of real data are never",
        "look at the term's data and keys; a target that is cut off leaves nothing to learn",
    ),
    "zero-gradient": WarningKind(
        "steps whose gradient is exactly 0 train nothing",
        "exactly 0 in at least half of the steps",
        "look at train.params and the objective's layer: no trained weight may lie in the loss's way",
    ),
    "temperature-alone": WarningKind(
        "D of an environment fell because the logits were scaled, without any invariance",
        "|D| fell by half and by 2 standard errors, and the loss at the best temperature fell by less than 2 standard "
        "errors, sequence by sequence, or, where it was not measured, the loss by less than a tenth of that",
        "use `variant: param_scale` or `grad_norm`, which temperature alone does not satisfy, or several environments",
    ),
    "penalty-too-weak": WarningKind(
        "a penalty's gradient is too small beside the step's to change what is learned",
        "its median share of the length of the step's gradient is below 1 %, over the steps that have one",
        "set its weight as a share of the forget gradient, such as share:0.5",
    ),
    "collapsed": WarningKind(
        "a model reads ordinary text far worse than the original: one that babbles forgets everything",
        "the lower end of the perplexity's 95 % interval is above twice the original's: one more bit a word",
        "fewer steps, a lower learning rate, or a heavier retain term",
    ),
    "constant-answers": WarningKind(
        "a model says the same to everything: the same choice, or no difference between choices",
        "at least 20 questions, 99 % with the same choice and at most 90 % where that is right, or all choices of all "
        "questions equally likely",
        "the model has collapsed, or a chat template or few-shot examples are missing (eval.chat, eval.fewshot)",
    ),
    "degenerate-text": WarningKind(
        "a model's own text is loops or noise",
        "mean coherence is below 0.5: half as likely as the original's text, or half of it repeated",
        "fewer steps, a lower learning rate, or a heavier retain term",
    ),
    "below-chance": WarningKind(
        "an unlearned model answers less than one that guesses: it avoids the answers, a trace of knowing them",
        "the upper end of Wilson's 95 % interval is below chance",
        "stop earlier, or match utility (docs/pipeline.md)",
    ),
    "utility-unmatched": WarningKind(
        "models that are compared do not keep the same: a difference in forgetting may be one in damage",
        "the 95 % interval of the difference does not hold 0; in `ilu compare`, nor lies within --margin",
        "match the utility first: docs/pipeline.md",
    ),
    "one-row-repeated": WarningKind(
        "all or nearly all rows of a dataset are one and the same",
        "the commonest text is at least half of the rows",
        "look at the file: a join or an export may have gone wrong",
    ),
    "duplicate-rows": WarningKind(
        "a dataset holds fewer different rows than it seems",
        "(Σ c)² / Σ c² < n / 2, c the copies of each text: the mean over rows is as uncertain as that of half as many",
        "remove the copies",
    ),
    "invisible-rows": WarningKind(
        "rows consist of characters that nobody sees, such as zero-width spaces",
        "any row whose target has no letter, digit, mark of punctuation or symbol that prints",
        "remove the rows",
    ),
    "rows-overlap": WarningKind(
        "rows of one dataset are in another that should be apart from it",
        "a text of at least 13 words is in another set if 80 % of its runs of 13 words are (decontamination as in "
        "GPT-3 and Llama 2), a shorter one if all its words are there in a row, of less than 4 if it is a whole row",
        "remove the rows, or choose other data",
    ),
    "attack-was-environment": WarningKind(
        "an attack trains on the dataset that regularised the model, so it is not unanticipated",
        "the same name, whatever the split",
        "attack with other data",
        strict=False,
    ),
    "builtin-data": WarningKind(
        "built-in data stand in for published sets",
        "any",
        "mirror the published sets: docs/data.md",
        strict=False,
    ),
    "foreign-code": WarningKind(
        "a run executed code that is none of ilu's: a model's own, a plug-in's, or what a task file names",
        "whenever the run was told to",
        "read that code; its sha256 is in the manifest",
        strict=False,
    ),
    "one-seed": WarningKind(
        "one seed only", "any method with less than two seeds", "`ilu pipeline --seeds 3`", strict=False
    ),
    "reference-missing": WarningKind(
        "the original was not attacked as the unlearned model was",
        "no such run in the family",
        "run `ilu attack` without --no-reference",
        strict=False,
    ),
}


@dataclass(frozen=True)
class Warned:
    """A warning that was found: its id, and a sentence with the numbers."""

    id: str
    text: str

    def __post_init__(self) -> None:
        assert self.id in KINDS, f"{self.id} is not declared"

    @property
    def remedy(self) -> str:
        """What to do."""
        return KINDS[self.id].remedy

    @property
    def strict(self) -> bool:
        """Whether `--strict` makes an error of it."""
        return KINDS[self.id].strict

    def to_json(self) -> dict[str, str]:
        return {"id": self.id, "text": self.text, "remedy": self.remedy}


def read(found: Iterable[Mapping[str, Any]]) -> list[Warned]:
    """Warnings as a run keeps them; those that this version does not know are left out."""
    return [Warned(w["id"], w["text"]) for w in found if w.get("id") in KINDS]


def once(found: Iterable[Warned | None]) -> list[Warned]:
    """Those that are there, each once, in their order."""
    return list(dict.fromkeys(w for w in found if w))
