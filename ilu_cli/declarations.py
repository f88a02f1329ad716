"""What an idea declares at its decorator, by kind; checked there and then (`ilu_cli.registry`)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, PositiveInt

Per = Literal["sequence", "token", "hidden token"]
Quantity = Literal[
    "nll", "logps", "token_nll", "entropy", "gap", "hidden", "states", "mlp", "distillation", "elsewhere", "margins",
    "centre", "lens",
    "reference.logps", "reference.hidden", "reference.states", "reference.mlp", "reference.norm", "reference.final",
]  # fmt: skip
"""What a loss may read from its `View` (`ilu_cli.engine.view`), where each is described with its shape."""

CHUNKED = frozenset({"distillation", "elsewhere", "margins"})  # what takes all logits of a token at once
BY_HEAD = CHUNKED | {"nll", "logps", "token_nll", "entropy", "gap"}  # what the LM head makes of the last states

FLOAT = 4  # bytes; what is kept of the original model is float32


def reference_bytes(needs: Iterable[str], tokens: int, targets: int, width: int, layers: int = 0) -> int:
    """Bytes that are kept of the original's rows: of `tokens` tokens in all, of which `targets` are scored.

    The LM head as it was, which `reference.final` is read by, is not among them.

    Args:
        width: hidden units.
        layers: how many layers' states `reference.states` and `reference.mlp` are.
    """
    needed = {
        "reference.hidden": tokens * width,
        "reference.states": layers * tokens * width,
        "reference.mlp": layers * tokens * width,
        "reference.final": targets * width,
    }
    return FLOAT * sum(needed.get(need, 0) for need in needs)


class Declaration(BaseModel):
    """Base. `problems(own, key, recipe)` yields (key, message) for what is impossible in a recipe.

    `own` is the idea's part of the recipe and `key` where it stands; a message belongs to a key below that, or to any
    other of the recipe. `positional` is how many arguments the engine gives by position; all others are recipe keys.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)
    positional: ClassVar[int] = 0

    problems: Callable[..., Any] | None = None


class Loss(Declaration):
    """A loss over a `View`: what it reads, and what the sum of its values over a whole step is divided by."""

    positional = 1

    needs: Annotated[frozenset[Quantity], BeforeValidator(lambda text: frozenset(text.split()))]
    per: Per

    @property
    def reads(self) -> str | None:
        """The output of the decoder that is all it reads: its last (`final`), or that of a layer (`hidden`)."""
        own = {need for need in self.needs if not need.startswith("reference.")}
        return "final" if own <= BY_HEAD else "hidden" if own == {"hidden"} else None


class Objective(Loss):
    """`chosen` puts what should be said instead beside every row, as `view.chosen`.

    `parent`: the model that it starts from must be that of an unlearning run. `start(own, grads)` changes the trained
    weights once, when what the start says of the rows is known; `own` is the objective's part of the recipe.
    """

    chosen: Literal["refusal", "counterfactual", "alternative"] | None = None
    parent: Literal["unlearned"] | None = None
    start: Callable[..., None] | None = None


class Regularizer(Declaration):
    """`least` environments are needed for it to mean anything."""

    positional = 1

    least: PositiveInt = 1


class Attack(Declaration):
    """`strength` names the axis, and `unattacked` is where nothing is changed yet; None: there is no such point.

    `access` is what the attacker needs, and `original` whether that includes the original's weights; `utility`: whether
    the attack changes what the utility benchmarks measure. `alone`: whether its numbers mean anything without the
    reference line. `forget`: whether it trains on rows of the forget data on purpose, or claims to hold none of them.
    """

    positional = 1

    strength: str
    access: Literal["training", "weights", "activations", "prompts"]
    unattacked: int | float | None = None
    utility: bool = True
    original: bool = False
    alone: bool = True
    forget: Literal["taught", "held out"] | None = None
