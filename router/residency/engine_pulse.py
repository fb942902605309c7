"""Whether vLLM's engine core still turns, asked from inside its HTTP server.

`/health` answers 200 while the core hangs (a collective that waits for ever, a stuck CUDA call): it reads a flag that only the
core's death sets (vllm-project/vllm#36451). A call that goes through the core's own loop tells.
"""

from __future__ import annotations

from typing import Any

PULSE_PATH = "/tidegate/pulse"
ANSWERS, DEAD, CANNOT_TELL = 204, 503, 501
"""Status codes: the loop has answered, the core says that it is dead, this server has no such call."""


async def feel_pulse(app: Any) -> int:
    """Ask the core behind vLLM's application for the least it can say, between two of its steps.

    Args:
        app: vLLM's application, with its engine client in `state`.

    Returns:
        One of the status codes above. It does not return while the core hangs: who asks sets the time limit.
    """
    client = getattr(getattr(app, "state", None), "engine_client", None)
    ask = getattr(client, "is_sleeping", None)
    if ask is None:
        return CANNOT_TELL
    try:
        await ask()
    except NotImplementedError:
        return CANNOT_TELL
    except Exception:
        return DEAD
    return ANSWERS
