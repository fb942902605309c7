"""The published corpus: the same for everybody, in many languages, and the classifier's goals hold on a small sample of it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

PROVE = Path(__file__).resolve().parents[2] / "scripts" / "prove"
sys.path.insert(0, str(PROVE))

from _classifier import cli, dev, held_out  # noqa: E402 - the path to it is set above
from _classifier.measure import measure  # noqa: E402

from router.residency.classify.scan import Scanner  # noqa: E402


def test_the_goals_hold_on_a_sample_of_the_held_out_part():
    score = measure(Scanner(), cli.parts(1600, "another seed")["held-out"])
    assert sum(score.there.values()) + sum(score.clean.values()) == 1280
    assert score.recall >= 0.95
    assert score.false_alarms <= 0.05


def test_the_corpus_follows_from_its_seed_and_its_parts_share_no_wording():
    assert cli.parts(200, "1") == cli.parts(200, "1") != cli.parts(200, "2")
    for ours, theirs in ((dev.POSITIVE, held_out.POSITIVE), (dev.NEGATIVE, held_out.NEGATIVE)):
        bare = {"{}", "{}\n"}
        assert not ({w for ws in ours.values() for w in ws} - bare) & ({w for ws in theirs.values() for w in ws} - bare)


def test_the_script_writes_the_corpus(tmp_path: Path):
    out = tmp_path / "corpus.jsonl"
    done = subprocess.run(
        [sys.executable, str(PROVE / "classifier"), "--messages", "500", "--write", str(out)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "500 messages" in done.stdout and len(out.read_text(encoding="utf-8").splitlines()) == 500
