"""Mutation testing (`make mutants`): is a small change of the mathematics noticed by the tests?

The changes are mutmut's operators. mutmut's own runner leaves decorated functions out, and here every objective is one;
so this file is the runner: a process that has imported torch forks for each mutant, loads the changed source instead of
the file, and runs the tests that execute the changed lines, the fastest first. Nothing is written into the package.
Results stand in `.mutants/`, and a killed run goes on where it was. `tests/mutants.md` says what is left out and why,
and explains what survives.

    python tests/mutants.py                         # everything in TESTS
    python tests/mutants.py 'objectives/*' -j 1     # some files, on one core
    python tests/mutants.py 'metrics/*' --report    # nothing is run: the scores and survivors that are known
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import importlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from mutations import PACKAGE, ROOT, Instead, module_of, mutants_of

FOUND = ROOT / ".mutants"
ENGINE = "engine/test_* test_methods test_by_hand test_defence_steps test_defences harness/test_lm"
# What is mutated, and the test files that must notice: those that run in this process and take seconds.
TESTS = {
    "objectives/*": "test_declared test_methods test_by_hand",
    "retain/*": "test_declared test_methods test_by_hand",
    "regularizers/*": "test_declared test_methods test_by_hand",
    "defences/*": "test_declared test_defence* test_repselect",
    "engine/budget.py": "test_repselect",
    **{f"engine/{f}.py": ENGINE for f in ("head", "view", "loop", "environments", "gradients", "hessian", "layout")},
    **{f"engine/{f}.py": ENGINE for f in ("reference", "scoring", "tree")},
    "models/logits.py": "models/test_logits engine/test_head* engine/test_families_loss engine/test_reference",
    "metrics/*": "metrics/test_*",
    "taskvec/*": "taskvec/test_*",
    "workflows/pipeline/table.py": "workflows/pipeline/test_results*",
    "workflows/pipeline/figures.py": "workflows/pipeline/test_results*",
    "workflows/pipeline/worst.py": "workflows/pipeline/test_results* report/test_*",
    "workflows/compare.py": "workflows/test_compar*",
    "report/outcomes.py": "report/test_outcomes*",
}
HEAVY = [  # imported before the forks
    *("torch", "torch._dynamo", "transformers", "transformers.models.llama.modeling_llama", "accelerate", "datasets"),
    *("peft", "lm_eval.api.model", "scipy.stats", "sklearn.metrics", "matplotlib.pyplot", "rouge_score.rouge_scorer"),
    *("pydantic.main", "typer", "rich.console", "pytest"),
]


def pytest_in_here(args: list[str], *plugins: object) -> int:
    import pytest

    quick = [
        "-m",
        "not real",
        "--assert=plain",
        "-p",
        "no:cacheprovider",
        "-p",
        "no:unraisableexception",
        "-p",
        "no:threadexception",
    ]
    return int(pytest.main([*args, "-q", *quick], [*plugins]))


def fork(work: Callable[[], int], log: Path) -> int:
    """The pid of a child, a session of its own, that does the work in silence."""
    if pid := os.fork():
        return pid
    code = 70
    try:
        os.setsid()
        out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(out, 1), os.dup2(out, 2)
        code = work()
        sys.stdout.flush()
    finally:
        os._exit(code)


class Watch:
    """A pytest plugin: what each test executes of some files, and how long it takes."""

    def __init__(self, paths: list[Path]) -> None:
        import coverage

        include = [str(p) for p in paths]
        self.coverage = coverage.Coverage(data_file=None, include=include, config_file=False, messages=False)
        self.paths, self.seconds = paths, dict[str, float]()

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self.coverage.switch_context(nodeid)

    def pytest_runtest_logreport(self, report: Any) -> None:
        if not report.skipped:
            self.seconds[report.nodeid] = self.seconds.get(report.nodeid, 0.0) + report.duration

    def record(self, args: list[str]) -> tuple[int, dict[Path, dict[str, list[str]]]]:
        self.coverage.start()
        for path in self.paths:  # before any test, so that their top level belongs to none
            importlib.import_module(module_of(path))
        code = pytest_in_here(args, self)
        self.coverage.stop()
        found = {p: self.coverage.get_data().contexts_by_lineno(str(p)) for p in self.paths}
        return code, {p: {str(n): sorted(set(c) - {""}) for n, c in lines.items()} for p, lines in found.items()}


class File:
    """One file of the package: its tests, what they execute, and what is known of its mutants."""

    def __init__(self, path: Path, tests: str) -> None:
        self.path, self.name = path, str(path.relative_to(PACKAGE))
        self.tests = sorted({p for pattern in tests.split() for p in (ROOT / "tests").glob(f"{pattern}.py")})
        self.source = path.read_text()
        helpers = [ROOT / "tests/conftest.py", *self.tests]
        self.state = digest(self.source, *(p.read_text() for p in helpers))
        self.folder = FOUND / self.name.removesuffix(".py").replace("/", ".")
        self.folder.mkdir(parents=True, exist_ok=True)
        self.results = self.folder / "results.jsonl"
        self.mutants = {digest(changed): (line, changed) for line, changed in mutants_of(self.source)}

    def known(self) -> dict[str, dict[str, Any]]:
        """Mutant → its last result. What was killed stays so, what survived is tried again when tests have changed."""
        lines = self.results.read_text().splitlines() if self.results.exists() else []
        found = {r["mutant"]: r for r in map(json.loads, lines)}
        return {k: r for k, r in found.items() if k in self.mutants and (r["killed"] or r["state"] == self.state)}

    def unknown(self, every: int) -> list[str]:
        """The mutants, or every so manyth of them, of which nothing is known."""
        known = self.known()
        return [key for key in list(self.mutants)[::every] if key not in known]

    def executed(self) -> dict[str, Any]:
        """Which tests execute which line, and how long each takes; nothing before `observe`."""
        kept = self.folder / "executed.json"
        found = dict(json.loads(kept.read_text())) if kept.exists() else {}
        return found if found.get("state") == self.state else {}

    def describe(self, key: str) -> tuple[str, str]:
        """The lines that a mutant changes, before and after."""
        before, after = self.source.splitlines(), self.mutants[key][1].splitlines()
        same = [a == b for a, b in zip(before, after)]
        first = same.index(False) if False in same else len(same)
        last = next((i for i in range(len(same) - first) if before[-1 - i] != after[-1 - i]), len(same) - first)
        old, new = (" ".join(map(str.strip, lines[first : len(lines) - last])) for lines in (before, after))
        return old, new

    def write(self, key: str, outcome: str, seconds: float) -> None:
        old, new = self.describe(key)
        result = {"mutant": key, "killed": outcome != "survived", "outcome": outcome, "seconds": round(seconds, 2)}
        result |= {"state": self.state, "line": self.mutants[key][0], "old": old, "new": new}
        with self.results.open("a") as file:
            file.write(json.dumps(result, ensure_ascii=False) + "\n")


def digest(*texts: str) -> str:
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:16]


def observe(files: list[File]) -> None:
    """Run all tests once, unchanged, for files that have the same ones, and keep what they execute; they must pass."""
    folder = files[0].folder

    def work() -> int:
        watch = Watch([f.path for f in files])
        code, lines = watch.record(["--basetemp", str(folder / "tmp"), *map(str, files[0].tests)])
        for f in files if code == 0 else ():
            kept = {"state": f.state, "seconds": watch.seconds, "lines": lines[f.path]}
            (f.folder / "executed.json").write_text(json.dumps(kept))
        return code

    pid = fork(work, folder / "log")
    if code := os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]):
        sys.exit(f"{files[0].name}: its tests do not pass ({code}); see {folder / 'log'}")


def trial(file: File, key: str, tests: list[str], slot: int) -> int:
    """The pid of a child that runs the tests on one mutant."""
    path, changed = file.path, file.mutants[key][1]

    def work() -> int:
        sys.meta_path.insert(0, Instead(path, changed))
        return pytest_in_here(["-x", "--basetemp", str(file.folder / f"tmp{slot}"), *tests])

    return fork(work, file.folder / f"log{slot}")


def run(file: File, waiting: list[str], jobs: int) -> None:
    """Try mutants."""
    executed = file.executed()
    seconds, running = executed["seconds"], dict[int, tuple[str, int, float, float]]()
    near = {t for tests in executed["lines"].values() for t in tests}
    slots = list(range(jobs))
    while waiting or running:
        while waiting and slots:
            key = waiting.pop()
            tests = executed["lines"].get(str(file.mutants[key][0])) or list(seconds)  # none: it runs on import
            tests = sorted(tests, key=lambda t: (t not in near, seconds[t]))
            pid, now = trial(file, key, tests, slots[-1]), time.monotonic()
            running[pid] = key, slots.pop(), now, now + 60 + 10 * sum(seconds[t] for t in tests)
        time.sleep(0.02)
        for pid, (key, slot, start, deadline) in list(running.items()):
            late = time.monotonic() > deadline
            if late:
                os.killpg(pid, signal.SIGKILL)
            done, status = os.waitpid(pid, 0 if late else os.WNOHANG)
            if done:
                code = os.waitstatus_to_exitcode(status)
                outcome = "late" if late else "survived" if code == 0 else "killed"
                file.write(key, outcome, time.monotonic() - start)
                del running[pid]
                slots.append(slot)


def report(files: list[File]) -> float:
    """Print a line per file and what survives without an explanation; the share of mutants that is killed."""
    explained = {}
    for section in (ROOT / "tests/mutants.md").read_text().split("\n## ")[1:]:
        explained[section.partition("\n")[0].strip()] = section
    killed = tried = open_ = 0
    for file in files:
        known = file.known()
        alive = sorted((r for r in known.values() if not r["killed"]), key=lambda r: r["line"])
        new = [line for r in alive if (line := f"`{r['old']}` → `{r['new']}`") not in explained.get(file.name, "")]
        killed, tried, open_ = killed + len(known) - len(alive), tried + len(known), open_ + len(new)
        share = f"{1 - len(alive) / len(known):6.1%}" if known else "     –"
        rest = f", {len(file.mutants) - len(known)} not tried" if len(known) < len(file.mutants) else ""
        print(f"{file.name:28} {share} of {len(known):4}: {len(alive)} survive, {len(new)} unexplained{rest}")
        print(*(f"- {line}" for line in new), sep="\n", end="\n" * bool(new), flush=True)
    least = killed / max(tried, 1)
    if len(files) > 1:
        print(f"{killed} of {tried} mutants are killed: {least:.1%}; {open_} survivors are not explained")
    return least


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", default=["*"], help="patterns of files within the package")
    parser.add_argument("-j", "--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--every", type=int, default=1, metavar="N", help="only every N-th mutant, for an estimate")
    parser.add_argument("--report", action="store_true", help="run nothing")
    parser.add_argument("--least", type=float, default=0.9, help="exit with 1 below this share")
    args = parser.parse_args()
    os.environ |= {"OMP_NUM_THREADS": "1", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}  # threads do not survive a fork
    sys.path.insert(0, str(ROOT))
    os.chdir(ROOT)
    paths = {p: t for pattern, t in reversed(TESTS.items()) for p in sorted(PACKAGE.glob(pattern)) if p.suffix == ".py"}
    chosen = {p: t for p, t in paths.items() if any(fnmatch(str(p.relative_to(PACKAGE)), f) for f in args.files)}
    files = [f for f in (File(p, t) for p, t in sorted(chosen.items())) if f.mutants]
    if not args.report:
        for module in HEAVY:
            importlib.import_module(module)
        gc.freeze()
        waiting = {f: w for f in files if (w := f.unknown(args.every))}
        for tests in {tuple(f.tests): None for f in waiting if not f.executed()}:
            observe([f for f in waiting if tuple(f.tests) == tests and not f.executed()])
        for file, keys in waiting.items():
            run(file, keys, args.jobs)
            report([file])
    sys.exit(report(files) < args.least)


if __name__ == "__main__":
    main()
