"""What NVML says of the GPUs one engine uses. A machine without NVML or without a GPU simply has nothing to say."""

from __future__ import annotations

import importlib
from typing import Any

import msgspec

from router.placement.targets import Signals

_HELD_DOWN = 0x8 | 0x20 | 0x40 | 0x80
"""Clocks held down by the hardware, by heat (of the software's limit and of the hardware's), or by an external power brake
(`nvmlClocksEventReasons` in nvml.h). The power limit (0x4) is not among them."""
_UNCORRECTED, _SINCE_LOADED = 1, 0
"""NVML_MEMORY_ERROR_TYPE_UNCORRECTED, NVML_VOLATILE_ECC."""
_MOST_THROTTLE = 8.0


class GpuReading(msgspec.Struct, frozen=True):
    """One GPU at one moment. Fractions are 0..1, -1 means this GPU does not tell (MIG slices, some virtual GPUs)."""

    name: str
    utilisation: float = -1.0
    memory: float = -1.0
    temperature_c: float = -1.0
    uuid: str = ""
    throttle: float = 1.0
    """How many times faster its clock could run, while heat or a failing power supply holds it down; else 1."""
    power: float = -1.0
    """Share of its power limit that it draws. At the limit many run all day: that alone is no sign of trouble."""
    uncorrected: int = 0
    """Memory errors since the driver was loaded that ECC could not correct."""
    needs_reset: bool = False
    """Bad memory waits to be mapped out, or could not be."""


def read_gpus(visible: str | None, nvml: Any = None) -> tuple[GpuReading, ...]:
    """Read utilisation, memory, temperature, power, clocks that are held down, and memory errors.

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


def with_gpus(signals: Signals, readings: tuple[GpuReading, ...], faults: int = 0) -> Signals:
    """The same signals with the busiest, fullest and hottest GPU filled in: an engine is as free as its worst GPU.

    Args:
        signals: what the engine says of itself.
        readings: its GPUs.
        faults: how many of them are broken (`cluster.gpu_faults`).
    """
    if not readings:
        return signals
    return msgspec.structs.replace(
        signals,
        gpu_utilisation=max(reading.utilisation for reading in readings),
        gpu_memory=max(reading.memory for reading in readings),
        gpu_temperature_c=max(reading.temperature_c for reading in readings),
        gpu_power=max(reading.power for reading in readings),
        gpu_throttle=max(reading.throttle for reading in readings),
        gpu_faults=faults,
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
            if item and text_of(nvml.nvmlDeviceGetUUID(handle)).startswith(item):
                matches.append(handle)
        if len(matches) != 1:
            raise
        return matches[0]


def _read_one(nvml: Any, handle: Any) -> GpuReading:
    """Every value on its own: a GPU that does not know its temperature still knows its memory."""
    name = _quietly(lambda: text_of(nvml.nvmlDeviceGetName(handle)))
    rates = _quietly(lambda: nvml.nvmlDeviceGetUtilizationRates(handle))
    memory = _quietly(lambda: nvml.nvmlDeviceGetMemoryInfo(handle))
    drawn = _quietly(lambda: nvml.nvmlDeviceGetPowerUsage(handle))
    limit = _quietly(lambda: nvml.nvmlDeviceGetEnforcedPowerLimit(handle))
    uuid = _quietly(lambda: text_of(nvml.nvmlDeviceGetUUID(handle)))
    temperature = _quietly(lambda: nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU))
    return GpuReading(
        name=name or "GPU",
        utilisation=-1.0 if rates is None else rates.gpu / 100,
        memory=-1.0 if memory is None or not memory.total else memory.used / memory.total,
        temperature_c=-1.0 if temperature is None else float(temperature),
        uuid=uuid or "",
        throttle=_quietly(lambda: _throttle(nvml, handle)) or 1.0,
        power=-1.0 if not drawn or not limit else drawn / limit,
        uncorrected=_quietly(lambda: int(nvml.nvmlDeviceGetTotalEccErrors(handle, _UNCORRECTED, _SINCE_LOADED))) or 0,
        needs_reset=bool(_quietly(lambda: _needs_reset(nvml, handle))),
    )


def _throttle(nvml: Any, handle: Any) -> float:
    """The highest clock over the present one, where something other than the usual power management holds it down."""
    if not nvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle) & _HELD_DOWN:
        return 1.0
    present, highest = (
        read(handle, nvml.NVML_CLOCK_SM) for read in (nvml.nvmlDeviceGetClockInfo, nvml.nvmlDeviceGetMaxClockInfo)
    )
    return float(min(_MOST_THROTTLE, max(1.0, highest / max(1, present))))


def _needs_reset(nvml: Any, handle: Any) -> bool:
    rows = _quietly(lambda: nvml.nvmlDeviceGetRemappedRows(handle))
    if rows is not None:
        _, _, pending, failed = rows
        return bool(pending or failed)
    return bool(nvml.nvmlDeviceGetRetiredPagesPendingStatus(handle))  # before Ampere


def _quietly(call: Any) -> Any:
    try:
        return call()
    except Exception:
        return None


def text_of(value: Any) -> str:
    """What NVML gives as a text: bytes in its older versions."""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
