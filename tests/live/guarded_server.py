"""An engine in vLLM's place, with tidegate's real guard in front: its chats stream a token every 20 ms for a long time."""

import asyncio
import sys

import uvicorn

from router.residency.engine_guard import EngineGuard

MODELS = b'{"data":[{"id":"m","max_model_len":1024}]}'
CHOICE = b'{"index":0,"delta":{"content":"t "}}'
EVENT = b'data: {"id":"c","object":"chat.completion.chunk","created":1,"model":"m","choices":[' + CHOICE + b"]}\n\n"
ANSWERS = {
    "/v1/models": MODELS,
    "/v1/completions": b'{"id":"c","object":"text_completion","created":1,"model":"m","choices":[{"index":0,"text":"t",'
    b'"finish_reason":"stop"}],"usage":{"prompt_tokens":1,"completion_tokens":1,"total_tokens":2}}',
}


async def app(scope, receive, send):
    if scope["type"] != "http":
        return
    streams = scope["path"] == "/v1/chat/completions"
    kind = b"text/event-stream" if streams else b"application/json"
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", kind)]})
    if not streams:
        await send({"type": "http.response.body", "body": ANSWERS.get(scope["path"], b"")})
        return
    for _ in range(3000):
        await send({"type": "http.response.body", "body": EVENT, "more_body": True})
        await asyncio.sleep(0.02)
    await send({"type": "http.response.body", "body": b"data: [DONE]\n\n"})


if __name__ == "__main__":
    uvicorn.run(EngineGuard(app), host="127.0.0.1", port=int(sys.argv[1]), log_level="warning", lifespan="off")
