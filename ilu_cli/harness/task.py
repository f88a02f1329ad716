"""lm-eval's tasks as benchmarks. Nothing here imports it before the examples are asked for."""

from __future__ import annotations

import functools
import json
import math
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import yaml

from ilu_cli.benchmarks import KNOWS_MORE, Benchmark, Row, mean_and_error, number, perplexity
from ilu_cli.errors import IluError, UnavailableError, UsageError
from ilu_cli.recipe.harness import PlainLoader
from ilu_cli.recipe.taskfile import code_of
from ilu_cli.runs.manifest import version
from ilu_cli.runs.results import Kind, kind_of

if TYPE_CHECKING:
    from ilu_cli.engine.scoring import Scorer

FEWSHOT_SEED = 1234  # lm-eval's own default
FORGET = ("wmdp",)  # names of lm-eval's tasks that a good unlearned model no longer solves begin so
Split = dict[str, Any]  # a dataset of the library `datasets` by the name of its split
TEMPLATE = ("description", "doc_to_text", "doc_to_choice", "doc_to_target", "target_delimiter", "fewshot_delimiter")


class HarnessTask(Benchmark):
    """A task of lm-eval by name, or a YAML file. A subclass is the YAML file beside its module."""

    file: Path | None = None

    def __init_subclass__(cls) -> None:
        cls.file = Path(sys.modules[cls.__module__].__file__ or "").with_suffix(".yaml")
        config = yaml.load(cls.file.read_text(encoding="utf-8"), Loader=PlainLoader)
        cls.metric = config["metric_list"][0]["metric"]
        said = config["metadata"]
        cls.role, cls.chance, cls.higher = said["role"], said.get("chance"), said["higher"]
        cls.kind = _kind(said, cls.metric)

    def __init__(self, name: str = "") -> None:
        self.name = name or str(self.file)
        self.source = "builtin" if self.file else "path" if name.endswith(".yaml") else "hub"
        self.shots: int | None = None

    @functools.cached_property
    def tasks(self) -> Mapping[str, Any]:
        """lm-eval's task objects by name."""
        from ilu_cli.harness.load import load_tasks

        with _theirs(self.name):
            found = load_tasks(self.name, own=self.file is not None)
        for name, task in found.items():
            own = task.get_config("num_fewshot")
            if (self.shots and own == 0) or (self.shots and task.OUTPUT_TYPE == "loglikelihood_rolling"):
                raise UsageError(f"eval.fewshot: {name} takes no few-shot examples")
            task.set_config("num_fewshot", (own or 0) if self.shots is None else self.shots)
        return found

    def fewshot(self, n: int) -> None:
        self.shots = n

    def items(self) -> list[Row]:
        return self.first(None)

    def first(self, limit: int | None) -> list[Row]:
        """The first documents of every task with their requests, built as lm-eval builds them."""
        items: list[Row] = []
        self.instances: dict[tuple[str, int], list[Any]] = {}
        for name, task in self.tasks.items():
            with _theirs(name):
                items += self._items_of(name, task, limit)
        if not items:
            raise UnavailableError(f"lm-eval's {self.name} has no documents", hint="look at its dataset and its split")
        with _theirs(self.name):
            self._describe(next(iter(self.tasks.values())))
        return items

    def _items_of(self, name: str, task: Any, limit: int | None) -> list[Row]:
        items = []
        task.set_fewshot_seed(FEWSHOT_SEED)
        for i, doc in task.doc_iterator(limit=limit):
            shots, prefix = task.config.num_fewshot, task.doc_to_prefix(doc)
            context = task.fewshot_context(doc, num_fewshot=shots, gen_prefix=prefix)
            made = task.construct_requests(doc=doc, ctx=context, metadata=(name, i, task.config.repeats))
            made = made if isinstance(made, list) else [made]
            self.instances[name, i] = made
            requests = [[r.request_type, *r.args] for r in made]
            item = {"task": name, "doc_id": i, "doc": json.loads(json.dumps(doc, default=str))}
            items.append(item | (_question(task, doc, made) or {"requests": requests}))
        return items

    def _describe(self, task: Any) -> None:
        """Role, metric and chance: what the YAML's metadata say, else what can be told."""
        said, first = task.config.metadata, task._filters[0].name
        self.metric = next(iter(task._metric_fn_list))
        self.measure = f"{self.metric},{first}"
        self.kind = _kind(said, self.metric)
        self.role = said.get("role") or ("forget" if self.name.startswith(FORGET) else "utility")
        up = task.higher_is_better().get(self.metric, True)
        self.higher = said.get("higher") or (KNOWS_MORE if up else "reads worse")
        self.chance = said.get("chance")
        if self.chance is None and self.kind == "share" and task.OUTPUT_TYPE == "multiple_choice":
            self.chance = sum(1 / len(_asked(task, made)) for made in self.instances.values()) / len(self.instances)

    def score(self, scorer: Scorer, items: list[Row]) -> list[Row]:
        with _theirs(self.name):
            return self._scored(scorer, items)

    def _scored(self, scorer: Scorer, items: list[Row]) -> list[Row]:
        from ilu_cli.harness.lm import IluLM

        lm, kinds = IluLM(scorer=scorer, truncate=False), dict[str, list[Any]]()
        for item in items:
            for request in self.instances[item["task"], item["doc_id"]]:
                request.resps, request.filtered_resps = [], {}
                if "question" in item:  # it may have been asked otherwise since
                    request.arguments = item["question"], item["choices"][request.idx]
                kinds.setdefault(request.request_type, []).append(request)
        for kind, requests in kinds.items():
            for request, answer in zip(requests, getattr(lm, kind)(requests)):
                request.resps += [answer] * request.repeats  # greedy: each repeat is the same
        for name, task in self.tasks.items():
            task._instances = [r for i in items if i["task"] == name for r in self.instances[name, i["doc_id"]]]
            task.apply_filters()
        return [self._row(item) for item in items]

    def _row(self, item: Row) -> Row:
        task, made = self.tasks[item["task"]], self.instances[item["task"], item["doc_id"]]
        doc, metrics = made[0].doc, Row()
        for key in made[0].filtered_resps:
            found = task.process_results(doc, [r.filtered_resps[key] for r in made])
            metrics |= {f"{metric},{key}": value for metric, value in found.items()}
        raw = metrics[self.measure]
        row = {"task": item["task"], "doc_id": item["doc_id"], "metrics": _plain(metrics)}
        if task.OUTPUT_TYPE == "loglikelihood_rolling":
            return row | {"text": made[0].args[0], "value": -raw[0], "weight": raw[1]}
        row |= {"value": float(raw[0] == raw[1] if isinstance(raw, (tuple, list)) else raw)}
        row |= {"question": made[0].args[0], "answer": _plain(task.doc_to_target(doc))}
        if task.OUTPUT_TYPE == "multiple_choice":
            asked = _asked(task, made)
            logps = [r.resps[0][0] for r in asked]
            best = max(range(len(logps)), key=logps.__getitem__)
            choices = [r.args[1] for r in asked]
            return row | {"choices": choices, "prediction": best, "logps": [round(x, 6) for x in logps]}
        return row | {"responses": _plain([r.resps[0] for r in made])}

    def summarise(self, rows: list[Row]) -> tuple[float, float]:
        """lm-eval's aggregate. The error is s/√n of a mean, by the delta method of a perplexity; else it has none."""
        aggregate = next(iter(self.tasks.values())).aggregation()[self.metric]
        if aggregate is None:
            raise UsageError(f"{self.name}: lm-eval knows no aggregation of this name for {self.metric}")
        if aggregate.__name__ == "weighted_perplexity":
            return perplexity(rows)
        if aggregate.__name__ in ("mean", "nanmean"):
            values = [r["value"] for r in rows]
            counted = [v for v in values if not math.isnan(v)] if aggregate.__name__ == "nanmean" else values
            return mean_and_error(counted or values)
        raw = [r["metrics"][self.measure] for r in rows]
        try:
            return float(aggregate([tuple(x) if isinstance(x, list) else x for x in raw])), math.nan
        except OverflowError:  # a perplexity
            return math.inf, math.nan

    def details(self, rows: list[Row]) -> Row:
        """What an lm-eval result carries beside the value."""
        task = next(iter(self.tasks.values()))
        said = json.loads(json.dumps({k: v for k, v in task.dump_config().items() if k in TEMPLATE}, default=str))
        found = {
            "evaluator": f"lm-eval {version('lm-eval')}",
            "task_version": {name: t.VERSION for name, t in self.tasks.items()},
            "fewshot": task.config.num_fewshot,
            "fewshot_seed": FEWSHOT_SEED,
            "template": said,
        }
        if self.source == "path" and (code := code_of(Path(self.name))):
            found["code"] = code
        if len(self.tasks) > 1:
            by = {name: [r for r in rows if r["task"] == name] for name in self.tasks}
            found["tasks"] = {n: number(*self.summarise(r)) for n, r in by.items() if r}
        return found

    def fingerprint(self, items: list[Row]) -> str:
        """sha256 of the items and of how the tasks score them: what is right, filters, metric, code of functions."""
        asked = {n: [str(t.VERSION), _written(t)] for n, t in self.tasks.items()}
        return super().fingerprint([*items, {"tasks": asked}])


@contextmanager
def _theirs(name: str) -> Iterator[None]:
    """What lm-eval and the libraries below it raise at a task that is wrong becomes a message with its name.

    Raises:
        UsageError: in the place of anything that is no error of ours, of the disk, or of memory.
    """
    try:
        yield
    except (IluError, OSError, MemoryError):
        raise
    except (Exception, SystemExit) as error:
        first = (str(error).strip().splitlines() or [""])[0][:300]
        raise UsageError(
            f"lm-eval's task {name} cannot be used: {type(error).__name__}: {first}",
            hint="its YAML file needs dataset_path, a split, doc_to_text, doc_to_target, output_type and metric_list "
            "that fit each other; fewshot takes no more examples than there are",
        ) from error


def _kind(said: Mapping[str, Any], metric: str) -> Kind:
    """What the YAML's metadata say that its metric is, else what its name tells.

    Raises:
        UsageError: if that is no kind.
    """
    if (kind := said.get("kind") or kind_of(metric)) not in get_args(Kind):
        raise UsageError(f"metadata.kind: {kind!r} is none of {', '.join(get_args(Kind))}")
    return kind


def _written(task: Any) -> str:
    """A task's configuration as JSON, the same in every process."""
    return re.sub(r" at 0x[0-9a-f]+", "", json.dumps(task.dump_config(), sort_keys=True, default=str))


def _asked(task: Any, made: list[Any]) -> list[Any]:
    """A document's requests for its choices: mutual information asks for each once more, without the question."""
    return made[: len(made) // 2] if "acc_mutual_info" in task._metric_fn_list else made


def _question(task: Any, doc: Any, made: list[Any]) -> Row:
    """`question`, `choices` and `answer` of a multiple-choice document; empty if it is not of this plain form."""
    answer = task.doc_to_target(doc) if task.OUTPUT_TYPE == "multiple_choice" and not task.multiple_input else None
    contexts = {r.args[0] for r in made}
    if not isinstance(answer, int) or len(contexts) > 1:
        return {}
    return {"question": contexts.pop(), "choices": [r.args[1] for r in made], "answer": answer}


def as_test_split(rows: list[Row]) -> Split:
    """Rows of ours as the dataset of an lm-eval task."""
    from ilu_cli.data.read import library

    return {"test": library().Dataset.from_list(rows)}


def _plain(value: Any) -> Any:
    return json.loads(json.dumps(value, default=lambda x: x.item() if hasattr(x, "item") else str(x)))
