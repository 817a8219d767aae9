"""A bundle, or what stands beside it, on one configuration, as a worker gets it.

What is timed side by side are a bundle's sessions (`ours`, `streams`), the ways in which one would run the trained
model instead (`peers`), and what bounds them all (`limits`). All get the same cores, threads and inputs, and are
checked before they are timed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mega_deploy.bench.measure.contender import Schedule
from mega_deploy.config.common import Form

OURS = "mega-deploy"
WINDOW, CACHED, PREFILL, ENCODE = "window-session", "torch-cached", "prefill", "encode"
NO_STEPS = (PREFILL, ENCODE)
"""Contenders whose call is no step, so that they are compared with none."""
GEMM_FLOOR, PEAK_GEMM, MEMORY_READ = LIMITS = ("gemm-floor", "peak-gemm", "memory-read")
"""Contenders that compute no model, and bound those that do."""
CATALOGUE = "mega_deploy.bench.contenders.catalogue"
# float32 contenders differ from the trained model in float64 by 1e-6 or less; another model differs by 1 or so.
TOLERANCE = 1e-4
MIN_SAMPLES = 50


@dataclass(frozen=True)
class Task:
    """One contender on one configuration."""

    contender: str
    backend: str
    bundle: str
    batch: int
    seq_len: int
    cores: tuple[int, ...]
    folder: str
    """Holds what is prepared for this configuration: the case, exports, profiles."""
    tolerance: float = TOLERANCE
    """The largest relative error (l2) that its outputs may have."""
    cuda_graph: bool = False
    """Whether the launches of an engine are recorded once and replayed."""
    form: Form = "window"
    """The bundle's form; of a stream `seq_len` is what case.frames_of gives, and the batch the number of streams."""
    prepares: bool = False
    """Whether something is made for it first, in a process of its own."""
    catalogue: str = CATALOGUE
    """The module that builds it."""

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Task:
        return cls(**{**value, "cores": tuple(value["cores"])})

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def least_calls(self, schedule: Schedule) -> int:
        """Calls of a turn: enough for quantiles in all rounds together; of our streams as many as were asked for."""
        if self.contender in LIMITS:
            return 1
        least = math.ceil(MIN_SAMPLES / schedule.rounds)
        if self.contender == OURS and self.form == "stream":
            least = max(least, math.ceil(schedule.frames / schedule.rounds / self.batch))
        return least

    @property
    def threads(self) -> int:
        """Threads that share the work of a call, each with a core."""
        return len(self.cores)

    @property
    def place(self) -> Path:
        """`folder` as a path."""
        return Path(self.folder)
