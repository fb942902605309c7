"""`tidegate train`: planted labels, whether the better weights win and only those, and what a bad file is told."""

from __future__ import annotations

import csv
import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from msgspec.structs import replace
from tidegate import train
from tidegate.cli import app
from tidegate.promotion import HISTORY, KEEP, NOTHING, PROMOTE, PromotionError, Refit, Shelf
from tidegate.refit import (
    ERROR,
    LEAST_HELD_OUT,
    alpha_of,
    hold_against,
    judging_rows,
    material_of,
    near_duplicates,
    training_rows,
)
from typer.testing import CliRunner

from router.compiled import compile_policy
from router.complexity.compile import PROMOTED, digest_of_weights, weights_of
from router.complexity.label import append_labels, file_of, read_labels
from router.complexity.weights import DEFAULT, pack_weights, read_weights
from router.config import Config, parse_config
from router.policy_source import PolicySource
from tests.scripts.planted import HARD, NOW, planted

RUN = CliRunner()
PAIRS = frozenset({("m-small", "m-large")})


def configured(**complexity: object) -> dict[str, object]:
    target = {"kind": "server", "vouched": True, "url": "http://127.0.0.1:1", "zone": "eu"}
    return {
        "zones": {"eu": {}},
        "targets": [{"id": tier, "tier": tier, "models": {f"m-{tier}": "x"}, **target} for tier in ("small", "large")],
        "keys": [{"id": "k", "sha256": hashlib.sha256(b"k").hexdigest()}],
        "complexity": {"share": 0.5, "labels": {"zone": "eu"}, **complexity},
    }


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("TIDEGATE_HOME", str(tmp_path))
    (tmp_path / "serve_config.yaml").write_text(yaml.safe_dump(configured()))
    return tmp_path


def config(**complexity: object) -> Config:
    return parse_config(configured(**complexity))


def labels_at(home: Path) -> Path:
    return home / ".tidegate" / "labels"


def put(home: Path, labels: list, writer: str = "r1") -> None:
    append_labels(file_of(labels_at(home), writer, NOW), labels)


def test_weights_that_are_truly_better_are_promoted_loaded_and_taken_back(home):
    put(home, planted(900, 1, routable=True))
    source = PolicySource(configured(), home)
    before = source.load().policy
    assert before.weights == digest_of_weights(DEFAULT) and not source.changed()
    shown = RUN.invoke(app, ["train", "refit"])
    assert shown.exit_code == 0 and "promoted: " in shown.output, shown.output
    (refit,) = Shelf(labels_at(home)).history()
    assert refit.outcome == PROMOTE and refit.low > 0 and refit.challenger_quality > refit.champion_quality
    assert source.changed()
    after = source.load().policy
    assert after.weights == refit.challenger and after.epoch == before.epoch
    assert [head.name for head in after.plan.model.gains][:2] == ["labels", "general"] and after.plan.head == 0
    shown = RUN.invoke(app, ["eval", "report"])
    assert f"promoted: {refit.challenger}" in shown.output
    again = RUN.invoke(app, ["train", "refit"])
    assert "not compared" in again.output and Shelf(labels_at(home)).history()[-1].outcome == NOTHING
    shown = RUN.invoke(app, ["train", "rollback"])
    assert shown.exit_code == 0 and not (labels_at(home) / PROMOTED).exists()
    assert source.load().policy.weights == before.weights
    assert RUN.invoke(app, ["train", "rollback"]).exit_code == 1


def test_a_head_that_is_asked_for_by_name_keeps_its_name(home):
    put(home, planted(700, 2, routable=True))
    named = config(head="llama-3.1-8b-70b")
    found, _ = train.refit(named, home, NOW)
    assert found.outcome == PROMOTE
    policy = compile_policy(named, home)
    assert policy.plan.head == 0 and policy.plan.model.gains[0].name == "llama-3.1-8b-70b" and policy.weights == found.challenger


@pytest.mark.parametrize("seed", range(6))
def test_weights_that_learnt_nothing_are_not_promoted(home, seed):
    """Which requests need the large model is chance here: no weights can know, and none may look as if they did."""
    put(home, planted(600, seed + 10, routable=False))
    found, _ = train.refit(config(), home, NOW)
    assert found.outcome == KEEP and found.low <= 0 and not (labels_at(home) / PROMOTED).exists()


def test_a_dry_run_leaves_everything_as_it_is(home):
    put(home, planted(900, 1, routable=True))
    before = {path: path.read_bytes() for path in labels_at(home).iterdir()}
    found, _ = train.refit(config(), home, NOW, dry=True)
    after = {path: path.read_bytes() for path in labels_at(home).iterdir() if not path.name.startswith(".")}
    assert found.outcome == PROMOTE and after == before


def test_too_few_labels_and_labels_of_other_models_are_said(home):
    put(home, [*planted(100, 4, routable=True), *planted(700, 5, routable=True, pair=("old", "m-large"))])
    found, left_out = train.refit(config(), home, NOW)
    assert found.outcome == NOTHING and "are the least" in found.why and left_out == {"of other models": 700}


# -- the comparison


def quality(order: list[int], gain: list[float]) -> float:
    """By definition: for every share k/n the gain of the first k, each counted from the middle of its own place."""
    count = len(order)
    return sum(gain[row] * (count - place - 0.5) / count for place, row in enumerate(order)) / count


def test_quality_is_the_mean_over_all_shares():
    dice = np.random.default_rng(0)
    gain, scores = dice.choice([-1.0, 0.0, 1.0], 60), dice.permutation(60).astype(float)
    found = hold_against(scores, -scores, gain, np.arange(60))
    order = sorted(range(60), key=lambda row: -scores[row])
    assert found.champion == pytest.approx(quality(order, gain)) and found.challenger == pytest.approx(quality(order[::-1], gain))
    assert found.difference == pytest.approx(found.challenger - found.champion)


def test_the_interval_covers_the_truth_and_equals_are_rarely_called_better():
    """Two routers that see the truth through equal noise, 400 nights: the first look's interval of 99 % misses four."""
    dice = np.random.default_rng(3)
    better = worse = 0
    for night in range(400):
        truth = dice.normal(size=150)
        gain = np.clip(np.round(truth * 0.5 + dice.normal(size=150)), -1, 1)
        seen = [truth + dice.normal(size=150) for _ in range(2)]
        found = hold_against(*seen, gain, np.arange(150), look=1, seed=night)
        better += found.low > 0
        worse += found.high < 0
    assert 1 <= better + worse <= 11, (better, worse)


def test_many_looks_at_one_champion_promote_an_equal_one_no_more_often():
    """Labels pile up and every tenth more is looked at: over all looks together one in a hundred equal ones is promoted."""
    dice = np.random.default_rng(4)
    promoted = 0
    for life in range(12):
        count, look = 1000, 0
        truth = dice.normal(size=count)
        gain = np.clip(np.round(truth * 0.5 + dice.normal(size=count)), -1, 1)
        seen = [truth + dice.normal(size=count) for _ in range(2)]
        size, won = 100.0, False
        while size <= count and not won:
            look += 1
            rows = slice(0, int(size))
            won = hold_against(seen[0][rows], seen[1][rows], gain[rows], np.arange(int(size)), look, life).better
            size *= 1.1
        promoted += won
    assert look > 20 and promoted <= 2
    assert sum(alpha_of(look) for look in range(1, 10_000)) < ERROR


def test_repeated_questions_count_once_and_near_duplicates_stay_on_one_side():
    labels = planted(300, 6, routable=True)
    many, _ = material_of(labels + [labels[0]] * 500, PAIRS)
    assert len(many) == 300 and len(np.unique(many.groups)) == 300
    text = list(range(0, 4000, 40))
    groups = near_duplicates([text, [*text[1:], 7], [place + 13 for place in text]])
    assert groups[0] == groups[1] != groups[2]
    learnt = set(many.groups[training_rows(many)])
    assert not learnt & set(many.groups[many.held]) and 0.2 < many.held.mean() < 0.4
    more, _ = material_of(labels + planted(300, 7, routable=True), PAIRS)
    before = {one.buckets.tobytes(): side for one, side in zip(many.features, many.held, strict=True)}
    assert all(before.get(one.buckets.tobytes(), side) == side for one, side in zip(more.features, more.held, strict=True))


def test_what_is_imported_has_no_say_once_there_are_enough_labels_of_ones_own(home):
    """A file whose scores are turned round is learnt from; but it is the operator's own traffic that decides."""
    own = planted(700, 8, routable=True)
    theirs = planted(3000, 9, routable=True, by="import", pair=("", ""))
    turned = [replace(label, small=label.large, large=label.small) for label in theirs]
    material, _ = material_of([*own, *turned], PAIRS)
    rows = judging_rows(material)
    assert len(rows) >= LEAST_HELD_OUT and not material.imported[rows].any()
    put(home, [*own, *turned])
    found, _ = train.refit(config(), home, NOW)
    assert found.outcome == KEEP and found.challenger_quality < found.champion_quality


# -- files


def write_csv(
    path: Path, rows: list[tuple[object, object, object]], names: tuple[str, ...] = ("prompt", "small", "large")
) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([names, *rows])
    return path


def test_a_file_becomes_labels_and_no_word_of_it_is_kept(home):
    rows = [(f'Say "{word}",\nplease\u2028{place}', 0, "1.0") for place, word in enumerate(HARD * 3)]
    shown = RUN.invoke(app, ["train", "import", str(write_csv(home / "mine.csv", rows))])
    assert shown.exit_code == 0 and "30 rows are labels now" in shown.output, shown.output
    found = list(read_labels(labels_at(home)))
    assert len(found) == 30 and {(label.small, label.large, label.by) for label in found} == {(0.0, 1.0, "import")}
    kept = b"".join(path.read_bytes() for path in labels_at(home).iterdir())
    assert not any(word.encode() in kept for word in HARD)
    lines = home / "mine.jsonl"
    made = [{"prompt": f"x\u2028{place}", "weak_correct": 0, "strong_correct": 1} for place in range(3)]
    lines.write_text("\n".join(map(json.dumps, made)))
    assert "3 rows" in RUN.invoke(app, ["train", "import", str(lines)]).output


GOOD = b"prompt,small,large\nfine,0,1\n"
BAD = {
    "a word for a score": (GOOD + b"fine,zero,1\n", 3),
    "a score beyond one": (GOOD + b"fine,0,1.5\n", 3),
    "no number at all": (GOOD + b"fine,nan,1\n", 3),
    "infinity": (GOOD + b"fine,0,inf\n", 3),
    "an empty score": (GOOD + b"fine,,1\n", 3),
    "an empty prompt": (GOOD + b" ,0,1\n", 3),
    "a column too many": (GOOD + b"fine,0,1,2\n", 3),
    "a column too few": (GOOD + b"fine,0\n", 3),
    "lines within a quoted prompt": (GOOD + b'"one\ntwo\nthree",0,1\n"x",0,9\n', 6),
    "a quote that never ends": (GOOD + b'"fine,0,1\nfine,0,1\n', 4),
    "text after a quote": (GOOD + b'"fine"x,0,1\n', 3),
    "not UTF-8": (GOOD + b"fine\n\xff\xfe,0,1\n", 4),
    "a zero byte": (GOOD + b"fi\0ne,0,1\n", 3),
    "a missing column": (b"prompt,small\nfine,0\n", 2),
    "two separators": (b"prompt;small;large\nfine,0,1\n", 2),
    "a column twice": (b"prompt,small,large,small\nfine,0,1,1\n", 1),
    "an archive": (b"PK\x03\x04\x00\x00" * 20, 1),
}


@pytest.mark.parametrize("command", [["train", "import"], ["eval", "outcomes"]])
@pytest.mark.parametrize("name", BAD)
def test_a_garbled_file_is_refused_with_the_line_and_nothing_of_it_is_used(home, command, name):
    data, line = BAD[name]
    path = home / "bad.csv"
    path.write_bytes(data)
    shown = RUN.invoke(app, [*command, str(path)])
    assert shown.exit_code == 1 and f"bad.csv:{line}: " in shown.stderr, shown.stderr
    assert "Traceback" not in shown.output and "fine" not in shown.stderr and not labels_at(home).exists()


GARBLED = ["{", "[1]", '{"prompt": 1, "small": 0, "large": 1}', '{"prompt": "x", "small": true, "large": 1}', "[" * 100_000]


@pytest.mark.parametrize("line", GARBLED)
def test_garbled_json_lines_are_refused_with_the_line(home, line):
    path = home / "bad.jsonl"
    path.write_text('{"prompt": "x", "small": 0, "large": 1}\n\n' + line + "\n")
    shown = RUN.invoke(app, ["train", "import", str(path)])
    assert shown.exit_code == 1 and "bad.jsonl:3: " in shown.stderr


def test_a_long_prompt_and_a_mark_at_the_beginning_are_no_fault(home):
    path = home / "long.csv"
    path.write_bytes(b"\xef\xbb\xbf" + GOOD + b"x" * 1_000_000 + b",0,1\n")
    assert "2 rows" in RUN.invoke(app, ["train", "import", str(path)]).output


def test_faults_around_a_refit_are_told(home):
    assert RUN.invoke(app, ["train", "import", str(home / "none.csv")]).exit_code == 1
    put(home, planted(3, 1, routable=True))
    path = next(labels_at(home).glob("*.labels.jsonl"))
    path.write_text(path.read_text() + "garbage\n")
    shown = RUN.invoke(app, ["train", "refit"])
    assert shown.exit_code == 1 and f"{path.name}:4" in shown.stderr
    path.unlink()
    (labels_at(home) / PROMOTED).write_bytes(b"half a file")
    shown = RUN.invoke(app, ["train", "refit"])
    assert shown.exit_code == 1 and "no weights file" in shown.stderr
    plain = configured()
    del plain["complexity"]["labels"]
    (home / "serve_config.yaml").write_text(yaml.safe_dump(plain))
    assert "complexity.labels" in RUN.invoke(app, ["train", "refit"]).stderr


def test_weights_that_another_version_promoted_keep_no_router_from_starting(home, caplog):
    data = DEFAULT.read_bytes()
    promoted = labels_at(home) / PROMOTED
    promoted.parent.mkdir(parents=True, exist_ok=True)
    for outdated in (pack_weights(replace(read_weights(DEFAULT), features="0" * 16)), data[:4] + b"\x63\x00" + data[6:]):
        promoted.write_bytes(outdated)
        assert weights_of(config().complexity, home) == DEFAULT and promoted.name in caplog.text
        caplog.clear()
    promoted.write_bytes(data[:-9])
    assert weights_of(config().complexity, home) == promoted, "a damaged one is refused, not passed over"
    promoted.write_bytes(data)
    assert weights_of(config().complexity, home) == promoted and not caplog.text


def test_two_refits_at_a_time_are_one(home):
    shelf = Shelf(labels_at(home))
    with shelf.locked(), pytest.raises(PromotionError, match="another refit"), Shelf(labels_at(home)).locked():
        pytest.fail("both ran")


def test_the_way_back_leads_to_the_promotion_before(home):
    shelf = Shelf(labels_at(home))
    shelf.directory.mkdir(parents=True)
    data = DEFAULT.read_bytes()
    first, second = (hashlib.sha256(one).hexdigest()[:12] for one in (data, data + b"x"))
    for weights, digest in ((data, first), (data + b"x", second)):
        shelf.keep(weights, digest)
        shelf.promote(digest)
        shelf.note(Refit(NOW, PROMOTE, "shipped" if digest == first else first, challenger=digest))
    assert shelf.demote() == first and digest_of_weights(shelf.directory / PROMOTED) == first
    assert shelf.demote() == "" and not (shelf.directory / PROMOTED).exists()
    shutil.copy(DEFAULT, shelf.directory / PROMOTED)
    (shelf.directory / HISTORY).unlink()
    with pytest.raises(PromotionError, match="history"):
        shelf.demote()
