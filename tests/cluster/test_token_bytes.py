"""Token ids back to bytes: exact where it can be, and saying so where it cannot."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from cluster.kv.token_bytes import read_token_bytes, text_of
from tests.cluster.tokenizers_for_tests import byte_level, sentence_piece


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("tokenizers")


@pytest.fixture(scope="module", params=["byte-level", "sentence-piece"])
def exact(request, folder):
    path = (byte_level if request.param == "byte-level" else sentence_piece)(folder / f"{request.param}.json")
    return Tokenizer.from_file(str(path)), read_token_bytes(path)


def test_both_families_are_exact(exact):
    assert exact[1].problem == ""
    assert exact[1].prefix == b""


@settings(max_examples=200)
@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=80))
def test_any_text_comes_back_even_cut_in_the_middle_of_a_character(exact, text):
    tokenizer, known = exact
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    blocks = [ids[i : i + 3] for i in range(0, len(ids), 3)]
    assert b"".join(text_of(known.table, block) for block in blocks) == text.encode()


def test_what_stands_before_a_plain_prompt(folder):
    assert read_token_bytes(byte_level(folder / "bos.json", bos=True)).prefix == b"<s>"


def test_a_normalizing_tokenizer_is_exact_on_composed_text(folder):
    known = read_token_bytes(byte_level(folder / "nfc.json", nfc=True))
    assert (known.problem, known.compose) == ("", "NFC")


def test_an_added_space_is_no_exact_text(folder):
    assert "does not give texts back" in read_token_bytes(sentence_piece(folder / "prepend.json", prepend=True)).problem


def test_lossy_tokenizers_are_found_out(folder):
    spec = json.loads(byte_level(folder / "plain.json").read_text())
    spec["normalizer"] = {"type": "Lowercase"}
    (folder / "lower.json").write_text(json.dumps(spec))
    assert "does not give texts back" in read_token_bytes(folder / "lower.json").problem
    spec["decoder"] = {"type": "WordPiece", "prefix": "##", "cleanup": True}
    (folder / "words.json").write_text(json.dumps(spec))
    assert "unknown kind" in read_token_bytes(folder / "words.json").problem


def test_a_missing_or_broken_file_is_a_problem_not_an_error(folder):
    assert "cannot be read" in read_token_bytes(folder / "nowhere.json").problem
    (folder / "broken.json").write_text('{"model": 1}')
    assert "cannot be read" in read_token_bytes(folder / "broken.json").problem
