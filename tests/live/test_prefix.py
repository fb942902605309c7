"""A real engine's cache, known without tokenising: what is predicted is what the engine then counts as cached."""

import asyncio
import os
import signal
import threading
import time
from pathlib import Path

import httpx
import msgspec
import pytest

from deployments.kv_agent import chunk_key_of
from deployments.vllm_process import EnginePlan, VllmProcess
from router.compiled import compile_policy
from router.config import Model, parse_config
from router.placement.kv_messages import KV_PATH
from router.placement.targets import Address, Kind, Report, Target
from router.placement.trust import Trust
from router.process import RouterProcess
from router.residency.guard import Place, derive_target_key
from router.residency.guard_copy import copy_for_guards
from router.residency.label import Evidence
from tests.live.long import LONG
from tests.live.plain_stack import free_port
from tests.router.builders import digest, make_facts

pytestmark = [
    pytest.mark.live,
    LONG,
]
SECRET = b"s" * 32
KEY = "tg_prefix"
INCARNATION = "live-prefix-1"
PLACE = Place(("local",), ("local",))
ARGS = ["--enforce-eager", "--dtype", "bfloat16", "--max-model-len", "2048", "--max-num-seqs", "4", "--block-size", "32"]
TOOLS = ["--enable-auto-tool-choice", "--tool-call-parser", "hermes"]
STORY = "You are a careful librarian. " + " ".join(f"Shelf {i} holds the books about subject number {i}." for i in range(25))
TOOL = {
    "type": "function",
    "function": {"name": "find_book", "description": "Find a book", "parameters": {"type": "object", "properties": {}}},
}


class Bench:
    """A real engine with its agent, and a router in this process."""

    def __init__(self, model_dir: Path) -> None:
        self.model = Model(id="smol", source=str(model_dir), args=[*ARGS, *TOOLS], replicas=[{"zone": "local"}])
        chunk_key = chunk_key_of(SECRET, self.model)
        key = derive_target_key(SECRET, INCARNATION)
        self.engine = VllmProcess(EnginePlan(self.model, "127.0.0.1", INCARNATION, key, PLACE, cpus=2, chunk_key=chunk_key))
        self.port = free_port()
        config = parse_config(
            {
                "listen": {"host": "127.0.0.1", "port": self.port},
                "admin": {"port": free_port()},
                "zones": {"local": {}},
                "models": [{**self.model.model_dump(), "id": "smol"}],
                "keys": [{"id": "k", "sha256": digest(KEY)}],
                "slo": {"ttft_ms": 300_000, "max_wait_ms": 600_000},  # a busy test machine is no saturated cluster
            }
        )
        self.config = config
        self.policy = compile_policy(config, Path.cwd())
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()
        self._reporting: asyncio.Task[None] | None = None

    def start(self) -> None:
        self.run(self.engine.start())
        self.engine.take_policy(msgspec.json.encode(copy_for_guards(self.policy, time.time())))
        vocabulary = self.policy.vocabulary
        zones = vocabulary.zone_mask(["local"])
        self.target = Target(
            id="smol@local/1",
            incarnation=INCARNATION,
            kind=Kind.REPLICA,
            zone="local",
            evidence=Evidence(zones, zones),
            address=Address("127.0.0.1", self.engine.port),
            models={"smol": "smol"},
            context_tokens=self.engine.context_tokens,
            slots=self.engine.slots,
        )
        self.run(self._open())
        # Whatever test comes first: on a busy machine the self-test's two prompts take minutes.
        self.run(self.until(lambda: self.trust().trust is Trust.EXACT, 150))

    async def _open(self) -> None:
        self.router = RouterProcess(self.config, self.policy, SECRET, {}, "live")
        self.router.start()
        self._reporting = asyncio.create_task(self._report())
        await asyncio.sleep(0.5)

    async def _report(self) -> None:
        while True:
            signals = await self.engine.read_signals()
            self.router.take_reports([Report(self.target, signals, self.engine.kv_port)])
            await asyncio.sleep(0.5)

    def stop(self) -> None:
        async def close() -> None:
            if self._reporting is not None:
                self._reporting.cancel()
                await self.router.drain()
            await self.engine.stop()

        self.run(close())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(30)
        self.loop.close()

    def run(self, coroutine):
        """In the loop of the engine's supervisor and the router, which goes on between tests."""
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(550)

    @property
    def state(self):
        return self.router.state

    def trust(self):
        view = self.state.fleet.view(time.time())
        age = time.time() - view.loads[0].signals.sampled_at
        return self.state.trust_of(self.target, age)

    async def until(self, condition, seconds: float) -> bool:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if condition():
                return True
            await asyncio.sleep(0.1)
        return False

    async def chat(self, path: str = "/v1/chat/completions", **body) -> dict:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{self.port}", timeout=300, trust_env=False) as client:
            body = {"model": "smol", "temperature": 0, "max_tokens": 8, **body}
            answer = await client.post(path, json=body, headers={"authorization": f"Bearer {KEY}"})
            assert answer.status_code == 200, answer.text
            return answer.json()

    def predicted(self, path: str = "/v1/chat/completions", **body) -> float:
        """Share of a prompt that the events alone say is cached."""
        prefixes = self.state.prefixes
        facts = make_facts(self.policy, grant=next(iter(self.policy.keys.values())), endpoint=path, model="smol")
        chains = self.state.chains_for(facts, {"model": "smol", **body}, ("smol",))
        assert chains.by_model["smol"].rendered
        return prefixes.cached(chains).share(INCARNATION)

    async def settled(self) -> None:
        """Wait until what was routed has been confirmed or dropped, so that only events count."""
        assert await self.until(lambda: self.state.prefixes.index.history_entries == 0, 10)


@pytest.fixture(scope="module")
def bench(model_dir, tmp_path_factory):
    before = os.environ.get("TIDEGATE_LOG_DIR")
    os.environ["TIDEGATE_LOG_DIR"] = str(tmp_path_factory.mktemp("logs"))
    bench = Bench(model_dir)
    try:
        bench.start()
        yield bench
    finally:
        bench.stop()
        os.environ.pop("TIDEGATE_LOG_DIR")
        if before is not None:
            os.environ["TIDEGATE_LOG_DIR"] = before


def cached_tokens(answer: dict) -> int:
    return (answer["usage"]["prompt_tokens_details"] or {}).get("cached_tokens") or 0


def test_a_healthy_engine_becomes_exact_by_its_self_test(bench):
    assert bench.run(bench.until(lambda: bench.trust().trust is Trust.EXACT, 10)), bench.trust()
    assert bench.state.prefixes.describe(INCARNATION)["self_test"] == "passed"
    told = f'tidegate_trust_state{{router="{bench.state.router_id}",target="smol@local/1",zone="local"}} 2.0'
    assert told.encode() in bench.state.metrics.render()


def compare(bench, answer: dict, predicted: float) -> None:
    """What was predicted is what the engine then counted: within one block, one chunk and the tokens per byte of this text."""
    usage = answer["usage"]
    served = cached_tokens(answer) / usage["prompt_tokens"]
    print(f"predicted {predicted:.3f}, served {served:.3f} of {usage['prompt_tokens']} tokens")
    assert predicted > 0
    assert abs(predicted - served) < 0.2


def test_the_second_turn_is_predicted(bench):
    async def converse():
        messages = [{"role": "system", "content": STORY}, {"role": "user", "content": "Where are the books about 7?"}]
        assert bench.predicted(messages=messages) == 0
        first = await bench.chat(messages=messages)
        assert cached_tokens(first) == 0
        messages += [first["choices"][0]["message"] | {"content": first["choices"][0]["message"]["content"] or ""}]
        messages = [{k: m[k] for k in ("role", "content")} for m in messages]
        messages += [{"role": "user", "content": "And about 9?"}]
        await bench.settled()
        predicted = bench.predicted(messages=messages)
        compare(bench, await bench.chat(messages=messages), predicted)

    bench.run(converse())


def test_tools_are_part_of_the_prompt(bench):
    """SmolLM2's template does not show tools, so a prompt with tools is the same text: and so the engine finds."""

    async def converse():
        messages = [{"role": "system", "content": STORY + " With tools."}, {"role": "user", "content": "Find it."}]
        first = await bench.chat(messages=messages, tools=[TOOL])
        assert first["usage"]["prompt_tokens"] > 64
        call = {"id": "c1", "type": "function", "function": {"name": "find_book", "arguments": "{}"}}
        messages += [{"role": "assistant", "content": "", "tool_calls": [call]}]
        messages += [{"role": "tool", "tool_call_id": "c1", "content": "Shelf 3"}]
        await bench.settled()
        predicted = bench.predicted(messages=messages, tools=[TOOL])
        compare(bench, await bench.chat(messages=messages, tools=[TOOL]), predicted)

    bench.run(converse())


def test_plain_prompts_and_salts(bench):
    async def converse():
        prompt = "Once upon a time " + STORY + " in Köln, 日本語."
        await bench.chat("/v1/completions", prompt=prompt)
        await bench.settled()
        longer = prompt + " And then?"
        assert bench.predicted("/v1/completions", prompt=longer, cache_salt="other") == 0
        predicted = bench.predicted("/v1/completions", prompt=longer)
        compare(bench, await bench.chat("/v1/completions", prompt=longer), predicted)
        salted = await bench.chat("/v1/completions", prompt=longer, cache_salt="other")
        assert cached_tokens(salted) == 0
        await bench.settled()
        predicted = bench.predicted("/v1/completions", prompt=longer + " More.", cache_salt="other")
        compare(bench, await bench.chat("/v1/completions", prompt=longer + " More.", cache_salt="other"), predicted)

    bench.run(converse())


def test_real_traffic_is_confirmed_by_events(bench):
    replica = bench.state.prefixes._replicas[INCARNATION]
    assert replica.confirmations >= 3
    assert replica.confirmed > 0.9


def test_a_stranger_gets_nothing_from_the_agent(bench):
    async def knock(line: bytes) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", bench.engine.kv_port)
        writer.write(line)
        answer = await asyncio.wait_for(reader.read(), 10)
        writer.close()
        return answer

    other = bench.state.own_pass(bench.target, "GET", "/metrics")
    for line in (b"\n", b"hello\n", other.encode() + b"\n"):
        assert bench.run(knock(line)) == b""
    assert KV_PATH  # the path a pass has to be for


def test_events_that_are_cut_degrade_within_five_seconds_and_come_back(bench):
    """The agent hangs, then it is killed, then there is a new one: it has the whole table again."""
    pid = bench.engine.agent.pid

    async def story():
        assert await bench.until(lambda: bench.trust().trust is Trust.EXACT, 90), bench.trust()
        os.kill(pid, signal.SIGSTOP)
        started = time.monotonic()
        assert await bench.until(lambda: bench.trust().trust is Trust.DEGRADED, 5.0), bench.trust()
        print(f"DEGRADED after {time.monotonic() - started:.1f} s: {bench.trust().reason}")
        answer = await bench.chat(messages=[{"role": "user", "content": "Still there?"}])  # the choice goes on
        assert answer["choices"]
        os.kill(pid, signal.SIGKILL)
        assert await bench.until(lambda: bench.trust().trust is Trust.EXACT, 90), bench.trust()
        assert bench.engine.agent.pid != pid
        messages = [{"role": "system", "content": STORY}, {"role": "user", "content": "Where are the books about 7?"}]
        assert bench.predicted(messages=messages) > 0.8

    bench.run(story())
