"""Every code of the contract as the `openai` package sees it."""

from __future__ import annotations

import openai
import pytest

from tests.router.builders import digest
from tests.router.conftest import KEY, OTHER_KEY, FrontDoor, open_front_door


def sdk(door: FrontDoor, key: str = KEY) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"http://127.0.0.1:{door.port}/v1", api_key=key, max_retries=0)


async def fail(client: openai.AsyncOpenAI, wish: str = "hello", model: str = "m", **options) -> openai.APIStatusError:
    with pytest.raises(openai.APIStatusError) as caught:
        await client.chat.completions.create(model=model, messages=[{"role": "user", "content": wish}], **options)
    assert caught.value.request_id
    return caught.value


async def test_each_code_becomes_the_exception_a_user_expects():
    keys = [{"id": "front", "sha256": digest(KEY)}, {"id": "rated", "sha256": digest(OTHER_KEY), "requests_per_minute": 1}]
    async with open_front_door({"a": "eu"}, keys=keys, slo={"max_wait_ms": 300}) as door:
        client = sdk(door)
        seen = {
            "invalid_api_key": (await fail(sdk(door, "nobody")), openai.AuthenticationError),
            "model_not_found": (await fail(client, model="gpt-9"), openai.NotFoundError),
            "invalid_request": (await fail(client, extra_headers={"x-tidegate-residency": "mars"}), openai.BadRequestError),
            "residency_denied": (
                await fail(client, extra_headers={"x-tidegate-residency": "elsewhere"}),
                openai.PermissionDeniedError,
            ),
            "upstream_error": (await fail(client, "broken"), openai.InternalServerError),
        }
        for code, (error, expected) in seen.items():
            assert isinstance(error, expected), code
            assert error.code == code
        for _ in range(2):
            door.state.fleet.failed("a@" + door.state.config.targets[0].url, 4e9)
        overloaded = await fail(client)
        assert (overloaded.status_code, overloaded.code) == (503, "overloaded")
        held_back = await fail(client, extra_headers={"x-tidegate-residency": "eu"})
        assert (held_back.status_code, held_back.code) == (503, "residency_capacity")
        assert int(held_back.response.headers["retry-after"]) >= 1


async def test_limits_become_rate_limit_errors():
    keys = [
        {"id": "rated", "sha256": digest(KEY), "requests_per_minute": 1},
        {"id": "budgeted", "sha256": digest(OTHER_KEY), "daily_tokens": 10},
    ]
    async with open_front_door({"a": "eu"}, keys=keys) as door:
        client = sdk(door)
        answer = await client.chat.completions.create(model="m", messages=[{"role": "user", "content": "hello"}])
        assert answer.choices[0].message.content == "hi"
        limited = await fail(client)
        assert isinstance(limited, openai.RateLimitError) and limited.code == "rate_limited"
        spent = await fail(sdk(door, OTHER_KEY))
        assert isinstance(spent, openai.RateLimitError) and spent.code == "budget_exceeded"


async def test_streams_through_the_sdk_end_or_raise_and_never_end_early():
    async with open_front_door({"a": "eu"}) as door:
        client = sdk(door)

        async def collect(wish: str) -> str:
            stream = await client.chat.completions.create(model="m", messages=[{"role": "user", "content": wish}], stream=True)
            return "".join([part.choices[0].delta.content or "" async for part in stream])

        assert await collect("stream") == "t0 t1 t2 t3 t4 "
        with pytest.raises(openai.APIError):
            await collect("die-mid")
