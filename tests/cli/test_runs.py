"""`ilu runs` and what is below it, on run folders made by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import Ilu

from ilu_cli.recipe.source import flat
from ilu_cli.runs.store import Store


@pytest.fixture
def family(tmp_path: Path) -> None:
    """An unlearned run, attacks on it and on a step of it, an attack on one of those; and an unfinished stranger."""

    def made(command: str, label: str, parent: Any, recipe: Any, finish: Any = True) -> Any:
        run = Store().create(command, label, tmp_path / "runs" / label)
        (run.path / "recipe.yaml").write_text(recipe)
        run.checkpoint.mkdir()
        (run.checkpoint / "model.safetensors").write_bytes(b"x" * 3000)
        kind = "builtin" if parent == "smollm2-135m" else "run"
        run.manifest.parents = [{"role": "parent", "id": parent, "kind": kind, "path": "", "weights": {}}]
        run.finish() if finish else run.save()
        return run

    made("unlearn", "forgot", "smollm2-135m", "objective: {name: rmu, layer: 7}\ntrain: {lr: 1.0e-3}\n")
    made("attack", "first", "forgot", "attack: {name: finetune}\n")
    made("attack", "second", "forgot@40", "attack: {name: finetune}\n")
    made("attack", "again", "first", "attack: {name: finetune, steps: 3}\n")
    made("unlearn", "other", "smollm2-135m", "objective: {name: npo}\ntrain: {lr: 1.0e-3}\n", finish=False)


def test_the_list_and_the_tree(ilu: Ilu, family: None) -> None:
    listed = ilu("runs").out
    assert [name for name in ("forgot", "first", "second", "again", "other") if name not in listed] == []
    assert "stopped" in listed
    tree = ilu("runs", "tree").out.splitlines()
    assert tree[0] == "smollm2-135m"
    depth = {line.split("─ ")[1].split()[0]: line.index("─ ") for line in tree[1:]}
    assert [line.endswith("from forgot@40") for line in tree if "second" in line] == [True]
    assert depth["forgot"] == depth["other"] < depth["first"] == depth["second"] < depth["again"]
    (root,) = json.loads(ilu("runs", "tree", "--json").out)["roots"]
    assert [c["id"] for c in root["children"]] == ["forgot", "other"]
    assert [c["id"] for c in root["children"][0]["children"]] == ["first", "second"]


def test_a_folder_is_one_model_by_whatever_name(ilu: Ilu) -> None:
    """Named as it was given, or whole, as an attack names the original; another `tiny` elsewhere is another."""
    for name, called, path in (("a", "tiny", "/x/tiny"), ("b", "/x/tiny", "/x/tiny"), ("c", "tiny", "/y/tiny")):
        run = Store().create("unlearn", "rmu", Store().root / name)
        run.manifest.parents = [{"role": "parent", "id": called, "kind": "folder", "path": path, "weights": {}}]
        run.finish()
    roots = json.loads(ilu("runs", "tree", "--json").out)["roots"]
    assert {root["id"]: [c["id"] for c in root["children"]] for root in roots} == {"tiny": ["a", "b"], "/y/tiny": ["c"]}


def test_no_runs_yet(ilu: Ilu) -> None:
    done = ilu("runs")
    assert (done.code, done.out) == (0, "")
    assert "next: ilu unlearn" in done.err
    assert json.loads(ilu("runs", "--json").out) == {"runs": []}
    assert ilu("runs", "tree").out == ""


def test_show(ilu: Ilu, family: None) -> None:
    text = ilu("runs", "show", "fir").out
    assert "first (attack, complete)" in text
    assert "forgot (run)" in text
    assert "name: finetune" in text
    found = json.loads(ilu("runs", "show", "first", "--json").out)
    assert found["recipe"] == {"attack": {"name": "finetune"}}
    assert found["manifest"]["parents"][0]["id"] == "forgot"


def test_diff(ilu: Ilu, family: None) -> None:
    found = json.loads(ilu("runs", "diff", "forgot", "other", "--json").out)["differences"]
    assert found == {"objective.name": {"a": "rmu", "b": "npo"}, "objective.layer": {"a": 7, "b": None}}
    text = ilu("runs", "diff", "forgot", "other").out
    assert "objective.layer" in text
    assert "train.lr" not in text
    assert "the same recipe" in ilu("runs", "diff", "first", "first").out
    found = json.loads(ilu("runs", "diff", "first", "second", "--json").out)["differences"]
    assert found == {"parent": {"a": "forgot", "b": "forgot@40"}}
    assert flat({"a": [{"b": 1}, 2], "c": {}, "d": None}) == {"a.0.b": 1, "a.1": 2, "c": {}, "d": None}


def test_rm_asks_and_keeps_what_others_were_made_from(ilu: Ilu, family: None, tmp_path: Path) -> None:
    def left() -> list[Any]:
        return sorted(p.name for p in (tmp_path / "runs").iterdir())

    refused = ilu("runs", "rm", "forgot", "--yes")
    assert refused.code == 2
    assert "made from these: first, second, again" in refused.err
    assert len(left()) == 5
    refused = ilu("runs", "rm", "second")
    assert refused.code == 2
    assert "--yes" in refused.err
    assert len(left()) == 5
    done = ilu("runs", "rm", "first", "again", "--yes", "--json")
    assert json.loads(done.out)["removed"] == ["first", "again"]
    assert left() == ["forgot", "other", "second"]
    assert ilu("runs", "rm", "forgot", "--children", "--yes").code == 0
    assert left() == ["other"]
    missing = ilu("runs", "rm", "othre", "--yes")
    assert missing.code == 3
    assert "Did you mean 'other'?" in missing.err


@pytest.mark.parametrize(("answer", "gone"), [("y\n", True), ("\n", False), ("no\n", False)])
def test_rm_on_a_terminal(
    ilu: Ilu, family: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: str, gone: bool
) -> None:
    class Terminal:
        isatty, readline = staticmethod(lambda: True), staticmethod(lambda: answer)

    monkeypatch.setattr("sys.stdin", Terminal)
    done = ilu("runs", "rm", "second")
    assert "remove this run" in done.err
    assert (tmp_path / "runs" / "second").exists() != gone
    assert done.code == (0 if gone else 2)
