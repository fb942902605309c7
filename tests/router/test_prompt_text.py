"""Rendering equals what `transformers` and vLLM's own message parsing give, for templates of several models' kinds."""

import copy
import json

import pytest

from cluster.kv.text_profile import detect_content_format
from router.placement.kv_messages import TextProfile
from router.placement.targets import Endpoint
from router.prompt_text import NoText, PromptRenderer, template_environment

CHATML = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou help<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TOOLS_TEMPLATE = """{{- bos_token }}
{%- if tools %}
    {{- '<tools>' }}
    {%- for tool in tools %}
        {{- tool | tojson }}
    {%- endfor %}
    {{- '</tools>' }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role == 'tool' %}
        {{- '<tool id=' + message.tool_call_id + '>' + message.content }}
    {%- else %}
        {{- '<' + message.role + '>' + (message.content or '') }}
        {%- for call in message.tool_calls or [] %}
            {{- call.function.name + '=' + call.function.arguments | tojson }}
        {%- endfor %}
        {%- if message.reasoning_content %}{{- '(' + message.reasoning_content + ')' }}{%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}<assistant>
    {%- if enable_thinking is defined and not enable_thinking %}(none){% endif %}{% endif %}"""
PARTS = """{%- for message in messages %}{%- for part in message['content'] %}
{%- if part.type == 'text' %}{{ '[' + part.text + ']' }}
{%- endif %}{%- endfor %}{%- endfor %}"""


def render(template: str, body: dict, **profile) -> str:
    told = TextProfile(
        templates={"default": template},
        special_tokens={"bos_token": "<s>"},
        content_format=detect_content_format(template),
        **profile,
    )
    before = copy.deepcopy(body)
    text = PromptRenderer(told).render(Endpoint.CHAT, body).text.decode()
    assert body == before  # what the client sent goes to the engine as it is
    return text


def by_transformers(template: str, messages: list, tools: list | None = None, **arguments) -> str:
    from transformers.utils.chat_template_utils import render_jinja_template

    arguments = {"add_generation_prompt": True, "bos_token": "<s>", **arguments}
    return render_jinja_template([messages], tools=tools, chat_template=template, **arguments)[0][0]


TURNS = [
    {"role": "user", "content": 'What is the <capital> of "France" & Köln?'},
    {"role": "assistant", "content": "Paris."},
    {"role": "user", "content": "日本語  \n\n and?"},
]


@pytest.mark.parametrize("template", [CHATML, TOOLS_TEMPLATE])
@pytest.mark.parametrize("messages", [TURNS, TURNS[:1], [{"role": "system", "content": "Be brief."}, *TURNS]])
def test_plain_conversations(template, messages):
    assert render(template, {"messages": messages}) == by_transformers(template, messages)


def test_each_turn_continues_the_one_before():
    first = render(CHATML, {"messages": TURNS[:1]})
    assert render(CHATML, {"messages": TURNS}).startswith(first + "Paris.")


def test_tools_calls_and_results():
    call = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Köln", "days": 2}'}}
    broken = {"id": "c2", "type": "function", "function": {"name": "weather", "arguments": "not json"}}
    messages = [
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": None, "tool_calls": [call, broken], "reasoning": "hm"},
        {"role": "tool", "tool_call_id": "c1", "content": [{"type": "text", "text": "rain"}, {"type": "text", "text": "later"}]},
    ]
    tool = {"type": "function", "function": {"parameters": {"type": "object"}, "name": "weather"}}
    text = render(TOOLS_TEMPLATE, {"messages": messages, "tools": [tool]})
    told = {"type": "function", "function": {"name": "weather", "description": None, "parameters": {"type": "object"}}}
    assert text == (
        f"<s><tools>{json.dumps(told)}</tools><user>Weather?<assistant>"
        'weather={"city": "Köln", "days": 2}weather={}(hm)<tool id=c1>rain\nlater<assistant>'
    )


def test_the_tool_template_and_hidden_tools():
    profile = TextProfile(templates={"default": "plain", "tool_use": "tools"}, hide_tools_when_none=True)
    tool = {"type": "function", "function": {"name": "f"}}
    renderer = PromptRenderer(profile)
    assert renderer.render(Endpoint.CHAT, {"messages": []}).text == b"plain"
    assert renderer.render(Endpoint.CHAT, {"messages": [], "tools": [tool]}).text == b"tools"
    assert renderer.render(Endpoint.CHAT, {"messages": [], "tools": [tool], "tool_choice": "none"}).text == b"plain"


def test_contents_in_parts():
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}, "c"]
    assert render("{{ messages[0].content }}", {"messages": [{"role": "user", "content": parts}]}) == "a\nb\nc"
    assert render(PARTS, {"messages": [{"role": "user", "content": parts}, {"role": "user", "content": "d"}]}) == "[a][b][c][d]"


def test_template_arguments():
    body = {"messages": TURNS[:1], "reasoning_effort": "none"}
    assert render(TOOLS_TEMPLATE, body).endswith("(none)")
    body = {"messages": TURNS[:1], "chat_template_kwargs": {"enable_thinking": False}}
    assert render(TOOLS_TEMPLATE, body).endswith("(none)")
    assert render(TOOLS_TEMPLATE, {"messages": TURNS[:1]}, template_arguments={"enable_thinking": False}).endswith("(none)")
    assert not render(TOOLS_TEMPLATE, {"messages": TURNS[:1], "add_generation_prompt": False}).endswith("<assistant>")


def test_developers_become_systems_where_a_template_has_none():
    messages = [{"role": "system", "content": "a"}, {"role": "user", "content": "q"}, {"role": "developer", "content": "b"}]
    text = render("{% for m in messages %}{{ m.role }}:{{ m.content }};{% endfor %}", {"messages": messages})
    assert text == "system:a\n\nb;user:q;"
    kept = render("{% for m in messages %}{{ m.role }};{% endfor %}{# 'developer' #}", {"messages": messages})
    assert kept == "system;user;developer;"


def test_plain_prompts():
    renderer = PromptRenderer(TextProfile(completion_prefix=b"<s>"))
    assert renderer.render(Endpoint.COMPLETIONS, {"prompt": "Once"}).text == b"<s>Once"
    assert renderer.render(Endpoint.COMPLETIONS, {"prompt": ["Once"]}).text == b"<s>Once"
    assert renderer.render(Endpoint.COMPLETIONS, {"prompt": "Once", "add_special_tokens": False}).text == b"Once"


def test_decomposed_text_is_composed_where_the_tokenizer_does_so():
    renderer = PromptRenderer(TextProfile(compose="NFC"))
    assert renderer.render(Endpoint.COMPLETIONS, {"prompt": "Ko\u0308ln"}).text.decode() == "K\u00f6ln"


def test_salt_and_adapter_make_the_namespace():
    renderer = PromptRenderer(TextProfile())
    spaces = {
        renderer.render(Endpoint.COMPLETIONS, {"prompt": "x", **more}, lora).space
        for more, lora in [({}, ""), ({"cache_salt": "t"}, ""), ({}, "t"), ({"cache_salt": 3}, "")]
    }
    assert len(spaces) == 3


IMAGE = [{"type": "text", "text": "what?"}, {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}]


@pytest.mark.parametrize(
    ("endpoint", "body"),
    [
        (Endpoint.CHAT, {"messages": [{"role": "user", "content": IMAGE}]}),
        (Endpoint.CHAT, {"messages": [{"content": "x"}]}),
        (Endpoint.CHAT, {"messages": ["x"]}),
        (Endpoint.CHAT, {"messages": "x"}),
        (Endpoint.CHAT, {}),
        (Endpoint.CHAT, {"messages": TURNS, "chat_template": "mine"}),
        (Endpoint.CHAT, {"messages": TURNS, "continue_final_message": True}),
        (Endpoint.CHAT, {"messages": TURNS, "tools": [{"type": "web_search"}]}),
        (Endpoint.CHAT, {"messages": [{"role": "user", "content": "\ud800"}]}),
        (Endpoint.CHAT, {"messages": [{"role": "user", "content": 7}]}),
        (Endpoint.CHAT, {"messages": [{"role": "assistant", "content": "", "tool_calls": ["x"]}]}),
        (Endpoint.COMPLETIONS, {"prompt": [1, 2, 3]}),
        (Endpoint.COMPLETIONS, {"prompt": ["a", "b"]}),
        (Endpoint.RESPONSES, {"input": "x"}),
    ],
)
def test_what_is_not_known_here_is_said_and_not_guessed(endpoint, body):
    renderer = PromptRenderer(TextProfile(templates={"default": CHATML}))
    with pytest.raises(NoText) as caught:
        renderer.render(endpoint, body)
    assert "what?" not in str(caught.value) and "mine" not in str(caught.value)


def test_a_template_that_raises_or_reaches_out_gives_no_text():
    for template in (
        "{{ raise_exception('no ' + messages[0].content) }}",
        "{{ messages.append(1) }}",
        "{{ ''.__class__.__mro__ }}{{ 1/0 }}",
    ):
        with pytest.raises(NoText) as caught:
            render(template, {"messages": [{"role": "user", "content": "secret"}]})
        assert "secret" not in str(caught.value)


def test_the_content_format_is_found():
    assert detect_content_format(CHATML) == "string"
    assert detect_content_format(TOOLS_TEMPLATE) == "string"
    assert detect_content_format(PARTS) == "openai"
    assert detect_content_format("{% set content = messages[0].content %}{% for c in content %}{% endfor %}") == "openai"
    assert detect_content_format("{% broken") == "string"


def test_generation_blocks_and_loop_controls():
    environment = template_environment()
    template = (
        "{% for m in messages %}{% if loop.index > 2 %}{% break %}{% endif %}"
        "{% generation %}{{ m }}{% endgeneration %}{% endfor %}"
    )
    assert environment.from_string(template).render(messages=["a", "b", "c"]) == "ab"
