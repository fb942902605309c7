from types import SimpleNamespace

import pytest

from cluster.gpu import GpuReading, read_gpus, with_gpus
from cluster.gpu_faults import GpuFaults
from router.placement.targets import Signals

UUIDS = ["GPU-aaaa-1", "GPU-bbbb-2"]


class FakeNvml:
    """Two GPUs; the second one does not know its temperature or utilisation, as a MIG slice does not."""

    NVML_TEMPERATURE_GPU = 0

    def __init__(self, driver=True):
        self.driver = driver
        self.opened = 0

    def nvmlInit(self):
        if not self.driver:
            raise RuntimeError("NVML Shared Library Not Found")
        self.opened += 1

    def nvmlShutdown(self):
        self.opened -= 1

    def nvmlDeviceGetCount(self):
        return 2

    def nvmlDeviceGetHandleByIndex(self, index):
        return range(2)[index]

    def nvmlDeviceGetHandleByUUID(self, uuid):
        return UUIDS.index(uuid)

    def nvmlDeviceGetUUID(self, handle):
        return UUIDS[handle].encode()

    def nvmlDeviceGetName(self, handle):
        return f"GPU {handle}"

    def nvmlDeviceGetUtilizationRates(self, handle):
        if handle == 1:
            raise RuntimeError("Not Supported")
        return SimpleNamespace(gpu=40)

    def nvmlDeviceGetMemoryInfo(self, handle):
        return SimpleNamespace(used=(handle + 1) * 10, total=40)

    def nvmlDeviceGetTemperature(self, handle, sensor):
        if handle == 1:
            raise RuntimeError("Not Supported")
        return 55


@pytest.mark.parametrize(
    ("visible", "names"),
    [
        (None, ["GPU 0", "GPU 1"]),
        ("0,1", ["GPU 0", "GPU 1"]),
        ("1", ["GPU 1"]),
        ("GPU-bbbb-2,0", ["GPU 1", "GPU 0"]),
        ("GPU-aa", ["GPU 0"]),
        ("GPU-", []),
        ("0,-1,1", ["GPU 0"]),
        ("7", []),
        ("", []),
        (" ", []),
    ],
)
def test_it_reads_the_gpus_the_engine_sees(visible, names):
    nvml = FakeNvml()
    assert [reading.name for reading in read_gpus(visible, nvml)] == names
    assert nvml.opened == 0


def test_the_worst_gpu_counts():
    signals = with_gpus(Signals(1.0, running=4), read_gpus("0,1", FakeNvml()))
    assert signals == Signals(1.0, running=4, gpu_utilisation=0.4, gpu_memory=0.5, gpu_temperature_c=55.0)


def test_without_a_driver_or_library_there_is_nothing_to_say():
    assert read_gpus(None, FakeNvml(driver=False)) == ()
    assert read_gpus(None, object()) == ()
    assert with_gpus(Signals(1.0), ()) == Signals(1.0)


class ShakyNvml(FakeNvml):
    """GPU 0 is held down by heat; what else befalls the GPUs is set by the test."""

    NVML_CLOCK_SM = 1

    def __init__(self):
        super().__init__()
        self.reasons = 0x20
        self.errors = [3, 0]
        self.rows = (0, 0, 0, 0)
        self.xids = []
        self.registered = []

    def nvmlDeviceGetCurrentClocksThrottleReasons(self, handle):
        return self.reasons if handle == 0 else 0x4

    def nvmlDeviceGetClockInfo(self, handle, _kind):
        return 660

    def nvmlDeviceGetMaxClockInfo(self, handle, _kind):
        return 1980

    def nvmlDeviceGetPowerUsage(self, handle):
        return 350_000

    def nvmlDeviceGetEnforcedPowerLimit(self, handle):
        return 700_000

    def nvmlDeviceGetTotalEccErrors(self, handle, kind, counter):
        assert (kind, counter) == (1, 0)
        return self.errors[handle]

    def nvmlDeviceGetRemappedRows(self, handle):
        return self.rows

    def nvmlEventSetCreate(self):
        return "set"

    def nvmlDeviceRegisterEvents(self, handle, kind, events):
        self.registered.append((handle, kind, events))

    def nvmlEventSetWait_v2(self, events, milliseconds):
        assert (events, milliseconds) == ("set", 0)
        if not self.xids:
            raise RuntimeError("Timeout")
        handle, xid = self.xids.pop(0)
        return SimpleNamespace(device=handle, eventData=xid)


def test_a_clock_that_heat_holds_down_is_told_and_the_power_limit_is_not_taken_for_that():
    hot, capped = read_gpus(None, ShakyNvml())
    assert (hot.throttle, capped.throttle, hot.power) == (3.0, 1.0, 0.5)
    assert with_gpus(Signals(1.0), (hot, capped)).gpu_throttle == 3.0
    # A GPU that tells none of this is taken for a sound one.
    assert {(reading.throttle, reading.uncorrected, reading.needs_reset) for reading in read_gpus(None, FakeNvml())} == {
        (1.0, 0, False)
    }


def test_a_gpu_is_broken_by_new_memory_errors_bad_rows_or_a_critical_xid_and_stays_so():
    nvml = ShakyNvml()
    faults = GpuFaults(nvml)

    def count():
        return faults.count(read_gpus(None, nvml))

    assert count() == 0, "errors from before the engine started are the driver's history"
    assert nvml.registered == [(0, 8, "set"), (1, 8, "set")] or nvml.registered == [(1, 8, "set"), (0, 8, "set")]
    nvml.xids = [(0, 31), (1, 43)]
    assert count() == 0, "a program's own faults"
    nvml.xids = [(1, 79)]
    assert count() == 1
    nvml.errors[0] = 4
    assert count() == 2
    assert count() == 2
    fresh = GpuFaults(nvml)
    assert fresh.count(read_gpus(None, nvml)) == 0, "another engine process begins anew"
    nvml.rows = (0, 1, 1, 0)
    assert fresh.count(read_gpus("0", nvml)) == 1
    nvml.rows = (0, 0, 0, 0)
    assert fresh.count(read_gpus("0", nvml)) == 0


def test_a_gpu_that_tells_of_no_events_does_not_cost_a_new_set_of_them_with_every_reading():
    class Deaf(ShakyNvml):
        sets = 0

        def nvmlEventSetCreate(self):
            self.sets += 1
            return "set"

        def nvmlDeviceRegisterEvents(self, handle, kind, events):
            if handle == 0:
                raise RuntimeError("Not Supported")
            super().nvmlDeviceRegisterEvents(handle, kind, events)

    nvml = Deaf()
    faults = GpuFaults(nvml)
    for _ in range(3):
        assert faults.count(read_gpus(None, nvml)) == 0
    assert (nvml.sets, nvml.registered) == (1, [(1, 8, "set")])
    nvml.xids = [(1, 79)]
    assert faults.count(read_gpus(None, nvml)) == 1, "the other GPU is still listened to"


def test_no_events_are_no_faults():
    assert GpuFaults(object()).count((GpuReading("GPU", uuid="GPU-x"),)) == 0
    assert GpuFaults(FakeNvml(driver=False)).count(()) == 0
