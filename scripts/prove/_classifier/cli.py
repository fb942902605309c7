"""`scripts/prove/classifier`: the corpus, recall by kind, false alarms, time per 1,000 characters, hostile text."""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

from _classifier import dev, held_out, hostile
from _classifier.benign import BENIGN
from _classifier.corpus import Message, messages
from _classifier.identifiers import STRUCTURED
from _classifier.measure import Score, measure
from router.residency.classify.scan import Scanner

GOALS = {"recall": 0.95, "false_alarms": 0.05, "ms_per_1k": 2.0, "worst_step_ms": 20.0}


def parts(count: int, seed: str) -> dict[str, list[Message]]:
    """The corpus: `count` messages, a fifth of them for development, two fifths of each part hard negatives."""
    makers, benign = {**STRUCTURED, **held_out.MAKERS}, {**BENIGN, **held_out.BENIGN}
    small, large = count // 5, count - count // 5
    return {
        "dev": [
            *messages(dev.POSITIVE, makers, small * 3 // 5, f"{seed}-dev", True),
            *messages(dev.NEGATIVE, benign, small - small * 3 // 5, f"{seed}-dev", False),
        ],
        "held-out": [
            *messages(held_out.POSITIVE, makers, large * 3 // 5, f"{seed}-held-out", True),
            *messages(held_out.NEGATIVE, benign, large - large * 3 // 5, f"{seed}-held-out", False),
        ],
    }


def _print_score(name: str, score: Score, verbose: bool) -> None:
    found, there = sum(score.found.values()), sum(score.there.values())
    alarms, clean = sum(score.alarms.values()), sum(score.clean.values())
    print(f"{name:<9} recall {found}/{there} = {score.recall:.3f}   false alarms {alarms}/{clean} = {score.false_alarms:.3f}")
    weak = [f"{kind} {score.found[kind]}/{n}" for kind, n in sorted(score.there.items()) if score.found[kind] < n]
    loud = [f"{kind} {n}/{score.clean[kind]}" for kind, n in score.alarms.most_common()]
    print(f"          missed: {', '.join(weak) or 'none'}\n          alarms: {', '.join(loud) or 'none'}")
    if verbose:
        for message in [*score.missed, *score.alarmed]:
            print(f"          {'missed' if message.span else 'alarm '} {message.kind}: {message.text!r}")


def document_time(scanner: Scanner, corpus: list[Message]) -> float:
    """CPU milliseconds per 1,000 characters over documents of about 2,000 characters, one sensitive message in each."""
    texts = [message.text for message in corpus if message.span is None]
    sensitive = [message.text for message in corpus if message.span is not None]
    filler = "The committee met again and agreed on most of what had been put to it, with a few words changed. "
    took = []
    for i in range(0, min(len(texts), 400), 4):
        document = filler.join([*texts[i : i + 4], sensitive[i % len(sensitive)], *[""] * 12])
        began = time.thread_time()
        scanner.scan(document)
        took.append((time.thread_time() - began) * 1e6 / len(document))
    return statistics.median(took)


def main() -> int:
    """Run; 0 when every goal is met."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--messages", type=int, default=10_000, help="size of the corpus (default 10000)")
    parser.add_argument("--seed", default="1", help="any text; the corpus follows from it")
    parser.add_argument("--write", type=Path, help="write the corpus to this file, one JSON object a line, and stop")
    parser.add_argument("--verbose", action="store_true", help="print every miss and every false alarm (all values are made up)")
    args = parser.parse_args()
    corpus = parts(args.messages, args.seed)
    if args.write:
        with args.write.open("w", encoding="utf-8") as out:
            for part, lines in corpus.items():
                for line in lines:
                    out.write(json.dumps({"part": part, **line._asdict()}, ensure_ascii=False) + "\n")
        print(f"{sum(map(len, corpus.values()))} messages in {args.write}")
        return 0
    scanner = Scanner()
    for text in hostile.TEXTS.values():
        scanner.scan(text[:4096])
    scores = {}
    for name, lines in corpus.items():
        scores[name] = measure(scanner, lines)
        _print_score(name, scores[name], args.verbose)
    held = scores["held-out"]
    per_message = held.seconds * 1e6 / (sum(held.there.values()) + sum(held.clean.values()))
    per_1k = document_time(scanner, corpus["held-out"])
    worst = hostile.worst_step_ms(scanner)
    print(f"time      {per_1k:.2f} ms CPU per 1,000 characters (median document), {per_message:.0f} us per short message")
    print(
        f"hostile   {len(worst)} texts of 100 kB, longest step {max(worst.values()):.1f} ms CPU ({max(worst, key=worst.__getitem__)})"
    )
    met = (
        held.recall >= GOALS["recall"]
        and held.false_alarms <= GOALS["false_alarms"]
        and per_1k <= GOALS["ms_per_1k"]
        and max(worst.values()) <= GOALS["worst_step_ms"]
    )
    print(
        f"messages={args.messages} recall={held.recall:.3f} false_alarms={held.false_alarms:.3f} ms_per_1k={per_1k:.2f} "
        f"worst_step_ms={max(worst.values()):.1f} goals={'met' if met else 'MISSED'}"
    )
    return 0 if met else 1
