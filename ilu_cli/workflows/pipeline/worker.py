"""A process that does one node of a graph after another: torch is imported once, and a death is only its own."""

from __future__ import annotations

import gc
import math
import os
import shutil
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, cast

from ilu_cli.errors import IluError, UnavailableError
from ilu_cli.metrics.figure import strict
from ilu_cli.runs.files import ModelRecord, same_model
from ilu_cli.runs.ledger import seal
from ilu_cli.runs.lock import let_go
from ilu_cli.runs.store import Run, Store, open_run

if TYPE_CHECKING:
    from ilu_cli.engine.reporter import Reporter
    from ilu_cli.models.subject import Subject
    from ilu_cli.recipe.evaluation import EvalSpec
    from ilu_cli.runs.results import Number, Summary
    from ilu_cli.workflows.attack.seen import Written


@dataclass(frozen=True)
class Job:
    """What a worker needs to know about a node."""

    command: str
    recipe: dict[str, Any]
    hash: str
    subject: str
    parent: ModelRecord  # its `weights` and `digest`
    target: float | None
    result_file: Path
    unlearned: list[Written]
    lost: list[str] = field(default_factory=list)  # how those called themselves that did it before, and are gone


class Answer(TypedDict, total=False):
    """What a worker says of its node: a note on the way, or how it ended, as one of `run`, `error`, `interrupted`."""

    note: str
    run: Path | None
    error: str
    interrupted: bool
    died: bool
    seconds: float


Say = Callable[[Answer], None]


def serve(conn: Connection, root: Path, plugins: list[Path], threads: int, gpu: str | None) -> None:
    """Do the tasks that arrive. Each is answered with notes, and then with how it ended."""
    os.dup2(2, 1)  # stdout belongs to the command's result
    if hasattr(os, "setsid"):
        os.setsid()  # Ctrl-C is the parent's to pass on, once
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu
    from ilu_cli.models.heap import collect_rarely, give_back

    collect_rarely()  # until the first model is loaded
    import torch

    from ilu_cli.engine.accel import forget_peak
    from ilu_cli.registry import load_plugin

    torch.set_num_threads(threads)
    for path in plugins:
        load_plugin(path)
    while True:
        try:
            task = conn.recv()
        except (EOFError, KeyboardInterrupt):
            return
        conn.send(outcome(task, Store(root), conn.send))
        gc.collect()
        give_back()
        forget_peak()  # the next node's own is what its manifest tells


def outcome(task: Job, store: Store, say: Say) -> Answer:
    """Do a node, and tell how it ended: nothing that goes wrong is raised, but for what ends the process."""
    began = time.monotonic()
    try:
        answer: Answer = {"run": do(task, store, say)}
    except KeyboardInterrupt:
        answer = {"interrupted": True}
    except IluError as error:
        hint = f" ({error.hint})" if error.hint else ""
        answer = {"interrupted": True} if error.exit_code == 130 else {"error": f"{error}{hint}"}
    except Exception as error:  # a node's failure is its own, whatever it is
        if isinstance(
            error.__cause__, SystemExit
        ):  # a signal's (submitit's), which pydantic took for a failure to write
            raise error.__cause__ from error
        asked = isinstance(error.__cause__, KeyboardInterrupt)
        answer = {"interrupted": True} if asked else {"error": f"{type(error).__name__}: {error}"}
        if os.environ.get("ILU_DEBUG") or "--debug" in sys.argv:
            traceback.print_exc()
    answer["seconds"] = round(time.monotonic() - began, 2)
    return answer


def _reporter(say: Say) -> Reporter:
    """Notes, and a line at every tenth of a training job, for the parent to show."""
    from ilu_cli.engine.loop import StepLog
    from ilu_cli.engine.reporter import Reporter

    class Passed(Reporter):
        def step(self, log: StepLog) -> None:
            if log.step % max(1, log.steps // 10) == 0:
                losses = "  ".join(f"{name} {value:.4g}" for name, value in log.losses.items())
                say({"note": f"step {log.step}/{log.steps}  {losses}"})

        def note(self, text: str) -> None:
            say({"note": text})

    return Passed()


def _end_with(parent: int) -> None:
    """End when the parent has gone: its successor starts workers of its own."""
    while os.getppid() == parent:
        time.sleep(0.2)
    os.kill(os.getpid(), getattr(signal, "SIGKILL", signal.SIGTERM))  # Windows has no other


def do(task: Job, store: Store, say: Say) -> Path | None:
    """Do a node, unless another process did it in the meantime; go on with its unfinished run if there is one."""
    with _alone(store, task.hash):
        if task.command == "select":
            if not task.result_file.is_file():
                _select(task, store, _reporter(say))
            return None
        return _run(task, store, _reporter(say)).path


@contextmanager
def _alone(store: Store, digest: str) -> Iterator[None]:
    """Hold the node: two pipelines that share it do it once. The lock ends with the process."""
    from filelock import FileLock

    folder = store.root / ".locks"
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / digest):
        yield


def _run(task: Job, store: Store, reporter: Reporter) -> Run:
    from ilu_cli.models.subject import find_subject
    from ilu_cli.recipe.load import validate
    from ilu_cli.recipe.schema import RECIPES, AttackRecipe, UnlearnRecipe
    from ilu_cli.recipe.source import Layers
    from ilu_cli.workflows import unlearn
    from ilu_cli.workflows.attack import run as attack
    from ilu_cli.workflows.pipeline.graph import unfinished_path

    recipe = validate(RECIPES[task.command], Layers(task.recipe))
    if isinstance(recipe, UnlearnRecipe):
        path = unfinished_path(store, "unlearn", unlearn.label_of(recipe), task.hash)
        old = _unfinished(path, task.lost)
        if old and old.complete:
            return old
        plan = unlearn.plan(recipe, store)
        return unlearn.run(plan, store, reporter, None if old else path, old)
    recipe = cast(AttackRecipe, recipe)
    path = unfinished_path(store, "attack", attack.label_of(recipe), task.hash)
    old = _unfinished(path, task.lost)
    if old and old.complete:
        return old
    subject = find_subject(task.subject, store)
    if not same_model(task.parent, subject.record("target")):
        raise IluError(f"{task.subject} has changed since the pipeline was planned")
    return attack.run(
        attack.plan(recipe, subject, task.unlearned), store, reporter, subject, None if old else path, old
    )


def _unfinished(path: Path, lost: list[str]) -> Run | None:
    """The run that was begun here, and that the lost let go. What was stopped before it wrote its recipe is removed."""
    let_go(path, lost)
    if (path / "recipe.yaml").is_file():
        return open_run(path)
    shutil.rmtree(path, ignore_errors=True)
    return None


def _select(task: Job, store: Store, reporter: Reporter) -> None:
    """Measure a model, or with a target each step that its run kept, and take the one that `nearest` names."""
    from ilu_cli.models.subject import find_subject
    from ilu_cli.recipe.evaluation import EvalSpec
    from ilu_cli.recipe.schema import evaluation
    from ilu_cli.runs.files import write_json
    from ilu_cli.workflows.evaluate import Evaluation

    spec = evaluation(EvalSpec).model_validate(task.recipe["eval"])
    chosen, match, found = find_subject(task.subject, store), task.recipe.get("match"), {}
    if match and chosen.run:
        measured = _measured(chosen, match["benchmark"], spec, reporter)
        best = nearest(measured, cast(float, task.target))
        if best != chosen.run.manifest.result["steps"]:
            chosen = _kept(chosen.run, best)
        distance = measured[best].value - cast(float, task.target)
        found = {
            "step": best,
            "target": task.target,
            "distance": distance,
            "within": abs(distance) <= match["tolerance"],
            "candidates": {str(step): strict(summary.value) for step, summary in measured.items()},
        }
    subject = task.subject if chosen.step is None else f"{task.subject}@{chosen.step}"
    results = Evaluation(spec, reporter).subject(chosen)
    task.result_file.parent.mkdir(parents=True, exist_ok=True)
    known = {"subject": subject, "weights": chosen.weights, "digest": chosen.digest}
    measured_on = {name: summary.to_json() for name, summary in results.items()}
    write_json(task.result_file, seal({**known, "eval": measured_on, **found}))
    if match and match["keep"] == "chosen" and chosen.run:
        for step in chosen.run.manifest.points:
            if int(step) != chosen.step:
                shutil.rmtree(chosen.run.point(step), ignore_errors=True)
        chosen.run.add("points")


def _measured(subject: Subject, benchmark: str, spec: EvalSpec, reporter: Reporter) -> dict[int, Summary]:
    """The benchmark on each step that a run kept, and on its last. What was deleted since is known by its results.

    Raises:
        UnavailableError: if a step was deleted before it was measured so.
    """
    from ilu_cli.workflows.evaluate import Evaluation

    run = cast(Run, subject.run)
    utility, found = Evaluation(spec.only(benchmark), reporter), {}
    for step, weights in run.manifest.points.items():
        known = utility.known(benchmark, replace(subject, weights=weights).digest, run.results(int(step)))
        found[int(step)] = known or utility.subject(_kept(run, int(step)))[benchmark]
    return found | {run.manifest.result["steps"]: utility.subject(subject)[benchmark]}


def _kept(run: Run, step: int) -> Subject:
    from ilu_cli.models.subject import of_run

    if not run.point(step).is_dir():
        raise UnavailableError(
            f"step {step} of {run.id} is needed now, and was deleted by a pipeline with match.keep: chosen",
            hint=f"`ilu runs rm {run.id} --children` lets it be trained again",
        )
    return of_run(run, step)


def nearest(measured: Mapping[int, Number | Summary], target: float) -> int:
    """The step whose utility is nearest to the target; of those that cannot be told from it, the last.

    Those are no farther from the target than the nearest and one standard error of its utility: a single question must
    not make an early step, which has forgotten less, out of a late one.

    Raises:
        UnavailableError: if the utility is infinite at every step (the perplexity of a collapsed model), or the target.
    """
    distance = {step: abs(summary.value - target) for step, summary in measured.items()}
    if not any(map(math.isfinite, distance.values())):
        raise UnavailableError("no step can be matched: the utility of all steps, or of the original, is infinite")
    first = min(distance, key=distance.__getitem__)
    reach = distance[first] + (measured[first].stderr or 0.0)
    return max(step for step in distance if distance[step] <= reach)
