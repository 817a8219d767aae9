"""Timing one call, over and over."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

WARM_UP_CALLS = 10
WARM_UP_SECONDS = 0.3


@dataclass(frozen=True)
class Latency:
    """Quantiles of wall-clock time, in milliseconds."""

    p50_ms: float
    p90_ms: float
    p99_ms: float
    mean_ms: float
    samples: int

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Latency:
        """From the samples of one or several rounds."""
        p50, p90, p99 = (float(value) * 1e3 for value in np.quantile(seconds, (0.5, 0.9, 0.99)))
        return cls(p50, p90, p99, float(np.mean(seconds)) * 1e3, len(seconds))


def warm_up(call: Callable[[], object]) -> None:
    """Call until caches, thread pools and memory arenas have settled."""
    start = time.perf_counter()
    for _ in range(WARM_UP_CALLS):
        call()
    while time.perf_counter() - start < WARM_UP_SECONDS:
        call()


def sample(call: Callable[[], object], count: int) -> list[float]:
    """Wall-clock seconds of `count` calls, one after the other."""
    seconds = []
    for _ in range(count):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return seconds
