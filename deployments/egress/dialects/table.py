"""The dialects by the name the configuration has for them."""

from __future__ import annotations

from collections.abc import Mapping

from deployments.egress.dialects.anthropic import Anthropic
from deployments.egress.dialects.base import Dialect
from deployments.egress.dialects.bedrock import Bedrock
from deployments.egress.dialects.gemini import Gemini, Vertex
from deployments.egress.dialects.openai import Azure, OpenAI

SAME_SHAPE: Mapping[str, OpenAI] = {"openai": OpenAI(), "azure": Azure()}
TRANSLATED: Mapping[str, Dialect] = {"anthropic": Anthropic(), "bedrock": Bedrock(), "gemini": Gemini(), "vertex": Vertex()}
