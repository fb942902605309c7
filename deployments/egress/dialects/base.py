"""What a dialect is: four functions, and the error every provider's failures become."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import msgspec

from deployments.egress.dialects.answer import ChunkWriter
from deployments.egress.dialects.chat import Chat
from router.config import ExternalTarget
from router.wire.errors import ApiError


class Outgoing(msgspec.Struct, frozen=True):
    """A request as it leaves, before its credential is added. `path` starts at the target's base URL and may hold a query."""

    path: str
    body: bytes
    headers: dict[str, str] = {}


class StreamReader(Protocol):
    """Reads a provider's stream piece by piece and writes OpenAI's."""

    def feed(self, piece: bytes) -> bytes:
        """Events of OpenAI's shape for what has come.

        Raises:
            EvidenceMismatch: the provider says that it is not where its evidence says.
        """
        ...

    def finish(self) -> bytes:
        """What is left to say when the provider's stream has ended: an error, unless it ended as it should."""
        ...


class Dialect(Protocol):
    """One provider's way of speaking; without state."""

    def request(self, chat: Chat, spec: ExternalTarget) -> Outgoing:
        """The provider's request.

        Raises:
            ApiError: 400 for what this provider cannot do.
        """
        ...

    def sign(
        self, method: str, url: str, outgoing: Outgoing, credential: str, spec: ExternalTarget, now: float
    ) -> dict[str, str]:
        """The headers that carry the credential."""
        ...

    def answer(self, body: bytes, spec: ExternalTarget, created: int) -> bytes:
        """A whole answer in OpenAI's shape.

        Raises:
            ApiError: 502 when it is no answer.
            EvidenceMismatch: it says that it comes from elsewhere.
        """
        ...

    def stream(self, writer: ChunkWriter, spec: ExternalTarget) -> StreamReader:
        """A reader for one stream."""
        ...

    def error(self, status: int, body: bytes, headers: Mapping[str, str]) -> ApiError:
        """A failure, mapped. Never the provider's own words: they may quote the prompt."""
        ...


class EvidenceMismatch(Exception):
    """A provider's answer contradicts the evidence its target has in the configuration. Holds names of places only."""


_SAID: dict[int, tuple[int, str, str]] = {
    400: (400, "invalid_request", "The provider refused the request as invalid."),
    401: (502, "upstream_error", "The provider refused the egress's credential."),
    403: (502, "upstream_error", "The provider refused the egress's credential for this model."),
    404: (502, "upstream_error", "The provider does not know this model or path."),
    408: (504, "upstream_error", "The provider ran out of time."),
    413: (413, "invalid_request", "The request is too large for the provider."),
    422: (400, "invalid_request", "The provider refused the request as invalid."),
    424: (502, "upstream_error", "The model failed at the provider."),
    429: (429, "rate_limited", "The provider's rate limit is reached."),
    503: (503, "overloaded", "The provider is overloaded."),
    504: (504, "upstream_error", "The provider ran out of time."),
    529: (503, "overloaded", "The provider is overloaded."),
}
_RETRY_S = 5.0


def failure(status: int, headers: Mapping[str, str], detail: str = "") -> ApiError:
    """A provider's failure by its status alone.

    Args:
        status: the provider's HTTP status.
        headers: its headers, names in lower case; `retry-after` is passed on.
        detail: a word of the provider's that is one of a fixed list, never free text.
    """
    mapped = _SAID.get(status)
    if mapped is None:
        mapped = _SAID[400] if 400 <= status < 500 else (502, "upstream_error", "The provider failed.")
    ours, code, message = mapped
    text = f"{message} ({status}{', ' + detail if detail else ''})"
    return ApiError(ours, code, text, retry_after_s=_retry_after(headers) if ours in (429, 503) else None)


def _retry_after(headers: Mapping[str, str]) -> float:
    value = headers.get("retry-after", "")
    try:
        return max(1.0, min(float(value), 3600.0))  # in this order NaN is 1.0
    except ValueError:
        return _RETRY_S


def no_answer() -> ApiError:
    """An answer that is none."""
    return ApiError(502, "upstream_error", "The provider's answer could not be read.")


def unreadable() -> ApiError:
    """A stream that is none."""
    return ApiError(502, "upstream_error", "The provider's stream could not be read.")


def cut_short() -> ApiError:
    """A stream that ended before its answer did."""
    return ApiError(502, "upstream_error", "The provider's stream ended early.")


def parse(body: bytes) -> dict[str, Any]:
    """The JSON object in a provider's answer.

    Raises:
        ApiError: 502 when there is none.
    """
    try:
        value = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise no_answer() from None
    if not isinstance(value, dict):
        raise no_answer()
    return value


def objects(value: Any) -> list[dict[str, Any]]:
    """The objects in a list; whatever else it holds, or is, counts nothing."""
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def known_word(value: Any, words: frozenset[str]) -> str:
    """`value` if it is one of `words`: free text of a provider never gets into an error."""
    return value if isinstance(value, str) and value in words else ""


def count(value: Any) -> int:
    """A number of tokens; what is none counts nothing."""
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0
