"""Prints what Serve says of its applications, one line of JSON about every second: `python -m deployments.watch`.

The command line starts it while it waits for a deployment. It connects to the Ray at `RAY_ADDRESS` and ends with its
parent.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any

import ray
from ray import serve


def snapshot() -> dict[str, Any]:
    """Application name -> status, message, and the same of its deployments with their replicas' states."""
    return {
        name: {
            "status": application.status.value,
            "message": application.message,
            "deployments": {
                deployment: {
                    "status": state.status.value,
                    "message": state.message,
                    "replicas": {str(kind): count for kind, count in state.replica_states.items()},
                }
                for deployment, state in application.deployments.items()
            },
        }
        for name, application in serve.status().applications.items()
    }


def main() -> None:
    """Print snapshots until the parent is gone."""
    parent = os.getppid()
    ray.init(namespace="serve", log_to_driver=False, logging_level="error")
    while os.getppid() == parent:
        line = json.dumps(snapshot())
        sys.stdout.write(line + "\n")
        sys.stdout.flush()
        time.sleep(1)


if __name__ == "__main__":
    main()
