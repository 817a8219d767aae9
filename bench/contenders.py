"""What is timed side by side: a bundle's session, and the ways in which one would run the trained model instead.

Each gives a function of no arguments that runs one batch and returns `features`. All use the same threads.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from mega_deploy.bench.latency import sample, warm_up
from mega_deploy.bundle import TRAINED
from mega_deploy.config import EdificeConfig
from mega_deploy.errors import OptionError
from mega_deploy.plugins.laplace import EPSILON
from mega_deploy.runtime import OpenBundle

if TYPE_CHECKING:
    from torch import Tensor

Array = npt.NDArray[Any]
Call = Callable[[], Array]
CONTENDERS = ("mega-deploy", "torch-eager", "torch-compile", "onnxruntime-naive", "openvino-naive")
# Calls for which each way to write Laplace attention is tried, before the fastest is timed.
TRIALS = 30


def available() -> tuple[str, ...]:
    """The contenders that can run here; openvino is no dependency, and takes part where it is installed."""
    return tuple(name for name in CONTENDERS if name != "openvino-naive" or importlib.util.find_spec("openvino"))


def build(contender: str, bundle: OpenBundle, frames: Array, threads: int) -> Call:
    """The call that is timed.

    Args:
        contender: one of CONTENDERS.
        bundle: holds the deployed model and the trained one.
        frames: the batch, [batch, seq_len, embed_dim].
        threads: for the work within one call.
    """
    if contender == "mega-deploy":
        session = bundle.session(threads=threads)
        return lambda: session.run(frames)
    if contender == "onnxruntime-naive":
        return _onnxruntime_naive(_naive_export(bundle, frames), frames, threads)
    if contender == "openvino-naive":
        return _openvino_naive(_naive_export(bundle, frames), frames, threads)
    if contender in ("torch-eager", "torch-compile"):
        return _torch(bundle, frames, threads, compiled=contender == "torch-compile")
    raise OptionError(f"there is no contender {contender!r}; there are {', '.join(CONTENDERS)}")


def _torch(bundle: OpenBundle, frames: Array, threads: int, *, compiled: bool) -> Call:
    import torch

    from mega_deploy.checkpoints import load_checkpoint

    torch.set_num_threads(threads)
    trained = load_checkpoint(bundle.file(TRAINED))
    model: Any = torch.compile(trained) if compiled else trained
    x = torch.from_numpy(frames)

    def call() -> Array:
        with torch.inference_mode():
            result: Array = model(x).numpy()
        return result

    if isinstance(trained.config, EdificeConfig) and trained.config.laplace_attention:
        _write_laplace_the_fastest_way(call)
    return call


def _write_laplace_the_fastest_way(call: Call) -> None:
    """Let the model run Laplace attention as one writes it in PyTorch, in whichever way makes `call` the fastest.

    Which one that is depends on the batch and the compiler. Our own operator is not among them: torch.compile does not
    look into it, and would lose what it can do with either of these.
    """
    from mega_deploy.plugins.laplace.torch_op import naive_laplace_attention

    def seconds(form: Any) -> float:
        _write_laplace_as(form)
        warm_up(call)
        return min(sample(call, TRIALS))

    _write_laplace_as(min((naive_laplace_attention, _cdist_laplace), key=seconds))


def _write_laplace_as(form: Any) -> None:
    from mega_deploy.models import edifice

    vars(edifice)["laplace_attention"] = form  # for the whole process, which does nothing else


def _cdist_laplace(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    import torch

    weights = 1 / (1 + torch.cdist(q, k, p=1.0))
    return weights / (weights.sum(-1, keepdim=True) + EPSILON) @ v


def _naive_export(bundle: OpenBundle, frames: Array) -> bytes:
    """The trained form through torch.onnx.export, as it comes, for this very batch."""
    import torch

    from mega_deploy.checkpoints import load_checkpoint
    from mega_deploy.plugins.laplace.torch_op import naive_laplace_attention

    _write_laplace_as(naive_laplace_attention)  # torch.cdist does not export
    model = load_checkpoint(bundle.file(TRAINED))
    program = torch.onnx.export(model, (torch.from_numpy(frames),), input_names=["frames"], dynamo=True, verbose=False)
    assert program is not None
    return program.model_proto.SerializeToString()


def _onnxruntime_naive(model: bytes, frames: Array, threads: int) -> Call:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return lambda: np.asarray(session.run(None, {"frames": frames})[0])


def _openvino_naive(model: bytes, frames: Array, threads: int) -> Call:
    import openvino

    core = openvino.Core()
    # Left alone it computes in bfloat16 where the processor can.
    config = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
    request = core.compile_model(core.read_model(model), "CPU", config).create_infer_request()
    return lambda: np.asarray(request.infer([frames])[0])
