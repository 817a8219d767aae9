"""Timing an engine on a GPU: the clock on the wall around a synchronised call, and events around each of its steps.

The wall's time is what a caller waits, copies in and out included, from and to ordinary memory of the host; the events
tell copies and computing apart, by the GPU's own clock. After every turn the sensors are read: a GPU that throttles, or
whose clocks were left to the driver, shows in them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from mega_deploy.arrays import Array
from mega_deploy.bench.contenders.task import Task
from mega_deploy.bench.measure.contender import Contender
from mega_deploy.errors import require
from mega_deploy.machine.gpu import look
from mega_deploy.runtime import EngineSession, OpenBundle
from mega_deploy.runtime.tensorrt.execution import Execution

STEPS = ("copy_in", "compute", "copy_out")
# The first launch is plain, the second one captured, and the third the first that replays it.
LAUNCHES_UNTIL_REPLAY = 3


def engine_contender(bundle: OpenBundle, task: Task, feeds: Mapping[str, Array]) -> Contender:
    """A bundle's engine, with its launches recorded as a CUDA graph where the task says so.

    Raises:
        BundleError, MissingComponentError: as OpenBundle.session.
    """
    session = bundle.session(task.backend)
    assert isinstance(session, EngineSession)
    execution, inputs = session.execution, session.signature.feeds(feeds)
    execution.launch.cuda_graphs = task.cuda_graph
    for _ in range(LAUNCHES_UNTIL_REPLAY):
        session.run_named(inputs)  # shapes are set, lazy kernels loaded, and a graph captured before anything is timed
    timer = Timer(execution, inputs)
    sensors = Sensors(execution.device.bus())
    details = {"gpu": {**vars(look().gpus[0]), **sensors.set_up()}, "cuda_graph": task.cuda_graph}
    kind = "a CUDA graph" if task.cuda_graph else "launched anew each time"

    def measure(count: int) -> tuple[list[float], dict[str, Any]]:
        seconds, steps = timer.measure(count)
        return seconds, {"device_ms": steps, "sensors": sensors.read()}

    return Contender(timer.call, f"{session.providers[0]}, {kind}, ordinary host memory", measure, details)


class Timer:
    """Times the steps of an engine's call.

    Args:
        execution: of an engine.
        inputs: checked, by name.
    """

    def __init__(self, execution: Execution, inputs: Mapping[str, Array]) -> None:
        self._execution, self._inputs = execution, inputs
        self._marks = [execution.device.event() for _ in range(len(STEPS) + 1)]

    def call(self) -> dict[str, Array]:
        """One call, with a mark before, between and behind its steps; what it gives is there."""
        execution, device = self._execution, self._execution.device
        device.mark(self._marks[0])
        execution.upload(self._inputs)
        device.mark(self._marks[1])
        execution.enqueue()
        device.mark(self._marks[2])
        outputs = execution.download()
        device.mark(self._marks[3])
        device.wait()
        return outputs

    def measure(self, count: int) -> tuple[list[float], dict[str, float]]:
        """Seconds on the wall of each call, and the median of each step in milliseconds on the GPU."""
        seconds, steps = [], []
        for _ in range(count):
            start = time.perf_counter()
            self.call()
            seconds.append(time.perf_counter() - start)
            pairs = zip(self._marks, self._marks[1:], strict=False)
            steps.append([self._execution.device.milliseconds(*pair) for pair in pairs])
        return seconds, dict(zip(STEPS, map(float, np.median(steps, axis=0)), strict=True))


class Sensors:
    """The sensors of one GPU, by NVML.

    Args:
        bus: its place on the PCI bus.

    Raises:
        MissingComponentError: nvidia-ml-py is not installed.
    """

    def __init__(self, bus: str) -> None:
        self._nvml = require("pynvml", "bench", "timing a GPU")
        self._nvml.nvmlInit()
        self._gpu = self._nvml.nvmlDeviceGetHandleByPciBusId(bus)

    def set_up(self) -> dict[str, Any]:
        """The driver, and how the GPU is set: the same in runs that compare."""
        nvml, gpu = self._nvml, self._gpu
        return {
            "driver": nvml.nvmlSystemGetDriverVersion(),
            "persistence": self._known(nvml.nvmlDeviceGetPersistenceMode, gpu),
            "power_limit_w": self._watts(nvml.nvmlDeviceGetEnforcedPowerLimit),
            "most_sm_mhz": self._known(nvml.nvmlDeviceGetMaxClockInfo, gpu, nvml.NVML_CLOCK_SM),
            "most_memory_mhz": self._known(nvml.nvmlDeviceGetMaxClockInfo, gpu, nvml.NVML_CLOCK_MEM),
        }

    def read(self) -> dict[str, Any]:
        """Clocks, power, temperature and throttling as they are now; None for what this GPU does not say."""
        nvml, gpu = self._nvml, self._gpu
        return {
            "sm_mhz": self._known(nvml.nvmlDeviceGetClockInfo, gpu, nvml.NVML_CLOCK_SM),
            "memory_mhz": self._known(nvml.nvmlDeviceGetClockInfo, gpu, nvml.NVML_CLOCK_MEM),
            "power_w": self._watts(nvml.nvmlDeviceGetPowerUsage),
            "celsius": self._known(nvml.nvmlDeviceGetTemperature, gpu, nvml.NVML_TEMPERATURE_GPU),
            "throttled_by": self._known(nvml.nvmlDeviceGetCurrentClocksEventReasons, gpu),
        }

    def _watts(self, function: Callable[..., Any]) -> float | None:
        milliwatts = self._known(function, self._gpu)
        return None if milliwatts is None else milliwatts / 1e3

    def _known(self, function: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return function(*arguments)
        except self._nvml.NVMLError:  # not every GPU has every sensor
            return None
