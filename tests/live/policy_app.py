"""tidegate's own application, with a small guarded server in vLLM's place: the rest is what Ray Serve runs for everybody."""

import functools
import sys
from pathlib import Path

import deployments.engine as engine
from deployments.app import build as build_tidegate
from deployments.engine import EngineReplica
from deployments.vllm_process import VllmProcess

SERVER = Path(__file__).with_name("guarded_server.py")


class SmallEngine(EngineReplica):
    """An engine that starts in a second."""

    async def __init__(self, settings):
        engine.VllmProcess = functools.partial(VllmProcess, argv=[sys.executable, str(SERVER), "{port}"])
        engine.ray.util.get_node_ip_address = lambda: "127.0.0.1"
        await super().__init__(settings)


def build(args):
    """As `deployments.app:build`."""
    engine.EngineReplica = SmallEngine
    return build_tidegate(args)
