"""A parent to be killed: starts one fake (or real) server through `VllmProcess`, prints its pid, log and port, and waits."""

import asyncio
import json
import sys

from deployments.vllm_process import EnginePlan, VllmProcess
from router.config import Model
from router.residency.guard import Place


async def main() -> None:
    options = json.loads(sys.argv[1])
    place = Place(("local",), ("local",))
    plan = EnginePlan(Model(**options["model"]), "127.0.0.1", "parent-1", b"k" * 32, place)
    process = VllmProcess(plan, options.get("argv"))
    await process.start()
    print(process.pid, process.log_path, process.port, flush=True)
    await asyncio.sleep(3600)


asyncio.run(main())
