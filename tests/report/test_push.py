"""`ilu push` against a small hub on this machine that speaks the protocol of a commit; and the model card."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml

from ilu_cli.runs.store import Run, Store


class Hub(ThreadingHTTPServer):
    """Keeps what it is sent: repositories as created, files as committed."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.created, self.files = list[dict](), dict[str, bytes]()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: Hub

    def do_GET(self) -> None:
        self.answer({})

    def do_POST(self) -> None:
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
        else:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.path.endswith("/repos/create"):
            self.server.created.append(json.loads(body))
            self.answer({"url": f"{self.server.address}/me/model", "name": "me/model"})
        elif "/preupload/" in self.path:
            names = [f["path"] for f in json.loads(body)["files"]]
            self.answer({"files": [{"path": n, "uploadMode": "regular", "shouldIgnore": False} for n in names]})
        elif "/commit/" in self.path:
            for line in map(json.loads, body.decode().splitlines()):
                if line["key"] == "file":
                    self.server.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            self.answer(
                {"commitUrl": f"{self.server.address}/me/model/commit/abc", "commitOid": "abc", "success": True}
            )
        else:
            self.answer({})

    def answer(self, value: dict) -> None:
        body = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hub() -> Iterator[Hub]:
    server = Hub()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()


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


def push(run: Run, endpoint: str, *args: str) -> subprocess.CompletedProcess:
    env = {k: v for k, v in os.environ.items() if not k.startswith("HF_") and "proxy" not in k.lower()}
    env |= {"HF_ENDPOINT": endpoint, "HF_TOKEN": "hf_of_a_test", "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(run.path)}
    command = [sys.executable, "-m", "ilu_cli", "push", run.id, "me/model", *args]
    return subprocess.run(command, env=env, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=120)


def test_checkpoint_card_and_recipe_arrive(hub, run):
    done = push(run, hub.address, "--private", "--yes", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["url"].startswith(hub.address)
    assert hub.created[0].get("private") is True or hub.created[0].get("visibility") == "private"
    sent = {p.name for p in run.checkpoint.iterdir()}
    assert set(hub.files) == sent | {"README.md", "recipe.yaml"}
    for name in sent:
        assert hub.files[name] == (run.checkpoint / name).read_bytes()
    assert 'from_pretrained("me/model")' in hub.files["README.md"].decode()


def test_it_asks_and_without_a_terminal_refuses(hub, run):
    done = push(run, hub.address)
    assert done.returncode == 2 and "--yes" in done.stderr
    assert hub.created == [] and hub.files == {}


def test_changed_weights_are_not_pushed(hub, run):
    file = run.checkpoint / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"\x01")
    done = push(run, hub.address, "--yes")
    assert done.returncode == 3 and "changed or damaged" in done.stderr
    assert hub.created == []


def test_without_a_network_it_says_so_at_once(hub, run):
    hub.server_close()  # nobody listens on the port any more
    began = time.monotonic()
    done = push(run, hub.address, "--yes")
    assert done.returncode == 3 and "cannot be reached" in done.stderr
    assert time.monotonic() - began < 60


def test_the_card_is_what_the_hub_reads(run):
    from huggingface_hub import ModelCard

    found = ModelCard.load(run.path / "README.md").data
    assert (found.base_model, found.license) == ("HuggingFaceTB/SmolLM2-135M-Instruct", "apache-2.0")
    assert (found.library_name, found.pipeline_tag) == ("transformers", "text-generation")
    assert found.datasets == ["Salesforce/wikitext"]
    assert found.tags == ["ilu", "unlearning", "rmu"]
    (result,) = found.eval_results
    assert (result.dataset_type, result.metric_type, result.metric_value) == ("capitals", "accuracy", 0.26)


def test_the_card_holds_the_recipe_and_follows_the_results(run):
    text = (run.path / "README.md").read_text()
    recipe = text.split("```yaml\n")[1].split("\n```")[0]
    assert yaml.safe_load(recipe)["objective"] == {"name": "rmu"}
    assert "0.26" in text
    path = run.eval / "capitals.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"value": 0.75}))
    run.write_card()
    assert "| 0.75 |" in (run.path / "README.md").read_text()
