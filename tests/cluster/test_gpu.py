from types import SimpleNamespace

import pytest

from cluster.gpu import read_gpus, with_gpus
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
