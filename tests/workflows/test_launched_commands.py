"""Every command in a launch of two: done once, said once, and what one process says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import made_once, tiny_model, tiny_tokenizer
from test_sharded import HERE, alone, at_work, keys, launch

SMALL = keys("forget.batch=4", "retain.batch=4", "retain.data=[elements]", "forget.max_length=24",
             "retain.max_length=24", "train.precision=fp32")  # fmt: skip
UNLEARN = ["unlearn", "--method", "npo", "--model", "tiny", "--forget", "facts.jsonl", "--steps", "2", *SMALL]
TOGETHER = {
    "dry": [*UNLEARN, "--dry-run", "--json"],
    "priced": [*UNLEARN, "--dry-run", "--devices", "1x(CPU,16GB,1TFLOPS,0.1TB/s)", "--json"],
    "eval": ["eval", "a", "--bench", "elements", "--limit", "3", "--json"],
    "compare": ["compare", "a", "--with", "b", "--bench", "elements", "--limit", "5", "--json"],
    "again": ["reproduce", "a", "--json"],
    "measured": ["reproduce", "a", "--eval", "--json"],
    "complete": ["taskvec", "attacked", "--complete", "--json"],
}
ALONE = {
    "list": ["list", "models", "--json"],
    "apply": ["taskvec", "apply", "a", "--alpha", "-1", "--json"],
    "vectors": ["taskvec", "a", "--json"],
    "with": ["reproduce", "a", "--with", "b", "--json"],
    "doctor": ["doctor", "tiny", "--json"],
    "push": ["push", "a", "someone/something", "--dry-run", "--json"],
    "report": ["report", "a", "--out", "page", "--json"],
    "runs": ["runs", "--json"],
    "suite": ["attack", "a", "--suite", "suite.yaml", "--json"],
}
DIFFERENT = 4  # exit code
SUITE = """
command: suite
attacks: [{attack: {name: noise, sigmas: [0.05]}}]
eval: {benchmarks: [capitals, elements], limit: 3}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two seeds and an attack by one process, and what two processes said of them."""
    return made_once(tmp_path_factory, "said", run_all)


def run_all(path: Path) -> None:
    with at_work(path):
        tokenizer = tiny_tokenizer()
        for saved in (tiny_model(len(tokenizer), spread=0.05), tokenizer):
            saved.save_pretrained("tiny")
        rows = [json.dumps({"text": f"The capital of land {i} is town {7 * i}."}) for i in range(8)]
        Path("facts.jsonl").write_text("\n".join(rows))
        Path("suite.yaml").write_text(SUITE)
        for seed, name in enumerate("ab"):
            assert alone(*UNLEARN, "--seed", str(seed), "--out", f"runs/{name}") == 0
        attack = keys("attack.steps=2", "attack.batch=4", "attack.precision=fp32", "eval.limit=3")
        assert alone("attack", "a", "--task", "elements", "--no-reference", *attack, "--out", "runs/attacked") == 0
        Path("commands.json").write_text(json.dumps({"together": TOGETHER, "alone": ALONE}))
        done = launch(str(HERE / "said.py"), "commands.json", ILU_CACHE="cache")
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]


def said(folder: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads((folder / f"{rank}.{name}.json").read_text()) for rank in (0, 1)]


@pytest.mark.parametrize("name", [*TOGETHER, *ALONE])
def test_one_object_on_stdout(folder: Path, name: str) -> None:
    first, second = said(folder, name)
    code = DIFFERENT if name in ("again", "with") else 0  # in how many processes, and in the seed
    assert (first["code"], second["code"], second["out"], second["err"]) == (code, 0, "", ""), (first, second)
    json.loads(first["out"])
    assert ("work for one process" in first["err"]) == (name in ALONE)


def test_what_is_made_is_made_once(folder: Path) -> None:
    made = sorted(p.name.rpartition("-")[0] for p in (folder / "runs").glob("*-*") if (p / "manifest.json").is_file())
    assert made.count("taskvec-apply-linear") == 1 and made.count("unlearn-npo") == 1
    assert json.loads(said(folder, "apply")[0]["out"])["run"] in {p.name for p in (folder / "runs").iterdir()}


def test_it_is_what_one_process_says(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setenv("ILU_RUNS", "runs")
    monkeypatch.setenv("ILU_CACHE", "other")
    again = json.loads(said(folder, "again")[0]["out"])
    assert again["beyond"]["where"] == "processes" and {"losses", "weights"} <= {s["stage"] for s in again["stages"]}
    assert json.loads(said(folder, "measured")[0]["out"])["stages"][0]["compared"] > 0
    for name in ("compare", "vectors"):
        capsys.readouterr()
        assert alone(*{**TOGETHER, **ALONE}[name]) == said(folder, name)[0]["code"]
        here, there = json.loads(capsys.readouterr().out), json.loads(said(folder, name)[0]["out"])
        assert here | {"notes": []} == there | {"notes": []}  # of runs that came later
