"""Ray Serve's own data path, with its defaults: `ray_serve.py --port N --mode handle|relay [--engines URL ...]`.

`handle`: Serve's proxy, an ingress deployment, and a `DeploymentHandle` to replicas of a simulated engine: the way of a request
through Serve without a router of one's own. `relay`: Serve's proxy and a deployment that relays to engines over HTTP with
aiohttp. Runs on the Python of an environment that has `ray[serve]`, so it imports nothing of the bench but the engine's answers.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import signal
import sys
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
REPLICAS = 4
OPTIONS: dict[str, Any] = {"ray_actor_options": {"num_cpus": 0}, "max_ongoing_requests": 1000}


def engine_class(model: str) -> type:
    """A deployment's class that says what the simulated engine says."""

    class Engine:
        def __init__(self) -> None:
            sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
            from _datapath import mock_engine

            self.gap_s = mock_engine.GAP_S
            self.whole = mock_engine.completion_json(model)
            self.events = [*mock_engine.stream_events(model), b"data: [DONE]\n\n"]

        async def chat(self, body: dict[str, Any]) -> bytes:
            """One JSON answer."""
            return self.whole

        async def stream(self, body: dict[str, Any]) -> AsyncIterator[bytes]:
            """One stream, an event every millisecond."""
            loop = asyncio.get_running_loop()
            due = loop.time()
            for event in self.events:
                yield event
                due += self.gap_s
                await asyncio.sleep(max(0.0, due - loop.time()))

    return Engine


def handle_app(model: str) -> Any:
    """The ingress over a handle, and the engines behind it."""
    from ray import serve
    from starlette.requests import Request
    from starlette.responses import Response, StreamingResponse

    class Ingress:
        def __init__(self, engine: Any) -> None:
            self.engine = engine
            self.streaming = engine.options(stream=True)

        async def __call__(self, request: Request) -> Response:
            body = json.loads(await request.body())
            if body.get("stream"):
                return StreamingResponse(self.streaming.stream.remote(body), media_type="text/event-stream")
            return Response(await self.engine.chat.remote(body), media_type="application/json")

    engine = serve.deployment(engine_class(model), name="Engine", num_replicas=REPLICAS, **OPTIONS)
    return serve.deployment(Ingress, name="Ingress", **OPTIONS).bind(engine.bind())


def relay_app(engines: list[str]) -> Any:
    """A deployment that passes requests on in turn."""
    from ray import serve
    from starlette.requests import Request
    from starlette.responses import Response, StreamingResponse

    class Relay:
        def __init__(self) -> None:
            self.turn = itertools.cycle(engines)
            self.session: Any = None

        async def __call__(self, request: Request) -> Response:
            import aiohttp

            if self.session is None:
                self.session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))
            body, headers = await request.body(), {"content-type": "application/json"}
            answer = await self.session.post(next(self.turn) + request.url.path, data=body, headers=headers)
            kind = answer.headers.get("content-type", "")
            if kind.startswith("text/event-stream"):
                return StreamingResponse(answer.content.iter_any(), media_type="text/event-stream")
            return Response(await answer.read(), answer.status, media_type=kind)

    return serve.deployment(Relay, name="Relay", **OPTIONS).bind()


def main(port: int, mode: str, model: str, engines: list[str]) -> None:
    """Serve until SIGTERM."""
    import ray
    from ray import serve

    stop = threading.Event()
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False, object_store_memory=100 * 2**20)
    # Ray takes the signals over when it starts; these end it in an orderly way.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    serve.run(handle_app(model) if mode == "handle" else relay_app(engines), name="bench", route_prefix="/")
    stop.wait()
    ray.shutdown()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--mode", choices=("handle", "relay"), required=True)
    parser.add_argument("--model", default="mock")
    parser.add_argument("--engines", nargs="*", default=[])
    options = parser.parse_args()
    main(options.port, options.mode, options.model, options.engines)
