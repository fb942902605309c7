"""What training and the router must agree on, and what the bench must never do twice."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("lightgbm")
pytest.importorskip("sklearn")
CHECKOUT = Path(__file__).resolve().parents[2]
VOCABULARY = """court plaintiff cell enzyme price market prime integer force energy who won the cup in 1987 of x y"""
WORDS = VOCABULARY.split()
NEAR_LAW = ["attorney", "lawsuit", "judge"]


@pytest.fixture(scope="module")
def tools():
    """The training code; its folders are scripts, not packages on the path."""
    added = [str(CHECKOUT / "scripts" / name) for name in ("train", "bench", "")]
    sys.path[:0] = added
    try:
        from _complexity import build, data, fit
        from _complexity_goals import final
    except ModuleNotFoundError as missing:
        pytest.skip(f"{missing.name} is not installed")
    finally:
        for folder in added:
            sys.path.remove(folder)
    return build, data, fit, final


def outcomes(data, name, count, models=0):
    """Made-up questions; the large model gains where law is asked about."""
    dice = np.random.default_rng(len(name))
    prompts = [" ".join(dice.choice(WORDS, size=int(dice.integers(4, 30)))) + "?" for _ in range(count)]
    keys = np.array([data.near_key(prompt) for prompt in prompts])
    large = np.array([float("court" in prompt or dice.random() < 0.5) for prompt in prompts])
    hand, words = data.measure(prompts)
    names = tuple(f"m_{kind}" for kind in ("gemini", "jamba", "Yi", "gemma")[:models])
    return data.Outcomes(
        name, tuple(prompts), np.array(["law" if "court" in p else "other" for p in prompts]), keys, np.arange(count) % 5,
        np.zeros(count), large, names, dice.integers(0, 2, (count, models)).astype(float), hand, words,
    )  # fmt: skip


def test_the_router_scores_what_training_fitted(tools):
    build, data, fit, _ = tools
    from router.complexity.features import read_features
    from router.complexity.model import compile_model, read_gains
    from router.complexity.weights import Stored, StoredDomains, features_digest

    one, two = outcomes(data, "one", 400), outcomes(data, "other", 300, 4)
    parts = fit.with_length(fit.fit_gain(one.hand, one.words, one.gain, one.keys))
    means, deviations = two.hand.mean(0), two.hand.std(0) + 1e-6
    head = build.store_gain(parts, "one", "small", "large", "made up", one, means, deviations)
    nothing = StoredDomains([], [], [], b"", [])
    model = compile_model(Stored(features_digest(), means.tolist(), deviations.tolist(), [head], nothing))
    live = [read_gains(model, read_features(prompt)).gains[0] for prompt in two.prompts]
    assert np.allclose(live, parts.predict(two.hand, two.words), atol=1e-9) and np.std(live) > 1e-3


def test_a_word_no_training_text_had_is_placed_by_what_it_means(tools):
    build, data, _, _ = tools
    from router.complexity.features import read_features
    from router.complexity.model import compile_model, read_gains
    from router.complexity.weights import Stored, features_digest

    one = outcomes(data, "one", 400)
    subjects = np.array(["law" if {"court", "plaintiff"} & set(p[:-1].split()) else "biology" for p in one.prompts])
    means, deviations = one.hand.mean(0), one.hand.std(0) + 1e-6
    head = build.build_domains([replace(one, subjects=subjects)], means, deviations)
    model = compile_model(Stored(features_digest(), means.tolist(), deviations.tolist(), [], head))
    logits = {word: dict(zip(head.names, read_gains(model, read_features(word)).logits, strict=True)) for word in NEAR_LAW}
    bare = dict(zip(head.names, read_gains(model, read_features("zzyzx")).logits, strict=True))
    assert not set(NEAR_LAW) & set(" ".join(one.prompts).split())
    assert all(found["law"] - found["science"] > bare["law"] - bare["science"] + 0.1 for found in logits.values()), logits


def test_vectors_are_made_small_and_come_back_as_they_were(tools, tmp_path):
    from _complexity.vectors import WIDTH, load_vectors, make_vectors, topics_of, write_vectors

    dice = np.random.default_rng(1)
    words = [a + b + c for a in "abcdefgh" for b in "aeiou" for c in "lmnrst"] + [".", "3", "été", "x" * 30]
    made = make_vectors(words, dice.normal(size=(len(words), 100)))
    write_vectors(made, tmp_path / "v.npz")
    kept = load_vectors(tmp_path / "v.npz")
    assert kept.words == made.words and set(kept.words) == {
        word for word in words if word.isascii() and word.isalpha() and len(word) < 9
    }
    assert np.array_equal(kept.numbers, made.numbers) and kept.floats.shape == (len(kept.words), WIDTH)
    found = topics_of([f"{words[3]} {words[3]} ? {words[7]}", "nothing"], kept)
    assert np.allclose(found[0], (kept.floats[3] + kept.floats[7]) / 2**0.5, atol=1e-6) and not found[1].any()


@pytest.mark.parametrize(
    "form", ["prompt,small,large\n{},0,1\n", "\ufeffprompt;small;large\n{};0,5;1\n", "large,prompt,small\n1,{},0.5\n"]
)
def test_own_outcomes_are_read_as_the_command_reads_them(tools, tmp_path, form):
    _, data, _, _ = tools
    (tmp_path / "own.csv").write_text(form.format("who won the cup?"), encoding="utf-8")
    own = data.load_own(tmp_path / "own.csv")
    assert own.prompts == ("who won the cup?",) and own.large.tolist() == [1.0] and own.small[0] in (0.0, 0.5)


@pytest.mark.parametrize(
    "content", [b"prompt,small,large\nca\xff,0,1\n", b"prompt,small,large\nx,0,1,1\n", b"prompt,small,large\nx,nan,1\n"]
)
def test_own_outcomes_that_cannot_be_read_are_named_by_line(tools, tmp_path, content):
    (tmp_path / "own.csv").write_bytes(content)
    with pytest.raises(SystemExit, match=r"own.csv:2: "):
        tools[1].load_own(tmp_path / "own.csv")
    with pytest.raises(SystemExit, match=r"none.csv: cannot be read"):
        tools[1].load_own(tmp_path / "none.csv")


def test_what_is_kept_back_shares_no_question_with_what_is_developed_on(tools):
    _, data, _, final = tools
    halves = final.part(outcomes(data, "one", 2000))
    assert not set(halves.development.keys) & set(halves.kept_back.keys)
    assert 0.1 < len(halves.kept_back) / 2000 < 0.24
    assert data.held_out(np.array([data.near_key("What is 2 plus 3 apples?")])) == data.held_out(
        np.array([data.near_key("what is 7 plus 9 Apples")])
    )


def test_the_part_kept_back_is_used_once(tools, tmp_path, monkeypatch):
    _, _, _, final = tools
    monkeypatch.setattr(final, "RECORD", tmp_path / "final.json")
    for name in ("_gains", "_domains"):
        monkeypatch.setattr(final, name, lambda parts: [])
    monkeypatch.setattr(final, "_nine", lambda tasks: {"figure": "nine", "goal": 0.5, "value": 0.4})
    assert final.read_record() is None
    record = final.measure_once({"llmrouter_13tasks": outcomes(tools[1], "one", 60)})
    assert final.read_record() == record and "MISSED nine" in final.describe(record)
    assert "has changed" not in final.describe(record) and "has changed" in final.describe(record | {"code": "0"})
    with pytest.raises(FileExistsError):
        final.measure_once({"llmrouter_13tasks": outcomes(tools[1], "one", 60)})


def test_the_reference_is_fitted_with_near_duplicates_only_as_it_was_published(tools):
    _, data, _, _ = tools
    from _complexity_goals import protocols, reference

    made = outcomes(data, "one", 200)
    alike = [f"Who won the cup in {1900 + row} at court?" for row in range(100)]
    prompts = (*alike, *(f"Who won the cup that team{row} lost at court?" for row in range(100)))
    near = replace(made, prompts=prompts, keys=np.array([data.near_key(prompt) for prompt in prompts]))
    published = reference.as_published(near)
    assert len(set(near.keys)) == 101 and len(set(published.keys)) == 200
    for rows, expected in ((near, 5 * 80), (published, 5 * 160)):
        fitted_on = []

        def spy(hand, words, target, keys, fitted_on=fitted_on):
            fitted_on.append(len(keys))
            return reference.fit_reference(hand, words, target, keys)

        scores = protocols.across_folds(rows, rows.folds, fit=spy)
        assert sum(fitted_on) == expected and scores.shape == (200,)
