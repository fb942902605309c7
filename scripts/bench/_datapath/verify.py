"""Whether a system answers what the engine behind it said, before anything of it is timed."""

from __future__ import annotations

import http.client
import json
from urllib.parse import urlsplit

from . import bodies, mock_engine


class WrongAnswer(RuntimeError):
    """The system is up and answers, but not with the engine's answer."""


def post(url: str, body: bytes, timeout_s: float = 30.0) -> tuple[int, str, bytes]:
    """POST a chat request: status, content type, body.

    Raises:
        OSError: no connection.
        http.client.HTTPException: not HTTP.
    """
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=timeout_s)
    try:
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {bodies.KEY}"}
        connection.request("POST", bodies.PATH, body, headers)
        response = connection.getresponse()
        return response.status, response.getheader("content-type") or "", response.read()
    finally:
        connection.close()


def check(url: str, case: bodies.Case) -> None:
    """Ask once and compare.

    Raises:
        WrongAnswer: with what came back.
    """
    try:
        status, content_type, answer = post(url, bodies.body(case, 0))
    except (OSError, http.client.HTTPException) as error:
        raise WrongAnswer(f"no answer: {type(error).__name__}: {error}") from None
    if status != 200:
        raise WrongAnswer(f"status {status}: {answer[:200].decode(errors='replace')}")
    try:
        said = _streamed(answer, content_type) if case.stream else _whole(answer)
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise WrongAnswer(f"unreadable answer ({error!r}): {answer[:200].decode(errors='replace')}") from None
    if said != mock_engine.CONTENT:
        raise WrongAnswer(f"the text is not the engine's: {said[:120]!r}")


def _whole(answer: bytes) -> str:
    return json.loads(answer)["choices"][0]["message"]["content"]


def _streamed(answer: bytes, content_type: str) -> str:
    if "text/event-stream" not in content_type:
        raise ValueError(f"content type {content_type}")
    events = [line[5:].strip() for line in answer.splitlines() if line.startswith(b"data:")]
    if not events or events[-1] != b"[DONE]":
        raise ValueError("the stream does not end with [DONE]")
    chunks = [json.loads(event) for event in events[:-1]]
    with_choices = [chunk["choices"][0] for chunk in chunks if chunk["choices"]]
    if len(with_choices) != mock_engine.CHUNKS:
        raise ValueError(f"{len(with_choices)} chunks instead of {mock_engine.CHUNKS}")
    return "".join(choice["delta"].get("content") or "" for choice in with_choices)
