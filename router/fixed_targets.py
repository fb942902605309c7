"""The targets that stand in the configuration itself, and how a new policy sees those that are known."""

from __future__ import annotations

import math
from collections.abc import Callable
from datetime import UTC, datetime
from urllib.parse import urlsplit

from msgspec.structs import replace

from router.config import (
    Config,
    ConfigError,
    ExternalTarget,
    Tls,
)
from router.placement.targets import OFFERED, Address, Endpoint, Kind, Prefill, Price, Target, TlsFiles
from router.policy import Policy, vocabulary_of
from router.residency.label import Evidence, Vocabulary, translate_evidence


def endpoints_of(target: ExternalTarget) -> frozenset[str]:
    """What a configured target offers."""
    if target.kind == "cloud" and target.dialect not in ("openai", "azure"):
        return frozenset({Endpoint.CHAT})
    if target.kind == "cloud":
        return frozenset({Endpoint.CHAT, Endpoint.COMPLETIONS} if target.task == "generate" else {Endpoint.EMBEDDINGS})
    return OFFERED[target.task]


def declared_evidence(target: ExternalTarget, words: Vocabulary) -> Evidence:
    """What the configuration states of a target.

    Raises:
        ConfigError: `expires` is no date.
    """
    process = words.zone_mask([target.zone])
    store = process if target.store is None else words.zone_mask(target.store)
    expires = math.inf
    if target.expires is not None:
        try:
            expires = datetime.fromisoformat(target.expires).replace(tzinfo=UTC).timestamp()
        except ValueError:
            raise ConfigError(f"targets: `{target.id}`: expires is an ISO date such as 2027-05-01") from None
    return Evidence(process, store, words.duty_mask(target.duties), expires)


def fixed_targets(config: Config, egress: Address | None, egress_incarnation: str) -> tuple[Target, ...]:
    """The targets that stand in the configuration itself: servers that already run, and cloud targets behind the egress.

    Args:
        config: the validated configuration.
        egress: where the egress listens; None leaves cloud targets out.
        egress_incarnation: the egress's own incarnation.
    """
    words = vocabulary_of(config)
    targets = []
    for item in config.targets:
        if item.kind == "cloud" and egress is None:
            continue
        targets.append(
            Target(
                id=item.id,
                incarnation=f"{item.id}@{egress_incarnation}" if item.kind == "cloud" else _incarnation_of(item),
                kind=Kind(item.kind),
                zone=item.zone,
                evidence=declared_evidence(item, words),
                address=egress if item.kind == "cloud" and egress is not None else address_of(item.url, item.tls),
                models=dict(item.models),
                endpoints=endpoints_of(item),
                context_tokens=item.context_tokens,
                slots=item.slots,
                price=Price(item.price.prompt, item.price.completion),
                secret=item.id if item.kind == "server" and item.credential else "",
                token_ids=item.token_ids,
                salted=item.is_salted,
                adapters=dict(item.adapters),
                prefill=_prefill_of(item),
                keeps_prefixes=item.prefix_cache,
            )
        )
    return tuple(targets)


def _incarnation_of(server: ExternalTarget) -> str:
    """A server at another address is another one, and so is a pair with another half."""
    half = "" if server.prefill is None else f"+{server.prefill.url}"
    return f"{server.id}@{server.url}{half}"


def _prefill_of(server: ExternalTarget) -> Prefill | None:
    half = server.prefill
    return None if half is None else Prefill(address_of(half.url, half.tls), half.min_tokens)


def retargeter(config: Config, before: Policy, after: Policy) -> Callable[[Target], Target | None]:
    """How a new policy sees the targets that are known under the old one.

    A replica's evidence is its own and travels by name. Evidence of the others stands in the configuration: the new one's
    counts, and a target it does not name, or names at another address, is gone.
    """
    specs = {target.id: target for target in fixed_targets(config, Address(), "")}

    def retarget(target: Target) -> Target | None:
        if target.kind is Kind.REPLICA:
            return replace(target, evidence=translate_evidence(target.evidence, before.vocabulary, after.vocabulary))
        spec = specs.get(target.id)
        if spec is None or spec.kind is not target.kind:
            return None
        if spec.kind is Kind.SERVER:
            return spec if spec.incarnation == target.incarnation else None
        return replace(spec, incarnation=target.incarnation, address=target.address)

    return retarget


def address_of(url: str, tls: Tls | None = None) -> Address:
    """`http(s)://host[:port][/base]` or `unix:///path` as an `Address`; `tls` says how, where it is https."""
    parts = urlsplit(url)
    if parts.scheme == "unix":
        return Address(uds=parts.path)
    secure = parts.scheme == "https"
    port = parts.port or (443 if secure else 80)
    files = None if tls is None else tls_files_of(tls)
    return Address(parts.hostname or "", port, tls=secure, base_path=parts.path.rstrip("/"), tls_files=files)


def tls_files_of(tls: Tls) -> TlsFiles:
    """The configuration's TLS block as the hot path has it."""
    return TlsFiles(tls.ca_file or "", tls.cert_file or "", tls.key_file or "", tls.server_name or "")
