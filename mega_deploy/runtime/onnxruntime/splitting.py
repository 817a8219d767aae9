"""A batch as parts that run side by side, each on one thread from the first node to the last.

onnxruntime lets its threads share every single node, after which they wait for each other and read half of what comes
from the other core: some hundred times a call. The rows of a batch have nothing to do with each other, so that parts of
it need none of that. The parts run in one session of one thread: its weights are there once for all of them.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from mega_deploy.arrays import Array
from mega_deploy.runtime import forking
from mega_deploy.signature import Signature

# Share of the threads' time that must be work: batches that split less evenly are left to onnxruntime.
EVEN = 0.8
# Multiply-adds of a part, a millisecond of one core: to hand one to another thread takes about a tenth of that.
LEAST_WORK = 50_000_000


class Split:
    """Runs batches in parts.

    Args:
        load: gives onnxruntime's session of one thread; asked for when the first batch is to be split. None: it cannot
            be had, and every batch stays whole.
        threads: parts of a batch; one of them runs on the caller's thread.
        work: multiply-adds of a row.
    """

    def __init__(self, load: Callable[[], Any], threads: int, work: int) -> None:
        self._threads, self._work, self._load = threads, work, load
        self._lock = threading.Lock()
        self._loaded: list[Any] = []
        """What was loaded; empty before."""
        self._pool = ThreadPoolExecutor(threads - 1, "mega-deploy")
        forking.watch(self)

    def after_fork(self) -> None:
        """Begin anew: the pool's threads are not in this process."""
        forking.keep(self._pool, self._loaded)
        self._lock, self._loaded = threading.Lock(), []
        self._pool = ThreadPoolExecutor(self._threads - 1, "mega-deploy")

    def run(self, outputs: Sequence[str], feeds: Mapping[str, Array]) -> list[Array] | None:
        """The outputs, in their order, for inputs whose first axis is the batch; None where it better stays whole."""
        if not self._pays(len(next(iter(feeds.values())))):
            return None
        with self._lock:
            if not self._loaded:
                self._loaded = [self._load()]
            (session,) = self._loaded
        if session is None:
            return None
        pieces = {name: np.array_split(array, self._threads) for name, array in feeds.items()}
        first, *rest = ({name: pieces[name][part] for name in pieces} for part in range(self._threads))
        running = [self._pool.submit(session.run, outputs, part) for part in rest]
        results = [session.run(outputs, first), *(future.result() for future in running)]
        return [np.concatenate(parts) for parts in zip(*results, strict=True)]

    def _pays(self, batch: int) -> bool:
        """Whether the parts are large enough, and of about the same size."""
        most = -(-batch // self._threads)
        even = batch >= EVEN * most * self._threads
        return batch >= self._threads and even and most * self._work >= LEAST_WORK


def rows_are_apart(signature: Signature) -> bool:
    """Whether every input and output has the batch as its first axis."""
    return all(spec.axes[:1] == ("batch",) for spec in (*signature.inputs, *signature.outputs))
