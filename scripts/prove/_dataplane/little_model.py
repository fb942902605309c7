"""A simulated engine with a language model of its own: `python -m _dataplane.little_model PORT LOG`.

The model is a function of every token before: one wrong, missing or doubled token in a prompt and the rest of the answer is
another. Its tokens are bytes and pieces of text, so the same text has many spellings, and a character can be cut in two. It
answers chat and completions as vLLM does: token ids where they were asked for, text only of whole characters, several tokens in
one event now and then, and a decoder that starts in the middle of a character begins with the whole prompt.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
import zlib
from array import array
from collections.abc import Callable, Iterator
from typing import Any

END = 256
CONTEXT = 400
_PIECES = [piece.encode() for piece in ("th", "ing ", "日本", "né", " 🙂", "e.", "  ", "wo")]
_ALPHABET = [char.encode() for char in 'abcdefghijklmnop  é日🙂"\\\n<'] + _PIECES
_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n"


def bytes_of(ids: list[int]) -> bytes:
    """The text of tokens, as bytes."""
    return b"".join(bytes([i]) if i < END else b"" if i == END else _PIECES[i - END - 1] for i in ids)


def next_token(ids: list[int]) -> int:
    """The token that follows: by all of them."""
    tail = bytes_of(ids[-4:])
    for cut in (1, 2, 3):
        begun = tail[-cut:]
        whole = next((char for char in _ALPHABET if len(char) > cut and begun[0] >= 0xC0 and char.startswith(begun)), None)
        if whole is not None and len(whole.decode()) == 1:
            return whole[cut]
    choice = zlib.crc32(array("I", ids).tobytes())
    if choice % 37 == 0:
        return END
    unit = _ALPHABET[(choice >> 8) % len(_ALPHABET)]
    return END + 1 + _PIECES.index(unit) if unit in _PIECES else unit[0]


def _is_whole(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def generate(prompt: list[int], max_tokens: int) -> Iterator[tuple[list[int], str, str | None]]:
    """Token ids, their text and the reason to finish, event by event."""
    answer: list[int] = []
    sent = len(bytes_of(prompt)) if _is_whole(bytes_of(prompt)) else 0
    group, reason = [], None
    while reason is None:
        token = next_token(prompt + answer)
        answer.append(token)
        group.append(token)
        reason = "stop" if token == END else "length" if len(answer) >= max_tokens else None
        if reason is None and zlib.crc32(array("I", answer).tobytes()) % 4 == 0 and len(group) < 3:
            continue
        whole = bytes_of(prompt + answer)
        # As vLLM: what ends in half a character waits; a group may end in one, and has the text before it.
        end = next((len(whole) - cut for cut in range(4) if _is_whole(whole[sent : len(whole) - cut])), sent)
        last_whole = len(bytes_of(prompt + answer[:-1])) if end < len(whole) else end
        end = end if end >= last_whole or len(group) > 1 else sent
        yield group, whole[sent:end].decode(), reason
        sent, group = end, []


class LittleModel:
    """One engine.

    Attributes:
        cut: asked for every request with its path and body: how many bytes of the answer's body to send before breaking the
            connection, or None.
        requests: what came: path, body.
    """

    def __init__(self, log: int = -1, pause_s: float = 0.0) -> None:
        self.cut: Callable[[str, dict[str, Any]], int | None] = lambda path, body: None
        self.requests: list[tuple[str, dict[str, Any]]] = []
        self.port = 0
        self._log = log
        self._pause_s = pause_s
        self._server: asyncio.Server | None = None

    async def start(self, port: int = 0) -> None:
        """Listen."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Stop listening."""
        assert self._server is not None
        self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                lines = head.decode("latin-1").split("\r\n")
                fields = dict(line.lower().split(": ", 1) for line in lines[1:] if ": " in line)
                body = json.loads(await reader.readexactly(int(fields["content-length"])))
                path = lines[0].split()[1]
                self.requests.append((path, body))
                if self._log >= 0:
                    os.write(self._log, f"start {fields['x-request-id']}\n".encode())
                if not await self._answer(path, body, fields["x-request-id"], writer):
                    break
        writer.close()

    async def _answer(self, path: str, body: dict[str, Any], request_id: str, writer: asyncio.StreamWriter) -> bool:
        left = self.cut(path, body)
        writer.write(_HEAD)
        for event in stream(path, body, request_id):
            if left is not None and len(event) > left:
                framed = b"%x\r\n%b\r\n" % (len(event), event)
                writer.write(framed[: left + 4])  # the chunk's own head counts for little
                await writer.drain()
                await asyncio.sleep(0.002)
                writer.transport.abort()
                return False
            left = None if left is None else left - len(event)
            writer.write(b"%x\r\n%b\r\n" % (len(event), event))
            await writer.drain()
            await asyncio.sleep(self._pause_s)
        writer.write(b"0\r\n\r\n")
        return True


def prompt_of(path: str, body: dict[str, Any]) -> list[int]:
    """The prompt's tokens."""
    if path.endswith("/chat/completions"):
        text = "".join(f"<{message['role']}>{message['content']}" for message in body["messages"])
        return list(f"{text}<assistant>".encode())
    prompt = body["prompt"]
    return list(prompt.encode()) if isinstance(prompt, str) else list(prompt)


def stream(path: str, body: dict[str, Any], request_id: str) -> Iterator[bytes]:
    """The events of an answer."""
    chat, asked = path.endswith("/chat/completions"), bool(body.get("return_token_ids"))
    prompt = prompt_of(path, body)
    limit = body.get("max_completion_tokens") or body.get("max_tokens") or (CONTEXT - len(prompt) if chat else 16)
    kind = "chat.completion.chunk" if chat else "text_completion"
    name = f"{'chatcmpl' if chat else 'cmpl'}-{request_id}-{os.urandom(3).hex()}"
    frame = {"id": name, "object": kind, "created": zlib.crc32(name.encode()) % 10**9, "model": body["model"]}
    ids = prompt if asked else None

    def event(choices: list[Any], **more: Any) -> bytes:
        return b"data: %b\n\n" % json.dumps({**frame, "choices": choices, **more}, separators=(",", ":")).encode()

    if chat:
        choice = {"index": 0, "delta": {"role": "assistant", "content": ""}, "logprobs": None, "finish_reason": None}
        yield event([choice], prompt_token_ids=ids)
    count = 0
    for group, text, reason in generate(prompt, limit):
        count += len(group)
        choice = {"index": 0, **({"delta": {"content": text}} if chat else {"text": text}), "logprobs": None}
        choice["finish_reason"] = reason
        if reason or not chat:
            choice["stop_reason"] = None
        if not chat:
            choice["prompt_token_ids"], ids = ids, None
        yield event([choice | {"token_ids": group if asked else None}])
    if (body.get("stream_options") or {}).get("include_usage"):
        usage = {"prompt_tokens": len(prompt), "total_tokens": len(prompt) + count, "completion_tokens": count}
        yield event([], usage=usage)
    yield b"data: [DONE]\n\n"


async def _serve(port: int, log: int) -> None:
    engine = LittleModel(log, 0.004)
    await engine.start(port)
    print(engine.port, flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(_serve(int(sys.argv[1]), os.open(sys.argv[2], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)))
