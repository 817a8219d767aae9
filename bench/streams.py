"""What is timed of a stream: a call takes the next frame of each of `batch` streams.

mega-deploy      the bundle's stream.
window-session   the bundle's other form, which computes the whole window anew for each frame.
torch-cached     the trained model in PyTorch, which keeps keys, values and averages from frame to frame (--peers).
prefill          a window of frames in one call, to the first output; no alternative to a step, so in no ratio.

Before it is timed each has gone through a window from its first frame on, and its last output was the trained model's.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from mega_deploy.bench.contenders import OURS, Contender, Outputs, Task
from mega_deploy.engines import TARGETS
from mega_deploy.errors import require
from mega_deploy.parity import Reference
from mega_deploy.runtime import OpenBundle

Array = npt.NDArray[Any]
WINDOW, CACHED, PREFILL = "window-session", "torch-cached", "prefill"


def recorded(reference: Reference, window: int, batch: int) -> dict[str, Array]:
    """Arrays for contenders.CASE: sequences of a window, [batch, window, ...], and the outputs at the last frame.

    They are the random ones of the bundle's reference, over again where the batch is larger.

    Args:
        reference: of the stream.
        window: frames that attention reaches back.
        batch: streams.
    """
    fitting = [
        case
        for case in reference.cases
        if case.name.startswith("random") and next(iter(reference.pools[case.pool].inputs.values())).shape[1] >= window
    ]
    case = max(fitting, key=lambda case: len(case.rows))
    rows = [case.rows[index % len(case.rows)] for index in range(batch)]
    pool = reference.pools[case.pool]
    inputs = {f"input/{name}": array[rows, :window] for name, array in pool.inputs.items()}
    return inputs | {f"output/{name}": array[rows, window - 1] for name, array in pool.outputs.items()}


def frame_by_frame(sequences: Mapping[str, Array]) -> list[dict[str, Array]]:
    """[batch, frames, ...] by name -> for each frame [batch, ...] by name."""
    frames = next(iter(sequences.values())).shape[1]
    return [{name: np.ascontiguousarray(array[:, at]) for name, array in sequences.items()} for at in range(frames)]


def _step_by_step(
    step: Callable[[Any], Any], reset: Callable[[], None], sequences: Mapping[str, Array], settings: str
) -> Contender:
    """A contender that takes one frame a call: after the last one of the window the first again, and so on."""
    frames = [frame if len(frame) > 1 else next(iter(frame.values())) for frame in frame_by_frame(sequences)]
    turn = itertools.cycle(frames)

    def call() -> Outputs:
        return _named(step(next(turn)))

    def through_a_window() -> Outputs:
        reset()
        return [_named(step(frame)) for frame in frames][-1]

    return Contender(call, settings, check=through_a_window)


def _named(outputs: Any) -> Outputs:
    return outputs if isinstance(outputs, Mapping) else (outputs,)


def _ours(task: Task, sequences: Mapping[str, Array]) -> Contender:
    threads = None if task.backend in TARGETS else task.threads
    stream = OpenBundle.open(task.bundle).stream(task.batch, backend=task.backend, threads=threads)
    return _step_by_step(stream.step, stream.reset, sequences, ", ".join(stream.providers))


def _window(task: Task, sequences: Mapping[str, Array]) -> Contender:
    session = OpenBundle.open(task.bundle).session(threads=task.threads)
    inputs = dict(sequences)
    return Contender(lambda: session.run_named(inputs), f"{', '.join(session.providers)}, the whole window each time")


def _prefill(task: Task, sequences: Mapping[str, Array]) -> Contender:
    stream = OpenBundle.open(task.bundle).stream(task.batch, threads=task.threads)
    inputs = dict(sequences)

    def call() -> Outputs:
        stream.reset()
        return _named(stream.prefill(inputs))

    frames = next(iter(inputs.values())).shape[1]
    return Contender(call, f"{', '.join(stream.providers)}, {frames} frames and the reset of the stream")


def _cached(task: Task, sequences: Mapping[str, Array]) -> Contender:
    torch = require("torch", "export", task.contender)
    torch.set_num_threads(task.threads)
    from mega_deploy.bench.torch_stream import CachedMega

    cached = CachedMega.of(OpenBundle.open(task.bundle), task.batch)

    def step(frame: Array) -> Array:
        with torch.inference_mode():
            return np.asarray(cached.step(torch.from_numpy(frame)))

    return _step_by_step(step, cached.reset, sequences, "eager, inference mode, float32, keys and values by torch.cat")


BUILD: dict[str, Callable[[Task, Mapping[str, Array]], Contender]] = {
    OURS: _ours,
    WINDOW: _window,
    PREFILL: _prefill,
    CACHED: _cached,
}
