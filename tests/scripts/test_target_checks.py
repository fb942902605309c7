"""`tidegate doctor` about `targets:`: what keeps a target from serving is said, with what to do."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from tidegate.finding import Finding, Level
from tidegate.home import Home
from tidegate.target_checks import check_targets

from router.config import parse_config
from tests.router.conftest import free_port

CLOUD = {"id": "provider", "kind": "cloud", "url": "http://127.0.0.1:9", "zone": "cloud", "models": {"m": "m"}, "price": {}}
INSIDE = {"id": "s", "kind": "server", "url": "http://127.0.0.1:9", "zone": "eu", "vouched": True, "models": {"m": "m"}}
ZONES = {"eu": {}, "cloud": {"external": True}}


class Handler(BaseHTTPRequestHandler):
    """A server with one model, which the key `right` may see."""

    def do_GET(self) -> None:
        allowed = self.headers["authorization"] == "Bearer right"
        page = {"/v1/models": {"data": [{"id": "theirs"}]}, "/other/v1/models": {"detail": "none"}}.get(self.path)
        body = json.dumps(page if allowed else {}).encode()
        self.send_response((200 if page and "data" in page else 404) if allowed else 401)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet."""


@pytest.fixture
def url() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def check(home: Home, **changes: Any) -> Finding:
    target = {**INSIDE, "credential": {"env": "THEIR_KEY"}, **changes}
    return check_targets(home, parse_config({"zones": ZONES, "targets": [target]}))[0]


def test_a_server_that_answers_and_has_the_model_is_well(home: Home, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THEIR_KEY", "right")
    found = check(home, url=url, models={"m": "theirs"})
    assert found == Finding("target s", Level.OK, f"{url} serves `theirs`")
    assert check(home, url=f"{url}/other").text.endswith("answers 404, and lists no models")


@pytest.mark.parametrize(
    ("key", "changes", "said"),
    [
        ("right", {"models": {"m": "mine"}}, "has no model `mine`; it has `theirs`"),
        ("wrong", {}, "refuses the key (401)"),
        ("right", {"credential": None}, "asks for a key (401)"),
        ("", {}, "the environment variable THEIR_KEY is not set"),
        ("right", {"credential": {"file": "no-such-file"}}, "no-such-file on this node"),
    ],
)
def test_what_keeps_a_server_from_serving_is_said(
    home: Home, url: str, monkeypatch: pytest.MonkeyPatch, key: str, changes: dict[str, Any], said: str
) -> None:
    monkeypatch.setenv("THEIR_KEY", key)
    found = check(home, url=url, **changes)
    assert found.level is Level.WARNING and said in found.text and found.next_step
    assert "right" not in found.text


def test_nobody_at_the_address_of_a_server_or_of_its_other_half(home: Home, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THEIR_KEY", "right")
    nobody = f"http://127.0.0.1:{free_port()}"
    found = check(home, url=nobody)
    assert found.level is Level.WARNING and f"{nobody} cannot be reached from here" in found.text
    found = check(home, url=url, models={"m": "theirs"}, prefill={"url": nobody})
    assert found.level is Level.WARNING and f"{nobody} cannot be reached from here" in found.text


def test_a_cloud_target_is_not_dialled_but_its_key_must_be_there(home: Home, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    target = {**CLOUD, "url": url, "credential": {"env": "THEIR_KEY"}}
    config = parse_config({"zones": ZONES, "targets": [INSIDE, target]})
    monkeypatch.setenv("THEIR_KEY", "wrong")
    assert check_targets(home, config)[1] == Finding(
        "target provider", Level.OK, f"{url}: not dialled, only the egress does that"
    )
    monkeypatch.setenv("THEIR_KEY", " ")
    found = check_targets(home, config)[1]
    assert (
        found.level is Level.WARNING and "THEIR_KEY is not set" in found.text and "the egress does not start" in found.next_step
    )
