"""Providers that speak OpenAI's own shape: OpenAI, whatever is compatible with it, and Azure OpenAI.

Their answers pass as they are; what leaves is still only the allow-listed fields, and errors are mapped like everybody's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from deployments.egress.dialects.base import Outgoing, failure, known_word, parse
from router.config import ExternalTarget
from router.wire.errors import ApiError, invalid_request
from router.wire.json_body import encode_object, is_one_of

_WORDS = frozenset(
    {
        "context_length_exceeded",
        "content_filter",
        "content_policy_violation",
        "rate_limit_exceeded",
        "insufficient_quota",
        "invalid_api_key",
        "model_not_found",
        "unsupported_parameter",
        "unsupported_value",
        "invalid_value",
        "string_above_max_length",
        "DeploymentNotFound",
        "429",
    }
)
_PARAMS = frozenset(
    {
        "messages",
        "model",
        "max_tokens",
        "max_completion_tokens",
        "temperature",
        "top_p",
        "tools",
        "tool_choice",
        "response_format",
        "stop",
        "stream",
        "n",
        "seed",
        "input",
        "prompt",
        "reasoning_effort",
        "logprobs",
    }
)


_OWN_TOOLS = frozenset({"function", "custom"})
"""Tools that the client runs. What a provider's own ones ask, and where, no label knows."""


def refuse_hosted(body: dict[str, Any]) -> None:
    """Refuse what a provider would do beyond answering: its own tools, and files of the account, which is everybody's here.

    Raises:
        ApiError: 400, with the field.
    """
    tools = body.get("tools")
    for i, tool in enumerate(tools if isinstance(tools, list) else []):
        if not isinstance(tool, dict) or not is_one_of(tool.get("type"), _OWN_TOOLS):
            raise invalid_request(
                f"`tools[{i}]` must be a function: no tool of the provider's own is used from here.", param="tools"
            )
    messages = body.get("messages")
    for message in messages if isinstance(messages, list) else []:
        content = message.get("content") if isinstance(message, dict) else None
        for part in content if isinstance(content, list) else []:
            file = part.get("file") if isinstance(part, dict) else None
            if isinstance(file, dict) and file.get("file_id") is not None:
                raise invalid_request("Give files with `file_data`: none is kept at a provider from here.", param="messages")


class OpenAI:
    """OpenAI and what is compatible with it."""

    def request(self, path: str, body: dict[str, Any], spec: ExternalTarget) -> Outgoing:
        """The request as it leaves.

        Args:
            path: the public path, e.g. `/v1/chat/completions`.
            body: the allow-listed fields.
            spec: the target.

        Raises:
            ApiError: 400 for what would have the provider ask somebody else, or read what somebody else left with it.
        """
        refuse_hosted(body)
        return Outgoing(path, encode_object(body))

    def sign(self, credential: str) -> dict[str, str]:
        """The header that carries the credential."""
        return {"authorization": f"Bearer {credential}"}

    def error(self, status: int, body: bytes, headers: Mapping[str, str]) -> ApiError:
        """See `Dialect.error`: the code and the parameter are kept where they are known words."""
        try:
            inner = parse(body).get("error")
        except ApiError:
            inner = None
        inner = inner if isinstance(inner, dict) else {}
        mapped = failure(status, headers, known_word(inner.get("code"), _WORDS))
        mapped.param = known_word(inner.get("param"), _PARAMS) or None
        return mapped


class Azure(OpenAI):
    """Azure OpenAI: the deployment stands in the path, or in the body of its v1 API."""

    def request(self, path: str, body: dict[str, Any], spec: ExternalTarget) -> Outgoing:
        """See `OpenAI.request`."""
        refuse_hosted(body)
        operation = path.removeprefix("/v1")
        if spec.provider.api_version is None:
            return Outgoing("/openai/v1" + operation, encode_object(body))
        deployment = quote(str(body.get("model", "")), safe="")
        rest = {name: value for name, value in body.items() if name != "model"}
        query = f"?api-version={quote(spec.provider.api_version, safe='')}"
        return Outgoing(f"/openai/deployments/{deployment}{operation}{query}", encode_object(rest))

    def sign(self, credential: str) -> dict[str, str]:
        """See `OpenAI.sign`."""
        return {"api-key": credential}
