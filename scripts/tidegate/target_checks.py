"""Checks of what stands under `targets`: do the servers answer, and are the credentials there?

Servers are asked from here for their list of models. A cloud target is not dialled: only the egress does that.
"""

from __future__ import annotations

import asyncio
import json

import httpx

from deployments.credentials import read_credential
from deployments.server_gauges import open_client, sni_of
from router.config import Config, ConfigError, ExternalTarget
from router.fixed_targets import address_of
from router.placement.targets import Address
from router.wire.tls import TlsContexts
from tidegate.finding import Finding, Level
from tidegate.home import Home

ANSWER_S = 3.0
"""For the whole answer of one server; all are asked at the same time."""
_MOST_NAMED = 5


def check_targets(home: Home, config: Config) -> list[Finding]:
    """One finding per target, in their order: what keeps it from serving, as far as this machine can see."""
    return asyncio.run(_check_all(home, config))


async def _check_all(home: Home, config: Config) -> list[Finding]:
    contexts = TlsContexts(home.root)
    return list(await asyncio.gather(*(_check_target(home, target, contexts) for target in config.targets)))


async def _check_target(home: Home, target: ExternalTarget, contexts: TlsContexts) -> Finding:
    name, token = f"target {target.id}", None
    if target.credential is not None:
        try:
            token = read_credential(target.credential, home.root, target.id)
        except ConfigError as error:
            who = "the egress" if target.kind == "cloud" else "a router"
            step = f"without it {who} does not start: set it where that runs (for Ray: in the environment of `ray start`)"
            return Finding(name, Level.WARNING, str(error), step)
    if target.kind == "cloud":
        return Finding(name, Level.OK, f"{target.url}: not dialled, only the egress does that")
    halves = [(address_of(target.url, target.tls), target.url)]
    if target.prefill is not None:
        halves.append((address_of(target.prefill.url, target.prefill.tls), target.prefill.url))
    findings = [await _ask(name, url, address, target, token, contexts) for address, url in halves]
    return next((finding for finding in findings if finding.level is not Level.OK), findings[0])


async def _ask(
    name: str, url: str, address: Address, target: ExternalTarget, token: str | None, contexts: TlsContexts
) -> Finding:
    """What one server says to `GET /v1/models`."""
    try:
        async with asyncio.timeout(ANSWER_S), open_client(address, token, contexts, ANSWER_S) as client:
            answer = await client.get("/v1/models", extensions=sni_of(address))
    except ConfigError as error:  # a file for TLS, which the policy's own check names, too
        return Finding(name, Level.WARNING, str(error), "correct the target's `tls`")
    except (httpx.HTTPError, httpx.InvalidURL, UnicodeError, TimeoutError, OSError) as error:
        why = f"no answer within {ANSWER_S:g} s" if isinstance(error, TimeoutError | httpx.TimeoutException) else str(error)
        step = "start it, or correct `url`; from another machine than the routers' it need not be reached"
        return Finding(name, Level.WARNING, f"{url} cannot be reached from here: {why}", step)
    if answer.status_code in (401, 403):
        text = f"{url} {'asks for a key' if token is None else 'refuses the key'} ({answer.status_code})"
        return Finding(name, Level.WARNING, text, "give the target `credential: {env: NAME}` or `{file: PATH}`")
    if answer.status_code >= 500:
        return Finding(name, Level.WARNING, f"{url} answers {answer.status_code}", "see its own log")
    listed = _listed(answer)
    if listed is None:
        return Finding(name, Level.OK, f"{url} answers {answer.status_code}, and lists no models")
    missing = [named for named in target.models.values() if named not in listed]
    if missing:
        text = f"{url} has no model {_names(missing)}; it has {_names(sorted(listed))}"
        return Finding(name, Level.WARNING, text, "correct the right sides of the target's `models`: {OUR_NAME: ITS_NAME}")
    return Finding(name, Level.OK, f"{url} serves {_names(list(target.models.values()))}")


def _listed(answer: httpx.Response) -> set[str] | None:
    """The ids of OpenAI's list of models; None where the answer is none."""
    try:
        return {str(model["id"]) for model in answer.json()["data"]}
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError):
        return None


def _names(names: list[str]) -> str:
    more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    return ", ".join(f"`{name}`" for name in names[:_MOST_NAMED]) + more or "none"
