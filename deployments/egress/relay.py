"""One call to a provider: the request in its dialect, its answer back in OpenAI's shape, its failures as ours.

Nothing of what a provider writes into an error reaches the client or the log: it may quote the prompt.
"""

from __future__ import annotations

import hmac
import logging
import time
from collections.abc import AsyncIterator, Mapping
from typing import Any

import httpx
from starlette.responses import Response, StreamingResponse

from deployments.egress.dialects.answer import ChunkWriter
from deployments.egress.dialects.base import Dialect, EvidenceMismatch, Outgoing, StreamReader, unreadable
from deployments.egress.dialects.chat import read_chat
from deployments.egress.dialects.table import SAME_SHAPE, TRANSLATED
from router.config import ExternalTarget
from router.placement.targets import Endpoint
from router.wire.errors import ApiError, invalid_request

_log = logging.getLogger("tidegate.egress")

_PASS_BACK = ("content-type", "retry-after")
_MAX_ERROR_BYTES = 64 * 1024
_MAX_ANSWER_BYTES = 64 * 1024 * 1024
_EVENTS = "text/event-stream"


class Relay:
    """Calls providers.

    Args:
        client: the HTTP client that dials out.
        own_clients: clients of targets with TLS files of their own, by target id.
        secret: users' names leave only as a hash keyed with it.
    """

    def __init__(self, client: httpx.AsyncClient, own_clients: Mapping[str, httpx.AsyncClient], secret: bytes) -> None:
        self._client = client
        self._own_clients = own_clients
        self._secret = secret
        self._shut: set[str] = set()

    async def call(self, spec: ExternalTarget, credential: str | None, path: str, body: dict[str, Any]) -> Response:
        """Send one request and give back the answer.

        Args:
            spec: the target.
            credential: its provider's key; None where it needs none.
            path: the public path of the operation.
            body: the allow-listed fields.

        Raises:
            ApiError: the provider failed, cannot do what is asked, or has contradicted its evidence.
        """
        if spec.id in self._shut:
            raise _contradicted()
        fields = {name: value for name, value in body.items() if name not in spec.provider.drop}
        if isinstance(fields.get("user"), str):
            fields["user"] = self._pseudonym(fields["user"])
        same = SAME_SHAPE.get(spec.dialect)
        if same is not None:
            outgoing = same.request(path, fields, spec)
            answer = await self._send(spec, outgoing, same.sign(credential) if credential else {})
            if answer.status_code != 200:
                raise same.error(answer.status_code, await _read_error(answer), answer.headers)
            passed = {name: answer.headers[name] for name in _PASS_BACK if name in answer.headers}
            return StreamingResponse(_stream(answer), answer.status_code, passed)
        return await self._translated(TRANSLATED[spec.dialect], spec, credential, path, fields)

    async def _translated(
        self, dialect: Dialect, spec: ExternalTarget, credential: str | None, path: str, fields: dict[str, Any]
    ) -> Response:
        if path != Endpoint.CHAT:
            raise invalid_request("This target offers chat only.")
        chat = read_chat(fields)
        outgoing = dialect.request(chat, spec)
        url, now = spec.url + outgoing.path, time.time()
        signature = dialect.sign("POST", url, outgoing, credential, spec, now) if credential else {}
        answer = await self._send(spec, outgoing, signature)
        if answer.status_code != 200:
            raise dialect.error(answer.status_code, await _read_error(answer), answer.headers)
        try:
            if not chat.stream:
                body = await _read_all(answer)
                return Response(dialect.answer(body, spec, int(now)), media_type="application/json")
            writer = ChunkWriter(int(now), chat.model, chat.wants_usage)
            return await self._open_stream(answer, dialect.stream(writer, spec), writer, spec)
        except EvidenceMismatch as mismatch:
            await answer.aclose()
            self._shut_target(spec.id, mismatch)
            raise _contradicted() from None

    async def _open_stream(
        self, answer: httpx.Response, reader: StreamReader, writer: ChunkWriter, spec: ExternalTarget
    ) -> Response:
        """Wait for the first thing there is to say: what fails before it is an error with a status, and others may try."""
        pieces = answer.aiter_bytes()
        first = b""
        try:
            async for piece in pieces:
                first = reader.feed(piece)
                if first:
                    break
            else:
                first = reader.finish()
        except httpx.HTTPError as error:
            await answer.aclose()
            raise _unreachable(spec.id, error) from None
        if writer.failure is not None:
            await answer.aclose()
            raise writer.failure
        return StreamingResponse(self._rest(answer, pieces, first, reader, writer, spec), 200, {"content-type": _EVENTS})

    async def _rest(
        self,
        answer: httpx.Response,
        pieces: AsyncIterator[bytes],
        first: bytes,
        reader: StreamReader,
        writer: ChunkWriter,
        spec: ExternalTarget,
    ) -> AsyncIterator[bytes]:
        try:
            yield first
            async for piece in pieces:
                if writer.done:
                    break
                out = reader.feed(piece)
                if out:
                    yield out
            if not writer.done:
                yield reader.finish()
        except EvidenceMismatch as mismatch:
            self._shut_target(spec.id, mismatch)
            yield writer.fail(_contradicted())
        except httpx.HTTPError as error:
            yield writer.fail(_unreachable(spec.id, error))
        finally:
            await answer.aclose()

    async def _send(self, spec: ExternalTarget, outgoing: Outgoing, signature: Mapping[str, str]) -> httpx.Response:
        headers = {"content-type": "application/json", "accept": "*/*", "accept-encoding": "identity"}
        headers |= {**outgoing.headers, **signature}
        client = self._own_clients.get(spec.id, self._client)
        # httpx hands the name in this extension to TLS as the one that the certificate must carry.
        named = {} if spec.tls is None or spec.tls.server_name is None else {"sni_hostname": spec.tls.server_name}
        url = spec.url + outgoing.path
        request = client.build_request("POST", url, content=outgoing.body, headers=headers, extensions=named or None)
        try:
            answer = await client.send(request, stream=True)
        except httpx.HTTPError as error:
            raise _unreachable(spec.id, error) from None
        if answer.is_redirect:
            await answer.aclose()
            raise ApiError(502, "upstream_error", "The cloud target answered with a redirect, which is not followed.")
        if answer.headers.get("content-encoding", "identity").lower() != "identity":
            # What is unpacked here may be a thousand times what came, before anybody can count it.
            await answer.aclose()
            raise ApiError(502, "upstream_error", "The cloud target compressed its answer, although it was asked not to.")
        return answer

    def _pseudonym(self, user: str) -> str:
        """Providers tell abusers apart by `user`; who it is, is not theirs to know."""
        return "u-" + hmac.digest(self._secret, b"tidegate user\0" + user.encode("utf-8", "surrogatepass"), "sha256").hex()[:32]

    def _shut_target(self, target_id: str, mismatch: EvidenceMismatch) -> None:
        """No request goes to a target that is not where its evidence says; only a restart, with evidence checked, opens it."""
        self._shut.add(target_id)
        _log.error("target %s is shut: %s", target_id, mismatch)


def _contradicted() -> ApiError:
    return ApiError(502, "upstream_error", "The provider's answer contradicts the target's evidence; the target is shut.")


def _unreachable(target_id: str, error: httpx.HTTPError) -> ApiError:
    _log.warning("target %s: %s", target_id, type(error).__name__)
    return ApiError(502, "upstream_error", f"The cloud target could not be reached ({type(error).__name__}).")


async def _read_error(answer: httpx.Response) -> bytes:
    """A failed answer's body, at most 64 kB of it."""
    parts: list[bytes] = []
    size = 0
    try:
        async for piece in answer.aiter_bytes():
            parts.append(piece)
            size += len(piece)
            if size > _MAX_ERROR_BYTES:
                break
    except httpx.HTTPError:
        return b""
    finally:
        await answer.aclose()
    return b"".join(parts)


async def _read_all(answer: httpx.Response) -> bytes:
    parts: list[bytes] = []
    size = 0
    try:
        async for piece in answer.aiter_bytes():
            parts.append(piece)
            size += len(piece)
            if size > _MAX_ANSWER_BYTES:
                raise unreadable()
    except httpx.HTTPError as error:
        raise ApiError(502, "upstream_error", f"The cloud target broke off its answer ({type(error).__name__}).") from None
    finally:
        await answer.aclose()
    return b"".join(parts)


async def _stream(answer: httpx.Response) -> AsyncIterator[bytes]:
    """The provider's body as it arrives; the connection is released however this ends."""
    try:
        async for chunk in answer.aiter_bytes():
            yield chunk
    finally:
        await answer.aclose()
