"""How a benchmark is run, as its user may choose."""

from __future__ import annotations

import math
from dataclasses import dataclass

from mega_deploy.bench.measure.contender import Schedule
from mega_deploy.errors import OptionError
from mega_deploy.runtime import find_backend

MIN_ROUNDS = 3
QUICK = {"rounds": 6, "turn_seconds": 0.2, "frames": 2_000}


@dataclass(frozen=True, kw_only=True)
class Options(Schedule):
    """A schedule, and who takes part.

    Raises:
        OptionError: a value is impossible.
    """

    backends: tuple[str, ...] = ("onnxruntime",)
    peers: bool = False
    """Whether the ways in which one would run the trained model instead take part."""
    limit: bool = True
    """Whether the limits of the machine are measured as well."""

    def __post_init__(self) -> None:
        for backend in self.backends:
            find_backend(backend)
        if self.rounds < MIN_ROUNDS:
            raise OptionError(f"rounds must be {MIN_ROUNDS} or more, got {self.rounds}")
        if self.frames < 1:
            raise OptionError(f"frames must be 1 or more, got {self.frames}")
        for name in ("turn_seconds", "timeout"):
            if not 0 < getattr(self, name) < math.inf:
                raise OptionError(f"{name} must be above 0 seconds, got {getattr(self, name)}")
