"""The plan of a recipe on devices that are not here, from the model's configuration alone."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ilu_cli.engine.accel import backend
from ilu_cli.errors import UnavailableError, UsageError
from ilu_cli.metrics.figure import size
from ilu_cli.models import builtin
from ilu_cli.models.load import empty_model, trained_params
from ilu_cli.models.lower import check_lower
from ilu_cli.models.mirror import in_mirror
from ilu_cli.models.parts import parts_of
from ilu_cli.models.subject import find_subject
from ilu_cli.paths import is_hub_name
from ilu_cli.recipe.load import recipes_dir
from ilu_cli.runs.results import Row
from ilu_cli.runs.store import Store
from ilu_cli.workflows.fit.devices import Device, Fleet, fleet
from ilu_cli.workflows.fit.fit import FitAnswer, Fitting, best, placed
from ilu_cli.workflows.fit.jobs import PricedJob, jobs_of
from ilu_cli.workflows.machine import stepped_here

LORA = {"train": "lora", "attack": "attack.lora"}
SPEED = 0.3  # seconds that the speed of this machine is measured for


@dataclass(frozen=True)
class Planned:
    """A job with an answer for each launch that takes it; `refused`: why others do not."""

    job: PricedJob
    trained: int
    answers: list[FitAnswer]
    refused: dict[str, str]

    @property
    def best(self) -> FitAnswer | None:
        """The cheapest that fits."""
        return best(self.answers)


@dataclass(frozen=True)
class FitPlan:
    """What `ilu plan` found. `command` is how the recipe is run."""

    recipe: str
    command: str
    model: str
    parameters: int
    fleet: Fleet
    jobs: list[Planned]

    @property
    def fits(self) -> bool:
        """Whether every job has a launch that it fits in."""
        return all(p.best for p in self.jobs)

    def to_json(self) -> Row:
        """All numbers: bytes of one device, seconds at the least."""
        d = self.fleet.device
        return {
            "recipe": self.recipe, "model": self.model, "parameters": self.parameters, "fits": self.fits,
            "devices": {"label": self.fleet.label, "count": self.fleet.all, "memory_bytes": d.memory,
                        "bf16_flops": d.bf16, "fp32_flops": d.fp32, "bytes_per_second": d.bandwidth},
            "jobs": [_facts(p) for p in self.jobs],
        }  # fmt: skip

    def lines(self) -> Iterator[str]:
        """What to do, a line for each job."""
        for p in self.jobs:
            yield f"{p.job.name}: {self._advice(p)}"
            for name, why in p.refused.items():
                yield f"  {name} is refused: {why}"
            if p.job.not_counted:
                yield f"  not counted: what {', '.join(p.job.not_counted)} holds and does beside the gradient"

    def _advice(self, p: Planned) -> str:
        found = p.best
        if found is None:
            least = min(p.answers, key=lambda a: a.moment.bytes)
            keys = f" and {' '.join(least.keys)}" if least.keys else ""
            adapter = "" if p.job.lora or p.job.scores else f"; an adapter takes less: --set {LORA[p.job.key]}.r=16"
            return (
                f"does not fit by any launch or keys known here: with {least.launch.name}{keys} it still takes "
                f"{size(least.moment.bytes)} of a device of {size(self.fleet.device.memory)}{adapter}"
            )
        sets = "".join(f" --set {key}" for key in found.keys)
        where = ", once on each node with its rank" if found.launch.fleet.nodes > 1 else ""
        return f"fits{where}: {self.start(found)}{sets}"

    def start(self, answer: FitAnswer) -> str:
        """The command line of a launch; of several nodes, with RANK and FIRST to be filled in."""
        name, fleet = answer.launch.name, answer.launch.fleet
        if not answer.launch.shards and fleet.all == 1:
            return self.command
        before = "" if fleet.device.accelerator else "ACCELERATE_USE_CPU=true "
        words, nodes = self.command.removeprefix("ilu "), ""
        if fleet.nodes > 1:
            nodes = f" --num_machines {fleet.nodes} --machine_rank RANK --main_process_ip FIRST"
        file = f"--config_file {_launch(name)} --num_processes {fleet.all}{nodes}"
        return f"{before}accelerate launch {file} -m ilu_cli {words}"


def _launch(name: str) -> str:
    """The file of a launch, by its path from here where it lies below."""
    path, here = recipes_dir() / "launch" / f"{name}.yaml", Path.cwd()
    return shlex.quote(str(path.relative_to(here) if path.is_relative_to(here) else path))


def _facts(p: Planned) -> Row:
    answers = [
        {
            "launch": a.launch.name, "devices": a.launch.fleet.all, "keys": list(a.keys), "fits": a.fits,
            "when": a.moment.when, "bytes": a.moment.bytes, "kinds": a.moment.kinds(), "bytes_without_keys": a.unset,
            **({"main_memory_bytes": a.main.bytes, "main_memory_when": a.main.when} if a.main else {}),
            "seconds_per_step": a.step, "seconds": a.seconds, "flops_per_step": a.flops,
        }
        for a in p.answers
    ]  # fmt: skip
    found = p.best
    return {
        "name": p.job.name, "times": p.job.times, "steps": p.job.steps, "trained": p.trained, "scores": p.job.scores,
        "best": found.launch.name if found else None, "answers": answers, "refused": p.refused,
        "not_counted": list(p.job.not_counted),
    }  # fmt: skip


def plan(
    name: str, command: str, recipe: Any, run: str, devices: str, model: tuple[str, Path] | None = None
) -> FitPlan:
    """Price a recipe.

    Args:
        name: of the recipe, and `run` how it is run.
        devices: see `ilu_cli.workflows.fit.devices.fleet`; `here` is this machine.
        model: its name, and its config.json or the folder of that; None: the recipe's.

    Raises:
        UnavailableError: if there is no configuration.
        UsageError: if the devices are not known, or the recipe does not fit the model.
    """
    wanted = here() if devices == "here" else fleet(devices)
    label, place = model or (_ref(recipe), config_of(_ref(recipe)))
    empty = empty_model(place)
    parts_of(empty)
    found, parameters = [], sum(p.numel() for p in empty.parameters())
    for asked in jobs_of(name, command, recipe, empty):
        job = _lowered(asked, empty, place)
        if devices == "here":
            job = replace(job, train=stepped_here(job.train))
        fitting = Fitting(job, place, getattr(recipe, "seed", 0))
        ways, refused = placed(job, wanted)
        found.append(Planned(job, fitting.trained, [fitting.by(launch) for launch in ways], refused))
    return FitPlan(name, run, label, parameters, wanted, found)


def _lowered(job: PricedJob, model: Any, place: Path) -> PricedJob:
    """A job that may load its lower layers alone, if the model can be cut there with all that is trained."""
    if not job.lower:
        return job
    try:
        lower = empty_model(place, job.lower)
        check_lower(model, lower)
        whole, less = (trained_params(m, job.train.params, False).keys() for m in (model, lower))
        if whole == less:
            return job
    except UsageError:
        if job.train.loaded == "needed":
            raise
    return replace(job, lower=None)


def _ref(recipe: Any) -> str:
    model = getattr(recipe, "model", None)
    return model.ref if model else next(iter(builtin.MODELS))


def config_of(ref: str) -> Path:
    """The folder with a model's configuration, whose weights need not be here.

    Raises:
        UnavailableError: if there is none.
    """
    if mirrored := in_mirror(ref):
        return mirrored
    if (Path(ref) / "config.json").is_file():
        return Path(ref)
    if ref in builtin.MODELS or not is_hub_name(ref) or Store().find(ref):
        return find_subject(ref, Store()).root
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(ref, "config.json")).parent
    except Exception as error:  # the hub client raises its own errors, httpx's and OSError
        raise UnavailableError(
            f"the configuration of {ref!r} cannot be had from the hub: {type(error).__name__}",
            hint="`ilu plan RECIPE --config FILE` takes a config.json; no weights are needed",
        ) from error


def here() -> Fleet:
    """This machine, its speed measured on matrices of 1024 × 1024 and by copying 64 MB."""
    import time

    import torch

    b = backend()

    def rate(work: Any, amount: float) -> float:
        work()
        began, times = time.perf_counter(), 0
        while time.perf_counter() - began < SPEED:
            work()
            times += 1
        return amount * times / (time.perf_counter() - began)

    wide, long = torch.randn(1024, 1024, device=b.device), torch.zeros(1 << 24, device=b.device)
    half = wide.bfloat16()
    flops = 2.0 * 1024**3
    speeds = rate(lambda: half @ half, flops), rate(lambda: wide @ wide, flops), rate(long.clone, 8.0 * long.numel())
    return Fleet(Device("here", b.memory()[0], *speeds, accelerator=b.device.type != "cpu"), 1)


def told(seconds: float | None) -> str:
    """Seconds in words."""
    if seconds is None:
        return "as the data say"
    unit = next(((n, u) for n, u in ((86400, "d"), (3600, "h"), (60, "min"), (1, "s")) if seconds >= n), (1e-3, "ms"))
    return f"{seconds / unit[0]:.3g} {unit[1]}"
