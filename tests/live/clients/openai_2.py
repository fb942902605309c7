"""The `openai` package before its version 3, at its strictest: sync, async, streamed, and the helpers."""

import asyncio
import os

import openai

ASK = {"model": "auto", "messages": [{"role": "user", "content": "Hello"}], "temperature": 0, "max_tokens": 5}
FINISHED = {**ASK, "max_tokens": 16, "extra_body": {"structured_outputs": {"choice": ["Paris"]}}}
OPTIONS = {"base_url": os.environ["TIDEGATE_URL"], "api_key": os.environ["TIDEGATE_KEY"], "max_retries": 0}


def main() -> None:
    """Ask in every way; any shape the package does not accept raises."""
    assert openai.__version__.startswith("2."), openai.__version__
    client = openai.OpenAI(**OPTIONS, _strict_response_validation=True)
    text = client.chat.completions.create(**ASK).choices[0].message.content
    parts = client.chat.completions.create(**ASK, stream=True)
    assert "".join(part.choices[0].delta.content or "" for part in parts) == text
    with client.chat.completions.stream(**FINISHED) as stream:
        assert stream.get_final_completion().choices[0].message.content == "Paris"
    assert client.chat.completions.with_raw_response.create(**ASK).headers["x-tidegate-target"] == "plain"
    assert "auto" in [model.id for model in client.models.list()]
    assert client.responses.create(model="auto", input="Hello", max_output_tokens=5).usage.output_tokens == 5
    asyncio.run(main_async(text))
    print("openai", openai.__version__)


async def main_async(text: str) -> None:
    """The same without blocking."""
    async with openai.AsyncOpenAI(**OPTIONS, _strict_response_validation=True) as client:
        answer = await client.chat.completions.create(**ASK)
        assert answer.choices[0].message.content == text
        parts = [part async for part in await client.chat.completions.create(**ASK, stream=True)]
        assert "".join(part.choices[0].delta.content or "" for part in parts) == text


main()
