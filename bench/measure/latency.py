"""Timing one call, over and over."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

# The warm-up is over when so many stretches in a row were no faster than the best before, to within a share.
STRETCH_SECONDS = 0.05
STRETCH_CALLS = 5  # or as many as take LONG_SECONDS
LONG_SECONDS = 1.0
PATIENCE = 4
FASTER = 0.01
LIMIT_SECONDS = 20.0


@dataclass(frozen=True)
class Latency:
    """Quantiles of wall-clock time, in milliseconds."""

    p50_ms: float
    p90_ms: float
    p99_ms: float
    p999_ms: float
    mean_ms: float
    samples: int

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Latency:
        """The quantiles of samples in seconds, from one or several rounds."""
        p50, p90, p99, p999 = (float(value) * 1e3 for value in np.quantile(seconds, (0.5, 0.9, 0.99, 0.999)))
        return cls(p50, p90, p99, p999, float(np.mean(seconds)) * 1e3, len(seconds))


@dataclass(frozen=True)
class WarmUp:
    """The calls and seconds until a call was as fast as it gets."""

    calls: int
    seconds: float
    converged: bool
    """False where the calls were still getting faster when the time was up."""
    call_seconds: float
    """Seconds that one call takes: the median of the fastest stretch."""


def warm_up(call: Callable[[], object], *, limit: float = LIMIT_SECONDS) -> WarmUp:
    """Call until it gets no faster: caches, thread pools, memory arenas and clocks have then settled.

    Args:
        call: what will be timed.
        limit: seconds after which it is enough.
    """
    start = time.perf_counter()
    best, fastest, calls, idle = math.inf, math.inf, 0, 0
    while True:
        stretch = sample(call, 1)
        while sum(stretch) < (STRETCH_SECONDS if len(stretch) >= STRETCH_CALLS else LONG_SECONDS):
            stretch += sample(call, 1)
        calls += len(stretch)
        median = float(np.median(stretch))
        fastest = min(fastest, median)
        idle += 1
        if median < best * (1 - FASTER):  # small steps add up: they are held against the last that counted
            best, idle = median, 0
        seconds = time.perf_counter() - start
        if idle == PATIENCE or seconds >= limit:
            return WarmUp(calls, seconds, idle == PATIENCE, fastest)


def sample(call: Callable[[], object], count: int) -> list[float]:
    """Wall-clock seconds of `count` calls, one after the other."""
    seconds = []
    for _ in range(count):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return seconds
