"""LangChain's standard tests for chat models, over the router. Run by pytest in an environment of its own.

A real vLLM behind it serves a few layers of a tiny model, which never closes a JSON value it was made to open. So whatever needs
a whole tool call or object is expected to fail there, for the model's sake. With TIDEGATE_WHOLE_JSON=1 the engine is one that
does as it is told, and nothing may fail.
"""

import os
from typing import Any

import pytest
from langchain_openai import ChatOpenAI
from langchain_tests.integration_tests import ChatModelIntegrationTests

MODELS_OWN = "the model, not the server: it does not finish a tool call or JSON object"
NEEDS_WHOLE_JSON = (
    "test_tool_calling",
    "test_tool_calling_async",
    "test_bind_runnables_as_tools",
    "test_tool_choice",
    "test_tool_calling_with_no_arguments",
    "test_structured_output",
    "test_structured_output_async",
    "test_structured_output_pydantic_2_v1",
    "test_structured_output_optional_param",
    "test_agent_loop",
    "test_unicode_tool_call_integration",
)


class TestThroughTheRouter(ChatModelIntegrationTests):
    """`ChatOpenAI` as an application would configure it."""

    @property
    def chat_model_class(self) -> type[ChatOpenAI]:
        """The class under test."""
        return ChatOpenAI

    @property
    def chat_model_params(self) -> dict[str, Any]:
        """Where and what to ask."""
        return {
            "model": "auto",
            "base_url": os.environ["TIDEGATE_URL"],
            "api_key": os.environ["TIDEGATE_KEY"],
            "temperature": 0,
            "max_tokens": 16,
            "max_retries": 0,
            "stream_usage": True,
        }

    @property
    def model_override_value(self) -> str:
        """The engine's own name, because answers carry that one: an alias, a tier or `auto` would not come back."""
        return "smollm2"


@pytest.fixture(autouse=True)
def _expect_the_models_failures(request: pytest.FixtureRequest) -> None:
    """The suite forbids to override its tests other than by name, so the mark is added as each of them starts."""
    if request.node.originalname in NEEDS_WHOLE_JSON and os.environ.get("TIDEGATE_WHOLE_JSON") != "1":
        request.applymarker(pytest.mark.xfail(reason=MODELS_OWN))
