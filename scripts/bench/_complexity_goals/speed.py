"""What the choice costs per request, and how well a share is held: both on the shipped weights."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np

from router.complexity.calibrate import Wish, first_track, step
from router.complexity.choose import Asker, Plan, judge_request, start_track
from router.complexity.compile import load_model
from router.complexity.explain import describe_gain
from router.complexity.features import read_features
from router.complexity.model import explain_gain, read_gains
from router.complexity.weights import DEFAULT

CHARS_PER_TOKEN = 4


def shipped_plan(share: float = 0.3) -> Plan:
    """Two tiers and the shipped weights."""
    return Plan(("small", "large"), load_model(DEFAULT), 0, Wish(shares=(share,)))


def decision_ms(prompts: Sequence[str], tokens: int, rounds: int = 400) -> tuple[float, float]:
    """p50 and p99 in CPU milliseconds of the whole judgement (peel, features, all heads, threshold) at a prompt length.

    CPU time of this thread, so that neighbours on the machine do not count; the texts are real questions, joined to length.
    """
    plan = shipped_plan()
    track = start_track(plan)
    wanted = tokens * CHARS_PER_TOKEN
    texts, at = [], 0
    for _ in range(40):
        text = ""
        while len(text) < wanted:
            text += prompts[at % len(prompts)] + "\n"
            at += 1
        texts.append(text[:wanted])
    bodies = [{"messages": [{"role": "user", "content": text}]} for text in texts]
    asker = Asker("k", "t", 1.8e9)
    took = []
    for turn in range(rounds + 40):
        body = bodies[turn % len(bodies)]
        started = time.thread_time_ns()
        track = judge_request(body, tokens, plan, track, asker).track
        took.append((time.thread_time_ns() - started) / 1e6)
    return float(np.quantile(took[40:], 0.5)), float(np.quantile(took[40:], 0.99))


def explanation(prompts: Sequence[str]) -> tuple[float, float]:
    """Largest error of an explanation's sum, and its p50 in milliseconds."""
    model = load_model(DEFAULT)
    error, took = 0.0, []
    for prompt in prompts:
        features = read_features(prompt)
        gains = read_gains(model, features).gains
        for head, gain in zip(model.gains, gains, strict=True):
            error = max(error, abs(sum(term.weight for term in explain_gain(model, features, head)) - gain))
        started = time.thread_time_ns()
        describe_gain(model, 0, features)
        took.append((time.thread_time_ns() - started) / 1e6)
    return error, float(np.quantile(took, 0.5))


def share_error(before: np.ndarray, after: np.ndarray, share: float) -> tuple[float, float, float]:
    """Points by which the realised share misses the target: on the same traffic, after a shift, and with a fixed threshold.

    Args:
        before: gains of 1,000 or more requests.
        after: gains of other traffic; its first 300 requests are the time to adapt and do not count.
        share: target.
    """
    wish = Wish(shares=(share,))
    track = first_track(tuple(np.quantile(before, np.linspace(0, 1, 101))), 1)
    sent = []
    for gain in before:
        taken = step(track, wish, float(gain), 1)
        track = taken.track
        sent.append(taken.tier)
    later = []
    for gain in after:
        taken = step(track, wish, float(gain), 1)
        track = taken.track
        later.append(taken.tier)
    fixed = float((after > np.quantile(before, 1 - share)).mean())
    return 100 * abs(np.mean(sent) - share), 100 * abs(np.mean(later[300:]) - share), 100 * abs(fixed - share)


def gains_of(prompts: Sequence[str]) -> np.ndarray:
    """Gains of the shipped general head."""
    model = load_model(DEFAULT)
    return np.array([read_gains(model, read_features(prompt)).gains[0] for prompt in prompts])
