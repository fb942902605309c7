"""What can be checked of a cloud target before anything is sent: that what it says of its place does not contradict itself.

Sources: AWS Bedrock inference profiles (the id's prefix is the geography it may run in, `global.` is any commercial region),
Azure OpenAI deployment types (the SKU is nowhere in the URL, so it must be declared), OpenAI's regional hosts, Vertex AI
endpoints (`global` promises nothing), Anthropic's `inference_geo` (its default is `global`).
"""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from router.config.models import ExternalTarget

AZURE_SKUS = {
    "Standard": False,
    "ProvisionedManaged": False,
    "DataZoneStandard": False,
    "DataZoneProvisionedManaged": False,
    "DataZoneBatch": False,
    "GlobalStandard": True,
    "GlobalProvisionedManaged": True,
    "GlobalBatch": True,
    "DeveloperTier": True,
}
"""Deployment types, and whether they may process anywhere."""
_BEDROCK_PREFIXES = {
    "us": ("us-", "ca-"),
    "us-gov": ("us-gov-",),
    "eu": ("eu-",),
    "apac": ("ap-",),
    "au": ("ap-southeast-",),
    "jp": ("ap-northeast-",),
    "ca": ("ca-", "us-"),
    "sa": ("sa-",),
    "me": ("me-",),
    "il": ("il-",),
}
"""Prefixes of inference profiles, and the source regions that may call them."""
_ANYWHERE = "say `provider.anywhere: true` if its zone stands for everywhere the provider works"


def check_provider(target: ExternalTarget) -> None:
    """Check a cloud target against its provider's own rules.

    Raises:
        ValueError: what it declares cannot be true, or is not enough to know where it works.
    """
    if target.kind != "cloud":
        return
    host = urlsplit(target.url).hostname or ""
    _CHECKS[target.dialect](target, host, _is_here(host))


def _openai(target: ExternalTarget, host: str, here: bool) -> None:
    region = target.provider.region
    if region and not here and host != f"{region}.api.openai.com":
        raise ValueError(f"provider.region `{region}`: OpenAI keeps data there only on the host {region}.api.openai.com")


def _azure(target: ExternalTarget, host: str, here: bool) -> None:
    sku = target.provider.sku
    if sku is None:
        raise ValueError("an Azure target needs `provider.sku`: the URL does not say where the deployment may process")
    if sku not in AZURE_SKUS:
        raise ValueError(f"provider.sku: unknown deployment type `{sku}`; known: {', '.join(AZURE_SKUS)}")
    if AZURE_SKUS[sku] and not target.provider.anywhere:
        raise ValueError(f"provider.sku `{sku}` may process in any region: {_ANYWHERE}")
    known = (".openai.azure.com", ".cognitiveservices.azure.com", ".services.ai.azure.com", ".openai.azure.us", ".azure-api.net")
    if not here and not host.endswith(known):
        raise ValueError(f"`{host}` is no host of Azure OpenAI")


def _bedrock(target: ExternalTarget, host: str, here: bool) -> None:
    region = target.provider.region
    if not region:
        raise ValueError("a Bedrock target needs `provider.region`")
    if not here and region not in host.split("."):
        raise ValueError(f"provider.region `{region}` is not the region of the host {host}")
    for name in target.models.values():
        prefix = name.partition(".")[0]
        if prefix == "global" and not target.provider.anywhere:
            raise ValueError(f"`{name}` is a global inference profile, which runs in any region: {_ANYWHERE}")
        regions = _BEDROCK_PREFIXES.get(prefix)
        if regions is not None and not region.startswith(regions):
            raise ValueError(f"`{name}` runs in the geography `{prefix}`, which the region `{region}` is not in")


def _vertex(target: ExternalTarget, host: str, here: bool) -> None:
    region = target.provider.region
    if not region or not target.provider.project:
        raise ValueError("a Vertex target needs `provider.region` and `provider.project`")
    if (region == "global" or host == "aiplatform.googleapis.com") and not target.provider.anywhere:
        raise ValueError(f"Vertex's global endpoint promises no place: {_ANYWHERE}")
    if (
        not here
        and region != "global"
        and host
        not in (
            f"{region}-aiplatform.googleapis.com",
            f"aiplatform.{region}.rep.googleapis.com",
        )
    ):
        raise ValueError(f"provider.region `{region}` is not the region of the host {host}")


def _gemini(target: ExternalTarget, host: str, here: bool) -> None:
    if not target.provider.anywhere:
        raise ValueError(f"the Gemini API has no regions (Vertex has): {_ANYWHERE}")


def _anthropic(target: ExternalTarget, host: str, here: bool) -> None:
    if target.provider.geo in (None, "global") and not target.provider.anywhere:
        raise ValueError(f"Anthropic infers anywhere unless `provider.geo` says where: give one, or {_ANYWHERE}")


_CHECKS = {
    "openai": _openai,
    "azure": _azure,
    "bedrock": _bedrock,
    "vertex": _vertex,
    "gemini": _gemini,
    "anthropic": _anthropic,
}


def _is_here(host: str) -> bool:
    """Loopback: a proxy or a test on this machine, whose name says nothing."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
