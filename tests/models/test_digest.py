"""One digest of everything that decides an answer; which files the weights are."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import odd
import peft.utils
import pytest
import transformers.utils
from conftest import Ilu
from families import make_family

from ilu_cli.errors import UnavailableError
from ilu_cli.models.subject import find_model, find_subject, lineage
from ilu_cli.runs.files import (
    ADAPTER,
    INDEX,
    WEIGHTS,
    ModelRecord,
    beside_hashes,
    same_model,
    stray_files,
    weight_files,
)
from ilu_cli.runs.store import Store
from ilu_cli.workflows.pipeline.graph import Graph, Node

SMALL = ["--method", "npo", "--set", "train.params=['*']", "--steps", 1, "--set", "forget.batch=2"]
SMALL += ["--set", "retain.batch=2"]
BENCH = ["--bench", "capitals", "--limit", 12, "--json"]


def test_the_names_are_those_of_transformers_and_peft() -> None:
    assert WEIGHTS == transformers.utils.SAFE_WEIGHTS_NAME
    assert INDEX == transformers.utils.SAFE_WEIGHTS_INDEX_NAME
    assert ADAPTER == peft.utils.SAFETENSORS_WEIGHTS_NAME


@pytest.mark.parametrize(
    ("name", "read", "left"),
    [
        ("stray", {"model.safetensors"}, {"model_old", "consolidated", "model-00001-of-00002"}),
        ("shards", {f"model-0000{i}-of-00004.safetensors" for i in (1, 2, 3, 4)}, set()),
        ("lora", {"adapter_model.safetensors"}, set()),
    ],
)
def test_the_files_of_the_weights_are_those_that_are_loaded(
    name: str, read: Any, left: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = odd.SOUND[name](tmp_path / name)
    assert {p.name for p in weight_files(folder)} == read
    assert stray_files(folder) == sorted(f"{n}.safetensors" for n in left)
    subject = find_model(str(folder))
    find_model(str(folder))
    assert capsys.readouterr().err.count("not read: transformers takes other files") == bool(left)
    for n in left:
        (folder / f"{n}.safetensors").unlink()
    assert find_model(str(folder)).digest == subject.digest


CHANGES = {
    "config.json": True,
    "generation_config.json": True,
    "tokenizer.json": True,
    "tokenizer_config.json": True,
    "chat_template.jinja": True,
    "additional_chat_templates/tool.jinja": True,
    "model.safetensors": True,
    "README.md": False,
    "trainer_state.json": False,
    "ilu.json": False,
}


@pytest.mark.parametrize("file", CHANGES)
def test_what_decides_an_answer_is_in_the_digest(file: str, tmp_path: Path) -> None:
    folder = make_family("llama", tmp_path / "model")
    before = find_model(str(folder)).digest
    assert find_model(str(odd.copy(folder, tmp_path / "same"))).digest == before
    (folder / file).parent.mkdir(exist_ok=True)
    with (folder / file).open("a") as f:
        f.write(" ")
    assert (find_model(str(folder)).digest != before) == CHANGES[file]


def test_an_adapter_has_its_base_in_its_digest(tmp_path: Path) -> None:
    folder = odd.adapter(tmp_path / "adapter")
    before = find_model(str(folder)).digest
    with (tmp_path / "llama-base" / "config.json").open("a") as f:
        f.write(" ")
    assert find_model(str(folder)).digest != before


def test_an_edited_configuration_is_evaluated_again(tmp_path: Path, ilu: Ilu) -> None:
    folder = make_family("llama", tmp_path / "model")
    first = ilu("eval", folder, *BENCH)
    again = ilu("eval", folder, *BENCH)
    assert ("evaluating" in first.err, "evaluating" in again.err) == (True, False)
    config = folder / "config.json"
    config.write_text(config.read_text().replace("10000.0", "50.0"))
    edited = ilu("eval", folder, *BENCH)
    shutil.rmtree(tmp_path / "cache" / "eval")
    fresh = ilu("eval", folder, *BENCH)
    first, edited, fresh = (json.loads(done.out)["results"]["capitals"] for done in (first, edited, fresh))
    assert edited == fresh
    assert edited["key"] != first["key"]


@pytest.fixture
def made(tmp_path: Path, ilu: Ilu) -> tuple[Path, Path]:
    """A model and a run on it."""
    folder = make_family("llama-tied", tmp_path / "before")
    done = ilu("unlearn", *SMALL, "--model", folder, "--out", "made")
    assert done.code == 0, done.err
    return folder, Path("made")


def test_lineage_notices_another_configuration(made: tuple[Path, Path], ilu: Ilu) -> None:
    folder, run = made
    assert len(lineage(find_subject(str(run), Store()))) == 2
    (folder / "generation_config.json").write_text("{}")
    done = ilu("eval", run, *BENCH)
    assert done.code == 3
    assert "has the same weights, but its configuration or tokenizer changed since it was used" in done.err


def test_a_run_recorded_with_its_weights_only_is_known_by_them(made: tuple[Path, Path], ilu: Ilu) -> None:
    folder, run = made
    manifest = json.loads((run / "manifest.json").read_text())
    del manifest["beside"], manifest["listed"], manifest["sha256"]
    for record in (*manifest["parents"], manifest["base"]):
        del record["digest"]
    (run / "manifest.json").write_text(json.dumps(manifest))
    (folder / "generation_config.json").write_text("{}")
    assert ilu("eval", run, *BENCH).code == 0
    odd.rewrite(folder, lambda w: {n: 2 * t for n, t in w.items()})
    done = ilu("eval", run, *BENCH)
    assert (done.code, "has changed since it was used" in done.err) == (3, True)


@pytest.mark.parametrize(("file", "says"), [("config.json", "changed or damaged"), ("vocab.txt", "is not the run's")])
def test_a_runs_own_files_are_verified(file: str, says: str, made: tuple[Path, Path], ilu: Ilu) -> None:
    with (made[1] / "checkpoint" / file).open("a") as f:
        f.write(" ")
    done = ilu("eval", made[1], *BENCH)
    assert (done.code, says in done.err) == (3, True)
    copied = odd.copy(made[1] / "checkpoint", Path("copied"))
    assert ilu("eval", copied, *BENCH).code == 0


def test_a_run_is_evaluated_alone_when_its_original_has_moved(made: tuple[Path, Path], ilu: Ilu) -> None:
    folder, run = made
    folder.rename("after")
    for more in ([], ["--dry-run"]):
        done = ilu("eval", run, *BENCH, *more)
        assert done.code == 3
        assert f"there is no {folder} any more" in done.err
        assert "--alone" in done.err
        assert ilu("eval", run, "--alone", *BENCH, *more).code == 0
    Path("after").rename(folder)
    assert ilu("eval", run, *BENCH).code == 0


def test_records_are_compared_by_what_both_know() -> None:
    old: ModelRecord = {"kind": "folder", "weights": {"a": "1"}}
    new: ModelRecord = {"kind": "folder", "weights": {"a": "1"}, "digest": "x"}
    builtin: ModelRecord = {**new, "kind": "builtin"}
    assert same_model(old, new) and same_model(new, new.copy()) and same_model(old, old.copy())
    assert not same_model(new, new | {"digest": "y"})
    assert not same_model(old, new | {"weights": {"a": "2"}})
    assert same_model(builtin, builtin | {"digest": "y"})


def test_a_damaged_index_is_said_to_be_damaged(tmp_path: Path) -> None:
    folder = odd.shards(tmp_path / "model")
    (folder / INDEX).write_text("[")
    with pytest.raises(UnavailableError, match=r"index\.json is damaged"):
        find_model(str(folder))


def test_a_pipeline_takes_runs_of_the_same_parent_and_old_ones_of_the_same_weights(tmp_path: Path) -> None:
    model = find_model(str(make_family("llama-tied", tmp_path / "model")))
    record = model.record("parent")

    def status(parent: ModelRecord, store: Store) -> str:
        run = store.create("unlearn", "npo")
        run.manifest.parents, run.manifest.recipe_sha256 = [parent], "recipe"
        odd.copy(model.folder, run.checkpoint)
        run.finish()
        node = Node("npo", "unlearn", {"method": "npo"}, {}, "recipe")
        Graph("grid", [node], {"original": model}, store, {}).refresh()
        return node.status

    old = record.copy()
    del old["digest"]
    cases: dict[str, ModelRecord] = {"same": record, "old": old, "other": {**record, "digest": "x"}}
    found = {name: status(parent, Store(tmp_path / name)) for name, parent in cases.items()}
    assert found == {"same": "done", "old": "done", "other": "waiting"}


COPY = """
import sys
from pathlib import Path
from ilu_cli.models.load import load_model, load_tokenizer
from ilu_cli.models.save import save_checkpoint
from ilu_cli.models.subject import find_model
save_checkpoint(load_model(find_model(sys.argv[1], None)), load_tokenizer(Path(sys.argv[1])), Path(sys.argv[2]))
"""


@pytest.mark.slow
def test_a_model_is_the_same_whether_the_hub_was_asked_or_not(tiny: Path, tmp_path: Path) -> None:
    digests = []
    for offline in ("0", "1"):
        out, env = tmp_path / offline, os.environ | {"HF_HUB_OFFLINE": offline}
        subprocess.run([sys.executable, "-c", COPY, tiny, out], env=env, check=True)
        digests.append(beside_hashes(out))
    assert digests[0] == digests[1] and "tokenizer_config.json" in digests[0]
