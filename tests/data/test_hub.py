"""Whether the hub is there, against servers of this machine."""

from __future__ import annotations

import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from ilu_cli.data import hub


@pytest.fixture(autouse=True)
def online(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)


def at(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{port}")


def test_one_that_refuses_to_talk_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    class Busy(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_response(503)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            return

    server = HTTPServer(("127.0.0.1", 0), Busy)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    at(server.server_address[1], monkeypatch)
    assert hub.why_silent() == ""
    server.shutdown()
    server.server_close()
    assert "cannot be reached" in hub.why_silent()


def test_one_that_takes_the_connection_and_is_silent_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a broken proxy does."""
    monkeypatch.setattr(hub, "PATIENCE", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        at(silent.getsockname()[1], monkeypatch)
        began = time.monotonic()
        assert "cannot be reached" in hub.why_silent()
        assert 0.2 < time.monotonic() - began < 3


@pytest.mark.parametrize("said", ["1", "true", "YES", "on"])
def test_who_works_offline_asks_nobody(said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", said)
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.2)
        at(server.getsockname()[1], monkeypatch)
        assert hub.why_silent() == "HF_HUB_OFFLINE is set"
        with pytest.raises(TimeoutError):
            server.accept()


def test_a_harness_that_found_none_asks_no_second_time(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets
    from huggingface_hub import constants

    from ilu_cli.data.hub import cache_only_if_silent

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub, "PATIENCE", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        at(silent.getsockname()[1], monkeypatch)
        cache_only_if_silent()
        assert constants.HF_HUB_OFFLINE and datasets.config.HF_HUB_OFFLINE
        began = time.monotonic()
        cache_only_if_silent()
        assert time.monotonic() - began < 0.2
