"""The loading code over mirrors of the published datasets, and what is said about data that is not as it should be."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from conftest import present
from datasets import Dataset
from mirrors import HUB, hub_tasks, mirror, mirror_all

from ilu_cli import registry
from ilu_cli.data.sources import find_origin, load_dataset
from ilu_cli.errors import UnavailableError, UsageError
from ilu_cli.recipe.refs import DataRef
from ilu_cli.tasks import Example


@pytest.fixture(scope="module")
def mirrors(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return mirror_all(tmp_path_factory.mktemp("mirrors"))


@pytest.fixture
def root(mirrors: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ILU_DATA", str(mirrors))
    return mirrors


def test_every_dataset_of_the_hub_has_a_mirror() -> None:
    assert {registry.task[n].obj.hub for n in hub_tasks()} == set(HUB)


@pytest.mark.parametrize("name", hub_tasks())
def test_a_published_dataset_loads_from_its_mirror(root: Path, name: str) -> None:
    task = registry.task[name].obj()
    for ours, theirs in task.splits.items():
        data = load_dataset(DataRef(name=name, source="hub"), ours)
        record = data.record("forget")
        assert (record["source"], record["split"]) == ("path", theirs)
        assert record["path"].startswith(task.hub)
        assert len(data.rows) == (4 if name == "wikitext" else 12)
        for example in data.examples():
            assert example.target.strip()
            assert not example.choices or example.target in example.choices
    assert find_origin(DataRef(name=name), next(iter(task.splits))).source == "path"


@pytest.mark.parametrize("name", ["sst2", "mnli", "muse-news-raw", "tofu-forget10_perturbed", "agnews", "wmdp-bio"])
def test_a_mirror_without_its_readme_gives_the_same_rows(
    root: Path, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = registry.task[name].obj()
    split = next(reversed(task.splits))
    with_readme = load_dataset(DataRef(name=name), split)
    mirror(tmp_path / "bare", task.hub, readme=False)
    monkeypatch.setenv("ILU_DATA", str(tmp_path / "bare"))
    assert load_dataset(DataRef(name=name), split).fingerprint == with_readme.fingerprint


def lines(*rows: Any) -> Any:
    return "".join(json.dumps(r) + "\n" for r in rows).encode()


GOOD = [{"prompt": "one", "response": "two"}, {"prompt": "three", "response": "fünf"}]
PAIRS = [Example("one", " two"), Example("three", " fünf")]


def write(path: Path, content: Any) -> Any:
    if path.suffix == ".parquet":
        Dataset.from_list(content).to_parquet(path)
    elif path.suffix == "":
        Dataset.from_list(content).save_to_disk(path)
    else:
        path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", lines(*GOOD)),
        ("bom.jsonl", b"\xef\xbb\xbf" + lines(*GOOD)),
        ("crlf.jsonl", lines(*GOOD).replace(b"\n", b"\r\n")),
        ("a.json", json.dumps(GOOD, indent=1).encode()),
        ("a.csv", "prompt,response\none,two\nthree,fünf\n".encode()),
        ("crlf.csv", "\ufeffprompt,response\r\none,two\r\nthree,fünf\r\n".encode()),
        ("a.parquet", GOOD),
        ("saved", GOOD),
    ],
)
def test_a_users_own_data_in_every_form(tmp_path: Path, name: str, content: Any) -> None:
    path = write(tmp_path / name, content)
    data = load_dataset(DataRef(name=str(path)), "train")
    assert data.examples() == PAIRS
    same = load_dataset(DataRef(name=str(write(tmp_path / "same.jsonl", lines(*GOOD)))), "train")
    assert data.fingerprint == same.fingerprint
    (tmp_path / "root").mkdir()
    if path.is_file():  # and in a folder, by split
        path.rename(tmp_path / "root" / f"train{path.suffix}")
        assert load_dataset(DataRef(name=str(tmp_path / "root")), "train").examples() == PAIRS


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b"\xff\xfe\x00", "cannot read"),
        ("a.jsonl", lines(["a", "b"]), "a.jsonl:1: a row is list, not an object"),
        ("a.jsonl", lines(GOOD[0]) + b'{"prompt": \n', "a.jsonl:2: not JSON"),
        ("a.csv", b"one,two\nthree,four\n", "it has one, two"),
        ("a.csv", b"", "no column"),
        ("a.csv", b'prompt,response\n"a,b\n', "cannot read"),
        ("a.parquet", [{"txt": "a"}], "needs a string `text`, or strings `prompt` and `response`; it has txt"),
        ("a.parquet", [{"text": 3}], "needs a string `text`"),
        ("saved", [{"prompt": "a", "answer": "b"}], "it has prompt, answer"),
        ("a.txt", b"text", "is none of .jsonl"),
    ],
)
def test_bad_data_of_a_user(tmp_path: Path, name: str, content: Any, message: str) -> None:
    path = write(tmp_path / name, content)
    with pytest.raises(UnavailableError, match=re.escape(message)) as caught:
        load_dataset(DataRef(name=str(path), source="path"), "train")
    assert caught.value.exit_code == 3


def test_bad_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    not_parquet = tmp_path / "a.parquet"
    not_parquet.write_bytes(b"PAR1 nothing")
    (tmp_path / "folder").mkdir()
    for name, message in (
        (not_parquet, "cannot read"),
        (tmp_path / "folder", "has no split 'train'"),
        (tmp_path / "none.csv", "no dataset file or folder"),
        ("some-org/some-data", "cannot be had from the hub"),
    ):
        with pytest.raises(UnavailableError, match=message):
            load_dataset(DataRef(name=str(name)), "train")
    closed = write(tmp_path / "closed.jsonl", lines(*GOOD))

    def refuse(*_args: Any, **_kwargs: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(type(closed), "read_text", refuse)  # root may read what nobody else may
    with pytest.raises(UnavailableError, match="Permission denied"):
        load_dataset(DataRef(name=str(closed)), "train")


@pytest.mark.parametrize(
    ("name", "rows", "message"),
    [
        ("sst2", [{"text": "fine", "label": 1}], "row 0: no field 'sentence'; it has text, label"),
        ("sst2", [{"sentence": "fine", "label": "1"}], "row 0: 'label' is str, not int"),
        ("sst2", [{"sentence": "fine", "label": True}], "'label' is bool, not int"),
        ("sst2", [{"sentence": "fine", "label": -1}], "label is -1, not 0 to 1"),
        ("sst2", [{"sentence": "a", "label": 0}, {"sentence": None, "label": 0}], "row 1: no field 'sentence'"),
        ("winogrande", [{"sentence": "_", "option1": "a", "option2": "b", "answer": ""}], "answer is ''"),
        ("tofu-forget10_perturbed", [{"question": "a", "answer": "b", "paraphrased_answer": "c",
                                      "perturbed_answer": [1]}], "'perturbed_answer' is not a list of str"),
        ("gsm8k", [], "is empty"),
    ],
)  # fmt: skip
def test_a_schema_that_differs_names_dataset_field_and_what_was_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, rows: Any, message: str
) -> None:
    (tmp_path / "root" / name).mkdir(parents=True)
    (tmp_path / "root" / name / "train.jsonl").write_bytes(lines(*rows))
    monkeypatch.setenv("ILU_DATA", str(tmp_path / "root"))
    with pytest.raises(UnavailableError, match=re.escape(message)) as caught:
        load_dataset(DataRef(name=name, source="hub"), "train")
    assert name in str(caught.value)


def test_a_published_name_never_falls_back_to_a_stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither for `source: hub` without a mirror, nor for a mirror whose split is missing."""
    assert load_dataset(DataRef(name="sst2"), "train").source == "builtin"
    with pytest.raises(UnavailableError, match="cannot be had from the hub") as caught:
        load_dataset(DataRef(name="sst2", source="hub"), "train")
    assert "--data-root" in present(caught.value.hint)
    mirror(tmp_path / "root", "nyu-mll/glue")
    (tmp_path / "root/nyu-mll/glue/sst2/train-00000-of-00001.parquet").unlink()
    monkeypatch.setenv("ILU_DATA", str(tmp_path / "root"))
    for source in ("hub", "auto"):
        with pytest.raises(UnavailableError):
            load_dataset(DataRef(name="sst2", source=source), "train")
    assert load_dataset(DataRef(name="sst2", source="builtin"), "train").source == "builtin"


def test_an_empty_counterfactual_is_none(tmp_path: Path) -> None:
    """A csv file has an empty field where another answer is missing: DPO would prefer to say nothing."""
    rows = "prompt,response,counterfactual\nWho?,Ada.,Bob.\nWhere?,In Ennis.,\n"
    data = load_dataset(DataRef(name=str(write(tmp_path / "a.csv", rows.encode()))), "train")
    with pytest.raises(UsageError, match="needs a string `counterfactual`"):
        data.chosen("counterfactual")
