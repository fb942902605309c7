"""The router's side of the agents' feeds: one connection per replica, kept open, opened again when it breaks."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Sequence

import msgspec

from router.placement.kv_messages import BEAT_S, LONGEST_FRAME, decode_message
from router.placement.targets import Report, Target
from router.placement.trust import SelfTest
from router.prefixes import Prefixes

_CONNECT_S = 3.0
_SILENCE_S = 5 * BEAT_S
_RETRY_S = 1.0
TEST_EVERY_S = 900.0
TEST_AGAIN_S = 20.0
"""After a test that could not be done, or failed."""
_log = logging.getLogger("tidegate.kv")

RunTest = Callable[[Target], Awaitable[SelfTest]]


class KvFeeds:
    """Follows every replica that has an agent, and has it tested at start and then now and then.

    Args:
        prefixes: takes what the agents say.
        issue: makes the pass that opens a target's agent.
        run_test: does one self-test.
    """

    def __init__(self, prefixes: Prefixes, issue: Callable[[Target], str], run_test: RunTest) -> None:
        self._prefixes = prefixes
        self._issue = issue
        self._run_test = run_test
        self._wanted: dict[str, tuple[Target, int]] = {}
        self._following: dict[str, tuple[int, asyncio.Task[None]]] = {}
        self._tests: dict[str, asyncio.Task[None]] = {}
        self._test_due: dict[str, float] = {}

    def update(self, reports: Sequence[Report]) -> None:
        """Take the cluster's word for which replicas have an agent, and on which port."""
        self._wanted = {report.target.incarnation: (report.target, report.kv_port) for report in reports if report.kv_port}

    async def run(self) -> None:
        """Follow until cancelled."""
        try:
            while True:
                try:
                    self._reconcile()
                    now = time.monotonic()
                    self._prefixes.tend(now)
                    self._start_tests(now)
                except Exception as error:  # one replica that nobody foresaw must not end the feeds of all
                    _log.error("tidegate: the prefix caches could not be looked after (%s)", type(error).__name__)
                await asyncio.sleep(1.0)
        finally:
            tasks = [task for _, task in self._following.values()] + list(self._tests.values())
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _reconcile(self) -> None:
        for incarnation, (port, task) in list(self._following.items()):
            wanted = self._wanted.get(incarnation)
            if wanted is None or wanted[1] != port or task.done():
                task.cancel()
                del self._following[incarnation]
        for incarnation, (target, port) in self._wanted.items():
            if incarnation not in self._following:
                self._following[incarnation] = (port, asyncio.create_task(self._follow(target, port)))
        self._test_due = {name: due for name, due in self._test_due.items() if name in self._wanted}

    async def _follow(self, target: Target, port: int) -> None:
        while True:
            try:
                await self._listen(target, port)
            except (OSError, TimeoutError, asyncio.IncompleteReadError):
                pass  # gone or silent: its state tells it, and the next try comes
            except (msgspec.MsgspecError, ValueError):
                _log.warning("tidegate: the agent of %s speaks in a way this router cannot read", target.id)
            finally:
                self._prefixes.cut(target.incarnation)
            await asyncio.sleep(_RETRY_S)

    async def _listen(self, target: Target, port: int) -> None:
        opening = asyncio.open_connection(target.address.host, port, limit=LONGEST_FRAME)
        reader, writer = await asyncio.wait_for(opening, _CONNECT_S)
        try:
            writer.write(self._issue(target).encode("ascii") + b"\n")
            while True:
                async with asyncio.timeout(_SILENCE_S):
                    length = int.from_bytes(await reader.readexactly(4), "big")
                    if length > LONGEST_FRAME:
                        raise ValueError("a frame of the agent is too long")
                    body = await reader.readexactly(length)
                self._prefixes.hear(target.incarnation, decode_message(body), time.monotonic())
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    def _start_tests(self, now: float) -> None:
        for incarnation in self._prefixes.awaiting_test(now):
            running = self._tests.get(incarnation)
            if incarnation not in self._wanted or now < self._test_due.get(incarnation, 0.0) or (running and not running.done()):
                continue
            self._test_due[incarnation] = now + TEST_EVERY_S
            self._tests[incarnation] = asyncio.create_task(self._test(self._wanted[incarnation][0]))
        self._tests = {name: task for name, task in self._tests.items() if not task.done()}

    async def _test(self, target: Target) -> None:
        outcome = await self._run_test(target)
        if outcome is not SelfTest.PASSED:
            self._test_due[target.incarnation] = time.monotonic() + TEST_AGAIN_S
        if outcome is SelfTest.FAILED:
            _log.warning("tidegate: %s: the prefix cache's self-test failed; placement falls back to gauges", target.id)
        if outcome is not SelfTest.PENDING:
            self._prefixes.tested(target.incarnation, outcome)
