"""A core that hangs behind a server that is well: found by asking it, told to the routers, and replaced after a while."""

import asyncio
from types import SimpleNamespace

import pytest

from deployments.engine import Engine
from deployments.pulse import Pulse
from router.placement.targets import Signals
from router.residency.engine_pulse import ANSWERS, CANNOT_TELL, DEAD, feel_pulse

from .test_engine import an_engine
from .test_vllm_process import make, mark  # noqa: F401 - a fixture


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


async def test_silence_is_counted_from_the_first_question_that_was_not_answered():
    clock, answers = Clock(), []

    async def ask(timeout_s):
        clock.now += timeout_s if answers[0] is False else 0.01
        return answers.pop(0)

    pulse = Pulse(ask, clock)
    answers[:] = [True, False, False]
    await pulse.feel()
    assert pulse.silent_s == 0.0
    await pulse.feel()
    await pulse.feel()
    assert pulse.silent_s == 120.0
    answers[:] = [True, None]
    await pulse.feel()
    assert pulse.silent_s == 0.0
    await pulse.feel()
    clock.now += 900.0
    assert pulse.silent_s == 0.0, "nobody can tell"


async def test_a_question_that_is_open_is_silence_and_a_steps_length_is_none():
    clock, answer = Clock(), asyncio.Event()

    async def ask(timeout_s):
        await answer.wait()
        return True

    pulse = Pulse(ask, clock)
    asking = asyncio.create_task(pulse.feel())
    await asyncio.sleep(0)
    clock.now += 0.9
    assert pulse.silent_s == 0.0
    clock.now += 30.0
    assert pulse.silent_s == 30.9
    answer.set()
    await asking
    assert pulse.silent_s == 0.0


async def test_an_engine_whose_core_is_silent_says_so_and_is_replaced_after_its_stall_timeout(monkeypatch):
    engine: Engine = an_engine(monkeypatch, {"tidegate.io/zone": "eu"})
    engine._pulse = SimpleNamespace(silent_s=119.0)
    await engine._refresh()
    assert engine._signals == Signals(5.0, running=1, silent_s=119.0)
    assert "has not answered for 119 s" in (await engine.status())["warning"]
    await engine.check_health()
    engine._pulse.silent_s = 120.0
    with pytest.raises(RuntimeError, match=r"its core has not answered for 120 s, though its server does; its log: /logs/x\.log"):
        await engine.check_health()


async def test_a_server_that_cannot_be_asked_is_not_silent(mark):  # noqa: F811
    process = make()
    await process.start()
    assert await process.answers(5.0) is None
    await process.stop()
    assert await process.answers(5.0) is None


def app_with(ask):
    return SimpleNamespace(state=SimpleNamespace(engine_client=SimpleNamespace(is_sleeping=ask)))


async def test_what_the_core_says_is_told_and_a_server_without_one_cannot_tell():
    async def answers():
        return False

    async def is_dead():
        raise RuntimeError("EngineCore encountered an issue")

    async def has_none():
        raise NotImplementedError

    asked = [await feel_pulse(app) for app in (app_with(answers), app_with(is_dead), app_with(has_none), None, SimpleNamespace())]
    assert asked == [ANSWERS, DEAD, CANNOT_TELL, CANNOT_TELL, CANNOT_TELL]
