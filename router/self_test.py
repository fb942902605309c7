"""The self-test of KV-awareness: two prompts with a shared, random beginning, sent to one replica.

The second one has to be *predicted* as cached there by the events alone, and *served* as cached by the engine's own count. A
router that is KV-aware on paper only fails one of the two.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from typing import Any

import httpx

from router.placement.targets import Endpoint, Target
from router.placement.trust import SelfTest
from router.prefixes import Chain, Prefixes
from router.residency.guard import PASS_HEADER

_TEXT = (
    "time year people way day man thing woman life child world school state family student group country problem hand part "
    "place case week company system program question work government number night point home water room mother area money "
    "story fact month lot right study book eye job word business issue side kind head house service friend father power hour"
)
_SHORTEST = 1536
_BYTES_PER_TOKEN = 6
_BLOCKS = 3
_DEFAULT_BLOCK = 128
_EVENTS_S = 5.0
_ANSWER_S = 60.0


async def run_self_test(prefixes: Prefixes, target: Target, issue: Callable[[Target, str], str]) -> SelfTest:
    """Test one replica.

    Args:
        prefixes: predicts, from events alone: nothing here is told to it as routed.
        target: the replica.
        issue: makes a pass for a POST to a path of the target.

    Returns:
        PENDING when the replica did not answer (it is busy, or gone): that proves nothing.
    """
    model = next(name for name in target.models if name not in target.adapters)
    block = prefixes.block_tokens(target.incarnation) or _DEFAULT_BLOCK
    length = max(_SHORTEST, _BLOCKS * block * _BYTES_PER_TOKEN)
    if target.context_tokens:
        length = min(length, target.context_tokens * 3)
    beginning = _random_text(length)
    address = target.address
    host = f"[{address.host}]" if ":" in address.host else address.host
    try:
        async with httpx.AsyncClient(base_url=f"http://{host}:{address.port}", timeout=_ANSWER_S, trust_env=False) as client:
            first = _body(target.models[model], beginning + " One.")
            await _ask(client, target, first, issue)
            if not await _appears(prefixes, target, _chain(prefixes, model, first)):
                return SelfTest.FAILED
            second = _body(target.models[model], beginning + " Two, and something else.")
            predicted = _held(prefixes, target, _chain(prefixes, model, second))
            served = await _ask(client, target, second, issue)
    except (httpx.HTTPError, ValueError, LookupError, TypeError):
        return SelfTest.PENDING
    return SelfTest.PASSED if predicted > 0 and served > 0 else SelfTest.FAILED


def _random_text(length: int) -> str:
    chance, known = random.SystemRandom(), _TEXT.split()
    words: list[str] = []
    size = 0
    while size < length:
        words.append(chance.choice(known))
        size += len(words[-1]) + 1
    return " ".join(words)


def _body(model: str, text: str) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": text}], "max_tokens": 1, "temperature": 0}


def _chain(prefixes: Prefixes, model: str, body: dict[str, Any]) -> Chain:
    return prefixes.chains(Endpoint.CHAT, body, (model,)).by_model[model]


def _held(prefixes: Prefixes, target: Target, chain: Chain) -> int:
    return prefixes.index.find(chain.hashes, chain.size).found.get(target.incarnation, 0)


async def _appears(prefixes: Prefixes, target: Target, chain: Chain) -> bool:
    """Whether events bring the prompt into the index in time."""
    end = time.monotonic() + _EVENTS_S
    while time.monotonic() < end:
        if _held(prefixes, target, chain):
            return True
        await asyncio.sleep(0.05)
    return False


async def _ask(client: httpx.AsyncClient, target: Target, body: dict[str, Any], issue: Callable[[Target, str], str]) -> int:
    """Send one prompt; the tokens of it that the engine had cached."""
    headers = {PASS_HEADER: issue(target, Endpoint.CHAT)}
    response = await client.post(Endpoint.CHAT, json=body, headers=headers)
    response.raise_for_status()
    details = response.json()["usage"].get("prompt_tokens_details") or {}
    return int(details.get("cached_tokens") or 0)
