"""Ray Serve's own routers over running engines: `ray_router.py --port N --router pow2|prefix_aware --engines URL ...`.

One replica for each engine, which relays to it; Serve's proxy in front, and the chosen request router between an ingress and the
replicas, as Ray Serve LLM has them. Runs on a Python with `ray[serve]`, and with vLLM for the prefix-aware one, which imports it.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import threading
from collections.abc import AsyncIterator
from typing import Any

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")


class Asked:
    """A request as Serve's prefix-aware router wants it: with its messages, or its prompt, as an attribute."""

    def __init__(self, path: str, body: bytes) -> None:
        self.path, self.body = path, body
        parsed = json.loads(body)
        if "messages" in parsed:
            self.messages = parsed["messages"]
        else:
            self.prompt = str(parsed.get("prompt", ""))


def application(engines: list[str], router: str) -> Any:
    """The ingress and the replicas."""
    import ray
    from ray import serve
    from ray.serve.config import RequestRouterConfig
    from starlette.requests import Request
    from starlette.responses import StreamingResponse

    @ray.remote(num_cpus=0)
    class Turns:
        def __init__(self) -> None:
            self.left = list(engines)

        def take(self) -> str:
            """An engine that no replica has yet."""
            return str(self.left.pop(0)) if self.left else engines[0]

    turns = Turns.remote()

    class Engine:
        def __init__(self) -> None:
            self.url = ray.get(turns.take.remote())
            self.session: Any = None

        async def ask(self, asked: Asked) -> AsyncIterator[bytes]:
            """The engine's answer as it comes."""
            import aiohttp

            if self.session is None:
                self.session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(300))
            headers = {"content-type": "application/json"}
            async with self.session.post(self.url + asked.path, data=asked.body, headers=headers) as answer:
                async for part in answer.content.iter_any():
                    yield part

    class Ingress:
        def __init__(self, engine: Any) -> None:
            self.engine = engine.options(stream=True)

        async def __call__(self, request: Request) -> StreamingResponse:
            asked = Asked(request.url.path, await request.body())
            return StreamingResponse(self.engine.ask.remote(asked), media_type="text/event-stream")

    options: dict[str, Any] = {"ray_actor_options": {"num_cpus": 0}, "max_ongoing_requests": 1000}
    routed = dict(options)
    if router == "prefix_aware":
        from ray.serve.llm.request_router import PrefixCacheAffinityRouter

        routed["request_router_config"] = RequestRouterConfig(request_router_class=PrefixCacheAffinityRouter)
    engine = serve.deployment(Engine, name="Engine", num_replicas=len(engines), **routed)
    return serve.deployment(Ingress, name="Ingress", **options).bind(engine.bind())


def main(port: int, router: str, engines: list[str]) -> None:
    """Serve until SIGTERM."""
    import ray
    from ray import serve

    stop = threading.Event()
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False, object_store_memory=100 * 2**20)
    # Ray takes the signals over when it starts; these end it in an orderly way.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    serve.run(application(engines, router), name="bench", route_prefix="/")
    stop.wait()
    serve.shutdown()
    ray.shutdown()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--router", choices=("pow2", "prefix_aware"), required=True)
    parser.add_argument("--engines", nargs="+", required=True)
    options = parser.parse_args()
    main(options.port, options.router, options.engines)
