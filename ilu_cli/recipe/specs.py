"""The parts of recipes. Components (objective, retain term, ...) bring their own keys from their signatures."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    BeforeValidator,
    Discriminator,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Tag,
)

from ilu_cli import registry
from ilu_cli.recipe.chat import ChatDate, ChatSystem
from ilu_cli.recipe.dual import DualSpec
from ilu_cli.recipe.memory import MemorySpec
from ilu_cli.recipe.refs import DataRef, DataRefs, data_problems
from ilu_cli.recipe.source import Key
from ilu_cli.recipe.spec import Spec

DEFAULT_MODEL = "smollm2-135m"
Precision = Literal["bf16", "fp32"]
PrecisionOrAuto = Literal["auto", "bf16", "fp32"]
Optimizer = Literal["adamw", "sgd", "momentum", "adafactor", "muon"]
Tracker = Literal["tensorboard", "wandb", "mlflow"]

T = TypeVar("T")
Some = Annotated[list[T], Field(min_length=1)]
Share = Annotated[float, Field(gt=0, le=1)]
Fraction = Annotated[float, Field(gt=0, lt=1)]

BY_KIND = Discriminator(lambda given: "#text" if isinstance(given, str) else "#number")  # one message, not two
TermWeight = Annotated[
    Annotated[NonNegativeFloat, Tag("#number")]
    | Annotated[str, Field(pattern=r"^share:[0-9]+(\.[0-9]+)?$"), Tag("#text")],
    BY_KIND,
]
AUTO: Literal["auto"] = "auto"
TRIED = {"sgd": 1e2, "momentum": 1e2, "adamw": 1e-3, "adafactor": 1e-2, "muon": 1e-3}  # of lr: auto, the first one
AUTO_PARAMS = [AUTO]  # a list like all others, so that what trains weights knows one form; no weight is called so
LayerOrAuto = Annotated[Annotated[NonNegativeInt, Tag("#number")] | Annotated[Literal["auto"], Tag("#text")], BY_KIND]


class Form(Spec):
    """How examples become rows of tokens."""

    max_length: PositiveInt = Field(128, description="tokens per sequence; longer ones are cut and counted")
    chat: bool = Field(False, description="put prompt and answer into the tokenizer's chat template")
    chat_system: ChatSystem = None
    chat_date: ChatDate = None
    long: Literal["cut", "split"] = Field(
        "cut", description="a text without a prompt that is too long is cut, or split into rows of max_length"
    )


class Stream(Form):
    """What is fed at every step: datasets, taken in turn, and how much of them."""

    data: DataRefs
    batch: PositiveInt = Field(8, description="sequences per optimiser step, over all processes and micro-batches")
    max_length: int = Field(128, ge=8, description="tokens per sequence; longer ones are cut and counted")


class Component(Spec):
    """A registered idea and its keys."""

    name: str

    def params(self) -> dict[str, Any]:
        """The keys of the idea itself, without those common to its kind."""
        return {k: getattr(self, k) for k in type(self).model_fields if k not in type(self).common()}

    @classmethod
    def common(cls) -> set[str]:
        """The keys that every idea of this kind has."""
        return {
            k for base in (Component, RetainSpec, RegularizerSpec) if issubclass(cls, base) for k in base.model_fields
        }

    def problems(self, known: registry.Registry[Any], key: Key, recipe: Any) -> Iterator[tuple[Key, str]]:
        """What the idea itself says is impossible in this recipe. `key` is where it stands."""
        if find := known[self.name].declared.problems:
            yield from find(self, key, recipe)


def number_of(weight: float | str) -> float:
    """The number in a weight, or in a weight that is a share."""
    return float(weight.removeprefix("share:")) if isinstance(weight, str) else weight


class RetainSpec(Component, Stream):
    """The retain term, its data and its weight γ."""

    later = ("dual",)

    weight: TermWeight = Field(
        1.0, description="γ; share:0.5: such that its gradient is half as long as the forget term's"
    )
    dual: DualSpec | None = Field(None, description="moves the weight so that the term's value stays below a limit")


class RegularizerSpec(Component, Form):
    """A regulariser over one or more environments."""

    later = ("every",)
    env: DataRefs
    weight: TermWeight = Field(
        1.0, description="λ; share:0.5: such that its gradient is half as long as the forget term's"
    )
    env_weights: list[NonNegativeFloat] | None = Field(None, description="a_i, one per environment; null: all 1")
    batch: PositiveInt = Field(8, description="sequences per environment and step")
    max_length: int = Field(128, ge=8)
    schedule: Literal["constant", "linear", "step"] = Field(
        "constant", description="λ from the start; rising from `initial`; or jumping from it, with Adam's moments reset"
    )
    until: NonNegativeInt = Field(0, description="the step at which a rising or jumping λ reaches `weight`")
    initial: NonNegativeFloat = Field(0.0, description="λ at the start of a rising or jumping schedule")
    every: PositiveInt = Field(1, description="the penalty at each k-th step only, beginning with the first, with k·λ")

    def weight_at(self, step: int) -> float:
        """λ at a step, counted from 0; where `weight` is a share, that share."""
        last = number_of(self.weight)
        if self.schedule == "constant" or step >= self.until:
            return last
        if self.schedule == "step":
            return self.initial
        return self.initial + (last - self.initial) * step / self.until

    def problems(self, known: registry.Registry[Any], key: Key, recipe: Any) -> Iterator[tuple[Key, str]]:
        yield from super().problems(known, key, recipe)
        yield from data_problems(self.env, (*key, "env"))
        least, n = known[self.name].declared.least, len(self.env)
        if n < least:
            yield (*key, "env"), f"{self.name} compares environments: it needs at least {least}"
        if self.env_weights is not None and (len(self.env_weights) != n or not any(self.env_weights)):
            yield (*key, "env_weights"), f"needs one weight for each of the {n} environments, and one above 0"
        if (self.schedule == "constant") != (self.until == 0):
            yield (*key, "until"), "a schedule other than constant needs it, and a constant one has none"
        if self.every > recipe.train.steps:
            yield (*key, "every"), f"a run of {recipe.train.steps} steps has no step {self.every}"
        if self.schedule == "constant" and self.initial:
            yield (*key, "initial"), "a constant schedule has no initial weight"


class DefenceSpec(Component):
    """A way to take the forget gradient that makes forgetting robust."""

    later = ("built",)


class LoraSpec(Spec):
    """A low-rank adapter; its weights are all that is trained."""

    r: PositiveInt = 16
    alpha: PositiveInt = Field(32, description="the adapter is scaled by alpha / r")
    targets: list[str] = Field(["all-linear"], min_length=1, description="names of modules, or all-linear")
    layers: list[NonNegativeInt] | None = Field(None, min_length=1, description="only these layers; null: all")


class BudgetSpec(Spec):
    """How far a model may go from where it started: training keeps the last weights within it.

    Measured by `kl` on text, or by what a `benchmark` of utility loses.
    """

    later = ("benchmark", "loss", "every", "limit")

    kl: PositiveFloat | None = Field(
        None, description="mean KL divergence per token from the model at the start, in nats"
    )
    data: DataRefs = Field([DataRef(name="prose")], description="the text that it is measured on")
    rows: PositiveInt = Field(48, description="so many rows of it")
    max_length: int = Field(128, ge=8, description="tokens per row")
    benchmark: str | None = Field(None, description="measure this one instead")
    loss: NonNegativeFloat = Field(
        0.05, description="by how much it may get worse: a share by points, another number by this share of itself"
    )
    every: PositiveInt = Field(10, description="it is measured at each k-th step, at kept points, and at the last step")
    limit: PositiveInt | None = Field(None, description="only its first questions")


class HealSpec(Stream):
    """What follows the forgetting: steps that bring what is said of other text back to what was said at the start.

    KL(π_start ‖ π_θ) on general text, over the trained weights, by AdamW with a learning rate that falls linearly to 0.
    """

    data: DataRefs = Field([DataRef(name="prose")], description="general text, nothing of what was to be forgotten")
    max_length: int = Field(96, ge=8, description="tokens per sequence; longer ones are cut and counted")
    steps: PositiveInt = 80
    lr: PositiveFloat = 1e-4
    warmup: NonNegativeInt = Field(5, description="steps of linear warm-up")


def _as_patterns(value: Any) -> Any:
    """Let `auto` stand for a list of it."""
    return AUTO_PARAMS if value == AUTO else value


Params = Annotated[
    list[str],
    BeforeValidator(_as_patterns, json_schema_input_type=Annotated[list[str], Field(min_length=1)] | Literal["auto"]),
    Field(min_length=1),
]


class TrainSpec(Spec):
    """How the weights are stepped."""

    later = ("optimizer", "budget", "memory", "save_dtype", "prefix_gb", "loaded", "packing", "together", "heal")

    steps: PositiveInt = 80
    lr: PositiveFloat | Literal["auto"] = Field(
        1e-5, description="auto: found at the first step, such that about `steps` steps spend `budget.kl`"
    )
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    warmup: NonNegativeInt = Field(0, description="steps of linear warm-up")
    weight_decay: NonNegativeFloat = 0.0
    max_grad_norm: PositiveFloat | None = None
    accumulation: PositiveInt = Field(1, description="micro-batches per step and process")
    precision: PrecisionOrAuto = Field(
        "auto",
        description="autocast type; the master weights are float32. auto: bf16, or fp32 where the device has no bf16",
    )
    save_every: NonNegativeInt = Field(50, description="steps between resumable states; 0 for none")
    points: list[PositiveInt] = Field([], description="steps whose weights are kept beside the final ones, as RUN@STEP")
    params: Params | None = Field(
        None, description="glob patterns of the trained weights; null: all; auto: those that fit the objective's layers"
    )
    optimizer: Optimizer = Field(
        "adamw",
        description="PyTorch's. sgd: θ ← θ − lr·gradient; momentum: the same plus 0.9 of the step before; adafactor: "
        "lr is a share of each weight's RMS; muon: of matrices in layers, the rest by adamw",
    )
    budget: BudgetSpec | None = Field(None, description="stop at the last weights within it; null: after `steps`")
    heal: HealSpec | None = Field(
        None, description="steps on general text after the last one, which take back what the forgetting cost it"
    )
    memory: MemorySpec = MemorySpec()
    save_dtype: Literal["stored", "fp32", "bf16", "fp16"] = Field(
        "stored", description="type of the checkpoint's weights; stored: that of the parent's files"
    )
    loaded: Literal["all", "needed"] = Field(
        "all",
        description="needed: of a recipe that only reads states of layers, those up to the deepest that is read; the "
        "checkpoint's other weights are copies of the parent's",
    )
    prefix_gb: NonNegativeFloat = Field(
        2.0,
        description="GB of main memory for what the layers below the first trained one give of each row: they are run "
        "once a row; 0: at every step",
    )
    packing: bool = Field(
        True, description="run a padded batch as one sequence without its padding, where the model gives the same so"
    )
    together: bool = Field(
        True,
        description="run the rows of forget and retain term as one batch, where both read the same states and rows are "
        "packed: faster, and holds the activations of both at once",
    )

    @property
    def rate(self) -> float:
        """The learning rate; of `auto` the one that is tried first."""
        return self.lr if self.lr != AUTO else TRIED[self.optimizer]

    @property
    def healing(self) -> TrainSpec | None:
        """How the weights are stepped while they heal; None: they do not."""
        if self.heal is None:
            return None
        h, falling = self.heal, {"schedule": "linear", "optimizer": "adamw"}
        none = {"budget": None, "points": list[int](), "heal": None}
        return self.model_copy(update={"steps": h.steps, "lr": h.lr, "warmup": h.warmup, **falling, **none})


class ModelSpec(Spec):
    """The model to start from: a built-in name, a folder, or a hub name."""

    later = ("never",)

    ref: str = DEFAULT_MODEL
    revision: str | None = None
    never: str | None = Field(
        None,
        description="a model that never knew the forget data, of before they were taught or trained without them: a "
        "run, folder or hub name. What it says is what forgetting aims at. The lineage then begins with `ref`",
    )
