"""What is counted and measured: outputs held against what is expected, memory, descriptors, threads."""

from __future__ import annotations

import contextlib
import os
import resource
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

TOLERANCE = 1e-4
"""Largest difference, as a share of the largest value of a row: batches and prefills round otherwise than steps."""
WARM_UP = 0.2
"""The share of the time whose samples are not held against the others; at most WARM_UP_SECONDS."""
WARM_UP_SECONDS = 300.0
GROWTH_MB, GROWTH_SHARE = 24.0, 0.05
"""Resident memory may be so much larger in the last quarter than in the first one behind the warm-up."""
LOOSE = 6
"""So many descriptors and threads come and go from one sample to the next."""


class Measures:
    """Counts of all threads, and samples of the process.

    Args:
        seconds: how long it all takes.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds, self.began = seconds, time.monotonic()
        self.counts: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.worst, self.outputs, self.equal = 0.0, 0, 0
        self.samples: list[tuple[float, float, int, int]] = []
        self._lock, self._said, self._limited = threading.Lock(), 0, False

    @property
    def elapsed(self) -> float:
        """Seconds since the beginning."""
        return time.monotonic() - self.began

    @property
    def over(self) -> bool:
        """Whether the time is over."""
        return self.elapsed >= self.seconds

    def count(self, what: str, times: int = 1) -> None:
        """Count something that happened."""
        with self._lock:
            self.counts[what] += times

    def fault(self, what: str) -> None:
        """Note something that must not happen."""
        with self._lock:
            self.counts["WRONG"] += 1
            if len(self.wrong) < 20:
                self.wrong.append(what)
        print(f"WRONG: {what}", file=sys.stderr, flush=True)

    def check(self, got: Any, want: Any, where: str) -> bool:
        """Hold outputs, [rows, ...], against those that are expected; whether they are right."""
        largest = np.abs(want).max(axis=-1)
        error = float((np.abs(got - want).max(axis=-1) / largest).max()) if got.shape == want.shape else np.inf
        with self._lock:
            self.outputs += len(want)
            self.equal += int((got == want).all(axis=-1).sum()) if got.shape == want.shape else 0
        if not error <= TOLERANCE:
            self.fault(f"{where}: off by {error:.3g}")
            return False
        with self._lock:
            self.worst = max(self.worst, error)
        return True

    @contextlib.contextmanager
    def watched(self, what: str) -> Iterator[None]:
        """Count a turn, and note what it raises."""
        try:
            yield
            self.count(what)
        except Exception as error:
            self.fault(f"{what}: {error!r:.200} {traceback.format_exc().splitlines()[-3:-1]}")

    def sample(self, room: int) -> None:
        """Measure the process once a second, say so once a minute, and limit its memory behind the warm-up."""
        now = self.elapsed
        if self.samples and now - self.samples[-1][0] < 1:
            return
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        resident = pages * resource.getpagesize() / 1e6
        sample = now, resident, len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task"))  # noqa: PTH208
        self.samples.append(sample)
        if now > self.warm_up and not self._limited:
            self._limited = True
            size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (size + room, resource.RLIM_INFINITY))
        if now // 60 > self._said:
            self._said = int(now // 60)
            print(
                f"{now:6.0f} s: {self.outputs} outputs, {self.counts['WRONG']} wrong, {resident:.0f} MB, "
                f"{sample[2]} descriptors, {sample[3]} threads",
                file=sys.stderr,
                flush=True,
            )

    @property
    def warm_up(self) -> float:
        """Seconds whose samples are left out."""
        return min(WARM_UP * self.seconds, WARM_UP_SECONDS)

    def figures(self) -> dict[str, Any]:
        """All of it, and whether it is as it must be."""
        table = np.array([sample for sample in self.samples if sample[0] > self.warm_up] or self.samples)
        quarter = max(1, len(table) // 4)
        first, last = np.median(table[:quarter], axis=0), np.median(table[-quarter:], axis=0)
        slope = float(np.polyfit(table[:, 0], table[:, 1], 1)[0] * 3600) if len(table) > 2 else 0.0
        growth = last - first
        flat = growth[1] <= max(GROWTH_MB, GROWTH_SHARE * first[1]) and (growth[2:] <= LOOSE).all()
        return {
            "passed": bool(flat) and not self.counts["WRONG"],
            "seconds": round(self.elapsed),
            "outputs": self.outputs,
            "bit_equal": self.equal,
            "wrong": self.counts["WRONG"],
            "worst_error": self.worst,
            "tolerance": TOLERANCE,
            "counts": dict(sorted(self.counts.items())),
            "memory_mb": {"first": float(first[1]), "last": float(last[1]), "slope_per_hour": slope},
            "descriptors": {"first": int(first[2]), "last": int(last[2]), "most": int(table[:, 2].max())},
            "threads": {"first": int(first[3]), "last": int(last[3]), "most": int(table[:, 3].max())},
            "examples": self.wrong,
        }
