"""`ilu eval`: benchmarks over a model and its lineage, with rows, standard errors, and reuse of what is known."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable, Set
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from ilu_cli import registry
from ilu_cli.benchmarks import Benchmark, Row
from ilu_cli.care.measured import of_rows
from ilu_cli.data.chat import Chat, chat_of, check_template
from ilu_cli.engine.accel import backend
from ilu_cli.engine.loading import load
from ilu_cli.engine.parity import check
from ilu_cli.engine.peers import agree
from ilu_cli.engine.reporter import Reporter
from ilu_cli.engine.scoring import KnownTexts, Scorer, known_texts
from ilu_cli.errors import UsageError
from ilu_cli.harness.task import HarnessTask
from ilu_cli.models.load import checked_model, identity_of, load_tokenizer
from ilu_cli.models.parts import parts_of
from ilu_cli.models.subject import Subject, lineage, original_of
from ilu_cli.recipe.evaluation import EvalSpec
from ilu_cli.recipe.schema import EvalRecipe
from ilu_cli.runs import ledger
from ilu_cli.runs.files import beside_hashes, cache_dir, combined, write_json, write_text
from ilu_cli.runs.lock import turn
from ilu_cli.runs.manifest import version
from ilu_cli.runs.results import Data, Number, Summary, own_rows, rows_file, summary_file
from ilu_cli.workflows.plan import CHAT_KEYS, RunPlan

SCORING = 2  # of what scores are; raise it when they change, so that no result of before is taken for one
STAGES = {"unlearn": "unlearned", "attack": "attacked", "taskvec apply": "applied"}


def results_folder(subject: Subject) -> Path:
    """Where a subject's results are kept: in its run, or for other models in the cache under their digest."""
    return subject.results or cache_dir() / "eval" / subject.digest[:16]


def _root_of(folder: Path) -> Path:
    """The folder whose list of files holds a folder of results: its run, or itself in the cache."""
    return next((p for p in folder.parents if (p / "manifest.json").is_file()), folder)


def find_benchmark(name: str, fewshot: int | None, keys: dict[str, Any]) -> Benchmark:
    """A benchmark of ours with its own keys, or a task of lm-eval."""
    found = registry.benchmark[name].obj(**keys) if name in registry.benchmark else HarnessTask(name)
    found.keys = keys
    if fewshot is not None:
        found.fewshot(fewshot)
    return found


def asking(names: Set[str]) -> list[str]:
    """The benchmarks that ask for forget data of these names."""
    known = {n: registry.benchmark[n].obj for n in registry.benchmark}
    return [n for n, b in known.items() if b.role == "forget" and names & {*(b.asks or (n,))}]


class Evaluation:
    """The benchmarks of an EvalSpec, over any number of models."""

    def __init__(self, spec: EvalSpec, reporter: Reporter) -> None:
        self.spec, self.reporter, self.chat = spec, reporter, chat_of(spec)
        self.benchmarks = {name: find_benchmark(name, spec.fewshot, spec.keys_of(name)) for name in spec.names}
        self.items = {name: b.first(spec.limit) for name, b in self.benchmarks.items()}

    @property
    def asked(self) -> Row:
        """How the benchmarks are asked, as an EvalSpec has it: what it takes to ask them again."""
        return {k: v for k in EvalSpec.model_fields if k != "benchmarks" and (v := getattr(self.spec, k)) is not None}

    def key(self, name: str, digest: str) -> str:
        """What a result depends on; a stored result with the same key is reused."""
        told = [f"{k}={v}" for k in CHAT_KEYS if (v := getattr(self.spec, k)) is not None]
        chat = ":".join(["", "chat", *told]) if self.spec.chat else ""
        bench = self.benchmarks[name]
        by = f"scoring {SCORING}, ilu {version('ilu')}, transformers {version('transformers')}"
        by += f", lm_eval {version('lm_eval')}" if isinstance(bench, HarnessTask) else ""
        by += f", code {code}" if (code := registry.code_of(type(bench))) else ""
        return f"{digest}:{bench.fingerprint(self.items[name])}:{self.spec.precision}{chat}:{by}"

    def known(self, name: str, digest: str, folder: Path) -> Summary | None:
        """A benchmark's summary in a folder, if it is of the weights with this digest, these rows and settings.

        Raises:
            UnavailableError: if a finished run's files of it are not as they were written.
        """
        path = summary_file(folder, name)
        if not path.is_file():
            return None
        root = _root_of(folder)
        if (root / ledger.NAME).exists():
            parts = [f.relative_to(root).as_posix() for f in (path, rows_file(folder, name))]
            ledger.check(root, f"the results of {name}", *parts)
        try:
            stored = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            return None
        return Summary.read(stored) if stored.get("key") == self.key(name, digest) else None

    def score(self, name: str, digest: str, scorer: Scorer, folder: Path, items: list[Row] | None = None) -> Summary:
        """Score one benchmark, its own items or others, and keep summary and rows in `folder`."""
        bench, items = self.benchmarks[name], self.items[name] if items is None else items
        rows = bench.score(scorer, items)
        more = {
            "precision": self.spec.precision,
            "asked": self.asked | ({"keys": dict(bench.keys)} if bench.keys else {}),
            "parity": scorer.parity.facts() if scorer.parity else None,
            **bench.details(rows),
            "key": self.key(name, digest),
        }
        said = list(of_rows(name, bench.metric, bench.role, own_rows(rows)))
        more |= {"warnings": [w.to_json() for w in said]} if said else {}
        more |= {"up": bench.up} if bench.up == (bench.kind == "loss") else {}
        data = Data(name=name, source=bench.source, fingerprint=bench.fingerprint(items))
        summary = summarised(name, bench, rows, data, more)
        if scorer.backend.main:
            folder.mkdir(parents=True, exist_ok=True)
            lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            write_text(rows_file(folder, name), lines)
            write_json(summary_file(folder, name), summary.to_json())
            root = _root_of(folder)
            parts = [f.relative_to(root).as_posix() for f in (rows_file(folder, name), summary_file(folder, name))]
            ledger.add(root, *parts, new=root == folder)
        return summary

    def subject(self, subject: Subject) -> dict[str, Summary]:
        """All benchmarks on one model; it is loaded only if something is not known yet, by one process at a time."""
        folder, digest, b = results_folder(subject), subject.digest, backend()
        agree("eval", {name: self.key(name, digest) for name in self.spec.names})
        found = b.share({name: self.known(name, digest, folder) for name in self.spec.names} if b.main else None)
        if all(found.values()):
            return _there(found)
        with turn(folder, f"the results of {subject.label}", self.reporter.note) if b.main else nullcontext():
            found = b.share({name: self.known(name, digest, folder) for name in found} if b.main else None)
            if missing := [name for name, summary in found.items() if summary is None]:
                self.reporter.note(f"evaluating {subject.label}: {', '.join(missing)}")
                scorer = load_scorer(subject, self.spec.precision, chat=self.chat, note=self.reporter.note)
                found |= {name: self.score(name, digest, scorer, folder) for name in missing}
        b.wait()  # until the first has written what all may read
        return _there(found)


def _there(found: dict[str, Summary | None]) -> dict[str, Summary]:
    return {name: summary for name, summary in found.items() if summary is not None}


def summarised(name: str, bench: Benchmark, rows: list[Row], data: Data, more: Row) -> Summary:
    """What the rows of a benchmark come to.

    Raises:
        UsageError: if its metric is a share, and rows are not from 0 to 1.
    """
    own = own_rows(rows)
    if bench.kind == "share" and (odd := [r for r in own if not 0 <= r["value"] <= 1 or "weight" in r]):
        raise UsageError(
            f"{name}: {bench.metric} is declared as a share, and a row has the value {odd[0]['value']}"
            + (" with a weight" if "weight" in odd[0] else ""),
            hint="the values of a share are from 0 to 1 and have no weights; what else is averaged is a 'ratio'",
        )
    value, error = bench.summarise(own)
    also = {other: Number.read({"kind": bench.kind_of(other), **f}, other) for other, f in bench.also(rows).items()}
    stderr = error if math.isfinite(value) and math.isfinite(error) else None
    return Summary(name, bench.metric, bench.kind, bench.role, value, stderr, len(own), bench.chance, data, also, more)


def texts_of(subject: Subject, model: Any) -> KnownTexts:
    """What this process has encoded for a model, or for one with the same files beside its weights."""
    beside = combined(beside_hashes(subject.folder))
    return known_texts(beside, model.get_input_embeddings().weight.shape[0])


def load_scorer(
    subject: Subject, precision: str, *, chat: Chat | None = None, note: Callable[[str], None] | None = None
) -> Scorer:
    """Load a subject for scoring, compared with plain transformers; `chat` and `note` hold for the original as well."""
    b, tokenizer = backend(), load_tokenizer(subject.folder)
    if chat is not None:
        check_template(tokenizer, chat)
    model = load(subject, b)
    known = texts_of(subject, model)
    scorer = Scorer(model, parts_of(model, identity_of(subject)), tokenizer, b, precision, known=known, chat=chat)
    check(scorer, note or Reporter().note)
    scorer.original = functools.cache(
        lambda: load_scorer(original_of(subject), precision, chat=chat, note=note) if subject.run else scorer
    )
    return scorer


def stages(subject: Subject, *, alone: bool = False) -> list[tuple[str, Subject]]:
    """The lineage with a word for each stage: original, unlearned, attacked; with `alone` the subject's only."""
    named = []
    for s in [subject] if alone else lineage(subject):
        command = s.run.manifest.command if s.run else ""
        named.append((STAGES.get(command, "original"), s))
    return named


def run(
    evaluation: Evaluation, subject: Subject, *, alone: bool = False
) -> list[tuple[str, Subject, dict[str, Summary]]]:
    """Evaluate a subject, and unless `alone` everything that it came from.

    Returns:
        (stage, subject, summary by benchmark), the original first.
    """
    chain = stages(subject, alone=alone)
    for _, s in chain:
        checked_model(s)
    found = []
    for stage, s in chain:
        found.append((stage, s, evaluation.subject(s)))
        if s.run and backend().main:
            s.run.write_card()
    return found


def plan(recipe: EvalRecipe, subject: Subject, *, alone: bool = False) -> RunPlan:
    """The models, the benchmarks, and which results are known already.

    Raises:
        UsageError: if the processes were launched in a way that is not known.
    """
    backend()
    evaluation, chain = Evaluation(recipe.eval, Reporter()), stages(subject, alone=alone)
    if evaluation.chat is not None:
        check_template(load_tokenizer(subject.folder), evaluation.chat)
    total = [sum(p.numel() for p in checked_model(s).parameters()) for _, s in chain][-1]
    data = []
    for name, bench in evaluation.benchmarks.items():
        known, items = evaluation.known(name, subject.digest, results_folder(subject)), evaluation.items[name]
        fingerprint, role = bench.fingerprint(items), "benchmark, known" if known else "benchmark"
        data.append(Data(role=role, name=name, source=bench.source, rows=len(items), fingerprint=fingerprint))
    parents = [s.record(stage) for stage, s in chain[:-1]]
    return RunPlan(recipe=recipe, subject=subject, parameters=total, parents=parents, data=data)
