"""What TensorRT and TensorRT-RTX know, and the objects through which they speak while they build."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import ModuleType
from typing import Any

from mega_deploy.runtime.tensorrt.library import first, make_logger

OnStep = Callable[[str], None]
CAPABILITY_PREFIX = "SM"


def capabilities(trt: ModuleType) -> dict[str, Any]:
    """The compute capabilities that TensorRT-RTX builds for, lowest first: its constants by names such as "8.9"."""
    named = {
        name.removeprefix(CAPABILITY_PREFIX): value
        for name, value in trt.ComputeCapability.__members__.items()
        if name.startswith(CAPABILITY_PREFIX)
    }
    return {f"{digits[:-1]}.{digits[-1]}": named[digits] for digits in sorted(named, key=int)}


class Listener:
    """What a library says while it works: errors are kept, the rest goes to the log "mega_deploy.tensorrt".

    Args:
        trt: the library.
        on_step: called with what it is doing.
    """

    def __init__(self, trt: ModuleType, on_step: OnStep) -> None:
        self.errors: list[str] = []
        self.cancelled = threading.Event()
        """Set it, and the library gives up at its next step."""
        self.logger = make_logger(trt, self.errors)
        self.monitor = _monitor(trt, on_step, self.cancelled)

    def reason(self) -> str:
        """The first error, in one line."""
        return first(self.errors)


def _monitor(trt: ModuleType, on_step: OnStep, cancelled: threading.Event) -> Any:
    class Monitor(trt.IProgressMonitor):  # type: ignore[misc, name-defined]
        """Tells the innermost phase; phases nest."""

        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.steps: dict[str, int] = {}

        def phase_start(self, name: str, parent: str | None, steps: int) -> None:
            self.steps[name] = steps
            on_step(f"build the engine: {name}")

        def step_complete(self, name: str, step: int) -> bool:
            on_step(f"build the engine: {name}, {step + 1} of {self.steps[name]}")
            return not cancelled.is_set()

        def phase_finish(self, name: str) -> None:
            del self.steps[name]

    return Monitor()


def interruptible(work: Callable[[], Any], cancelled: threading.Event) -> Any:
    """Do the work in another thread, so that a signal reaches this one; the work then gives up at its next step."""
    with ThreadPoolExecutor(1) as pool:
        result = pool.submit(work)
        try:
            return result.result()
        except BaseException:
            cancelled.set()
            raise
