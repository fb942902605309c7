"""Redact before spill: sensitive values leave as typed placeholders and come back as themselves in the answer.

`redact` takes a request apart and gives it back with placeholders such as `<IBAN_1>`; the same value always has the same
placeholder, and none that the client wrote itself is used. The result is scanned again as a whole: if anything is still found,
or cannot be judged, there is no redacted request and nothing may leave. `Restorer` puts the values back, in a whole answer or in
a stream whose pieces may cut a placeholder anywhere. The values live in a `Redaction` in memory, for one request, and are never
printed.
"""

from __future__ import annotations

import asyncio
import json
import re
from bisect import bisect_right
from collections.abc import Mapping
from typing import Any

import msgspec

from router.residency.classify.kinds import Finding, Kind
from router.residency.classify.scan import Scanner, merged
from router.residency.classify.texts import texts_of

NAME = "redact-v1"
_TAKEN = re.compile(r"<[A-Z_]+_(\d{1,9})>")
_PLACEHOLDER = re.compile(r"<[A-Z_]+_\d+>|\\u003c[A-Z_]+_\d+\\u003e")
_TEXT_FIELDS = ("content", "reasoning_content", "reasoning", "refusal", "text")
_BOUNDARY = re.compile(rb"\r\n\r\n|\n\n|\r\r")
_DONE = b"[DONE]"
_LONG_ENOUGH = 6
_MOST_COMPARED = 500_000_000
"""Values times characters in which each of them is looked for: about a second of one core."""
_CALL = 50
"""Characters that could be looked through in the time that it takes to begin with one more text."""


class NotRedactable(Exception):
    """Something would be left that must not leave. The text says what kind of thing, never what it was."""


class Redaction:
    """What stands for what, in one request."""

    __slots__ = ("_by_value", "_counts", "_first", "values")

    def __init__(self, first: int = 1) -> None:
        self.values: dict[str, str] = {}
        """Placeholder -> value."""
        self._by_value: dict[tuple[Kind, str], str] = {}
        self._counts: dict[Kind, int] = {}
        self._first = first

    def __repr__(self) -> str:
        return f"Redaction({len(self.values)} values)"

    __str__ = __repr__

    def placeholder(self, kind: Kind, value: str) -> str:
        """The placeholder of a value, made when it is new."""
        known = self._by_value.get((kind, value))
        if known is not None:
            return known
        number = self._counts.get(kind, self._first - 1) + 1
        self._counts[kind] = number
        made = f"<{kind.name}_{number}>"
        self._by_value[kind, value] = made
        self.values[made] = value
        return made


def redact(body: dict[str, Any], scanner: Scanner, kinds: frozenset[Kind] | None = None) -> tuple[dict[str, Any], Redaction]:
    """A request without its sensitive values, and the way back.

    Args:
        body: the parsed request; it is not changed.
        scanner: finds the values.
        kinds: what to take out; None for everything that is found.

    Raises:
        NotRedactable: the second scan found something, or a part cannot be read.
    """
    redaction = Redaction(_first_free(body))
    cleaned = _clean(body, "", scanner, kinds, redaction)
    known = {value: name for name, value in redaction.values.items() if len(value) >= _LONG_ENOUGH}
    if known:
        # Where a value stands once more, in a shape or a place in which it was not recognised.
        length = sum(len(item.text) + _CALL * (item.text.count("\n") + 1) for item in texts_of(cleaned))
        if len(known) * length > _MOST_COMPARED:
            raise NotRedactable("too many values in too long a text")
        cleaned = _substitute(cleaned, {value: known[value] for value in sorted(known, key=len, reverse=True)})
    if "model" in body:
        cleaned["model"] = body["model"]
    for item in texts_of(cleaned):
        if item.opaque:
            raise NotRedactable("a part that is no text")
        again = scanner.scan(item.text)
        if again.unknown:
            raise NotRedactable(again.unknown)
        left = {finding.kind for finding in again.findings if kinds is None or finding.kind in kinds}
        if left:
            raise NotRedactable(", ".join(sorted(left)))
    result: dict[str, Any] = cleaned
    return result, redaction


async def redact_gently(
    body: dict[str, Any], scanner: Scanner, kinds: frozenset[Kind] | None = None
) -> tuple[dict[str, Any], Redaction]:
    """`redact` in a thread, so that a large request does not hold the event loop. Same arguments, same errors."""
    return await asyncio.to_thread(redact, body, scanner, kinds)


def redact_text(text: str, scanner: Scanner, redaction: Redaction, kinds: frozenset[Kind] | None = None, label: str = "") -> str:
    """One text with placeholders.

    Args:
        text: the text.
        scanner: finds the values.
        redaction: takes the values.
        kinds: what to take out; None for everything.
        label: the name of the field the text stands in, a cue for what it is.

    Raises:
        NotRedactable: the text cannot be judged.
    """
    lead = f"{label}: " if label else ""
    found = scanner.scan(lead + text)
    if found.unknown:
        raise NotRedactable(found.unknown)
    wanted = [f for f in found.findings if f.end > len(lead) and (kinds is None or f.kind in kinds)]
    return _replace(text, merged(wanted), len(lead), redaction)


def _replace(text: str, findings: tuple[Finding, ...], shift: int, redaction: Redaction) -> str:
    parts: list[str] = []
    at = 0
    for finding in findings:
        start, end = max(finding.start - shift, 0), finding.end - shift
        parts += (text[at:start], redaction.placeholder(finding.kind, text[start:end]))
        at = end
    return "".join((*parts, text[at:]))


def _first_free(body: dict[str, Any]) -> int:
    """A number above every one in something like a placeholder that the client wrote itself."""
    taken = (int(number) for item in texts_of(body) for number in _TAKEN.findall(item.text))
    return max(taken, default=0) + 1


def _clean(value: Any, name: str, scanner: Scanner, kinds: frozenset[Kind] | None, redaction: Redaction) -> Any:
    if isinstance(value, str):
        label = "" if name in ("content", "text", "arguments", "input", "prompt", "") else name
        return redact_text(value, scanner, redaction, kinds, label) if len(value) > 3 else value
    if isinstance(value, dict):
        return {key: _clean(item, key, scanner, kinds, redaction) for key, item in value.items()}
    if isinstance(value, list):
        return [_clean(item, name, scanner, kinds, redaction) for item in value]
    return value


def _substitute(value: Any, names: Mapping[str, str]) -> Any:
    if isinstance(value, str):
        # One after the other. A pattern of them all took 16 s for 2,000 values in 600 kB, and no thread could run beside it.
        for known, name in names.items():
            value = value.replace(known, name)
        return value
    if isinstance(value, dict):
        return {key: _substitute(item, names) for key, item in value.items()}
    if isinstance(value, list):
        return [_substitute(item, names) for item in value]
    return value


class Restorer:
    """Puts values back into one piece of text after another; what could begin a placeholder waits for the next piece.

    Args:
        values: placeholder -> value.
        escaped: whether the text is itself JSON (the arguments of a tool call): values then are written as inside a JSON string.
    """

    __slots__ = ("_held", "_longest", "_names", "_values")

    def __init__(self, values: Mapping[str, str], escaped: bool = False) -> None:
        self._values = {name: json.dumps(value)[1:-1] if escaped else value for name, value in values.items()}
        if escaped:
            # Some models write the angle brackets as escapes there.
            self._values |= {_bracketed(name): value for name, value in self._values.items()}
        self._longest = max(map(len, self._values), default=0)
        self._names = sorted(self._values)
        self._held = ""

    def feed(self, piece: str) -> str:
        """What can be given out now."""
        if not self._names:
            return piece
        text = self._held + piece
        cut = self._keep_from(text)
        self._held = text[cut:]
        return _PLACEHOLDER.sub(self._value, text[:cut])

    def finish(self) -> str:
        """What was held back: the text has ended, so it was no placeholder."""
        rest, self._held = self._held, ""
        return rest

    def _value(self, match: re.Match[str]) -> str:
        return self._values.get(match.group(), match.group())

    def _keep_from(self, text: str) -> int:
        """Where the longest end of `text` begins that some placeholder begins with; the length of `text` when there is none."""
        for start in range(max(0, len(text) - self._longest + 1), len(text)):
            if text[start] in "<\\" and self._begins_one(text[start:]):
                return start
        return len(text)

    def _begins_one(self, end: str) -> bool:
        """Whether some placeholder goes on from `end`: in their order, those that do come right after it."""
        place = bisect_right(self._names, end)
        return place < len(self._names) and self._names[place].startswith(end)


def _bracketed(name: str) -> str:
    return "\\u003c" + name[1:-1] + "\\u003e"


def restore(answer: Any, values: Mapping[str, str]) -> Any:
    """A whole parsed answer with its values back, in every string of it."""
    return _restore(answer, Restorer(values), Restorer(values, escaped=True), "")


def _restore(value: Any, plain: Restorer, escaped: Restorer, name: str) -> Any:
    if isinstance(value, str):
        restorer = escaped if name == "arguments" else plain
        return restorer.feed(value) + restorer.finish()
    if isinstance(value, dict):
        return {key: _restore(item, plain, escaped, key) for key, item in value.items()}
    if isinstance(value, list):
        return [_restore(item, plain, escaped, name) for item in value]
    return value


class StreamRestorer:
    """A stream of chat or completion chunks (OpenAI's server-sent events) with its values back.

    Every choice's text, and every tool call's arguments, is a text of its own; each may have an unfinished placeholder waiting.
    What waits comes out with the choice's last chunk, or before the end of the stream. Events that are no chunk pass unchanged.

    Args:
        values: placeholder -> value.
    """

    __slots__ = ("_channels", "_pending", "_template", "_values")

    def __init__(self, values: Mapping[str, str]) -> None:
        self._values = dict(values)
        self._channels: dict[tuple[int, str, int], Restorer] = {}
        self._pending = b""
        self._template: dict[str, Any] = {}

    def __repr__(self) -> str:
        return f"StreamRestorer({len(self._values)} values)"

    def feed(self, piece: bytes) -> bytes:
        """The whole events in what has come, with values back; the rest waits."""
        data = self._pending + piece
        out, start = [], 0
        for boundary in _BOUNDARY.finditer(data):
            out.append(self._event(data[start : boundary.end()]))
            start = boundary.end()
        self._pending = data[start:]
        return b"".join(out)

    def finish(self) -> bytes:
        """What is left when the stream has ended."""
        rest, self._pending = self._pending, b""
        return (self._event(rest) if rest.strip() else rest) + self._leftovers()

    def _event(self, event: bytes) -> bytes:
        lines = event.splitlines()
        data = b"\n".join(line[5:].removeprefix(b" ") for line in lines if line.startswith(b"data:"))
        if data.strip() == _DONE:
            return self._leftovers() + event
        try:
            chunk = msgspec.json.decode(data) if data else None
        except (msgspec.DecodeError, UnicodeError, RecursionError):
            return event
        if not isinstance(chunk, dict) or not isinstance(chunk.get("choices"), list):
            return event
        self._template = {name: chunk[name] for name in ("id", "object", "created", "model") if name in chunk}
        for choice in chunk["choices"]:
            if isinstance(choice, dict):
                self._choice(choice)
        others = b"".join(line + b"\n" for line in lines if line and not line.startswith(b"data:"))
        return others + b"data: " + msgspec.json.encode(chunk) + b"\n\n"

    def _choice(self, choice: dict[str, Any]) -> None:
        index = choice["index"] if isinstance(choice.get("index"), int) else 0
        delta = choice.get("delta")
        holder = delta if isinstance(delta, dict) else choice
        for name in _TEXT_FIELDS:
            if isinstance(holder.get(name), str):
                holder[name] = self._channel(index, name).feed(holder[name])
        calls = holder.get("tool_calls")
        for call in calls if isinstance(calls, list) else ():
            function = call.get("function") if isinstance(call, dict) else None
            if isinstance(function, dict) and isinstance(function.get("arguments"), str):
                number = call["index"] if isinstance(call.get("index"), int) else 0
                function["arguments"] = self._channel(index, "arguments", number).feed(function["arguments"])
        if choice.get("finish_reason") is not None:
            self._flush_into(index, holder)

    def _channel(self, choice: int, name: str, call: int = 0) -> Restorer:
        key = (choice, name, call)
        if key not in self._channels:
            self._channels[key] = Restorer(self._values, escaped=name == "arguments")
        return self._channels[key]

    def _flush_into(self, index: int, holder: dict[str, Any]) -> None:
        """Give what waits in a choice's texts to its last chunk."""
        for (choice, name, call), restorer in self._channels.items():
            rest = restorer.finish() if choice == index else ""
            if not rest:
                continue
            if name != "arguments":
                holder[name] = (holder.get(name) or "") + rest
                continue
            calls = holder.get("tool_calls")
            known = calls if isinstance(calls, list) else []
            for item in known:
                if isinstance(item, dict) and item.get("index", 0) == call and isinstance(item.get("function"), dict):
                    item["function"]["arguments"] = (item["function"].get("arguments") or "") + rest
                    break
            else:
                known.append({"index": call, "function": {"arguments": rest}})
            holder["tool_calls"] = known

    def _leftovers(self) -> bytes:
        """A chunk for every choice that ended without a last chunk while something waited."""
        out = []
        is_chat = self._template.get("object") != "text_completion"
        for index in sorted({choice for choice, _, _ in self._channels}):
            holder: dict[str, Any] = {}
            self._flush_into(index, holder)
            if holder:
                choice = {"index": index, "delta": holder, "finish_reason": None} if is_chat else {"index": index, **holder}
                out.append(b"data: " + msgspec.json.encode({**self._template, "choices": [choice]}) + b"\n\n")
        return b"".join(out)
