"""What vLLM logs of a request in its own process has nobody's words in it, and still says where and what kind."""

from __future__ import annotations

import asyncio
import gc
import logging
import sys
import types
from collections.abc import Iterator

import pytest

from router.residency.engine_guard import EngineGuard
from router.residency.engine_log import keep_texts_out
from router.residency.guard import ENV_INCARNATION, ENV_KEY, ENV_PLACE

SECRET = "Maria has diabetes"


@pytest.fixture
def discreet() -> Iterator[None]:
    before = logging.getLogRecordFactory()
    keep_texts_out()
    keep_texts_out()
    yield
    logging.setLogRecordFactory(before)


def fail() -> None:
    raise ValueError(SECRET)


def say(log: logging.Logger) -> None:
    log.warning("Regex timeout occurred when matching user input: %s", SECRET)
    log.warning("Skipping part '%s' (type: '%s') %d.", {SECRET: SECRET}, "text", 7)
    log.warning("%(text)s", {"text": SECRET})
    log.warning({"text": SECRET})
    try:
        fail()
    except ValueError as error:
        log.exception("Error in create_messages: %s", error)
        log.exception(f"Error in streaming tool calls: {error}")
        log.error("Unexpected", exc_info=error)


@pytest.mark.parametrize(
    "name",
    [
        "vllm.tool_parsers.llama_tool_parser",
        "vllm.renderers.chat_utils",
        "vllm.entrypoints.anthropic.api_router",
        "vllm.reasoning.x",
        "vllm.v1.engine.async_llm",
        "vllm.logging_utils.dump_input",
        "vllm.v1.structured_output.backend_xgrammar",
    ],
)
def test_modules_that_see_texts_quote_none(discreet, caplog, name):
    log = logging.getLogger(name)
    say(log)
    log.warning("%s and %d", SECRET, SECRET)
    assert len(caplog.records) == 8 and "Maria" not in caplog.text
    assert "Skipping part '<dict>' (type: '<str>') 7." in caplog.text
    assert caplog.text.count("(ValueError at fail:") == 3


def test_whose_error_nobody_expected_is_named_without_its_text(discreet, caplog):
    try:
        fail()
    except ValueError as error:
        logging.getLogger("uvicorn.error").error("Exception in ASGI application\n", exc_info=error)
    loop = asyncio.new_event_loop()

    async def forget() -> None:
        task = loop.create_task(later())
        await asyncio.sleep(0)
        assert task.done()

    async def later() -> None:
        fail()

    loop.run_until_complete(forget())
    gc.collect()
    loop.close()
    assert "Maria" not in caplog.text and "Exception in ASGI application (ValueError at fail:" in caplog.text
    assert "Task exception was never retrieved (ValueError at fail:" in caplog.text


def test_an_engine_core_quotes_no_request_and_says_why_it_does_not_start(discreet, caplog):
    core = logging.getLogger("vllm.v1.engine.core")
    try:
        fail()
    except ValueError:
        core.exception("Unexpected error pre-processing request %s", "req-1")
        assert "Maria" not in caplog.text and "(ValueError at fail:" in caplog.text
        core.exception("EngineCore failed to start.")
    assert f"ValueError: {SECRET}" in caplog.text


def test_everybody_else_writes_as_before(discreet, caplog):
    say(logging.getLogger("vllm.engine.arg_utils"))
    logging.getLogger("vllm.renderers.base").warning("no arguments, 100 %")
    assert caplog.text.count("Maria") > 8 and "no arguments, 100 %" in caplog.text


def test_the_guard_sees_to_it_in_vllms_process_and_nowhere_else(monkeypatch):
    for name, value in ((ENV_KEY, "aa" * 32), (ENV_INCARNATION, "i"), (ENV_PLACE, "eu/eu/")):
        monkeypatch.setenv(name, value)
    before = logging.getLogRecordFactory()
    try:
        EngineGuard(None)  # type: ignore[arg-type]
        assert logging.getLogRecordFactory() is before
        monkeypatch.setitem(sys.modules, "vllm", types.ModuleType("vllm"))
        EngineGuard(None)  # type: ignore[arg-type]
        assert logging.getLogRecordFactory() is not before
    finally:
        logging.setLogRecordFactory(before)
