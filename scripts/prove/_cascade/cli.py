"""`scripts/prove/cascade`: small first against a choice by the prompt alone, at equal cost, with two real models."""

from __future__ import annotations

import argparse
import asyncio
from pathlib import Path

from _cascade.measure import Asked, Outcome, ask_both, best_threshold, cascaded, evenly, lead_interval, live, routed_at
from _cascade.models import without_layers
from _cascade.questions import questions
from _cascade.stack import running
from router.config import home


def _line(name: str, found: Outcome) -> None:
    took = f"  {found.seconds:5.1f} s" if found.seconds else ""
    said = f"{found.right:6.1%} right  {found.usd * 1e6:7.1f} USD/1e6  {found.large:5.0%} by the large model"
    print(f"{name:<44} {said}{took}", flush=True)


def _table(asked: list[Asked], threshold: float) -> tuple[Outcome, Outcome]:
    """The report on questions that had no part in the choice of the threshold."""
    gains = [one.gain for one in asked]
    _line("small model alone", routed_at(asked, gains, 0.0))
    _line("large model alone", routed_at(asked, gains, 1.0))
    found = cascaded(asked, threshold)
    prompt_only = routed_at(asked, gains, found.usd)
    _line(f"cascade, mean log-probability < {threshold}", found)
    for tokens in (4, 8, 12):
        _line(f"  if a stream is held for {tokens} tokens only", cascaded(asked, threshold, tokens))
    _line("prompt-only router (fitted gain), same cost", prompt_only)
    _line("prompt-only by length, same cost", routed_at(asked, [len(one.question.text) for one in asked], found.usd))
    _line("drawing lots, same cost", evenly(asked, found.usd))
    return found, prompt_only


async def _run(small: Path, large: Path, limit: int) -> bool:
    every = questions()[:limit]
    async with running(small, large) as stack:
        asked = await ask_both(stack, every)
        seen, held_out = asked[::2], asked[1::2]
        threshold = best_threshold(seen)
        print(f"{len(every)} questions; the threshold is chosen on {len(seen)}, the figures are of the other {len(held_out)}\n")
        found, prompt_only = _table(held_out, threshold)
        low, high = lead_interval(held_out, threshold)
        lead = found.right - prompt_only.right
        print(f"\ncascade beyond prompt-only at equal cost: {lead:+.1%} [{low:+.1%}, {high:+.1%}]")
        print("\nlive, `model: auto`, half of them streams")
        texts = [one.question for one in held_out]
        # A busy CPU makes a few tokens a second: with the default bound streams would be judged by their first words.
        doubt = {"enabled": True, "mean_logprob": threshold, "cut_off": False, "refusals": False, "hold_ms": 60_000}
        # Every question is asked twice live: the second time must not keep the model of the first, as a conversation would.
        by_cascade = await live(stack, texts, {"share": 0.0, "cascade": doubt, "pin_conversations": False})
        _line("cascade", by_cascade)
        # By a fixed gain, so that it spends as much: a share would need some hundred requests to settle on such questions.
        gains = sorted((one.gain for one in held_out), reverse=True)
        moved = routed_at(held_out, [one.gain for one in held_out], by_cascade.usd)
        cut = gains[min(len(gains) - 1, round(moved.large * len(gains)))]
        by_prompt = await live(stack, texts, {"price": cut, "pin_conversations": False})
        _line("prompt-only router, as many by gain", by_prompt)
    met = lead > 0 and by_cascade.right > max(moved.right, by_prompt.right)
    print(f"\nstrictly better at equal cost: {'met' if met else 'missed'}")
    return met


def main() -> int:
    """Exit code 0 when the cascade is better."""
    parser = argparse.ArgumentParser(description=__doc__)
    default = home() / ".tidegate" / "models" / "SmolLM2-135M-Instruct"
    parser.add_argument("--large", type=Path, default=default, help="the better model; default: the quickstart's")
    parser.add_argument("--small", type=Path, help="the worse one; default: made from the better one by leaving out a layer")
    parser.add_argument("--questions", type=int, default=1000, help="ask only so many")
    options = parser.parse_args()
    if not (options.large / "config.json").is_file():
        parser.error(f"no model at {options.large}: run scripts/quickstart first, or name one with --large")
    small = options.small or without_layers(options.large, options.large.with_name(f"{options.large.name}-worse"))
    return 0 if asyncio.run(_run(small, options.large, options.questions)) else 1
