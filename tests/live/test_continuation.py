"""Two real vLLM engines, a wire that is cut between them and the router: the joined answer is the unbroken one, token by token.

float32 and no prefix cache, so that what is computed again is computed as it was: a token id that differs is then the join's.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
import pytest
from msgspec.structs import replace

from router.placement.targets import Address, Report
from tests.live.conformance_cases import ENGINE_MODEL
from tests.live.cut_model import cut_model
from tests.live.long import LONG
from tests.live.plain_stack import begin_engine
from tests.router.conftest import open_front_door
from tests.router.test_continuation import CHAT, TEXT, Answer

pytestmark = [
    pytest.mark.live,
    pytest.mark.timeout(1800),
    LONG,
]
ARGS = ("--enforce-eager", "--dtype", "float32", "--max-model-len", "1024", "--max-num-seqs", "4", "--no-enable-prefix-caching")
SERVER = {"kind": "server", "vouched": True, "zone": "eu", "tier": "small", "models": {ENGINE_MODEL: ENGINE_MODEL}}
SERVER |= {"token_ids": True, "context_tokens": 1024}
QUESTIONS = ("What is the capital of France? 🙂", "Schreibe über Köln: 日本語?", "1 2 3")


class Wire:
    """A TCP proxy that breaks the next answers after so many bytes."""

    def __init__(self, engine: str, cuts: list[int]) -> None:
        parts = urlsplit(engine)
        self._engine = (parts.hostname, parts.port)
        self._cuts = cuts
        self.port = 0

    async def start(self) -> asyncio.Server:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        return server

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        upward_reader, upward = await asyncio.open_connection(*self._engine)

        left: int | None = None

        async def up() -> None:
            nonlocal left
            while data := await reader.read(65536):
                if data.startswith(b"POST"):
                    left = self._cuts.pop(0) if self._cuts else None
                upward.write(data)

        task = asyncio.create_task(up())
        with contextlib.suppress(ConnectionError, asyncio.CancelledError):
            while data := await upward_reader.read(65536):
                if left is not None and len(data) >= left:
                    writer.write(data[:left])
                    break
                left = None if left is None else left - len(data)
                writer.write(data)
                await writer.drain()
        task.cancel()
        upward.transport.abort()
        writer.close()


class Engine:
    """One vLLM that may be killed; `url` once it is up."""

    def __init__(self, model: Path, folder: Path) -> None:
        self._server = begin_engine(model, folder, ARGS)
        self.url = ""

    def wait(self) -> Engine:
        self.url = f"http://127.0.0.1:{self._server.wait()}"
        return self

    def kill(self) -> None:
        """SIGKILL all of it at once: front end, core and worker, and what would clean up after them."""
        with contextlib.suppress(psutil.NoSuchProcess):
            # By descent: vLLM writes its names over the environment by which processes are found elsewhere.
            for process in psutil.Process(self._server.parent.pid).children(recursive=True):
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
        self._server.kill()


@pytest.fixture(scope="module")
def begin(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[], Engine]]:
    """Starts one more engine of the same model; all end with the module."""
    folder = tmp_path_factory.mktemp("continuation")
    model = cut_model(model_dir, folder / "model")
    with contextlib.ExitStack() as stack:

        def begin_one() -> Engine:
            engine = Engine(model, tmp_path_factory.mktemp("engine"))
            stack.callback(engine.kill)
            return engine

        yield begin_one


@pytest.fixture(scope="module")
def pair(begin: Callable[[], Engine]) -> list[Engine]:
    return [engine.wait() for engine in [begin(), begin()]]


@pytest.fixture
def engines(pair: list[Engine]) -> list[str]:
    return [engine.url for engine in pair]


@contextlib.asynccontextmanager
async def running(engines: list[str]) -> AsyncIterator[tuple[Any, list[int]]]:
    cuts: list[int] = []
    wires = [Wire(engine, cuts) for engine in engines]
    servers = [await wire.start() for wire in wires]
    targets = [{**SERVER, "id": f"e{i}", "url": f"http://127.0.0.1:{wire.port}"} for i, wire in enumerate(wires)]
    async with open_front_door({}, zones={"eu": {}}, targets=targets) as door:
        door.state.fleet.failed = lambda *_: None
        door.state.retry_budget.withdraw = lambda now: True
        door.client.timeout = 120
        yield door, cuts
    for server in servers:
        server.close()


@pytest.mark.parametrize("path", [CHAT, TEXT])
async def test_a_stream_cut_anywhere_gives_the_same_greedy_answer(engines: list[str], path: str) -> None:
    joined, diverged = 0, []
    async with running(engines) as (door, cuts):
        for question in QUESTIONS:
            asked = {"messages": [{"role": "user", "content": question}]} if path == CHAT else {"prompt": question}
            body = {"model": ENGINE_MODEL, "stream": True, "temperature": 0, "max_tokens": 24, "ignore_eos": True, **asked}
            body["stream_options"] = {"include_usage": True}
            response = await door.client.post(path, content=json.dumps(body))
            whole, size = Answer(response.text), len(response.content) + 24 * 30
            assert whole.done and whole.usage[0]["completion_tokens"] == 24 and 'token_ids":[' not in whole.raw
            for position in range(700, size, 900):
                cuts[:] = [position]
                # Each body is another: one under which engines go on dying is refused.
                response = await door.client.post(path, content=json.dumps({**body, "user": str(position)}))
                answer = Answer(response.text)
                cuts.clear()
                if answer.error:
                    continue
                joined += len(door.receipt(response)["attempts"]) > 1
                assert (answer.done, answer.roles, answer.reasons, answer.usage) == (True, whole.roles, ["length"], whole.usage)
                if answer.text != whole.text:
                    diverged.append((question, position, answer.text, whole.text))
    assert joined >= 10 and not diverged, diverged


class Crowd:
    """Requests at once, every second one a stream; what each was answered, by its number."""

    def __init__(self, door: Any, count: int) -> None:
        self.door = door
        self.begun: Counter[str] = Counter()
        """Streams of which a client has read ten tokens, by target."""
        self.tasks = [asyncio.create_task(self._ask(number)) for number in range(count)]

    async def _ask(self, number: int) -> tuple[Any, str, int]:
        """What came, what it is, and how many engines were asked. Of a stream that broke for good: its text so far."""
        path, stream = (CHAT, TEXT)[number // 2 % 2], number % 2 == 0
        question = f"{QUESTIONS[number % 3]} {number}"
        asked = {"messages": [{"role": "user", "content": question}]} if path == CHAT else {"prompt": question}
        body = {"model": ENGINE_MODEL, "stream": stream, "temperature": 0, "max_tokens": 160, "ignore_eos": True, **asked}
        body |= {"stream_options": {"include_usage": True}} if stream else {}
        raw, events = b"", 0
        async with self.door.client.stream("POST", path, content=json.dumps(body)) as response:
            async for data in response.aiter_bytes():
                before, events, raw = events, events + data.count(b"data: "), raw + data
                if before < 10 <= events:
                    self.begun[response.headers["x-tidegate-target"]] += 1
        attempts = len(self.door.receipt(response)["attempts"])
        if response.status_code != 200:
            return None, f"{response.status_code} {raw[:200]!r}", attempts
        if stream:
            answer = Answer(raw.decode())
            if answer.error:
                assert not answer.done, "an error and an end"
                return answer.text, "broken stream", attempts
            return (answer.text, answer.reasons, answer.usage, answer.done), "stream", attempts
        choice = json.loads(raw)["choices"][0]
        return choice.get("text") or choice["message"]["content"], "answer", attempts

    def waiting_at(self, target: str) -> int:
        """Requests under way at that target."""
        fleet = self.door.state.fleet
        loads = zip(fleet.membership.targets, fleet.view(time.time()).loads, strict=True)
        return sum(load.inflight for one, load in loads if one.id == target)


async def test_killed_engines_cost_no_answer_and_no_token(begin: Callable[[], Engine], pair: list[Engine]) -> None:
    """Last, because it ends the engines of this module: each in turn, under streams and plain requests."""
    targets = [{**SERVER, "id": f"e{i}", "url": engine.url} for i, engine in enumerate(pair)]
    count, outcomes, living = 16, Counter[str](), list(pair)
    async with open_front_door({}, zones={"eu": {}}, targets=targets) as door:
        door.client.timeout = 300
        undisturbed = await asyncio.gather(*Crowd(door, count).tasks)
        assert Counter(kind for _, kind, _ in undisturbed) == {"stream": count // 2, "answer": count // 2}
        for round_, victim in enumerate((0, 1)):
            crowd, name = Crowd(door, count), f"e{victim}"
            async with asyncio.timeout(300):
                while crowd.begun[name] < 2 or crowd.waiting_at(name) < 4:
                    await asyncio.sleep(0.005)
            living[victim].kill()
            for number, (answer, kind, attempts) in enumerate(await asyncio.gather(*crowd.tasks)):
                whole = undisturbed[number][0]
                as_whole = answer == whole if kind != "broken stream" else whole[0].startswith(answer)
                assert as_whole, f"request {number}: {kind} {answer!r} in place of {whole!r}"
                outcomes[f"{kind}{' on a second engine' * (attempts > 1)}"] += 1
            if round_ == 0:
                living[victim] = await asyncio.to_thread(begin().wait)
                dead, other = sorted(door.state.fleet.membership.targets, key=lambda target: target.id)
                parts = urlsplit(living[victim].url)
                fresh = replace(dead, incarnation="e0-again", address=Address(parts.hostname, parts.port))
                door.state.take_reports([Report(fresh), Report(other)])
        breaks = [
            line for line in door.state.metrics.render().decode().splitlines() if line.startswith("tidegate_stream_breaks_total")
        ]
    print(f"two engines killed under {count} requests each: {dict(outcomes)}; {breaks}")
    assert sum(outcomes.values()) == 2 * count
    assert outcomes["stream on a second engine"] >= 2 and outcomes["answer on a second engine"] >= 2, outcomes
    # A stream that cannot be joined exactly ends in an error, by design; most can.
    assert sum(number for kind, number in outcomes.items() if kind.startswith("broken")) < outcomes["stream on a second engine"]
