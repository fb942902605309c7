"""What an engine's files and arguments say of its prompts."""

import json

import pytest

from cluster.kv.text_profile import TextOptions, read_profile
from cluster.kv.token_bytes import TokenBytes

KNOWN = TokenBytes((b"a",), prefix=b"<s>", compose="NFC")


def a_model(folder, tokenizer_config=None, config=None, **files):
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer_config or {}))
    (folder / "config.json").write_text(json.dumps(config or {"model_type": "llama"}))
    for name, text in files.items():
        path = folder / name.replace("__", "/")
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    return folder


def test_templates_in_all_the_places_they_are_kept(tmp_path):
    folder = a_model(tmp_path, {"chat_template": "A", "bos_token": {"content": "<s>"}, "eos_token": "</s>", "unk_token": None})
    profile = read_profile(folder, folder, TextOptions(), KNOWN)
    assert profile.templates == {"default": "A"}
    assert profile.special_tokens == {"bos_token": "<s>", "eos_token": "</s>"}
    assert (profile.completion_prefix, profile.compose, profile.problem) == (b"<s>", "NFC", "")
    pairs = [{"name": "default", "template": "D"}, {"name": "tool_use", "template": "T"}, {"name": "rag", "template": "R"}]
    folder = a_model(tmp_path, {"chat_template": pairs})
    assert read_profile(folder, folder, TextOptions(), KNOWN).templates == {"default": "D", "tool_use": "T"}
    (tmp_path / "chat_template.jinja").write_text("J")
    assert read_profile(folder, folder, TextOptions(), KNOWN).templates["default"] == "J"


def test_the_users_template_goes_first(tmp_path):
    folder = a_model(tmp_path, {"chat_template": "A"})
    (tmp_path / "mine.jinja").write_text("{% for m in messages %}{% for c in m.content %}{% endfor %}{% endfor %}")
    profile = read_profile(folder, folder, TextOptions(chat_template=str(tmp_path / "mine.jinja")), KNOWN)
    assert profile.templates["default"].startswith("{% for") and profile.content_format == "openai"
    profile = read_profile(
        folder, folder, TextOptions(chat_template="{{ inline }}", chat_template_content_format="openai"), KNOWN
    )
    assert (profile.templates, profile.content_format) == ({"default": "{{ inline }}"}, "openai")


@pytest.mark.parametrize(
    ("config", "options"),
    [({"model_type": "gpt_oss"}, TextOptions()), ({"model_type": "llama"}, TextOptions(tokenizer_mode="mistral"))],
)
def test_engines_that_render_by_themselves_are_not_guessed_at(tmp_path, config, options):
    folder = a_model(tmp_path, {"chat_template": "A"}, config)
    profile = read_profile(folder, folder, options, KNOWN)
    assert profile.templates == {} and "own code" in profile.problem


def test_missing_files_are_no_error(tmp_path):
    profile = read_profile(tmp_path / "nowhere", tmp_path / "nowhere", TextOptions(), TokenBytes((), problem="unreadable"))
    assert profile.templates == {} and profile.problem == "unreadable"
