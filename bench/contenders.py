"""What is timed side by side: a bundle's session, and the ways in which one would run the trained model instead.

Each gives a function of no arguments that runs one batch and returns `features`. All use the same threads.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from mega_deploy.bundle import TRAINED
from mega_deploy.errors import OptionError
from mega_deploy.plugins.laplace import EPSILON as LAPLACE_EPSILON
from mega_deploy.runtime import OpenBundle

if TYPE_CHECKING:
    from torch import Tensor

Array = npt.NDArray[Any]
Call = Callable[[], Array]
CONTENDERS = ("mega-deploy", "torch-eager", "torch-compile", "onnxruntime-naive")


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
        return _onnxruntime_naive(bundle, frames, threads)
    if contender in ("torch-eager", "torch-compile"):
        return _torch(bundle, frames, threads, compiled=contender == "torch-compile")
    raise OptionError(f"there is no contender {contender!r}; there are {', '.join(CONTENDERS)}")


def _torch(bundle: OpenBundle, frames: Array, threads: int, *, compiled: bool) -> Call:
    import torch

    from mega_deploy.checkpoints import load_checkpoint

    torch.set_num_threads(threads)
    model: Any = load_checkpoint(bundle.file(TRAINED))
    x = torch.from_numpy(frames)
    if compiled:
        model = torch.compile(model)

    def call() -> Array:
        with torch.inference_mode():
            result: Array = model(x).numpy()
        return result

    return call


def _broadcast_laplace(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Laplace attention as one writes it without torch.cdist; holds [batch, seq, seq, channels]."""
    weights = 1 / (1 + (q[:, :, None] - k[:, None]).abs().sum(-1))
    return weights / (weights.sum(-1, keepdim=True) + LAPLACE_EPSILON) @ v


def _onnxruntime_naive(bundle: OpenBundle, frames: Array, threads: int) -> Call:
    """The trained form through torch.onnx.export, as it comes, for this very batch."""
    import onnxruntime
    import torch

    from mega_deploy.checkpoints import load_checkpoint
    from mega_deploy.models import edifice

    edifice.laplace_attention = _broadcast_laplace  # torch.cdist does not export; this process does nothing else
    model = load_checkpoint(bundle.file(TRAINED))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "naive.onnx"
        torch.onnx.export(
            model,
            (torch.from_numpy(frames),),
            path,
            input_names=["frames"],
            dynamo=True,
            verbose=False,
            external_data=False,
        )
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda: np.asarray(session.run(None, {"frames": frames})[0])
