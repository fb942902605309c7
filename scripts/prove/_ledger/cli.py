"""`scripts/prove/ledger`: tampering, crashes, full disks, replay and usage, with one line of figures for each."""

from __future__ import annotations

import argparse
import logging
import shutil
import tempfile
import time
from pathlib import Path

from _ledger.crashes import WINDOW_S, crash
from _ledger.detect import roll_back, tamper_with
from _ledger.full import fill_up
from _ledger.live import record_and_replay
from _ledger.replayed import replay
from _ledger.usage import Sums, count_simulated, count_vllm


def _report(name: str, line: str, problems: list[str]) -> None:
    print(f"{name:<10} {'ok  ' if not problems else 'FAIL'}  {line}", flush=True)
    for problem in problems[:10]:
        print(f"    {problem}")


def _usage(who: str, sums: Sums) -> Sums:
    line = f"{sums.requests} requests, {sums.left} clients left; tokens asked and answered: {sums.router[0]}+{sums.router[1]} in "
    line += f"the log, {sums.engines[0]}+{sums.engines[1]} by {who}, {sums.charged} charged"
    _report("usage", line, sums.problems)
    return sums


def main(arguments: list[str] | None = None) -> int:
    """Run the proofs; 0 when everything was detected, nothing external was lost, and every decision was made again."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tamperings", type=int, default=3000, help="tamperings with a copy of a log (default 3000)")
    parser.add_argument("--rollbacks", type=int, default=200, help="rollbacks and forks (default 200)")
    parser.add_argument("--crashes", type=int, default=1000, help="processes killed while they write (default 1000)")
    parser.add_argument("--rounds", type=int, default=200, help="times the disk fills up (default 200)")
    parser.add_argument("--decisions", type=int, default=10_000, help="decisions replayed (default 10000)")
    parser.add_argument("--usage", type=int, default=2000, help="requests whose usage is compared (default 2000)")
    parser.add_argument("--vllm", metavar="URL", help="compare usage with a vLLM server's own counters, too (it must be idle)")
    parser.add_argument("--vllm-model", default="default", help="the model that this server knows")
    parser.add_argument("--vllm-usage", type=int, default=200, help="requests to that server (default 200)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--dir", type=Path, help="where to work; a file system without room to spare is of interest")
    args = parser.parse_args(arguments)
    logging.disable()  # routers and logs that are mistreated on purpose would say so at length
    work = Path(tempfile.mkdtemp(prefix="tidegate-ledger-", dir=args.dir))
    try:
        return _prove(args, work)
    finally:
        logging.disable(logging.NOTSET)
        shutil.rmtree(work, ignore_errors=True)


def _prove(args: argparse.Namespace, work: Path) -> int:
    started = time.monotonic()
    tampered = tamper_with(work, args.tamperings, args.seed)
    _report("tampering", ", ".join(f"{n} {name}" for name, n in tampered.tried.items()), tampered.missed)
    rolled = roll_back(work, args.rollbacks, args.seed)
    _report("rollback", ", ".join(f"{n} {name}" for name, n in rolled.tried.items()), rolled.missed)
    lost = crash(work, args.crashes, args.seed)
    line = f"{lost.crashes} kills, {lost.torn} torn appends cut off; {lost.external} external sends acknowledged, "
    line += f"{lost.lost_external} lost; {lost.lost_local} local records lost, the oldest {lost.oldest_lost_s * 1e3:.0f} ms old "
    line += f"({lost.oldest_with_waiting_s * 1e3:.0f} ms with what others on this machine took from it)"
    late = [f"a local record of {lost.oldest_lost_s:.3f} s was lost; the window is {WINDOW_S} s"] * (
        lost.oldest_lost_s > WINDOW_S
    )
    _report("crashes", line, lost.problems + late)
    full = fill_up(work, args.rounds, args.seed)
    line = f"{args.rounds} times: {full.sent} sent, {full.refused} refused, {full.sent_while_full} sent while full, "
    _report("full disk", line + f"{full.without_record} without a record", full.problems)
    again = replay(work, args.decisions, args.seed)
    _report("replay", f"{again.agreed} of {again.decisions} decisions made again as recorded", again.problems)
    live = record_and_replay(work, args.decisions, args.seed)
    line = f"{live.agreed} of {live.decisions} decisions of a running router made again as recorded; "
    _report("live", line + ", ".join(f"{n} {kind}" for kind, n in sorted(live.kinds.items())), live.problems)
    sums = [_usage("simulated engines", count_simulated(work, args.usage, args.seed))]
    if args.vllm:
        sums.append(_usage("vLLM", count_vllm(work, args.vllm, args.vllm_model, args.vllm_usage, args.seed)))
    detected, total = tampered.detected + rolled.detected, tampered.total + rolled.total
    lost_external = lost.lost_external + full.without_record + full.sent_while_full
    print(f"took {time.monotonic() - started:.0f} s, seed {args.seed}")
    print(f"detected={detected}/{total} lost_external={lost_external}")
    sound = not (lost.problems or late or full.problems or again.problems or live.problems or any(s.problems for s in sums))
    return 0 if sound and detected == total and not lost_external else 1
