"""Reading the one form field the decision needs out of a multipart body (RFC 7578), without touching the file in it.

Two parsers that read one form differently are a way around the decision, so only the plain form every client library writes is
understood: no preamble, no folded headers, no encoded names, none twice but those of lists (`NAME[]`), a proper end. The body is
searched, never copied.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

from router.wire.errors import ApiError, invalid_request

MAX_PARTS = 64
MAX_PART_HEAD = 2048
MAX_FIELD_BYTES = 64 * 1024
"""Limit of the fields that are read; others may be as long as the body."""
_READ = frozenset({"model", "prompt", "vllm_xargs"})
_CHARSET = rb"""charset="?utf-8"?"""
"""Spring and Apache's HttpClient write it, before the boundary or behind it; names and values are read as UTF-8 anyway."""
_BOUNDARY = re.compile(
    rb"""multipart/form-data; ?(?:%b; ?)?boundary=(?:"([0-9A-Za-z'()+_,./:=?-]{1,70})"|([0-9A-Za-z'+_.-]{1,70}))(?:; ?%b)?\Z"""
    % (_CHARSET, _CHARSET),
    re.IGNORECASE,
)
_TOKEN = rb"[A-Za-z0-9_.-]"
"""What stands without quotes where .NET's `MultipartFormDataContent` needs none."""
_FILENAME = rb'(?:; ?filename=(?:"(?:[^"\\\r\n\x00]|\\[\\"])*"|' + _TOKEN + rb"+))?(?:; ?filename\*=[\x21-\x7e]*)?"
_NAMES = rb'(?:"([A-Za-z0-9_.\[\]-]{1,64})"|(' + _TOKEN + rb"{1,64}))"
_DISPOSITION = re.compile(rb"form-data; ?name=" + _NAMES + _FILENAME + rb"\Z", re.IGNORECASE)
_NAME = re.compile(rb"[A-Za-z0-9-]{1,64}\Z")


class Form(NamedTuple):
    """A multipart body that was read: the fields the decision needs, and where the bytes of `model` stand."""

    body: bytes
    content_type: bytes
    fields: dict[str, Any]
    model_at: tuple[int, int]

    def with_model(self, model: str) -> bytes:
        """The body with its `model` field set to `model`, a configured name; every other byte stays."""
        start, end = self.model_at
        if self.fields["model"] == model:
            return self.body
        return b"".join((memoryview(self.body)[:start], model.encode(), memoryview(self.body)[end:]))


def parse_form(body: bytes, content_type: bytes | None) -> Form:
    """Read a form's `model` and `prompt`.

    Args:
        body: the whole body.
        content_type: the request's header, with the boundary; it goes to the target as it is.

    Raises:
        ApiError: 415 when it is no form, 400 when it is not well-formed or has no `model`. No message quotes the form.
    """
    found = _BOUNDARY.match((content_type or b"").strip())
    if found is None or content_type is None:
        raise invalid_request("Send `multipart/form-data` with a plain boundary.", status=415)
    boundary = found[1] or found[2]
    delimiter = b"\r\n--" + boundary
    if not body.startswith(delimiter[2:]):
        raise _malformed("it does not begin with its boundary")
    fields: dict[str, Any] = {}
    names: set[bytes] = set()
    model_at = (0, 0)
    at = len(delimiter) - 2
    for _ in range(MAX_PARTS):
        if body[at : at + 2] == b"--":
            if body[at + 2 :] not in (b"", b"\r\n"):
                raise _malformed("something follows its end")
            if "model" not in fields:
                raise invalid_request("`model` is missing: name a model, a tier, or `auto`.", param="model")
            return Form(body, content_type.strip(), fields, model_at)
        name, start = _part_head(body, at)
        end = body.find(delimiter, start)
        if end < 0:
            raise _malformed("its end is missing")
        if name in names and not name.endswith(b"[]"):
            raise _malformed("a field stands in it twice")
        names.add(name)
        if name.decode() in _READ:
            fields[name.decode()] = _field(body, start, end)
            model_at = (start, end) if name == b"model" else model_at
        at = end + len(delimiter)
    raise _malformed(f"it has more than {MAX_PARTS} parts")


def _part_head(body: bytes, at: int) -> tuple[bytes, int]:
    """The name of the part whose head begins at `at`, and where its content begins."""
    if body[at : at + 2] != b"\r\n":
        raise _malformed("a boundary is not followed by a line end")
    stop = body.find(b"\r\n\r\n", at, at + MAX_PART_HEAD)
    if stop < 0:
        raise _malformed("the head of a part has no end")
    disposition = b""
    for line in body[at + 2 : stop].split(b"\r\n"):
        name, colon, value = line.partition(b":")
        if not colon or not _NAME.match(name) or b"\n" in value or b"\r" in value or b"\x00" in value:
            raise _malformed("a part has a malformed header")
        lower = name.lower()
        if lower == b"content-transfer-encoding" and value.strip().lower() not in (b"binary", b"8bit", b"7bit"):
            raise _malformed("a part is encoded")
        if lower == b"content-disposition":
            if disposition:
                raise _malformed("a part has two names")
            disposition = value.strip()
    found = _DISPOSITION.match(disposition)
    if found is None:
        raise _malformed("a part has no plain name")
    return found[1] or found[2], stop + 4


def _field(body: bytes, start: int, end: int) -> str:
    if end - start > MAX_FIELD_BYTES:
        raise _malformed("a text field is too long")
    try:
        return body[start:end].decode("utf-8")
    except UnicodeDecodeError:
        raise _malformed("a text field is not valid UTF-8") from None


def _malformed(why: str) -> ApiError:
    return invalid_request(f"The form is malformed: {why}.")
