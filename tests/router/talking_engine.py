"""An engine that says what a test tells it to, with log-probabilities, whole or as a stream."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from tests.router.simulated_engine import STREAM_HEAD, SimulatedEngine, answer, chunk


class TalkingEngine(SimulatedEngine):
    """`says`: tokens and their log-probabilities. `pause_after` tokens of a stream it waits for `release`."""

    def __init__(self, *says: tuple[str, float]) -> None:
        super().__init__()
        self.says = says
        self.finish = "stop"
        self.prompt_tokens = 10
        self.status = "200 OK"
        self.pause_after = -1
        self.reached_pause = asyncio.Event()
        self.cut = asyncio.Event()

    async def _behave(self, wish: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        body = self.requests[-1]["body"]
        if self.status != "200 OK":
            writer.write(answer(b'{"error": {"message": "no"}}', self.status))
        elif body.get("stream"):
            return await self._stream_out(body, reader, writer)
        else:
            writer.write(answer(json.dumps(self.whole(body)).encode()))
        await writer.drain()
        return True

    def whole(self, body: dict[str, Any]) -> dict[str, Any]:
        choice: dict[str, Any] = {"index": 0, "finish_reason": self.finish, "logprobs": self.logprobs(body, self.says)}
        text = "".join(token for token, _ in self.says)
        if "messages" in body:
            choice["message"] = {"role": "assistant", "content": text}
        else:
            choice["text"] = text
        usage = self.usage()
        return {"id": "x", "object": "chat.completion", "model": body["model"], "choices": [choice], "usage": usage}

    def usage(self) -> dict[str, int]:
        said = len(self.says)
        return {"prompt_tokens": self.prompt_tokens, "completion_tokens": said, "total_tokens": self.prompt_tokens + said}

    @staticmethod
    def logprobs(body: dict[str, Any], says: tuple[tuple[str, float], ...]) -> Any:
        if not body.get("logprobs"):
            return None
        if "messages" in body:
            return {"content": [{"token": token, "logprob": value} for token, value in says]}
        return {"tokens": [token for token, _ in says], "token_logprobs": [value for _, value in says]}

    async def _stream_out(self, body: dict[str, Any], reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        writer.write(STREAM_HEAD)
        for place, said in enumerate(self.says):
            if place == self.pause_after:
                await writer.drain()
                self.reached_pause.set()
                gone = asyncio.create_task(reader.read(1))
                go_on = asyncio.create_task(self.release.wait())
                await asyncio.wait({gone, go_on}, return_when=asyncio.FIRST_COMPLETED)
                if gone.done():
                    self.cut.set()
                    go_on.cancel()
                    return False
                gone.cancel()
                await asyncio.wait({gone})
            last = place == len(self.says) - 1
            choice: dict[str, Any] = {"index": 0, "logprobs": self.logprobs(body, (said,))}
            choice |= {"finish_reason": self.finish if last else None}
            choice |= {"delta": {"content": said[0]}} if "messages" in body else {"text": said[0]}
            writer.write(chunk(b"data: " + json.dumps({"id": "x", "choices": [choice]}).encode() + b"\n\n"))
            await writer.drain()
        usage = self.usage()
        if (body.get("stream_options") or {}).get("include_usage"):
            writer.write(chunk(b"data: " + json.dumps({"id": "x", "choices": [], "usage": usage}).encode() + b"\n\n"))
        writer.write(chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n")
        await writer.drain()
        return True
