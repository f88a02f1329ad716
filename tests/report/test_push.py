"""`ilu push` against a small hub on this machine that speaks the protocol of a commit; and the model card."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from hub import Hub, serving

from ilu_cli.errors import UsageError
from ilu_cli.runs.store import Run, Store
from ilu_cli.workflows.push import plan

pytestmark = pytest.mark.slow


@pytest.fixture
def hub() -> Iterator[Hub]:
    with serving(Hub()) as server:
        yield server


@pytest.fixture
def run(tiny: Path) -> Run:
    """A finished run with the tiny model as its checkpoint, and a result."""
    new = Store().create("unlearn", "rmu")
    shutil.copytree(tiny, new.checkpoint)
    (new.path / "recipe.yaml").write_text("command: unlearn\nobjective: {name: rmu}\nforget: {data: capitals}\n")
    m = new.manifest
    m.base = {"role": "original", "kind": "builtin", "id": "smollm2-135m", "weights": {}}
    m.parents = [m.base | {"path": "."}]
    m.data = [
        {"role": "forget", "name": "capitals", "source": "builtin", "split": "train", "rows": 3,
         "fingerprint": "a" * 64},
        {"role": "retain", "name": "Salesforce/wikitext", "source": "hub", "split": "train", "rows": 3,
         "fingerprint": "b" * 64},
    ]  # fmt: skip
    new.eval.mkdir()
    summary = {"benchmark": "capitals", "metric": "acc", "role": "forget", "value": 0.26, "stderr": 0.03, "n": 170,
               "chance": 0.25, "data": {"name": "capitals", "source": "builtin", "fingerprint": "c"}}  # fmt: skip
    (new.eval / "capitals.json").write_text(json.dumps(summary))
    new.finish()
    return new


def push(run: Run, hub: Hub, *args: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "ilu_cli", "push", run.id, "me/model", *args]
    env = hub.environment(run.path)
    return subprocess.run(command, env=env, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=120)


def test_checkpoint_card_and_recipe_arrive(hub: Hub, run: Run) -> None:
    done = push(run, hub, "--yes", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["url"].startswith(hub.address)
    assert hub.created[0].get("private") is True or hub.created[0].get("visibility") == "private"
    sent = {p.name for p in run.checkpoint.iterdir()}
    assert set(hub.files) == sent | {"README.md", "recipe.yaml"}
    for name in [*sent, "README.md", "recipe.yaml"]:
        assert f"  {name}\n" in done.stderr
    for name in sent:
        assert hub.files[name] == (run.checkpoint / name).read_bytes()
    assert 'from_pretrained("me/model")' in hub.files["README.md"].decode()


def test_it_asks_and_without_a_terminal_refuses(hub: Hub, run: Run) -> None:
    done = push(run, hub)
    assert done.returncode == 2 and "--yes" in done.stderr
    assert hub.created == [] and hub.files == {}


def test_only_the_files_of_the_manifest_are_sent(hub: Hub, run: Run) -> None:
    """A hidden file is listed nowhere and checked by nobody."""
    (run.checkpoint / ".env").write_text("HF_TOKEN=secret")
    (run.checkpoint / ".git").mkdir()
    (run.checkpoint / ".git" / "config").write_text("token")
    done = push(run, hub, "--dry-run", "--json")
    assert done.returncode == 0 and hub.created == [] and hub.files == {}
    listed = json.loads(done.stdout)
    sent = {p.name for p in run.checkpoint.iterdir() if not p.name.startswith(".")}
    assert set(listed["files"]) == sent | {"README.md", "recipe.yaml"} and listed["private"] is True
    assert listed["files"]["model.safetensors"] == (run.checkpoint / "model.safetensors").stat().st_size
    assert push(run, hub, "--yes").returncode == 0
    assert set(hub.files) == set(listed["files"])


def test_a_run_of_before_there_were_lists_sends_what_its_manifest_names(hub: Hub, run: Run) -> None:
    (run.path / "files.json").unlink()
    (run.checkpoint / "notes.txt").write_text("private")
    run.manifest.listed = False
    run.save()
    listed = json.loads(push(run, hub, "--dry-run", "--json").stdout)["files"]
    assert set(listed) == {*run.manifest.weights, *run.manifest.beside, "README.md", "recipe.yaml"}


def test_what_everybody_reads_is_published_only_if_asked(hub: Hub, run: Run) -> None:
    hub.private = False  # the repository is there, and public
    done = push(run, hub, "--yes")
    assert done.returncode == 2 and "everybody can read it" in done.stderr and hub.files == {}
    done = push(run, hub, "--yes", "--public")
    assert done.returncode == 0 and "model.safetensors" in hub.files, done.stderr


def test_a_link_is_not_followed(hub: Hub, run: Run, tmp_path: Path) -> None:
    file = run.checkpoint / "tokenizer.json"
    file.rename(tmp_path / "elsewhere.json")
    file.symlink_to(tmp_path / "elsewhere.json")
    done = push(run, hub, "--yes")
    assert done.returncode == 3 and "is a link" in done.stderr and hub.created == []


@pytest.mark.parametrize("name", ["model", "../x", "me/../x", "me/x/y", "/etc/x", "me/con"])
def test_a_name_that_is_none_of_the_hub_is_refused(name: str, run: Run) -> None:
    with pytest.raises(UsageError, match="no name on the hub"):
        plan(run, name)


def test_changed_weights_are_not_pushed(hub: Hub, run: Run) -> None:
    file = run.checkpoint / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"\x01")
    done = push(run, hub, "--yes")
    assert done.returncode == 3 and "changed or damaged" in done.stderr
    assert hub.created == []


def test_without_a_network_it_says_so_at_once(hub: Hub, run: Run) -> None:
    hub.server_close()  # nobody listens on the port any more
    began = time.monotonic()
    done = push(run, hub, "--yes")
    assert done.returncode == 3 and "cannot be reached" in done.stderr
    assert time.monotonic() - began < 60


def test_the_card_is_what_the_hub_reads(run: Run) -> None:
    from huggingface_hub import ModelCard

    found = ModelCard.load(run.path / "README.md").data
    assert (found.base_model, found.license) == ("HuggingFaceTB/SmolLM2-135M-Instruct", "apache-2.0")
    assert (found.library_name, found.pipeline_tag) == ("transformers", "text-generation")
    assert found.datasets == ["Salesforce/wikitext"]
    assert found.tags == ["ilu", "unlearning", "rmu"]
    (result,) = found.eval_results
    assert (result.dataset_type, result.metric_type, result.metric_value) == ("capitals", "accuracy", 0.26)


def test_the_card_holds_the_recipe_and_follows_the_results(run: Run) -> None:
    text = (run.path / "README.md").read_text()
    recipe = text.split("```yaml\n")[1].split("\n```")[0]
    assert yaml.safe_load(recipe)["objective"] == {"name": "rmu"}
    assert "0.26" in text
    path = run.eval / "capitals.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"value": 0.75}))
    run.write_card()
    assert "| 0.75 |" in (run.path / "README.md").read_text()
