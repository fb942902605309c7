"""What the check of a small answer reads of it, and the answer without what only the check asked for. Pure; keeps no text."""

from __future__ import annotations

import json
import re
from typing import Any

import msgspec

from router.complexity.cascade import TOOL_CALL, Evidence, canonical_json, token_logprobs

_BOUNDARY = re.compile(rb"\r\n\r\n|\n\n|\r\r")
_JSON_FORMATS = ("json_object", "json_schema")
_GUIDED = ("guided_json", "structured_outputs")


def demands_json(parsed: dict[str, Any]) -> bool:
    """Whether a request wants its answer in JSON."""
    wanted = parsed.get("response_format")
    if isinstance(wanted, dict) and wanted.get("type") in _JSON_FORMATS:
        return True
    return any(parsed.get(name) for name in _GUIDED)


def asked_logprobs(parsed: dict[str, Any]) -> bool:
    """Whether the client itself wants log-probabilities: 0 counts on /v1/completions, where it is a number."""
    value = parsed.get("logprobs")
    return value is not None and value is not False


class Answer(msgspec.Struct, frozen=True, gc=False):
    """A whole answer: what is known of it, and its bytes as the client may see them."""

    evidence: Evidence
    body: bytes


def read_answer(body: bytes, wants_json: bool, strip: bool) -> Answer | None:
    """A whole chat or completions answer; None where it is not one with a single choice.

    Args:
        body: as the engine sent it.
        wants_json: see `demands_json`.
        strip: whether log-probabilities are taken out, because the client did not ask for them.
    """
    found = _decode(body)
    if found is None:
        return None
    answer, choice = found
    calls = Calls()
    calls.add(choice)
    text = calls.text() or _text_of(choice)
    wants_json = wants_json and not calls
    evidence = Evidence(token_logprobs(choice), text, str(choice.get("finish_reason") or ""), wants_json)
    if strip and "logprobs" in choice:
        choice["logprobs"] = None
        body = msgspec.json.encode(answer)
    return Answer(evidence, body)


class Calls:
    """The calls of tools in an answer: whole ones, or pieces of them that a stream brings one after the other."""

    def __init__(self) -> None:
        self._parts: dict[int, tuple[list[str], list[str]]] = {}
        """The pieces of name and arguments by the call's place in the answer; -1: the one call of the older shape."""

    def __len__(self) -> int:
        return len(self._parts)

    def add(self, choice: dict[str, Any]) -> bool:
        """Take what a choice has of them; False where it has none."""
        message = choice.get("message", choice.get("delta"))
        if not isinstance(message, dict):
            return False
        listed, older = message.get("tool_calls"), message.get("function_call")
        calls = listed if isinstance(listed, list) else [listed] if listed else []
        for place, call in enumerate(calls):
            given = call.get("index") if isinstance(call, dict) else None
            self._take(given if isinstance(given, int) else place, call)
        if older:
            self._take(-1, {"function": older})
        return bool(calls or older)

    def text(self) -> str:
        """All calls in one text, the same for calls that mean the same; "" where there are none."""
        if not self._parts:
            return ""
        calls = [("".join(name), _arguments("".join(given))) for _, (name, given) in sorted(self._parts.items())]
        return f"{TOOL_CALL} {json.dumps(calls)}"

    def _take(self, place: int, call: Any) -> None:
        names, pieces = self._parts.setdefault(place, ([], []))
        called = (call.get("function") or call.get("custom")) if isinstance(call, dict) else None
        if not isinstance(called, dict):
            return
        name, given = called.get("name"), called.get("arguments", called.get("input"))
        if isinstance(name, str):
            names.append(name)
        if given is not None:
            pieces.append(given if isinstance(given, str) else _written(given))


def _written(given: Any) -> str:
    try:
        return json.dumps(given)
    except RecursionError:
        return "(too deep)"


def _arguments(written: str) -> str:
    found = canonical_json(written if written.strip() else "{}")
    return written.strip() if found is None else found


class HeldStream:
    """A stream of events on its way through a check.

    Args:
        wants_json: see `demands_json`.
        strip: whether log-probabilities are taken out.
    """

    def __init__(self, wants_json: bool, strip: bool) -> None:
        self._wants_json = wants_json
        self._strip = strip
        self._rest = b""
        self._logprobs: list[float] = []
        self._texts: list[str] = []
        self._calls = Calls()
        self._finish = ""
        self._pieces = 0
        self._judged = False

    def __repr__(self) -> str:
        return f"HeldStream(tokens={self.tokens})"

    @property
    def tokens(self) -> int:
        """Tokens so far; where the engine gives no log-probabilities, pieces of text."""
        return len(self._logprobs) or self._pieces

    @property
    def finished(self) -> bool:
        """Whether the model has said why it stopped."""
        return bool(self._finish)

    def feed(self, data: bytes) -> bytes:
        """The whole events in what has come so far, as the client may see them."""
        if self._rest:
            data = self._rest + data
        kept, start = [], 0
        for boundary in _BOUNDARY.finditer(data):
            kept.append(self._take(data[start : boundary.end()]))
            start = boundary.end()
        self._rest = data[start:]
        return b"".join(kept)

    def finish(self) -> bytes:
        """What is left at the end of the stream."""
        rest, self._rest = self._rest, b""
        return self._take(rest) if rest else b""

    def forget(self) -> None:
        """The check is over: only what must be taken out is looked at from here on, and nothing is kept."""
        self._judged = True
        self._texts.clear()
        self._calls = Calls()
        self._logprobs.clear()

    def evidence(self, complete: bool) -> Evidence:
        """What is known of the answer so far."""
        text = self._calls.text() or "".join(self._texts)
        wants_json = self._wants_json and not self._calls
        return Evidence(tuple(self._logprobs), text, self._finish, wants_json, complete)

    def _take(self, event: bytes) -> bytes:
        if self._judged and not (self._strip and b'"logprobs"' in event):
            return event
        data = b"\n".join(line[5:].strip() for line in event.splitlines() if line.startswith(b"data:"))
        found = _decode(data)
        if found is None:
            return event
        parsed, choice = found
        if not self._judged:
            text = _text_of(choice)
            if text:
                self._texts.append(text)
            if self._calls.add(choice) or text:
                self._pieces += 1
            self._logprobs += token_logprobs(choice)
            self._finish = str(choice.get("finish_reason") or "") or self._finish
        if self._strip and choice.get("logprobs") is not None:
            choice["logprobs"] = None
            return b"data: " + msgspec.json.encode(parsed) + b"\n\n"
        return event


def _decode(data: bytes) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """An answer or a piece of one, and its one choice."""
    try:
        answer: Any = msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    choices = answer.get("choices") if isinstance(answer, dict) else None
    if not isinstance(choices, list) or len(choices) != 1 or not isinstance(choices[0], dict):
        return None
    return answer, choices[0]


def _text_of(choice: dict[str, Any]) -> str:
    """The text of a choice, in any of the four shapes: message, delta, or plain text."""
    message = choice.get("message", choice.get("delta"))
    if not isinstance(message, dict):
        text = choice.get("text")
        return text if isinstance(text, str) else ""
    content = message.get("content")
    return content if isinstance(content, str) else ""
