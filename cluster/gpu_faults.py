"""Which GPUs of an engine are broken: memory errors that came while it ran, memory that waits for a reset, critical XIDs.

NVML counts memory errors since the driver was loaded and tells of an XID once, so this remembers, for one engine process.
"""

from __future__ import annotations

import importlib
from contextlib import suppress
from typing import Any

from cluster.gpu import GpuReading, text_of

_XID_EVENT = 0x8
"""nvmlEventTypeXidCriticalError."""
_MOST_EVENTS = 64
_NO_HARDWARE = frozenset({13, 31, 43, 45, 68, 109})
"""XIDs that a program causes, not a GPU (as NVIDIA's device plugin for Kubernetes has them)."""


class GpuFaults:
    """Watches the GPUs of one engine.

    Args:
        nvml: the `pynvml` module, or a stand-in for it; imported when None. Without it only what readings say counts.
    """

    def __init__(self, nvml: Any = None) -> None:
        self._nvml = nvml
        self._events: Any = None
        self._watched: set[str] = set()
        self._errors_before: dict[str, int] = {}
        self._broken: set[str] = set()

    def count(self, readings: tuple[GpuReading, ...]) -> int:
        """How many GPUs are broken, by these readings and what came before; it never raises.

        A GPU that had uncorrected errors stays broken as long as its engine runs: its answers may be wrong.
        """
        for reading in readings:
            before = self._errors_before.setdefault(reading.uuid, reading.uncorrected)
            if reading.uncorrected > before:
                self._broken.add(reading.uuid)
        try:
            self._take_xids({reading.uuid for reading in readings if reading.uuid})
        except Exception:  # no library, no driver, no permission: then there are no events
            self._events = None
        return sum(reading.needs_reset or reading.uuid in self._broken for reading in readings)

    def _take_xids(self, uuids: set[str]) -> None:
        nvml = self._nvml
        if nvml is None:
            nvml = self._nvml = importlib.import_module("pynvml")
        if self._events is None:
            nvml.nvmlInit()
            self._events, self._watched = nvml.nvmlEventSetCreate(), set()
        for uuid in uuids - self._watched:
            self._watched.add(uuid)
            with suppress(Exception):  # this one tells of no events; the others shall, and from the same set
                nvml.nvmlDeviceRegisterEvents(nvml.nvmlDeviceGetHandleByUUID(uuid), _XID_EVENT, self._events)
        for _ in range(_MOST_EVENTS):
            try:
                event = nvml.nvmlEventSetWait_v2(self._events, 0)
            except Exception:  # NVMLError_Timeout: nothing has happened
                return
            if int(event.eventData) not in _NO_HARDWARE:
                self._broken.add(text_of(nvml.nvmlDeviceGetUUID(event.device)))
