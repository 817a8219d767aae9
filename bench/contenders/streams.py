"""What is timed of a stream: a call takes the next frame of each of `batch` streams.

mega-deploy      the bundle's stream.
window-session   the bundle's other form, which computes the whole sequence anew for each frame.
torch-cached     the trained model in PyTorch, which keeps keys, values and averages from frame to frame (--peers).
prefill          the sequence in one call, to the first output; no alternative to a step, so in no ratio.
encode           the source, which each stream reads once before its first step, as translation does; in no ratio.

The sequence is as long as the bundle's window, or the stream's. Before it is timed each has gone through it from its
first frame on, and its last output was the trained model's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, cast

import numpy as np

from mega_deploy.arrays import Array
from mega_deploy.bench.contenders.replay import Replay, along, frame_by_frame, parted
from mega_deploy.bench.contenders.task import CACHED, ENCODE, OURS, PREFILL, WINDOW, Task
from mega_deploy.bench.measure.contender import Contender, Outputs
from mega_deploy.errors import require
from mega_deploy.runtime import OpenBundle, StreamSession, find_backend

if TYPE_CHECKING:
    from mega_deploy.exporters.paper.stream.stream_io import StreamModel


def _contender(replay: Replay, settings: str) -> Contender:
    return Contender(replay.call, settings, measure=replay.measure, check=replay.check)


def _opened(task: Task) -> StreamSession:
    threads = task.threads if find_backend(task.backend).takes_options else None
    return OpenBundle.open(task.bundle).stream(task.batch, backend=task.backend, threads=threads)


def _ours(task: Task, sequences: Mapping[str, Array]) -> Contender:
    stream = _opened(task)
    return _contender(along(stream, sequences), ", ".join(stream.providers))


def _prefill(task: Task, sequences: Mapping[str, Array]) -> Contender:
    stream = _opened(task)
    frames = next(iter(parted(stream.signature, sequences)[0].values())).shape[1]
    return _contender(along(stream, sequences, at_once=True), f"{', '.join(stream.providers)}, {frames} frames")


def _encode(task: Task, sequences: Mapping[str, Array]) -> Contender:
    stream = _opened(task)
    own, source = parted(stream.signature, sequences)

    def call() -> Outputs:
        stream.encode(source)
        return ()

    def through_the_sequence() -> Outputs:
        stream.encode(source)
        return stream.prefill_named(own)

    sizes = ", ".join(f"{name} {list(array.shape[1:])}" for name, array in source.items() if array.ndim > 1)
    return Contender(call, f"{', '.join(stream.providers)}, {sizes} of each stream", check=through_the_sequence)


def _window(task: Task, sequences: Mapping[str, Array]) -> Contender:
    bundle = OpenBundle.open(task.bundle)
    session, inputs = bundle.session(threads=task.threads), dict(sequences)
    axes = {spec.name: len(spec.dims) for spec in bundle.stream_form.step.outputs}

    def last() -> Outputs:
        outputs = session.run_named(inputs)
        return {name: array if array.ndim == axes[name] else array[:, -1] for name, array in outputs.items()}

    settings = f"{', '.join(session.providers)}, the whole sequence each time"
    return Contender(lambda: session.run_named(inputs), settings, check=last)


def _cached(task: Task, sequences: Mapping[str, Array]) -> Contender:
    torch = require("torch", "export", task.contender)
    torch.set_num_threads(task.threads)
    from mega_deploy.bench.contenders.torch_decoder import CachedDecoder
    from mega_deploy.bench.contenders.torch_stream import CachedMega
    from mega_deploy.checkpoints.bundled import load_trained
    from mega_deploy.models.edifice import Mega

    bundle = OpenBundle.open(task.bundle)
    form, model = bundle.stream_form, load_trained(bundle)
    own, source = parted(form.step, sequences)
    tensors = {name: torch.from_numpy(array) for name, array in source.items()}
    with torch.inference_mode():
        cached = (
            CachedMega(model, task.batch, form.window)
            if isinstance(model, Mega)
            else CachedDecoder(cast("StreamModel", model), form.length, tensors)
        )

    def step(frame: Mapping[str, Array]) -> Outputs:
        with torch.inference_mode():
            found = cached.step({name: torch.from_numpy(array) for name, array in frame.items()})
            return {name: np.asarray(value) for name, value in found.items()}

    ends = any(spec.limit is not None for spec in form.step.state)
    replay = Replay(frame_by_frame(own), step, cached.reset, ends=ends)
    return _contender(replay, "eager, inference mode, float32, keys and values by torch.cat")


BUILD: dict[str, Callable[[Task, Mapping[str, Array]], Contender]] = {
    OURS: _ours,
    WINDOW: _window,
    PREFILL: _prefill,
    ENCODE: _encode,
    CACHED: _cached,
}
