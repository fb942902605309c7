"""What vLLM logs of requests and answers, without their words.

Its parsers and renderers quote what they could not read (`Regex timeout occurred when matching user input: %s`), and a traceback
ends in a text that may quote it as well. An operator needs where and what kind; so of the records of the modules that see
texts, numbers stay, everything else is named by its type, and errors by where they arose.

An engine core whose step fails (out of memory, an illegal address) logs what it was working on: without prompts, but with stop
strings, grammars, schemas and forbidden words. It is a process of its own, so what is here is loaded there, too, as a plugin.
"""

from __future__ import annotations

import logging
import multiprocessing
import traceback
from collections.abc import Callable
from typing import Any

_QUOTING = (
    *(f"vllm.entrypoints.{part}" for part in ("anthropic", "cohere", "generate", "mcp", "openai", "pooling")),
    *(f"vllm.entrypoints.{part}" for part in ("scale_out", "serve", "speech_to_text")),
    *("vllm.inputs", "vllm.multimodal", "vllm.parser", "vllm.reasoning", "vllm.renderers", "vllm.tool_parsers"),
    *("vllm.v1.engine.async_llm", "vllm.v1.engine.input_processor", "vllm.v1.engine.output_processor"),
    *("vllm.logging_utils.dump_input", "vllm.v1.structured_output"),
)
_OF_A_REQUEST = "Unexpected error pre-processing request"
"""What the engine core says of an error that one request alone has; its others are of the start, or of the device."""
_SERVING = ("asyncio", "uvicorn.error")
"""Say whose error they did not expect, in their own words but for the error."""
_FRAMES = 4

RecordFactory = Callable[..., logging.LogRecord]


def keep_texts_out() -> None:
    """Have every record of this process made by `discreet`, once."""
    factory = logging.getLogRecordFactory()
    if not isinstance(factory, Discreet):
        logging.setLogRecordFactory(Discreet(factory))


def keep_texts_out_below() -> None:
    """The same in the processes that vLLM starts: it calls this in each of them. In the first one the guard does it, later, so
    that the start is told in full."""
    if multiprocessing.parent_process() is not None:
        keep_texts_out()


class Discreet:
    """Makes log records, those of the modules that see texts without them.

    Args:
        factory: makes the records otherwise.
    """

    def __init__(self, factory: RecordFactory) -> None:
        self._factory = factory

    def __call__(
        self, name: str, level: int, fn: str, lno: int, msg: Any, args: Any, exc_info: Any, *more: Any
    ) -> logging.LogRecord:
        """As `logging.LogRecord`."""
        if name.startswith(_QUOTING) or (exc_info and str(msg).startswith(_OF_A_REQUEST)):
            msg, args = _without_texts(msg, args, exc_info), ()
        elif name.startswith(_SERVING) and exc_info:
            msg, args = str(msg).split("\n", 1)[0], ()  # asyncio's second line is the task, its error's text included
        else:
            return self._factory(name, level, fn, lno, msg, args, exc_info, *more)
        if exc_info:
            msg = f"{msg.rstrip()} ({_where(exc_info)})"
        return self._factory(name, level, fn, lno, msg, args, None, *more)


def _without_texts(msg: Any, args: Any, exc_info: Any) -> str:
    if not args:
        # With an error at hand the text may have been made with it, before it came here.
        return "an error" if exc_info or not isinstance(msg, str) else msg
    try:
        return str(msg) % tuple(_shown(value) for value in args)
    except (TypeError, ValueError):
        return "a record that could not be written without its texts"


def _shown(value: Any) -> Any:
    return value if value is None or isinstance(value, int | float) else f"<{type(value).__name__}>"


def _where(exc_info: Any) -> str:
    kind, _, trace = exc_info
    frames = traceback.extract_tb(trace)[-_FRAMES:]
    where = " < ".join(f"{frame.name}:{frame.lineno}" for frame in reversed(frames))
    return f"{getattr(kind, '__name__', kind)} at {where}"
