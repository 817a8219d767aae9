"""Timing an engine, with a driver whose clock goes on by a millisecond with every mark, and sensors of our own."""

import sys
import types

import fake_driver
import numpy as np
import pytest

from mega_deploy.bench.contenders.gpu import Sensors, Timer
from mega_deploy.bench.report.rows import throttling
from mega_deploy.runtime.tensorrt.cuda import Device


class NoSensor(Exception):
    pass


@pytest.fixture
def nvml(monkeypatch):
    def absent(*_):
        raise NoSensor

    module = types.SimpleNamespace(
        NVMLError=NoSensor,
        NVML_CLOCK_SM=1,
        NVML_CLOCK_MEM=2,
        NVML_TEMPERATURE_GPU=0,
        nvmlInit=lambda: None,
        nvmlDeviceGetHandleByPciBusId=lambda bus: bus,
        nvmlSystemGetDriverVersion=lambda: "580.1",
        nvmlDeviceGetPersistenceMode=lambda gpu: 0,
        nvmlDeviceGetEnforcedPowerLimit=lambda gpu: 350_000,
        nvmlDeviceGetMaxClockInfo=lambda gpu, kind: 2000 + kind,
        nvmlDeviceGetClockInfo=lambda gpu, kind: 1000 + kind,
        nvmlDeviceGetPowerUsage=lambda gpu: 123_400,
        nvmlDeviceGetTemperature=lambda gpu, kind: 61,
        nvmlDeviceGetCurrentClocksEventReasons=absent,
    )
    monkeypatch.setitem(sys.modules, "pynvml", module)
    return module


@pytest.fixture(scope="module")
def device():
    fake_driver.install()
    return Device()


class Execution:
    """What Timer calls of an engine, written down."""

    def __init__(self, device):
        self.device, self.done = device, []

    def upload(self, feeds):
        self.done.append(("upload", *feeds))

    def enqueue(self):
        self.done.append("enqueue")

    def download(self):
        self.done.append("download")
        return {"features": np.zeros(1)}


def test_copies_and_computing_are_told_apart(device):
    execution = Execution(device)
    timer = Timer(execution, {"frames": np.zeros(1)})
    seconds, steps = timer.measure(3)
    assert len(seconds) == 3 and min(seconds) > 0
    assert steps == {"copy_in": 1.0, "compute": 1.0, "copy_out": 1.0}
    assert execution.done == [("upload", "frames"), "enqueue", "download"] * 3


def test_sensors_tell_what_the_gpu_has(nvml, device):
    sensors = Sensors(device.bus())
    assert sensors.set_up() == {
        "driver": "580.1",
        "persistence": 0,
        "power_limit_w": 350.0,
        "most_sm_mhz": 2001,
        "most_memory_mhz": 2002,
    }
    assert sensors.read() == {
        "sm_mhz": 1001,
        "memory_mhz": 1002,
        "power_w": 123.4,
        "celsius": 61,
        "throttled_by": None,
    }


@pytest.mark.parametrize(("reasons", "labels"), [((0, 1, None), 0), ((0x20, 1, 0x4), 1)])
def test_a_gpu_that_throttles_is_labelled(reasons, labels):
    found = throttling([{"sensors": {"throttled_by": reason}} for reason in reasons])
    assert len(found) == labels and all("2 of 3 rounds" in label for label in found)
