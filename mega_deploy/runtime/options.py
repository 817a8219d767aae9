"""Options of a session: how it uses the machine."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from mega_deploy.errors import OptionError

MAX_THREADS = 1024


@dataclass(frozen=True, kw_only=True)
class SessionOptions:
    """How a session uses the machine."""

    threads: int | None = None
    """Threads that share the work of one call; None: one for each physical core, as onnxruntime decides."""
    spinning: bool = True
    """Whether idle threads spin for a while: lower latency, busier cores. Switch it off where sessions share a host."""
    memory_arena: bool = True
    """Whether memory of one call is kept for the next: faster, at the price of the peak staying allocated."""
    native_ops: bool = True
    """Whether native kernels serve our operators where they were built; otherwise their function bodies do."""
    split_batches: bool = True
    """Whether a batch that is large enough runs in parts, one a thread: faster, above all on busy cores. The model is
    loaded a second time when the first such batch comes, and stays in memory twice from then on."""
    check_outputs: bool = True
    """Whether outputs that are NaN or infinite are a NonFiniteError: on any backend, of what lies on the host."""
    config: Mapping[str, str] = field(default_factory=dict)
    """Further entries of onnxruntime's session configuration, such as {"session.set_denormal_as_zero": "1"}."""
    profile: Path | None = None
    """Folder for the graph as onnxruntime runs it (OPTIMISED) and, after `stop_profiling`, the time of every node."""
    plugin_library: str | os.PathLike[str] | None = None
    """Library of an engine's plugin, as EngineTrust takes it."""
    engine_code: bool | None = None
    """Whether code that an engine holds may run on the host, as EngineTrust takes it."""

    def __post_init__(self) -> None:
        switches = self.spinning, self.memory_arena, self.split_batches, self.check_outputs
        if not all(isinstance(value, bool) for value in switches):
            raise OptionError("spinning, memory_arena, split_batches and check_outputs must be True or False")
        if not all(isinstance(text, str) for entry in self.config.items() for text in entry):
            raise OptionError("config must map names to values, both strings")
        threads = self.threads
        if threads is not None and (type(threads) is not int or not 1 <= threads <= MAX_THREADS):
            raise OptionError(f"threads must be a whole number from 1 to {MAX_THREADS}, got {threads!r}")
