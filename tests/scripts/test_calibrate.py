"""`tidegate plan --calibrate`: known constants come back from behind a socket, also out of noise, and what cannot be is said."""

from __future__ import annotations

import json

import pytest
from msgspec.structs import replace
from tidegate.calibrate import CalibrationError, Plan, calibrate
from tidegate.fit_profile import FitError, Limits, Observation, Step, fit, prefill_steps
from tidegate.profiles import ProfileError, find_profile, save

from router.placement.profile import LLAMA_8B_H100, QWEN_72B_4XH100, EngineProfile
from tests.scripts.timed_engine import TimedEngine, timed

SLOW_CPU = EngineProfile("tiny@cpu", 35e-3, 0.9e-3, 1.1e-3, 96, 4e-6, 60e-9, 40_000, step_tokens=1024, slots=16)
LLAMA = replace(LLAMA_8B_H100, slots=48)


def assert_predicts(found: EngineProfile, true: EngineProfile, within: float) -> None:
    """What matters of constants: the times they give, wherever the engine can be asked."""
    for uncached, cached in [(1, 0), (40, 0), (300, 0), (1500, 0), (5500, 0), (100, 4000), (2000, 4000)]:
        assert found.prefill_s(uncached, cached) == pytest.approx(true.prefill_s(uncached, cached), rel=within), uncached
    for batch in (1, 4, 16):
        for context in (50, 500, 4000):
            assert found.step_s(batch, batch * context) == pytest.approx(true.step_s(batch, batch * context), rel=within), batch


@pytest.mark.parametrize("true", [LLAMA, replace(QWEN_72B_4XH100, slots=20), SLOW_CPU], ids=lambda profile: profile.name)
async def test_known_constants_come_back_exactly(true: EngineProfile):
    async with timed(TimedEngine(true, request_s=2e-3)) as engine:
        found = await calibrate(Plan(engine.url, true.name, repeats=2), clock=engine.clock)
    assert found.fit is not None
    profile = found.fit.profile
    assert_predicts(profile, true, 0.01)
    for name in ("overhead", "per_token_full", "per_context", "attention"):
        assert getattr(profile, name) == pytest.approx(getattr(true, name), rel=0.05), name
    assert found.fit.request_s == pytest.approx(2e-3, rel=0.2)
    assert (profile.kv_tokens, profile.step_tokens, profile.slots) == (true.kv_tokens, true.step_tokens, true.slots)
    assert found.warm_s < 0.5 * found.cold_s and found.hit_tokens % 16 == 0


@pytest.mark.parametrize("true", [LLAMA, SLOW_CPU], ids=lambda profile: profile.name)
async def test_noise_and_hiccups_move_predictions_by_less_than_a_tenth(true: EngineProfile):
    async with timed(TimedEngine(true, request_s=2e-3, noise=0.05, hiccups=0.03)) as engine:
        found = await calibrate(Plan(engine.url, true.name, most=16, repeats=3), clock=engine.clock)
    assert found.fit is not None
    assert_predicts(found.fit.profile, true, 0.1)
    assert found.fit.error < 0.1


async def test_what_an_engine_cannot_tell_is_noted_or_refused():
    async with timed(TimedEngine(LLAMA, caching=False)) as engine:
        found = await calibrate(Plan(engine.url, "x", slots=8, repeats=1), clock=engine.clock)
        assert any("prefix cache" in note for note in found.notes) and found.hit_tokens == 0
        with pytest.raises(CalibrationError, match="does not serve other"):
            await calibrate(Plan(engine.url, "x", model="other"), clock=engine.clock)
        engine.busy = 2
        with pytest.raises(CalibrationError, match="serving others"):
            await calibrate(Plan(engine.url, "x"), clock=engine.clock)
    async with timed(TimedEngine(LLAMA, foreign=50)) as engine:
        with pytest.raises(CalibrationError, match="others sent"):
            await calibrate(Plan(engine.url, "x", slots=4, repeats=1), clock=engine.clock)
    with pytest.raises(CalibrationError, match="does not answer"):
        await calibrate(Plan(engine.url, "x"))
    with pytest.raises(CalibrationError):
        await calibrate(Plan("no url", "x"))


def test_a_fit_needs_both_kinds_of_measurement():
    limits = Limits("x", 1000, 2048, 8)
    with pytest.raises(FitError, match="too few"):
        fit([], limits)
    prefills = [Observation(0.01 + 1e-5 * n, prefill_steps(n, 0, 2048), 1) for n in range(100, 1000, 100)]
    with pytest.raises(FitError, match="both"):
        fit(prefills, limits)


def test_no_knee_is_made_up_where_the_cost_is_straight():
    true = EngineProfile("x", 10e-3, 50e-6, 50e-6, 100, 1e-7, 1e-9, 1000)
    seen = [Observation(true.prefill_s(n), prefill_steps(n, 0, 2048), 1) for n in (16, 32, 64, 128, 256, 512, 1024, 2048, 4096)]
    seen += [Observation(true.step_s(n, n * c), (Step(n, n * c),)) for n in (1, 4, 16) for c in (50, 2000)]
    found = fit(seen, Limits("x", 1000, 2048, 8)).profile
    assert found.per_token_full == pytest.approx(found.per_token, rel=0.01) == pytest.approx(50e-6, rel=0.01)


def test_a_saved_profile_is_found_by_its_name_and_nonsense_is_not(home):
    path = save(replace(LLAMA, name="org/model@h100"), {"error": 0.01})
    assert path.parent == home.state / "profiles"
    assert find_profile("org/model@h100") == replace(LLAMA, name="org/model@h100")
    for change, word in [
        ({"overhead": 0}, "overhead"),
        ({"per_token_full": 1e-9}, "per_token_full"),
        ({"kv_tokens": -4}, "kv_tokens"),
        ({"attention": -1e-9}, "attention"),
        ({"slots": "many"}, "holds no engine profile"),
    ]:
        document = json.loads(path.read_text())
        document["profile"] |= change
        (home.root / "bad.json").write_text(json.dumps(document))
        with pytest.raises(ProfileError, match=word):
            find_profile(str(home.root / "bad.json"))
    with pytest.raises(ProfileError, match="org-model@h100"):
        find_profile("nothing")
