"""lm-eval's tasks through `ilu eval`: values are those of lm-eval's evaluator, and errors say what to do."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import Ilu, present
from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager

from ilu_cli.harness.lm import IluLM
from ilu_cli.harness.task import HarnessTask
from ilu_cli.recipe.harness import harness_names
from ilu_cli.report.points import Source
from ilu_cli.runs.results import read_results

WMDP = """task: quiz
dataset_path: json
dataset_kwargs: {{data_files: {{test: {0}}}}}
test_split: test
fewshot_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}\\nA. {{{{choices[0]}}}}\\nB. {{{{choices[1]}}}}\\nAnswer:"
doc_to_choice: ["A", "B"]
doc_to_target: answer
metadata: {{version: 3, role: forget}}
"""
SUMS = """task: sums
dataset_path: json
dataset_kwargs: {{data_files: {{test: {0}}}}}
test_split: test
fewshot_split: test
output_type: generate_until
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{choices[answer]}}}}"
generation_kwargs: {{until: ["."], max_gen_toks: 4}}
metric_list: [{{metric: exact_match, aggregation: mean, higher_is_better: true}}]
metadata: {{version: 1}}
"""


@pytest.fixture
def quiz(tmp_path: Path) -> Path:
    rng, rows = random.Random(1), []
    for i in range(24):
        rows.append({"question": f"Which is it, {i}?", "choices": [f"this {i}", "that"], "answer": rng.randrange(2)})
    data = tmp_path / "quiz.jsonl"
    data.write_text("".join(json.dumps(r) + "\n" for r in rows))
    for name, text in (("quiz", WMDP), ("sums", SUMS)):
        (tmp_path / f"{name}.yaml").write_text(text.format(data))
    return tmp_path


@pytest.mark.parametrize(
    ("name", "metric", "shots"), [("quiz", "acc", 0), ("quiz", "acc", 3), ("sums", "exact_match", 2)]
)
def test_values_and_rows_are_those_of_lm_eval(
    quiz: Path, tiny: Path, ilu: Ilu, name: str, metric: str, shots: int
) -> None:
    args = ["eval", tiny, "--bench", f"{name}.yaml", "--fewshot", shots, "--limit", 20, "--json"]
    done = ilu(*args)
    assert done.code == 0, done.err
    found = next(iter(json.loads(done.out)["results"].values()))
    manager = TaskManager(include_path=str(quiz), include_defaults=False)
    theirs = simple_evaluate(
        IluLM(pretrained=str(tiny)), tasks=[name], num_fewshot=shots, limit=20, task_manager=manager, bootstrap_iters=1
    )
    assert found["value"] == pytest.approx(theirs["results"][name][f"{metric},none"])
    assert found["stderr"] == pytest.approx(theirs["results"][name][f"{metric}_stderr,none"])
    assert (found["n"], found["fewshot"], found["metric"]) == (20, shots, metric)
    assert found["task_version"] == {name: theirs["versions"][name]}
    assert found["template"]["doc_to_text"] == theirs["configs"][name]["doc_to_text"]
    rows = [json.loads(r) for r in next(Path("cache").rglob(f"{name}.rows.jsonl")).read_text().splitlines()]
    assert [r["question"] for r in rows] == [s["arguments"][0][0] for s in theirs["samples"][name]]
    assert [r["value"] for r in rows] == [s[metric] for s in theirs["samples"][name]]
    if metric == "acc":
        assert found["role"] == "forget"
        assert found["chance"] == 0.5
        for row, sample in zip(rows, theirs["samples"][name]):
            assert row["logps"] == pytest.approx([r[0][0] for r in sample["resps"]], abs=1e-4)
    again = ilu(*args)
    assert json.loads(again.out)["results"] == json.loads(done.out)["results"]
    assert "evaluating" not in again.err


def test_the_built_in_ones_are_lm_eval_tasks_too(tiny: Path, ilu: Ilu) -> None:
    import ilu_cli.benchmarks

    done = ilu("eval", tiny, "--limit", 8, "--json")
    assert done.code == 0, done.err
    found = json.loads(done.out)["results"]
    folder = str(Path(ilu_cli.benchmarks.__file__).parent)
    manager = TaskManager(include_path=folder, include_defaults=False)
    theirs = simple_evaluate(IluLM(pretrained=str(tiny)), tasks=list(found), limit=8, task_manager=manager,
                             bootstrap_iters=0)["results"]  # fmt: skip
    assert {n: (s["role"], s["metric"], s["chance"]) for n, s in found.items()} == {
        "capitals": ("forget", "acc", 0.25),
        "elements": ("utility", "acc", 0.25),
        "prose": ("utility", "word_perplexity", None),
    }
    for name, summary in found.items():
        assert summary["value"] == pytest.approx(theirs[name][f"{summary['metric']},none"], rel=1e-5)


@pytest.mark.parametrize("name", ["wmdp_bio", "mmlu", "gsm8k", "winogrande"])
def test_a_dataset_that_cannot_be_had_is_said_so(tiny: Path, ilu: Ilu, name: str) -> None:
    done = ilu("eval", tiny, "--bench", name)
    assert done.code == 3
    assert "cannot be had" in done.err
    assert "mirror it as" in done.err


def test_a_data_file_without_rows_is_said_so(tiny: Path, ilu: Ilu, tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "own.yaml").write_text(
        "task: own\ndataset_path: json\ndataset_kwargs: {data_files: {test: empty.jsonl}}\ntest_split: test\n"
        "output_type: multiple_choice\ndoc_to_text: q\ndoc_to_choice: c\ndoc_to_target: a\n"
    )
    done = ilu("eval", tiny, "--bench", "own.yaml", "--dry-run")
    assert done.code == 3
    assert "the data files of own cannot be read: one of them is empty" in done.err


def test_a_group_is_read_from_the_data_root(
    tiny: Path, ilu: Ilu, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for config in ("wmdp-bio", "wmdp-chem", "wmdp-cyber"):
        folder = tmp_path / "root" / "cais" / "wmdp" / config
        folder.mkdir(parents=True)
        rows = [{"question": f"{config} {i}?", "choices": list("wxyz"), "answer": i % 4} for i in range(5)]
        (folder / "test.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    monkeypatch.setenv("ILU_DATA", str(tmp_path / "root"))
    done = ilu("eval", tiny, "--bench", "wmdp", "--limit", 4, "--json")
    assert done.code == 0, done.err
    found = json.loads(done.out)["results"]["wmdp"]
    assert (found["n"], found["role"], found["chance"]) == (12, "forget", 0.25)
    parts = [t["value"] for t in found["tasks"].values()]
    assert list(found["tasks"]) == ["wmdp_bio", "wmdp_chem", "wmdp_cyber"]
    assert found["value"] == pytest.approx(sum(parts) / 3)


def test_names_are_known_without_importing_lm_eval() -> None:
    assert {"mmlu", "wmdp", "wmdp_bio", "gsm8k", "winogrande", "ai2_arc", "mmlu_stem_tasks"} <= set(harness_names())
    code = (
        "import sys; sys.argv = ['ilu', 'eval', '--bench', 'wmdp_bia']\n"
        "from ilu_cli.cli.app import main\n"
        "try: main()\n"
        "except SystemExit as e: print(e.code, 'lm_eval.api' in sys.modules, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["2", "False", "False"]
    assert "Did you mean 'wmdp_bio'?" in done.stderr


def test_few_shot_examples_have_no_place_before_prose(tiny: Path, ilu: Ilu) -> None:
    done = ilu("eval", tiny, "--bench", "prose", "--fewshot", 2)
    assert done.code == 2
    assert "takes no few-shot examples" in done.err


@pytest.mark.parametrize(
    ("name", "changed"),
    [
        ("sums", ("{{choices[answer]}}", "{{question}}")),
        ("sums", ("exact_match, aggregation: mean", "bleu, aggregation: bleu")),
        ("sums", ("metadata", "filter_list: [{name: short, filter: [{function: lowercase}]}]\nmetadata")),
        ("quiz", ("metadata", "metric_list: [{metric: acc_norm, higher_is_better: true}]\nmetadata")),
    ],
)
def test_a_task_that_scores_otherwise_is_evaluated_again(
    quiz: Path, tiny: Path, ilu: Ilu, name: str, changed: tuple[str, str]
) -> None:
    file = quiz / f"{name}.yaml"
    first, again = (ilu("eval", tiny, "--bench", file, "--limit", 4, "--json") for _ in range(2))
    file.write_text(file.read_text().replace(*changed))
    other = ilu("eval", tiny, "--bench", file, "--limit", 4, "--json")
    assert first.code == again.code == other.code == 0, other.err
    assert "evaluating" in first.err and "evaluating" not in again.err and "evaluating" in other.err


def test_two_benchmarks_whose_results_would_lie_in_the_same_files_are_refused(quiz: Path, tiny: Path, ilu: Ilu) -> None:
    (quiz / "other").mkdir()
    (quiz / "other/quiz.yaml").write_text((quiz / "quiz.yaml").read_text())
    (quiz / "capitals.yaml").write_text((quiz / "quiz.yaml").read_text())
    for two in ((quiz / "quiz.yaml", quiz / "other/quiz.yaml"), ("capitals", quiz / "capitals.yaml")):
        done = ilu("eval", tiny, "--bench", two[0], "--bench", two[1], "--limit", 2)
        assert done.code == 2 and f"its results would lie in the files of '{two[0]}'" in done.err, done.err


def test_the_rows_of_a_task_in_a_folder_are_found_by_the_name_that_it_was_asked_by(
    quiz: Path, tiny: Path, ilu: Ilu
) -> None:
    (quiz / "mine").mkdir()
    (quiz / "quiz.yaml").rename(quiz / "mine" / "quiz.yaml")
    done = ilu("eval", tiny, "--bench", "mine/quiz.yaml", "--json")
    assert done.code == 0, done.err
    folder = next(Path("cache").rglob("quiz.rows.jsonl")).parent
    [(name, summary)] = read_results(folder).items()
    assert name == "mine/quiz.yaml"
    written = [json.loads(line)["value"] for line in (folder / "quiz.rows.jsonl").read_text().splitlines()]
    rows = present(Source(summary, folder, (0,)).rows)
    assert rows.values.tolist() == written and len(written) == 24


def test_a_task_file_called_as_the_file_of_warnings_is_refused(quiz: Path, tiny: Path, ilu: Ilu) -> None:
    named = (quiz / "quiz.yaml").rename(quiz / "warnings.yaml")
    done = ilu("eval", tiny, "--bench", named, "--limit", 2)
    assert done.code == 2 and "warnings.json" in done.err and "rename the file" in done.err, done.err


def test_choices_that_are_scored_without_the_question_too_are_no_more_choices(quiz: Path, tiny: Path, ilu: Ilu) -> None:
    file = quiz / "quiz.yaml"
    both = (
        "metric_list: [{metric: acc}, {metric: acc_mutual_info, aggregation: mean, higher_is_better: true}]\nmetadata"
    )
    file.write_text(file.read_text().replace("metadata", both))
    done = ilu("eval", tiny, "--bench", file, "--limit", 12, "--json")
    assert done.code == 0, done.err
    found = next(iter(json.loads(done.out)["results"].values()))
    assert (found["metric"], found["chance"]) == ("acc", 0.5)
    manager = TaskManager(include_path=str(quiz), include_defaults=False)
    theirs = simple_evaluate(
        IluLM(pretrained=str(tiny)), tasks=["quiz"], limit=12, task_manager=manager, bootstrap_iters=1
    )
    assert found["value"] == pytest.approx(theirs["results"]["quiz"]["acc,none"])
    rows = [
        json.loads(line)
        for line in next((quiz / "cache" / "eval").rglob("quiz.rows.jsonl")).read_text().split("\n")[:-1]
    ]
    assert all(r["choices"] == [" A", " B"] and len(r["logps"]) == 2 and r["prediction"] in (0, 1) for r in rows)


def test_nanmean_leaves_out_what_is_no_number(quiz: Path) -> None:
    file = quiz / "sums.yaml"
    file.write_text(file.read_text().replace("aggregation: mean", "aggregation: nanmean"))
    task = HarnessTask(str(file))
    task.first(3)
    value, error = task.summarise([{"value": v} for v in (1.0, float("nan"), 0.0)])
    assert (value, error) == (0.5, 0.5)
