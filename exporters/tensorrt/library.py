"""TensorRT or TensorRT-RTX as a Python module, and the objects through which it speaks while it builds."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import ModuleType
from typing import Any

from mega_deploy.engines import Target
from mega_deploy.errors import require

OnStep = Callable[[str], None]
LOGGER = logging.getLogger("mega_deploy.tensorrt")
CAPABILITY_PREFIX = "SM"


def load(target: Target) -> ModuleType:
    """Import the library of a target.

    Raises:
        MissingComponentError: it is not installed; the message has the command that installs it.
    """
    return require(target.module, target.extra, f"building a {target.title} engine")


def capabilities(trt: ModuleType) -> dict[str, Any]:
    """The compute capabilities that TensorRT-RTX builds for, such as "8.9", lowest first, as its interface calls them."""
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
        self.logger = _logger(trt, self.errors)
        self.monitor = _monitor(trt, on_step, self.cancelled)

    def reason(self) -> str:
        """The first error, in one line; the following ones are of layers above."""
        return " ".join(self.errors[0].split())[:400] if self.errors else "it gives no reason"


def _logger(trt: ModuleType, errors: list[str]) -> Any:
    severity = trt.ILogger.Severity
    levels = {severity.WARNING: logging.INFO, severity.INFO: logging.DEBUG, severity.VERBOSE: logging.DEBUG}

    class Logger(trt.ILogger):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, level: Any, message: str) -> None:
            if level not in levels:
                errors.append(message)
            LOGGER.log(levels.get(level, logging.INFO), "%s", message)

    return Logger()


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
