"""`scripts/prove/cascade`: small first against a choice by the prompt alone, at equal cost, with two real models."""

from __future__ import annotations

import argparse
import asyncio
import tempfile
from pathlib import Path

import msgspec
from _complexity.build import build_own

from _cascade.measure import (
    Asked,
    Outcome,
    ask_both,
    best_threshold,
    cascaded,
    evenly,
    lead_interval,
    live,
    paired,
    routed_at,
    with_gains,
    write_outcomes,
)
from _cascade.models import without_layers
from _cascade.questions import is_training, questions
from _cascade.stack import Stack, running
from router.complexity.weights import DEFAULT, pack_weights, read_weights
from router.config import home


def _line(name: str, found: Outcome) -> None:
    took = f"  {found.seconds:5.1f} s" if found.seconds else ""
    said = f"{found.right:6.1%} right  {found.usd * 1e6:7.1f} USD/1e6  {found.large:5.0%} by the large model"
    print(f"{name:<44} {said}{took}", flush=True)


def _kinds(asked: list[Asked]) -> None:
    """What either model has right, kind by kind: whether the task is one that can show anything."""
    kinds: dict[str, list[Asked]] = {}
    for one in asked:
        kinds.setdefault(one.question.kind, []).append(one)
    for kind, found in kinds.items():
        small, large = (sum(getattr(one, tier) for one in found) / len(found) for tier in ("small", "large"))
        print(f"  {kind:<14} {len(found):4} questions   small {small:5.0%}   large {large:5.0%}")


def _table(asked: list[Asked], shipped: list[Asked], threshold: float) -> tuple[Outcome, Outcome]:
    """The report on questions that had no part in the choice of the threshold, nor in the fit of the router."""
    gains = gains_of(asked)
    _line("small model alone", routed_at(asked, gains, 0.0))
    _line("large model alone", routed_at(asked, gains, 1.0))
    found = cascaded(asked, threshold)
    prompt_only = routed_at(asked, gains, found.usd)
    _line(f"cascade, mean log-probability < {threshold}", found)
    for tokens in (4, 8, 12):
        _line(f"  if a stream is held for {tokens} tokens only", cascaded(asked, threshold, tokens))
    _line("prompt-only router fitted on the same questions", prompt_only)
    _line("prompt-only router as shipped", routed_at(shipped, gains_of(shipped), found.usd))
    _line("prompt-only by length", routed_at(asked, [len(one.question.text) for one in asked], found.usd))
    _line("drawing lots", evenly(asked, found.usd))
    return found, prompt_only


async def _run(small: Path, large: Path, limit: int, minutes: float, live_limit: int, save: Path | None) -> bool:
    every = questions()[:limit]
    async with running(small, large) as stack:
        asked = await ask_both(stack, every, minutes)
        if save is not None:
            save.write_bytes(msgspec.json.encode(asked))
        with tempfile.TemporaryDirectory() as folder:
            weights = Path(folder) / "own.tgcw"
            return await _compare(stack, asked, weights, live_limit)


def _reuse(path: Path) -> bool:
    """The comparison once more, from answers that were saved."""
    with tempfile.TemporaryDirectory() as folder:
        seen, held_out = report(msgspec.json.decode(path.read_bytes(), type=list[Asked]), Path(folder) / "own.tgcw")
    return lead_interval(held_out, best_threshold(seen))[0] > 0


async def _compare(stack: Stack, asked: list[Asked], weights: Path, live_limit: int) -> bool:
    """Fit and choose on one half of the questions, report on the other."""
    seen, held_out = report(asked, weights)
    threshold = best_threshold(seen)
    low, _ = lead_interval(held_out, threshold)
    print(f"\nlive, `model: auto`, {live_limit} of those questions, half of them streams")
    few = held_out[:live_limit]
    texts = [one.question for one in few]
    # A busy CPU makes a few tokens a second: with the default bound streams would be judged by their first words.
    doubt = {"enabled": True, "mean_logprob": threshold, "cut_off": False, "refusals": False, "hold_ms": 60_000}
    # Every question is asked twice live: the second time must not keep the model of the first, as a conversation would.
    by_cascade = await live(stack, texts, {"share": 0.0, "cascade": doubt, "pin_conversations": False})
    _line("cascade", by_cascade)
    _line("  as the answers by name say", cascaded(few, threshold))
    # By a fixed gain, so that it spends as much: a share would need some hundred requests to settle on such questions.
    gains = sorted((one.gain for one in few), reverse=True)
    moved = routed_at(few, gains_of(few), by_cascade.usd)
    cut = gains[min(len(gains) - 1, round(moved.large * len(gains)))]
    by_prompt = await live(stack, texts, {"price": cut, "pin_conversations": False, "weights": str(weights)})
    _line("prompt-only router, as many by gain", by_prompt)
    print(f"\nstrictly better at equal cost, the interval above 0: {'met' if low > 0 else 'missed'}")
    return low > 0


def report(asked: list[Asked], weights: Path) -> tuple[list[Asked], list[Asked]]:
    """Print the comparison; both halves with the fitted router's gains, the one it was fitted on first.

    Args:
        asked: every question with both answers.
        weights: where the router that is fitted on one half is written.
    """
    seen = [one for one in asked if is_training(one.question)]
    held_out = [one for one in asked if not is_training(one.question)]
    outcomes = weights.with_suffix(".csv")
    write_outcomes(seen, outcomes)
    weights.write_bytes(pack_weights(build_own(outcomes, "own", read_weights(DEFAULT))))
    shipped, seen, held_out = with_gains(held_out, DEFAULT), with_gains(seen, weights), with_gains(held_out, weights)
    threshold = best_threshold(seen)
    print(
        f"{len(asked)} questions; threshold and router are fitted on {len(seen)}, the figures are of the other {len(held_out)}\n"
    )
    _kinds(held_out)
    print("\nall at the cost of the cascade, but for the first two")
    found, prompt_only = _table(held_out, shipped, threshold)
    low, high = lead_interval(held_out, threshold)
    ours, theirs, chance = paired(held_out, threshold)
    lead = found.right - prompt_only.right
    print(f"\ncascade beyond the fitted prompt-only router at equal cost: {lead:+.1%} [{low:+.1%}, {high:+.1%}]")
    print(f"right by the cascade only: {ours}; by the router only: {theirs}; McNemar's exact test: p = {chance:.2g}")
    _other_shares(seen, held_out)
    return seen, held_out


def _other_shares(seen: list[Asked], held_out: list[Asked]) -> None:
    """The same comparison where more is escalated than the best threshold would: whether another one had done better."""
    confidences = sorted(one.confidence() for one in seen)
    for share in (0.1, 0.2, 0.3, 0.5):
        threshold = confidences[round(share * (len(confidences) - 1))]
        found = cascaded(held_out, threshold)
        lead = found.right - routed_at(held_out, gains_of(held_out), found.usd).right
        low, high = lead_interval(held_out, threshold, 500)
        print(f"  with {found.large:4.0%} escalated (log-probability < {threshold:.2f}): {lead:+.1%} [{low:+.1%}, {high:+.1%}]")


def gains_of(asked: list[Asked]) -> list[float]:
    """What the router expects of each."""
    return [one.gain for one in asked]


def main() -> int:
    """Exit code 0 when the cascade is better."""
    parser = argparse.ArgumentParser(description=__doc__)
    default = home() / ".tidegate" / "models" / "SmolLM2-135M-Instruct"
    parser.add_argument("--large", type=Path, default=default, help="the better model; default: the quickstart's")
    parser.add_argument("--small", type=Path, help="the worse one; default: made from the better one by leaving out a layer")
    parser.add_argument("--questions", type=int, default=10_000, help="ask only so many, 450 or more")
    parser.add_argument("--minutes", type=float, default=12, help="begin no question after so many minutes of asking")
    parser.add_argument("--live", type=int, default=80, help="ask so many of them through `model: auto`, too")
    parser.add_argument("--save", type=Path, help="write both models' answers here, question by question, as JSON")
    parser.add_argument("--reuse", type=Path, help="compare what --save wrote, and ask nobody")
    options = parser.parse_args()
    if options.reuse is not None:
        return 0 if _reuse(options.reuse) else 1
    if not (options.large / "config.json").is_file():
        parser.error(f"no model at {options.large}: run scripts/quickstart first, or name one with --large")
    small = options.small or without_layers(options.large, options.large.with_name(f"{options.large.name}-worse"))
    return 0 if asyncio.run(_run(small, options.large, options.questions, options.minutes, options.live, options.save)) else 1
