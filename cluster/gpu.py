"""What NVML says of the GPUs one engine uses. A machine without NVML or without a GPU simply has nothing to say."""

from __future__ import annotations

import importlib
from typing import Any

import msgspec

from router.placement.targets import Signals


class GpuReading(msgspec.Struct, frozen=True):
    """One GPU at one moment. Fractions are 0..1, -1 means this GPU does not tell (MIG slices, some virtual GPUs)."""

    name: str
    utilisation: float = -1.0
    memory: float = -1.0
    memory_total_bytes: int = 0
    temperature_c: float = -1.0


def read_gpus(visible: str | None, nvml: Any = None) -> tuple[GpuReading, ...]:
    """Read utilisation, memory and temperature.

    Args:
        visible: `CUDA_VISIBLE_DEVICES` as the engine sees it: indices or UUIDs, separated by commas. None means every
            GPU of the machine, an empty string none.
        nvml: the `pynvml` module, or a stand-in for it; imported when None.

    Returns:
        One reading per GPU that could be read, in the order of `visible`. Empty without NVML, driver or GPU: it never
        raises.
    """
    if visible is not None and not visible.strip():
        return ()
    try:
        library = nvml if nvml is not None else importlib.import_module("pynvml")
        library.nvmlInit()
    except Exception:  # no module, no driver, no permission: all mean the same here
        return ()
    try:
        return tuple(_read_one(library, handle) for handle in _handles(library, visible))
    except Exception:
        return ()
    finally:
        _quietly(library.nvmlShutdown)


def with_gpus(signals: Signals, readings: tuple[GpuReading, ...]) -> Signals:
    """The same signals with the busiest, fullest and hottest GPU filled in: an engine is as free as its worst GPU."""
    if not readings:
        return signals
    return msgspec.structs.replace(
        signals,
        gpu_utilisation=max(reading.utilisation for reading in readings),
        gpu_memory=max(reading.memory for reading in readings),
        gpu_temperature_c=max(reading.temperature_c for reading in readings),
    )


def _handles(nvml: Any, visible: str | None) -> list[Any]:
    if visible is None:
        return [nvml.nvmlDeviceGetHandleByIndex(i) for i in range(nvml.nvmlDeviceGetCount())]
    handles = []
    for item in (part.strip() for part in visible.split(",")):
        # CUDA stops at the first entry it cannot use (such as -1), and so does this.
        try:
            if item.isdigit():
                handles.append(nvml.nvmlDeviceGetHandleByIndex(int(item)))
            else:
                handles.append(_handle_by_uuid(nvml, item))
        except Exception:
            break
    return handles


def _handle_by_uuid(nvml: Any, item: str) -> Any:
    """By UUID; CUDA also accepts an unambiguous beginning of one."""
    try:
        return nvml.nvmlDeviceGetHandleByUUID(item)
    except Exception:
        matches = []
        for i in range(nvml.nvmlDeviceGetCount()):
            handle = nvml.nvmlDeviceGetHandleByIndex(i)
            if item and _text(nvml.nvmlDeviceGetUUID(handle)).startswith(item):
                matches.append(handle)
        if len(matches) != 1:
            raise
        return matches[0]


def _read_one(nvml: Any, handle: Any) -> GpuReading:
    """Every value on its own: a GPU that does not know its temperature still knows its memory."""
    name = _quietly(lambda: _text(nvml.nvmlDeviceGetName(handle)))
    rates = _quietly(lambda: nvml.nvmlDeviceGetUtilizationRates(handle))
    memory = _quietly(lambda: nvml.nvmlDeviceGetMemoryInfo(handle))
    temperature = _quietly(lambda: nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU))
    return GpuReading(
        name=name or "GPU",
        utilisation=-1.0 if rates is None else rates.gpu / 100,
        memory=-1.0 if memory is None or not memory.total else memory.used / memory.total,
        memory_total_bytes=0 if memory is None else int(memory.total),
        temperature_c=-1.0 if temperature is None else float(temperature),
    )


def _quietly(call: Any) -> Any:
    try:
        return call()
    except Exception:
        return None


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
