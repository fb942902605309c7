"""The agent as a process of its own, between a publisher as vLLM has it and a router's index."""

import asyncio
import json
import random
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import psutil
import pytest
from tokenizers import Tokenizer

from cluster.kv.agent import AgentAnswer, AgentPlan
from router.kv_feeds import KvFeeds
from router.placement.kv_messages import KV_PATH, Beat, Chunks, Hello, decode_message, pack_hashes, unpack_hashes
from router.placement.targets import Address, Endpoint, Kind, Report, Target
from router.placement.trust import SelfTest, Trust
from router.prefixes import Prefixes
from router.residency.guard import Pass, Place, derive_target_key, issue_pass
from router.residency.label import Evidence
from tests.cluster.fake_publisher import FakePublisher
from tests.cluster.tokenizers_for_tests import byte_level

SECRET = b"s" * 32
INCARNATION = "agent-test-1"
GUARD_KEY = derive_target_key(SECRET, INCARNATION)
PLACE = Place(("local",), ("local",))
BLOCK = 16
CORE_FILTER = Path("/proc/self/coredump_filter")
TEMPLATE = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"


def a_pass(path: str = KV_PATH, key: bytes = GUARD_KEY, label: str = "local/local/", incarnation: str = INCARNATION) -> str:
    return issue_pass(key, Pass("r", incarnation, "e", label, time.time() + 30), "GET", path)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    byte_level(folder / "tokenizer.json")
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": TEMPLATE, "bos_token": {"content": "<s>"}}))
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    return folder


class Engine:
    """What a vLLM would publish for one prompt."""

    def __init__(self, model, publisher: FakePublisher) -> None:
        self.tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
        self.publisher = publisher

    def tokens(self, messages) -> list[int]:
        text = "".join(f"<|im_start|>{m['role']}\n{m['content']}<|im_end|>\n" for m in messages)
        ids = self.tokenizer.encode(text, add_special_tokens=False).ids
        return ids[: len(ids) // BLOCK * BLOCK]

    def names(self, tokens) -> list[int]:
        return [hash(tuple(tokens[: i + BLOCK])) & (1 << 63) - 1 for i in range(0, len(tokens), BLOCK)]

    async def compute(self, messages, **options) -> None:
        tokens = self.tokens(messages)
        event = {"type": "BlockStored", "block_hashes": self.names(tokens), "parent_block_hash": None, "token_ids": tokens}
        await self.publisher.publish(
            [{**event, "block_size": BLOCK, "lora_id": None, "medium": "GPU", "lora_name": None}], **options
        )

    async def evict(self, messages) -> None:
        names = self.names(self.tokens(messages))
        await self.publisher.publish([{"type": "BlockRemoved", "block_hashes": names, "medium": "GPU"}])


@pytest.fixture
async def publisher(tmp_path):
    publisher = FakePublisher(tmp_path)
    await publisher.start()
    yield publisher
    await publisher.stop()


def start_agent(model, publisher, chunk_key) -> tuple[subprocess.Popen, AgentAnswer]:
    plan = AgentPlan(
        events=(publisher.events,),
        replays=(publisher.replay,),
        host="127.0.0.1",
        incarnation=INCARNATION,
        place=PLACE.to_text(),
        guard_key=GUARD_KEY.hex(),
        chunk_key=chunk_key.hex(),
        model=str(model),
        tokenizer=str(model),
    )
    process = subprocess.Popen([sys.executable, "-m", "cluster.kv.agent"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(msgspec.json.encode(plan) + b"\n")
    process.stdin.flush()
    return process, msgspec.json.decode(process.stdout.readline(), type=AgentAnswer)


def a_target(port: int = 1) -> Target:
    return Target("m@local/1", INCARNATION, Kind.REPLICA, "local", Evidence(2, 2), Address("127.0.0.1", port), {"m": "m"})


def a_conversation(seed: int, turns: int = 6) -> list[dict]:
    chance = random.Random(seed)
    words = ["the", "quick", "brown", "fox", "Köln", "日本語", "def f(x):", "return", "\n", "assistant"]
    roles = ["user", "assistant"]
    return [{"role": roles[i % 2], "content": " ".join(chance.choices(words, k=80))} for i in range(turns)]


async def until(condition, seconds: float = 15.0) -> bool:
    for _ in range(int(seconds / 0.02)):
        if condition():
            return True
        await asyncio.sleep(0.02)
    return False


class Stack:
    def __init__(self, model, publisher) -> None:
        self.engine = Engine(model, publisher)
        self.prefixes = Prefixes(SECRET)
        self.outcome = SelfTest.PASSED
        self.tests = 0
        self.process, answer = start_agent(model, publisher, self.prefixes.chunk_key("m"))
        assert answer.problem == ""
        self.feeds = KvFeeds(self.prefixes, lambda target: a_pass(), self.test)
        self.report(answer.port)
        self.task = asyncio.create_task(self.feeds.run())

    def report(self, port: int) -> None:
        reports = [Report(a_target(), None, port)]
        self.prefixes.update(reports)
        self.feeds.update(reports)

    async def test(self, target) -> SelfTest:
        self.tests += 1
        return self.outcome

    def share(self, messages) -> float:
        chains = self.prefixes.chains(Endpoint.CHAT, {"messages": messages}, ("m",))
        return self.prefixes.cached(chains).share(INCARNATION)

    def trust(self, in_s: float = 0.0) -> Trust:
        """Now, or in so many seconds, where nothing more is heard until then."""
        return self.prefixes.trust(a_target(), 0.0, time.monotonic() + in_s).trust

    async def stop(self) -> None:
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)
        self.process.stdin.close()
        self.process.wait(10)


@pytest.fixture
async def stack(model, publisher):
    stack = Stack(model, publisher)
    yield stack
    await stack.stop()


async def test_from_events_to_predictions_and_back(stack):
    assert await until(lambda: stack.trust() is Trust.EXACT)
    conversation = a_conversation(1)
    await stack.engine.compute(conversation[:4])
    assert await until(lambda: stack.share(conversation[:4]) > 0.85)
    assert 0.4 < stack.share(conversation) < 0.75  # the next turn: what went before is there
    assert stack.share(a_conversation(2)) == 0
    await stack.engine.compute(a_conversation(3), drop=True)  # a lost message is asked for again
    assert await until(lambda: stack.share(a_conversation(3)) > 0.85)
    await stack.engine.evict(conversation[:4])
    assert await until(lambda: stack.share(conversation) == 0)
    await stack.engine.publisher.publish([{"type": "AllBlocksCleared"}])
    assert await until(lambda: stack.share(a_conversation(3)) == 0)
    assert stack.trust() is Trust.EXACT


async def test_an_agent_that_hangs_degrades_in_time_and_another_takes_over(stack, model, publisher):
    assert await until(lambda: stack.trust() is Trust.EXACT)
    await stack.engine.compute(a_conversation(1))
    assert await until(lambda: stack.share(a_conversation(1)) > 0.85)
    agent = psutil.Process(stack.process.pid)
    agent.suspend()
    assert stack.trust(in_s=5.0) is Trust.DEGRADED, "unless it is heard again"
    assert await until(lambda: stack.trust() is Trust.DEGRADED)
    assert stack.share(a_conversation(1)) > 0.85  # what was known goes on as history
    stack.process.kill()
    stack.process.wait()
    stack.process, answer = start_agent(model, publisher, stack.prefixes.chunk_key("m"))
    stack.report(answer.port)
    assert await until(lambda: stack.trust() is Trust.EXACT)
    assert stack.share(a_conversation(1)) > 0.85  # from the replay buffer


async def test_an_engine_that_stops_answering_degrades_in_time(stack, publisher):
    assert await until(lambda: stack.trust() is Trust.EXACT)
    publisher.answers = False
    assert stack.trust(in_s=5.0) is Trust.DEGRADED, "unless it answers again"
    assert await until(lambda: stack.trust() is Trust.DEGRADED)


async def test_a_failed_self_test_degrades(stack):
    stack.outcome = SelfTest.FAILED
    assert await until(lambda: stack.tests > 0)
    assert await until(lambda: "self-test failed" in stack.prefixes.trust(a_target(), 0.0, time.monotonic()).reason)


async def frames(port: int, line: bytes) -> list[bytes]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(line)
    found = []
    try:
        async with asyncio.timeout(2.5):
            while True:
                found.append(await reader.readexactly(int.from_bytes(await reader.readexactly(4), "big")))
    except (TimeoutError, asyncio.IncompleteReadError, ConnectionError):
        pass
    writer.close()
    return found


async def test_only_a_pass_opens_it_and_nothing_of_a_prompt_comes_out(model, publisher):
    process, answer = start_agent(model, publisher, Prefixes(SECRET).chunk_key("m"))
    engine = Engine(model, publisher)
    secret = [{"role": "user", "content": "the quick Geheimnis brown fox jumps " * 30}]
    await engine.compute(secret)
    await asyncio.sleep(1.5)
    refused = [b"", b"GET / HTTP/1.1", b"x" * 100_000, a_pass("/metrics").encode(), a_pass(key=b"f" * 32).encode()]
    refused += [a_pass(label="elsewhere/elsewhere/").encode(), a_pass(incarnation="another").encode()]
    for line in refused:
        assert await frames(answer.port, line + b"\n") == []
    told = await frames(answer.port, a_pass().encode() + b"\n")
    messages = [decode_message(body) for body in told]
    assert [type(message) for message in messages[:3]] == [Hello, Chunks, Beat]
    assert len(unpack_hashes(messages[1].stored)) > 3
    everything = b"".join(told)
    assert b"Geheimnis" not in everything and b"quick" not in everything
    ids = engine.tokens(secret)[:8]
    assert msgspec.msgpack.encode(ids)[1:] not in everything
    process.stdin.close()
    assert process.wait(10) == 0  # it ends with its input


@pytest.mark.skipif(not CORE_FILTER.exists(), reason="only Linux says what a core dump may hold")
async def test_nothing_of_its_memory_may_be_in_a_core_dump(model, publisher):
    before = CORE_FILTER.read_text()
    CORE_FILTER.write_text("0x33")  # what a child inherits where core dumps are allowed
    try:
        process, _ = start_agent(model, publisher, Prefixes(SECRET).chunk_key("m"))
    finally:
        CORE_FILTER.write_text(f"0x{before}")
    try:
        assert psutil.Process(process.pid).rlimit(psutil.RLIMIT_CORE) == (0, 0)
        assert int(Path(f"/proc/{process.pid}/coredump_filter").read_text(), 16) == 0
    finally:
        process.kill()
        process.wait()


def test_hashes_survive_packing():
    hashes = [0, 1, (1 << 64) - 1, 12345678901234567890]
    assert unpack_hashes(pack_hashes(hashes)) == hashes
    with pytest.raises(ValueError):
        unpack_hashes(b"123")
