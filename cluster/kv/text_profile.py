"""How an engine will turn requests into text: read from the model's files and the engine's own arguments, not from the engine.

vLLM renders a chat with the model's Jinja template in most cases. Where it has code of its own (gpt-oss, Mistral's tokenizer)
no template is told, and routers fall back to what they have sent where.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
import jinja2.nodes
import msgspec

from cluster.kv.token_bytes import TokenBytes
from router.placement.kv_messages import TextProfile
from router.prompt_text import template_environment

_TOKEN_NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_OWN_RENDERING = frozenset({"gpt_oss", "deepseek_v32", "deepseek_v4", "kimi_k3", "inkling", "cohere2_vision", "terratorch"})
"""Values of `model_type` for which vLLM does not render with the model's template."""


class TextOptions(msgspec.Struct, frozen=True):
    """What the engine's arguments say about prompts; names are those of vLLM's arguments."""

    chat_template: str = ""
    chat_template_content_format: str = "auto"
    default_chat_template_kwargs: dict[str, Any] = {}
    tokenizer_mode: str = "auto"
    exclude_tools_when_tool_choice_none: bool = False


def read_profile(model: Path, tokenizer: Path, options: TextOptions, token_bytes: TokenBytes) -> TextProfile:
    """The profile of one engine.

    Args:
        model: the model's directory.
        tokenizer: the tokenizer's directory, usually the same.
        options: the engine's arguments.
        token_bytes: of that tokenizer.

    Returns:
        A profile with `problem` set, or without templates, where something is missing; it never raises for a file.
    """
    config = _read_json(tokenizer / "tokenizer_config.json")
    special = {**_read_json(tokenizer / "special_tokens_map.json"), **config}
    kind = _read_json(model / "config.json").get("model_type")
    templates, problem = _templates(tokenizer, config, options), token_bytes.problem
    own_code = kind in _OWN_RENDERING or options.tokenizer_mode not in ("auto", "hf", "slow")
    if own_code or ((tokenizer / "tekken.json").exists() and not options.chat_template):
        templates, problem = {}, problem or "chats are rendered by the engine's own code"
    given = options.chat_template_content_format
    return TextProfile(
        templates=templates,
        special_tokens={name: text for name in _TOKEN_NAMES if (text := _token_text(special.get(name))) is not None},
        content_format=given if given in ("string", "openai") else detect_content_format(templates.get("default", "")),
        template_arguments=options.default_chat_template_kwargs,
        hide_tools_when_none=options.exclude_tools_when_tool_choice_none,
        completion_prefix=token_bytes.prefix,
        compose=token_bytes.compose,
        problem=problem,
    )


def detect_content_format(template: str) -> str:
    """`openai` when the template walks over the parts of a message's content, else `string`: the rule vLLM goes by."""
    try:
        tree = template_environment().parse(template)
    except jinja2.TemplateError:
        return "string"
    return "openai" if any(_is_content(loop.iter) for loop in tree.find_all(jinja2.nodes.For)) else "string"


def _is_content(node: jinja2.nodes.Node | None) -> bool:
    while isinstance(node, jinja2.nodes.Filter | jinja2.nodes.Test):
        node = node.node
    if isinstance(node, jinja2.nodes.Getitem):
        if isinstance(node.arg, jinja2.nodes.Slice):
            return _is_content(node.node)
        return isinstance(node.arg, jinja2.nodes.Const) and node.arg.value == "content"
    if isinstance(node, jinja2.nodes.Getattr):
        return node.attr == "content"
    return isinstance(node, jinja2.nodes.Name) and node.name == "content"


def _templates(folder: Path, config: Mapping[str, Any], options: TextOptions) -> dict[str, str]:
    if options.chat_template:
        path = Path(options.chat_template)
        try:
            return {"default": path.read_text(encoding="utf-8") if path.is_file() else options.chat_template}
        except (OSError, ValueError):
            return {"default": options.chat_template}
    found: dict[str, str] = {}
    told = config.get("chat_template")
    if isinstance(told, str):
        found["default"] = told
    elif isinstance(told, list):
        pairs = [(item.get("name"), item.get("template")) for item in told if isinstance(item, dict)]
        found |= {str(name): text for name, text in pairs if isinstance(text, str)}
    extra = folder / "additional_chat_templates"
    for path in [*sorted(extra.glob("*.jinja")), folder / "chat_template.jinja"]:
        if path.is_file():
            found["default" if path.parent == folder else path.stem] = path.read_text(encoding="utf-8")
    return {name: text for name, text in found.items() if name in ("default", "tool_use")}


def _token_text(token: Any) -> str | None:
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) else None


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = msgspec.json.decode(path.read_bytes())
    except (OSError, msgspec.MsgspecError):
        return {}
    return found if isinstance(found, dict) else {}
