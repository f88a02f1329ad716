"""What is read is what the file says now: rows that fit their header, no cache, no half characters."""

from __future__ import annotations

import csv
import datetime
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from ilu_cli.data.sources import load_dataset
from ilu_cli.errors import UnavailableError
from ilu_cli.recipe.refs import DataRef
from ilu_cli.tasks import Example, after
from ilu_cli.workflows.needs.inputs import inputs_of


def load(path: Path) -> Any:
    return load_dataset(DataRef(name=str(path)), "train")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("text\nAda lives in Ennis, Ireland\n", "a.csv:2: 2 fields, but the first line names 1 columns (text)"),
        ("prompt,response\nWho?,A baker\nWho is Colm?,A miller,checked\n", "a.csv:3: 3 fields"),
        ("prompt,response\n\"Who,\nsays he\",A\nWho?\n", "a.csv:4: 1 fields"),
        ("prompt,response\nWho?,Ada\n\nWho?,\"A\nB\n", "a.csv:4: cannot read this row as csv: unexpected end"),
        ("text,text\none,two\n", "a.csv:1: two columns are called 'text'"),
        ("prompt;response\nWho?;Ada\n", "it has prompt;response"),
    ],
)  # fmt: skip
def test_a_csv_row_that_does_not_fit_its_header_is_refused_by_its_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "a.csv"
    path.write_text(text, newline="")
    with pytest.raises(UnavailableError, match=re.escape(message)):
        load(path)


def test_csv_rows_are_those_of_the_csv_module(tmp_path: Path) -> None:
    rows = [
        {"prompt": 'Who said "hello, world"?', "response": "Ada, on\ntwo lines"},
        {"prompt": "Is it NA?", "response": "NA"},
        {"prompt": "Code?", "response": "007"},
        {"prompt": 'A 5" pipe?', "response": "null"},
        {"prompt": "long", "response": "x" * 200_000},
    ]
    with (tmp_path / "a.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["prompt", "response"])
        writer.writeheader()
        writer.writerows(rows)
    assert load(tmp_path / "a.csv").rows == rows


def test_a_number_of_a_task_that_is_none_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sst2").mkdir()
    (tmp_path / "sst2/train.csv").write_text("sentence,label\nfine,1\ngood,one\n")
    monkeypatch.setenv("ILU_DATA", str(tmp_path))
    with pytest.raises(UnavailableError, match=r"train.csv:3: 'label' is 'one', not a whole number"):
        load_dataset(DataRef(name="sst2"), "train")


def write(path: Path, texts: list[str]) -> None:
    shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
    rows = [{"text": t} for t in texts]
    if path.suffix == ".parquet":
        Dataset.from_list(rows).to_parquet(path)
    elif path.suffix == ".csv":
        path.write_text("".join(f"{t}\n" for t in ["text", *texts]))
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    else:
        Dataset.from_list(rows).save_to_disk(path)
    for file in [path, *path.rglob("*")]:
        os.utime(file, (1_577_836_800, 1_577_836_800))


@pytest.mark.parametrize("name", ["a.csv", "a.parquet", "a.jsonl", "saved"])
def test_a_file_replaced_under_the_same_modification_time_is_read_again(tmp_path: Path, name: str) -> None:
    """As rsync -t, cp -p or tar do it."""
    found = []
    for texts in (["Ada bakes.", "Colm mills."], ["Ada waits.", "Colm sleeps"], ["Mei.", "Omar.", "Piet."]):
        write(tmp_path / name, texts)
        data = load(tmp_path / name)
        assert [r["text"] for r in data.rows] == texts
        found.append(data.fingerprint)
    assert len(set(found)) == 3


def test_the_inputs_of_a_run_know_a_file_replaced_under_the_same_time(tmp_path: Path) -> None:
    from ilu_cli.recipe.load import load as recipe_of
    from ilu_cli.recipe.schema import UnlearnRecipe

    (tmp_path / "r.yaml").write_text(
        f"command: unlearn\nobjective: {{name: grad_ascent}}\nforget: {{data: {tmp_path}/a.csv}}\n"
    )
    found = []
    for texts in (["Ada bakes.", "Colm mills."], ["Ada waits.", "Colm sleeps"]):
        write(tmp_path / "a.csv", texts)
        found.append(inputs_of(recipe_of(UnlearnRecipe, tmp_path / "r.yaml", {}, [])))
    assert found[0] != found[1]


def test_half_a_surrogate_pair_is_refused_by_its_row(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "fine"}\n{"text": "half a pair \\ud83d here"}\n')
    with pytest.raises(UnavailableError, match=r"a.jsonl:2: 'text' holds half a surrogate pair"):
        load(path)
    path.write_text('{"text": "a whole one \\ud83d\\ude00"}\n')
    assert load(path).rows == [{"text": "a whole one 😀"}]


def test_a_column_that_json_has_no_form_for_has_a_fingerprint(tmp_path: Path) -> None:
    days = [datetime.date(2024, 1, 1), datetime.date(2024, 1, 2)]
    for day in days:
        Dataset.from_list([{"text": "one", "day": day}]).to_parquet(tmp_path / f"{day}.parquet")
    assert len({load(tmp_path / f"{day}.parquet").fingerprint for day in days}) == 2


@pytest.mark.parametrize(
    ("prompt", "answer", "expected"),
    [
        ("Answer:", "Ada", " Ada"),
        ("Answer: ", "Ada", "Ada"),
        ("Answer:\n", "Ada", "Ada"),
        ("Answer:", "\nAda", "\nAda"),
        ("答：", "都柏林", "都柏林"),
        ("首都は", "東京", "東京"),
        ("เมืองหลวงคือ", "กรุงเทพ", "กรุงเทพ"),
        ("수도는", "서울", " 서울"),
        ("Столица:", "Дублин", " Дублин"),
        ("😀", "Ada", " Ada"),
        ("", "Ada", "Ada"),
    ],
)
def test_an_answer_is_parted_from_its_prompt_as_its_script_does(
    tmp_path: Path, prompt: str, answer: str, expected: str
) -> None:
    assert after(prompt, answer) == expected
    row = {"prompt": prompt, "response": answer, "counterfactual": answer}
    (tmp_path / "a.jsonl").write_text(json.dumps(row) + "\n")
    data = load(tmp_path / "a.jsonl")
    assert data.examples() == data.chosen("counterfactual") == [Example(prompt, expected)]
    if prompt:
        assert data.chosen("refusal")[0].target[:1].isspace() == after(prompt, "I").startswith(" ")


def test_a_field_or_column_that_is_named_twice_is_refused(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet

    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n{"text": "two", "text": "three"}\n')
    pyarrow.parquet.write_table(pa.table([["one"], ["two"]], names=["text", "text"]), tmp_path / "a.parquet")
    for name, place in (("a.jsonl", "a.jsonl:2: two fields are"), ("a.parquet", "a.parquet: two columns are")):
        with pytest.raises(UnavailableError, match=re.escape(f"{place} called 'text'")):
            load(tmp_path / name)


@pytest.mark.parametrize("place", ["", "data/"])
def test_a_split_whose_shards_are_not_all_there_is_refused(tmp_path: Path, place: str) -> None:
    (tmp_path / place).mkdir(exist_ok=True)
    for i in range(3):
        (tmp_path / f"{place}train-0000{i}-of-00003.jsonl").write_text(f'{{"text": "row {i}"}}\n')
    assert [row["text"] for row in load(tmp_path).rows] == ["row 0", "row 1", "row 2"]
    (tmp_path / f"{place}train-00001-of-00003.jsonl").unlink()
    with pytest.raises(UnavailableError, match="lacks 1 of the 3 files of train: the first is number 1"):
        load(tmp_path)


def test_a_split_in_two_kinds_of_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("text\nan old copy\n")
    (tmp_path / "train.jsonl").write_text('{"text": "the data"}\n')
    with pytest.raises(UnavailableError, match=r"train.csv and .*train.jsonl are both there"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("one", "others"),
    [
        ("train.jsonl", ["train-00000-of-00002.jsonl", "train-00001-of-00002.jsonl"]),
        ("train.jsonl", ["data/train-00000-of-00001.jsonl"]),
        ("train.csv", ["data/train.csv"]),
        ("train.jsonl", ["train/0000.jsonl"]),
        ("train/0000.jsonl", ["train-00000-of-00001.jsonl"]),
    ],
)
def test_a_split_in_two_places_is_refused(tmp_path: Path, one: str, others: list[str]) -> None:
    """`datasets` would read both in some of these cases, and one of them in others."""
    for name in (one, *others):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("text\na row\n" if name.endswith("csv") else '{"text": "a row"}\n')
    with pytest.raises(UnavailableError, match="are both there, and only one of them is read") as refused:
        load(tmp_path)
    assert {one, others[0]} == {name for name in (one, *others) if str(tmp_path / name) in str(refused.value)}
    assert [row["text"] for row in load(tmp_path / one).rows] == ["a row"]
    (tmp_path / one).unlink()
    assert len(load(tmp_path).rows) == len(others)


def test_all_files_that_a_readme_lists_are_read(tmp_path: Path) -> None:
    """As `datasets` reads them: in the order of the list, and none may be missing."""
    for name in ("a", "b", "unlisted"):
        (tmp_path / f"{name}.jsonl").write_text(f'{{"text": "{name}"}}\n')
    listed = (
        "---\nconfigs:\n- config_name: default\n  data_files:\n  - split: train\n    path: [b.jsonl, a.jsonl]\n---\n"
    )
    (tmp_path / "README.md").write_text(listed)
    from datasets import load_dataset

    theirs = load_dataset(str(tmp_path), split="train", cache_dir=str(tmp_path / "cache"))
    assert [row["text"] for row in load(tmp_path).rows] == list(theirs["text"]) == ["b", "a"]
    (tmp_path / "a.jsonl").unlink()
    with pytest.raises(UnavailableError, match=r"README.md lists a.jsonl, which is not there"):
        load(tmp_path)
