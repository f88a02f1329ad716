"""Every machine: no float64 where tensors of the training device are, as on Apple's; no module that only POSIX has.

Here host and device are one, so the guard follows what is on which: a tensor is on the host if it was made there, moved
there, or comes of such tensors alone.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import pytest
import torch
from conftest import Ilu
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from ilu_cli import registry
from ilu_cli.engine import exact
from ilu_cli.engine.accel import backend

pytestmark = pytest.mark.slow


class NoFloat64(TorchFunctionMode):
    """Refuses what has a result in float64 on the device."""

    def __init__(self) -> None:
        super().__init__()
        self.host = WeakIdKeyDictionary()

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        found, name = func(*args, **kwargs), getattr(func, "__name__", "")
        asked = [x for x in (*args, kwargs.get("device")) if isinstance(x, (str, torch.device))]
        there = name == "cpu" or "cpu" in [x for x in asked if isinstance(x, str)]
        moved = name == "to" and any(isinstance(x, torch.device) for x in asked)
        made = not given and not any(isinstance(x, torch.device) for x in asked)
        on_host = there or (not moved and (made if not given else all(t in self.host for t in given)))
        if (there or moved) and isinstance(found, Tensor):
            with torch._C.DisableTorchFunction():
                found = found.view_as(found)  # `cpu` of a tensor on the host is itself
        for t in tree_leaves(found):
            if isinstance(t, Tensor) and on_host:
                self.host[t] = True
            elif isinstance(t, Tensor) and t.dtype == torch.float64 and t not in self.host:
                raise AssertionError(f"{name} gives float64 on the device")
        return found


@pytest.fixture
def guarded(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A device without float64."""
    backend()  # Accelerate asks for devices in ways of its own
    monkeypatch.setattr(exact, "WITHOUT", ("cpu",))
    with NoFloat64():
        yield


def test_the_guard_guards(guarded: None) -> None:
    weight = torch.ones(3).to(torch.device("cpu"))
    with pytest.raises(AssertionError, match="double gives float64"):
        weight.double()
    with pytest.raises(AssertionError, match="gives float64"):
        torch.mul(weight, torch.ones(3, dtype=torch.float64))
    assert float(weight.cpu().double().sum()) == 3
    assert float(exact.exact(weight).sum()) == 3
    assert float(torch.ones(3, dtype=torch.float64).sum()) == 3


SMALL = ["--steps", 2, "--set", "forget.batch=2", "--set", "forget.max_length=24", "--set",
         "forget.data=[{name: capitals, limit: 8}]"]  # fmt: skip
RETAIN = ["--set", "retain.batch=2", "--set", "retain.max_length=24", "--set",
          "retain.data=[{name: elements, limit: 8}]"]  # fmt: skip
IRM = [*SMALL, "--set", "retain=null", "--method", "npo", "--irm-env", "elements", "--irm-batch", 2, "--irm-variant"]
NPO = ["--method", "npo", "--set", "retain=null", *SMALL, "--set"]
OWN = {
    "averaging": ", start: 0, every: 1",
    "cir": ", inputs: 4, outputs: 4",
    "lat": ", layer: 0, inner_steps: 1",
}  # for two steps, three layers of sixteen units
WHOLE = ["--set", "train.params=null", "--set", "defences=[]", "--set", "train.budget=null"]


def cases() -> Iterator[tuple[str, list[object]]]:
    for name in registry.objective:
        keys = registry.objective[name].keys()
        layers = ["--set", "objective.layers=[0, 1]"] if "layers" in keys else []
        retain = RETAIN if name == "undo" else ["--set", "retain=null"]
        yield f"objective {name}", ["--method", name, *SMALL, *retain, *layers, *(WHOLE if name == "cir" else [])]
    for name in registry.retain_term:
        yield f"retain {name}", ["--method", "rmu", *SMALL, *RETAIN, "--set", f"retain.name={name}"]
    for variant in ("logit", "param_scale", "grad_norm"):
        yield f"irm {variant}", [*IRM, variant]
    for name in registry.regularizer:
        yield f"regularizer {name}", [*NPO, f"regularizers=[{{name: {name}, env: [prose, elements], batch: 2}}]"]
    for name in registry.defence:
        npo = ["--method", "npo", *SMALL, *RETAIN, "--set"]
        yield f"defence {name}", [*npo, f"defences=[{{name: {name}{OWN.get(name, '')}}}]"]
    yield "budget", [*NPO, "train.budget={kl: 0.1, rows: 2}"]
    yield "sgd", [*NPO, "train.optimizer=sgd"]


CASES = dict(cases())


@pytest.mark.parametrize("case", sorted(CASES))
def test_training_needs_no_float64_on_the_device(case: str, ilu: Ilu, tiny: Any, guarded: None) -> None:
    second = case == "objective undo"
    model = ilu("unlearn", "--model", tiny, *CASES["objective npo"]).out.strip() if second else tiny
    done = ilu("unlearn", "--model", model, *CASES[case])
    assert done.code == 0, done.err


HIDDEN = """
import importlib, pkgutil, sys
import torch, transformers, datasets, accelerate, peft, lm_eval.api.task, sacrebleu, rich.console  # theirs is theirs
for name in [n for n in sys.modules if n.partition(".")[0] == "ilu_cli"]:
    del sys.modules[name]
for name in ("fcntl", "resource", "pwd", "grp", "termios"):
    sys.modules[name] = None
import ilu_cli
found = [m.name for m in pkgutil.walk_packages(ilu_cli.__path__, "ilu_cli.") if not m.name.endswith("__main__")]
for name in found:
    importlib.import_module(name)
print(len(found))
"""


def test_every_module_is_there_without_what_only_posix_has() -> None:
    done = subprocess.run([sys.executable, "-c", HIDDEN], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout) > 200


class Info(NamedTuple):
    rss: int
    peak_wset: int


STARTED = """
import subprocess, sys
held = b"x" * (1 << 30)
peak = "from ilu_cli.engine.accel import backend; print(backend().peak_memory())"
subprocess.run([sys.executable, "-c", peak], check=True)
"""


def test_the_most_memory_is_not_that_of_the_program_that_started_it() -> None:
    done = subprocess.run([sys.executable, "-c", STARTED], capture_output=True, text=True, check=True)
    assert 50 << 20 < int(done.stdout) < 1 << 30


ONE_AFTER_ANOTHER = """
from ilu_cli.engine.accel import backend, forget_peak
held = b"x" * (1 << 30)
del held
first = backend().peak_memory()
forget_peak()
print(first, backend().peak_memory())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the most that was held cannot be forgotten there")
def test_the_most_memory_is_not_that_of_the_job_before() -> None:
    done = subprocess.run([sys.executable, "-c", ONE_AFTER_ANOTHER], capture_output=True, text=True, check=True)
    first, then = map(int, done.stdout.split())
    assert first > 1 << 30 > then > 50 << 20


def test_the_most_memory_is_known_without_resource(monkeypatch: pytest.MonkeyPatch) -> None:
    class Windows:
        def memory_info(self) -> Any:
            return Info(1, 12345)

    monkeypatch.setitem(sys.modules, "resource", None)
    monkeypatch.setattr(psutil, "Process", Windows)
    monkeypatch.setattr(Path, "is_file", lambda path: False)  # no /proc
    assert backend().peak_memory() == 12345
