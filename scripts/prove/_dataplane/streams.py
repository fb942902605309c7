"""Mutated upstream responses: nothing a strict decoder would refuse may reach the client as a success."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from dataclasses import dataclass, field

from _dataplane import routers
from _dataplane.client import Connection, request
from _dataplane.decoder import Decoded, decode, second_opinion
from _dataplane.mutate import Case, base_json, base_stream, make_case
from _dataplane.scripted import ScriptedEngine

LANES = 16
OTHERS = [Case("second answer", made(random.Random(7)), [9]) for made in (base_json, base_stream)]
"""By whether a stream is asked for."""
_ERROR_EVENT = b'data: {"error":'


@dataclass
class Tally:
    """What came of the cases."""

    outcomes: Counter[str] = field(default_factory=Counter)
    overstrict: Counter[str] = field(default_factory=Counter)
    violations: list[str] = field(default_factory=list)

    def wrong(self, index: int, case: Case, why: str) -> None:
        """A violation, with what is needed to see it again."""
        self.violations.append(f"case {index} ({case.kind}, {case.ending}, cuts {case.cuts}): {why}; sent {case.data[:300]!r}")


def judge(tally: Tally, index: int, case: Case, got: Decoded, closed: bool, old: bool) -> bool:
    """Compare what the client decoded with what the oracle accepts of the upstream. True: a clean success."""
    truth = decode(case.data)
    whole = truth.complete and not truth.wrong
    if (
        whole
        and truth.status not in (204, 304)
        and not truth.odd_reason
        and second_opinion(case.data[: len(case.data) - len(truth.rest)]) != truth.body
    ):
        tally.wrong(index, case, "the two oracles disagree")
    if got.wrong:
        tally.wrong(index, case, f"the client got bytes that are not HTTP: {got.wrong}")
        return False
    refusal = got.complete and got.header(b"x-tidegate-target") == b"none"
    if refusal:
        tally.outcomes["typed"] += 1
        if got.status not in (502, 503) or b'"code"' not in got.body:
            tally.wrong(index, case, f"a refusal with {got.status} {got.body[:80]!r}")
        if whole and not truth.rest and truth.status < 500 and truth.status not in (401, 403, 429):
            tally.overstrict[case.kind] += 1
        return False
    if got.rest:
        tally.wrong(index, case, f"bytes after the answer: {got.rest[:60]!r}")
        return False
    if not got.complete:
        tally.outcomes["broken"] += 1
        if not truth.body.startswith(got.body):
            tally.wrong(index, case, "a broken answer holds bytes the upstream did not send as body")
        return False
    return _judge_success(tally, index, case, got, truth, whole)


def _judge_success(tally: Tally, index: int, case: Case, got: Decoded, truth: Decoded, whole: bool) -> bool:
    body, mark, _ = got.body.rpartition(_ERROR_EVENT)
    if mark and b"upstream_error" in got.body[len(body) :] and not case.data.count(b"upstream_error"):
        tally.outcomes["error event"] += 1
        if b"\ndata: [DONE]\n" in b"\n" + body:
            tally.wrong(index, case, "an error event after [DONE]")
        if not truth.body.startswith(body):
            tally.wrong(index, case, "bytes before the error event that the upstream did not send as body")
        return False
    if not whole:
        tally.wrong(index, case, f"passed on as success ({got.status}, {got.body[:80]!r}), but: {truth.wrong or 'incomplete'}")
    elif (got.status, got.body) != (truth.status, truth.body):
        tally.wrong(index, case, f"another answer: {got.status} {got.body[:80]!r}")
    tally.outcomes["success"] += 1
    return True


async def _lane(lane: int, router: routers.Router, engine: ScriptedEngine, indices: range, seed: int, tally: Tally) -> None:
    connection = Connection(router.port)
    for index in indices:
        case = make_case(index, seed)
        request_id = f"case-{seed}-{index:07d}"
        engine.cases[request_id] = case
        streamed = b"text/event-stream" in decode(case.data).header(b"content-type").lower()
        other = OTHERS[streamed]
        if index % 2:  # The router may ask again on a new connection when a kept-alive one breaks: then another answer.
            engine.again[request_id] = other
        old = index % 17 == 0
        # Each body is another: one under which targets go on breaking would be refused.
        body = {"model": f"m{lane}", "stream": streamed, "messages": [{"role": "user", "content": f"x {index}"}]}
        data = request(body, routers.KEY, request_id, version=b"1.0" if old else b"1.1")
        try:
            got = await connection.ask(data, version_1_0=old)
        except TimeoutError:
            tally.wrong(index, case, "the client waits for ever")
            connection.close()
            got = None
        times = engine.seen.pop(request_id, 0)
        if times > 1 and index % 2:
            case = other
        clean = got is not None and judge(tally, index, case, got, connection.closed, old)
        if got is not None and got.status and got.header(b"x-request-id") != request_id.encode():
            tally.wrong(index, case, f"the answer of another request: {got.header(b'x-request-id')!r}")
        if stray := await connection.stray() if index % 5 == 0 else b"":
            tally.wrong(index, case, f"stray bytes: {stray[:60]!r}")
        del engine.cases[request_id]
        engine.again.pop(request_id, None)
        if not times:  # A starved machine: the limit on the first byte passed before the engine was reached.
            tally.outcomes["never sent"] += 1
        engine.bodies.pop(request_id, None)
        if not clean:
            router.renew(lane, index)
    connection.close()


async def run(count: int, seed: int, first: int = 0) -> tuple[Tally, float]:
    """Run `count` cases from number `first` on; returns the tally and the seconds it took."""
    engine, tally = ScriptedEngine(), Tally()
    await engine.start()
    targets = {f"t{lane}": (engine.port, f"m{lane}") for lane in range(LANES)}
    config = routers.make_config(targets, timeouts={"connect_s": 20.0, "first_byte_s": 1.0, "idle_s": 1.0})
    started = time.monotonic()
    async with routers.inside(config) as router:
        lanes = (range(first + lane, first + count, LANES) for lane in range(LANES))
        await asyncio.gather(*(_lane(i, router, engine, indices, seed, tally) for i, indices in enumerate(lanes)))
        took = time.monotonic() - started
        for _ in range(50):
            if not await router.inflight():
                break
            await asyncio.sleep(0.05)
        else:
            tally.violations.append("the books do not return to 0")
        assert router.inside is not None
        if router.inside.state.pool._busy:
            tally.violations.append("busy connections are left in the pool")
    if tally.outcomes["never sent"] > count // 100 + 2:
        tally.violations.append(f"{tally.outcomes['never sent']} cases never reached the engine: the proof proves too little")
    if engine.odd:
        tally.violations.append(f"the engine got odd requests: {engine.odd[:2]!r}")
    await engine.stop()
    return tally, took
