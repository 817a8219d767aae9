"""A moving average in every way one would compute it: blocks as exports write them, an FFT, and plain convolutions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from onnxscript import ir

from mega_deploy.arrays import Array
from mega_deploy.bench.measure.latency import sample
from mega_deploy.errors import OptionError
from mega_deploy.exporters.ema.blocks import Blocked, lower_to_blocks
from mega_deploy.exporters.ema.kernel import DecaySum, Kernel, MovingAverage, lower_to_kernel
from mega_deploy.exporters.ema.lowering import Lowered, best_block
from mega_deploy.exporters.ema.nodes import convolution, in_blocks, moving_average
from mega_deploy.exporters.graph import Graph

Call = Callable[[], Array]
BLOCKED, FFT, CONV, CONV_1D = "blocked", "torch-fft", "conv", "conv-1d"
CONTENDERS = (BLOCKED, FFT, CONV, CONV_1D)
TRIALS = 5


@dataclass(frozen=True)
class Task:
    """The moving average that is computed, and how it is laid out."""

    channels: int
    states: int
    seq_len: int
    batch: int = 1
    bidirectional: bool = False
    block: int | None = None
    """Frames of a block; None: what an export would choose."""
    layout: str = "rows"
    """"rows": [batch * seq_len, channels], as in the graphs of models; "channels": [batch, channels, seq_len], which
    spares blocks and FFT their transposes."""
    threads: int = 2

    @property
    def average(self) -> MovingAverage:
        """Random weights and slow decays."""
        random = np.random.default_rng(0)
        sides = []
        for _ in range(1 + self.bidirectional):
            decay = 1 - 10 ** random.uniform(-4, -0.5, (self.channels, self.states))
            sides.append(DecaySum(random.standard_normal(decay.shape) * np.sqrt(1 - decay**2), decay))
        return MovingAverage(sides[0], sides[1] if self.bidirectional else None)


def convolve(average: MovingAverage, x: Array) -> Array:
    """The moving average in float64, by FFT over twice the length: [batch, channels, seq_len] twice."""
    length = x.shape[-1]
    y: Array = np.fft.irfft(np.fft.rfft(x.astype(np.float64), 2 * length) * _spectrum(average, length), 2 * length)
    return y[..., :length]


def _spectrum(average: MovingAverage, length: int) -> Array:
    """The kernels' spectrum over twice the length, the future's from the end backwards: [channels, length + 1]."""
    past, *future = (average.taps(side, length) for side in average.sides)
    kernel = np.pad(past, [(0, 0), (0, length)])
    for taps in future:
        kernel[:, 0] += taps[:, 0]
        kernel[:, length + 1 :] += taps[:, :0:-1]
    spectrum: Array = np.fft.rfft(kernel)
    return spectrum


def build(contender: str, task: Task, x: Array) -> Call:
    """The call that is timed.

    Args:
        contender: one of CONTENDERS; both convolutions have all taps, "conv" the two dimensions that exports write, for
            which onnxruntime has a fast kernel, "conv-1d" the one of a plain export; the FFT has its spectrum ready.
        task: what is computed.
        x: float32, [batch * seq_len, channels] or [batch, channels, seq_len] as `task.layout` says; so is the result.
    """
    if contender == FFT:
        return _torch_fft(task, x)
    if contender not in CONTENDERS:
        raise OptionError(f"there is no contender {contender!r}; there are {', '.join(CONTENDERS)}")
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = task.threads
    model = ir.to_proto(_graph(contender, task, x.shape).model()).SerializeToString()
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return lambda: np.asarray(session.run(None, {"x": x})[0])


def _graph(contender: str, task: Task, sizes: Sequence[int]) -> Graph:
    """A contender of onnxruntime's: `x` of these sizes -> `y`, the same."""
    average, length = task.average, task.seq_len
    lowered: Lowered
    if contender == BLOCKED:
        lowered = lower_to_blocks(average, length, task.block or best_block(average, length))
    else:
        lowered = lower_to_kernel(average, length, cut=0)
    graph = Graph("ema")
    shape = ["rows" if task.layout == "rows" else "batch", *sizes[1:]]  # as in the graphs of models
    value = graph.input("x", shape)
    if contender == CONV_1D:
        y = _one_dimension(graph, value, task, lowered)
    elif task.layout == "rows":
        y = moving_average(graph, value, lowered, length, length)
    elif isinstance(lowered, Blocked):
        y = _blocks_of_channels(graph, value, lowered, length)
    else:
        y = convolution(graph, value, lowered)
    graph.output(y, "y", shape)
    return graph


def _blocks_of_channels(graph: Graph, x: ir.Value, lowered: Blocked, length: int) -> ir.Value:
    """[batch, channels, length] twice, without the transposes that rows need."""
    op, missing, count = graph.op, -length % lowered.block, -(-length // lowered.block)
    x = op.Transpose(x, perm=[1, 0, 2])  # moves nothing at batch 1
    y = in_blocks(graph, op.Pad(x, [0, 0, 0, 0, 0, missing]) if missing else x, lowered, count, count)
    return op.Transpose(op.Slice(y, [0], [length], [2]) if missing else y, perm=[1, 0, 2])


def _one_dimension(graph: Graph, x: ir.Value, task: Task, lowered: Lowered) -> ir.Value:
    """The convolution as torch.onnx.export writes that of a Conv1d."""
    assert isinstance(lowered, Kernel)
    op, (channels, count), ahead = graph.op, lowered.taps.shape, lowered.ahead
    if task.layout == "rows":
        x = op.Transpose(graph.windows(x, task.seq_len, channels), perm=[0, 2, 1])
    weight = graph.constant("kernel", lowered.taps[:, None, ::-1])
    y = op.Conv(x, weight, group=channels, kernel_shape=[count], pads=[count - 1 - ahead, ahead])
    return y if task.layout == "channels" else graph.rows(op.Transpose(y, perm=[0, 2, 1]), channels)


def _torch_fft(task: Task, x: Array) -> Call:
    """Rfft, times the ready spectrum, irfft; of rows in the faster of two ways, along the axis or transposed."""
    import torch

    torch.set_num_threads(task.threads)
    length = task.seq_len
    frames = torch.from_numpy(x)
    spectrum = torch.from_numpy(_spectrum(task.average, length)).to(torch.complex64)
    turned = spectrum.T.contiguous()

    def channels() -> Array:
        with torch.inference_mode():
            y = torch.fft.irfft(torch.fft.rfft(frames, n=2 * length) * spectrum, n=2 * length)
            return np.asarray(y[..., :length].numpy())

    def along() -> Array:
        with torch.inference_mode():
            u = torch.fft.rfft(frames.view(task.batch, length, -1), n=2 * length, dim=1)
            return np.asarray(torch.fft.irfft(u * turned, n=2 * length, dim=1)[:, :length].reshape(x.shape).numpy())

    def transposed() -> Array:
        with torch.inference_mode():
            u = torch.fft.rfft(frames.view(task.batch, length, -1).transpose(1, 2).contiguous(), n=2 * length)
            y = torch.fft.irfft(u * spectrum, n=2 * length)[..., :length]
            return np.asarray(y.transpose(1, 2).reshape(x.shape).numpy())

    if task.layout == "channels":
        return channels
    return min((along, transposed), key=lambda call: min(sample(call, TRIALS)))
