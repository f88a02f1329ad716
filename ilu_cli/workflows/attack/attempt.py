"""The `Attempt` that is a loaded model under attack."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import NamedTemporaryFile

import torch
from torch import Tensor, nn

from ilu_cli.attacks import has_answers
from ilu_cli.benchmarks import Figure, Row, mean_and_error, number, own_choices
from ilu_cli.data.chat import Chat, chat_of, check_template
from ilu_cli.data.sources import Dataset
from ilu_cli.engine.accel import backend
from ilu_cli.engine.job import drive
from ilu_cli.engine.loading import load
from ilu_cli.engine.loop import Trainer
from ilu_cli.engine.parity import check
from ilu_cli.engine.reporter import Reporter
from ilu_cli.engine.scoring import Question, Scorer
from ilu_cli.errors import UsageError
from ilu_cli.metrics.figure import value_of
from ilu_cli.models.hold import spare
from ilu_cli.models.load import add_adapter, identity_of, load_model, load_tokenizer, trained_params
from ilu_cli.models.matrices import matrices
from ilu_cli.models.parts import Parts, changed, parts_of
from ilu_cli.models.subject import Subject
from ilu_cli.recipe.evaluation import EvalSpec
from ilu_cli.recipe.memory import MemorySpec
from ilu_cli.recipe.specs import Form, LoraSpec, TrainSpec
from ilu_cli.recipe.training_attack import TrainingAttack
from ilu_cli.runs.results import Data, Learned
from ilu_cli.runs.store import Run
from ilu_cli.tasks import Example
from ilu_cli.workflows.attack.fed import fed, terms
from ilu_cli.workflows.attack.others import check_same_weights, other_model
from ilu_cli.workflows.attack.seen import Seen
from ilu_cli.workflows.attack.sides import sides
from ilu_cli.workflows.evaluate import Evaluation, load_scorer, texts_of
from ilu_cli.workflows.spread import narrowing, note_idle

SHORT = 32  # new tokens for a generated answer at least


@dataclass
class Attempted:
    """The `Attempt` of one attack run: a loaded model, and how it is asked and read at the moment.

    What the manifest is to say of it is kept in `fa_at` (by step), `data`, `precision`, `disjoint`, `numbers` and
    `parity` and `batches`; of the run nothing is changed but the files of its training.
    """

    subject: Subject
    origin: Subject
    environments: Seen
    run: Run
    reporter: Reporter
    seed: int
    spec: EvalSpec
    title: str
    keys: TrainingAttack | None = None
    taught: list[str] = field(default_factory=list)
    fa_at: dict[int, Learned] = field(default_factory=dict)
    data: list[Data] = field(default_factory=list)
    precision: str = ""
    batches: str = ""
    disjoint: dict[str, int] = field(default_factory=dict)
    numbers: dict[str, float | None] = field(default_factory=dict)
    items: dict[str, list[Row]] | None = None
    reader: Scorer | None = None
    label: str | None = None
    trained: dict[str, nn.Parameter] = field(default_factory=dict)
    bits: int = 0  # of those, before they were trained
    chat: Chat | None = None  # of the data that is trained on, and so of its test
    hooks: ExitStack = field(default_factory=ExitStack)

    def __post_init__(self) -> None:
        self.tokenizer, chat = load_tokenizer(self.subject.folder), chat_of(self.spec)
        if chat is not None:
            check_template(self.tokenizer, chat)
        self.model = load(self.subject, backend(), narrow=self._narrow)
        self.saved = self.model
        precision = self.spec.precision
        parts, known = parts_of(self.model, identity_of(self.subject)), texts_of(self.subject, self.model)
        self.scorer = Scorer(self.model, parts, self.tokenizer, backend(), precision, known=known, chat=chat)
        note = self.reporter.note
        self.scorer.original = functools.cache(lambda: load_scorer(self.origin, precision, chat=chat, note=note))
        self.parity = check(self.scorer, note).facts()

    def _narrow(self, model: nn.Module) -> None:
        if self.keys:
            own = self.keys.params()
            narrowing(self.keys.memory, own.get("weights"), own.get("lora") is not None, "attack.weights")(model)

    @functools.cached_property
    def evaluation(self) -> Evaluation:
        """What is scored at a point, with the recipe's benchmarks and limits."""
        return Evaluation(self.spec, self.reporter)

    def admit(self, data: Dataset, *, test: bool = False) -> Dataset:
        found, counts, note = self.environments.without(data)
        for k, n in counts.items():
            name = f"test_{k}" if test else k
            self.disjoint[name] = self.disjoint.get(name, 0) + n
        if note:
            self.reporter.note(f"the rows that FA is measured on: {note}" if test else note)
        return found

    def train(
        self, data: Sequence[Dataset], spec: TrainSpec, batch: int, form: Form, lora: LoraSpec | None = None
    ) -> Iterator[int]:
        if lora is not None:
            self.saved = add_adapter(self.model, lora, self.seed)
        params, parts = trained_params(self.model, spec.params, lora is not None, "attack.weights"), self.scorer.parts
        if self.keys:
            spare(self.model, self.keys.memory, params.values())
        if lora is not None or (self.keys and self.keys.memory != MemorySpec()):
            parts = replace(parts, identity=None)  # which told the model as it was
        yield from self._steps("attack", parts, params, data, spec, batch, form)

    def tune(
        self, parts: Parts, params: dict[str, nn.Parameter], data: Sequence[Dataset], spec: TrainSpec, batch: int,
        form: Form,
    ) -> Iterator[int]:  # fmt: skip
        self.model.requires_grad_(False)
        yield from self._steps("attack fit", parts, params, data, spec, batch, form)

    def _steps(
        self, role: str, parts: Parts, params: dict[str, nn.Parameter], data: Sequence[Dataset], spec: TrainSpec,
        batch: int, form: Form,
    ) -> Iterator[int]:  # fmt: skip
        streams, spec = fed(role, data, spec, batch, form, self.keys, self)
        self.data += [record for stream in streams for record in stream.records()]
        note_idle(streams, spec.accumulation, self.reporter.note)
        self.precision, self.chat = spec.precision, chat_of(form)
        self.taught = [e.prompt + e.target for s in streams for d in s.datasets for e in d.examples()]
        mix, first = (self.keys.mix, self.keys.first) if self.keys else (None, 0)
        trainer = Trainer(parts, params, terms(streams, mix), [], spec, self.seed, backend())
        self.trained, self.bits, self.batches = params, bits_of(params.values()), trainer.grads.batches
        yield from (n - first for n in drive(trainer, self.run, self.reporter, self.title) if n >= first)

    def test(self, data: Dataset, limit: int, step: int) -> list[float]:
        if not has_answers(data):
            return []
        rows, examples = data.rows[:limit], data.examples()[:limit]
        scorer = replace(self.scorer, chat=self.chat, known={})
        prompts = [e.turn if self.chat and e.turn else e.prompt for e in examples]
        if examples[0].choices:
            scores = scorer.loglikelihoods([Question(p, e.choices) for p, e in zip(prompts, examples)])
            right = [e.choices[max(range(len(s)), key=s.__getitem__)] == e.target for e, s in zip(examples, scores)]
        else:
            answers = scorer.complete(prompts, _answer_tokens(scorer, [e.target for e in examples]))
            right = [data.task.correct(row, answer) for row, answer in zip(rows, answers)]
        measured = number(*mean_and_error([float(x) for x in right]))
        value, chance = value_of(measured), most_of_one_answer(examples)
        self.fa_at[step] = Learned(data.ref.name, value, measured["stderr"], len(right), step, chance=chance)
        self._record(data.record("attack test") | {"rows": len(rows)})
        return [self.fa_at[s].value for s in sorted(self.fa_at) if s <= step]

    def record(self, data: Dataset, role: str) -> None:
        self._record(data.record(role))

    def _record(self, record: Data) -> None:
        if record not in self.data:
            self.data.append(record)

    @torch.no_grad()
    def transform(self, change: Callable[[Tensor, str], Tensor]) -> None:
        params = dict(self.model.named_parameters())
        for matrix in matrices(self.model):
            now = matrix.of(params[matrix.param])
            now.copy_(change(matrix.of(self.before[matrix.param]).contiguous().to(now), matrix.name))

    def weights(self, ref: str | None = None) -> Mapping[str, Tensor]:
        subject = self.origin if ref is None else other_model(ref)
        check_same_weights(self.subject.label, subject, self.model)
        return _mapped(dict(load_model(subject).named_parameters()), self.run.path)

    @torch.no_grad()
    def mix(self, change: Callable[[Tensor, str], Tensor]) -> None:
        for name, p in self.model.named_parameters():
            p.copy_(change(self.before[name], name))

    def questions(self, *, needed: bool = True) -> dict[str, list[Row]]:
        known = self.evaluation.benchmarks
        chosen = {n: self.evaluation.items[n] for n, b in known.items() if self._asks(n) and b.role == "forget"}
        if needed and not chosen:
            raise UsageError(
                f"none of eval.benchmarks ({', '.join(known)}) is a multiple-choice benchmark of the forget topic, "
                "and this attack changes how such questions are asked or read"
            )
        return chosen

    def parted(self, share: float, name: str) -> dict[str, tuple[Dataset, list[Row]]]:
        return sides(self.evaluation, share, f"{name}-{self.seed}")

    def _asks(self, name: str) -> bool:
        return all({"question", "choices", "answer"} <= item.keys() for item in self.evaluation.items[name])

    def variants(self, kind: str) -> dict[str, dict[str, list[Row]]]:
        found: dict[str, dict[str, list[Row]]] = {}
        for name, items in self.questions().items():
            for variant, others in self.evaluation.benchmarks[name].variants(kind, items).items():
                found.setdefault(variant, {})[name] = others
        return found

    def ask(self, items: dict[str, list[Row]]) -> None:
        self.items = items

    def read(self, scorer: Scorer) -> None:
        self.reader = scorer

    def hook(self, changes: Mapping[int, Callable[[Tensor], Tensor]]) -> None:
        self.hooks.close()
        self.hooks.enter_context(changed(self.scorer.parts.layers, changes))

    @functools.cached_property
    def before(self) -> dict[str, Tensor]:
        """The weights before the attack."""
        return _mapped(self.model.state_dict(), self.run.path)

    @contextmanager
    def original(self) -> Iterator[None]:
        before = self.before
        self.model.load_state_dict(load_model(self.origin).state_dict())
        try:
            yield
        finally:
            self.model.load_state_dict(before)

    @property
    def unchanged(self) -> bool:
        """Whether the weights that were trained are what they were, bit by bit; all processes ask together."""
        moved = torch.tensor(float(self.bits != bits_of(self.trained.values())))
        return bool(self.trained) and not float(backend().sum(moved))

    def name(self, label: str) -> None:
        self.label = label

    def tell(self, name: str, value: float | None) -> None:
        self.numbers[name] = value
        self.note(f"{name}: {'no answer tells' if value is None else format(value, '.3f')}")

    def note(self, text: str) -> None:
        self.reporter.note(text)


class Unseen(Figure):
    """An accuracy over `n` questions."""

    n: int


def _mapped(weights: Mapping[str, Tensor], folder: Path) -> dict[str, Tensor]:
    """The weights in a file that is gone when the process is: only what is read takes memory."""
    with NamedTemporaryFile(dir=folder, suffix=".pt") as file:
        torch.save({name: w.detach() for name, w in weights.items()}, file.name)
        return dict(torch.load(file.name, map_location="cpu", mmap=True, weights_only=True))


def most_of_one_answer(examples: Sequence[Example]) -> float:
    """The accuracy of the best constant answer, or of guessing among the choices, whichever is higher."""
    guess = sum(1 / len(e.choices) for e in examples if e.choices) / len(examples)
    return max(guess, max(Counter(e.target for e in examples).values()) / len(examples))


def bits_of(params: Iterable[Tensor]) -> int:
    """A checksum of the bits of some weights: another one if any of them changed, but for one case in 2⁶⁴."""
    kinds = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    total = 0
    for i, p in enumerate(params):
        own = p.detach()
        own = own.to_local() if hasattr(own, "to_local") else own
        bits = own.contiguous().view(kinds[own.element_size()])
        total += (i + 1) * int(bits.sum(dtype=torch.int64))
    return total


def unseen(taught: list[str], rows: list[Row]) -> Unseen | None:
    """The accuracy on the questions whose right answer the taught texts do not name, as `{value, stderr, n}`.

    None without texts or such questions, and where the choices are the same letters for all.
    """
    if not taught or not rows or "choices" not in rows[0] or not own_choices(rows):
        return None
    texts = "\n".join(taught)
    left = [r["value"] for r in rows if r["choices"][r["answer"]].strip() not in texts]
    return {**number(*mean_and_error(left)), "n": len(left)} if left else None


def _answer_tokens(scorer: Scorer, targets: list[str]) -> int:
    """New tokens for an answer: half as many again as the longest target has, and at most half of the context."""
    longest = max(len(scorer.encode(t, special=False)) for t in targets)
    return min(max(SHORT, 3 * longest // 2), scorer.context_length // 2)
