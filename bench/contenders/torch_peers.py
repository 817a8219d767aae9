"""The trained model in PyTorch: eager, compiled as it runs or ahead of time, each in the fastest of its ways."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mega_deploy.arrays import Array
from mega_deploy.bench.contenders.case import load_case
from mega_deploy.bench.contenders.task import Task
from mega_deploy.bench.contenders.trained import load_trained
from mega_deploy.bench.measure.contender import Contender, Outputs
from mega_deploy.bench.measure.latency import sample, warm_up
from mega_deploy.config.edifice import EdificeConfig
from mega_deploy.errors import OptionError, require
from mega_deploy.machine.gpu import look
from mega_deploy.plugins.laplace import EPSILON
from mega_deploy.runtime import OpenBundle

if TYPE_CHECKING:
    from torch import Tensor

Tensors = dict[str, "Tensor"]
PACKAGE = "aotinductor.pt2"
# Calls for which each way to set a contender up is tried, before the fastest is timed.
TRIALS = 30
WARM_UP = 2.0  # seconds at most


def torch_peer(task: Task, feeds: Mapping[str, Array]) -> Contender:
    """PyTorch itself, in inference mode, compiled or not."""
    torch = require("torch", "export", task.contender)
    torch.set_num_threads(task.threads)
    device = "cuda" if task.backend == "torch-cuda" else "cpu"
    if device == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    model = load_trained(OpenBundle.open(task.bundle)).to(device)
    inputs = tensors(feeds)
    forms: dict[str, Any] = {"": None}
    if isinstance(model.config, EdificeConfig) and model.config.laplace_attention:
        from mega_deploy.plugins.laplace.torch_op import naive_laplace_attention

        # Not our own operator: torch.compile does not look into it, and would lose what it can do with these.
        forms = {", Laplace attention as a broadcast": naive_laplace_attention, ", as torch.cdist": _cdist_laplace}
    first, *other_ways = _ways(task.contender, device)
    tried = [_try(model, inputs, device, form, first) for form in forms.items()]
    tried += [_try(model, inputs, device, min(tried).form, way) for way in other_ways]
    best = min(tried)
    others = f"; fastest of {len(tried)} ways" if len(tried) > 1 else ""
    return Contender(best.call, f"{best.named}, inference mode, float32{others}", details=gpu_details(device))


@dataclass(frozen=True, order=True)
class _Tried:
    """One way to run the model in PyTorch; they are ordered by what a call takes."""

    seconds: float
    named: str
    form: tuple[str, Any] = field(compare=False)
    call: Callable[[], Outputs] = field(compare=False)


def _try(
    model: Any, inputs: Tensors, device: str, form: tuple[str, Any], way: tuple[str, dict[str, Any] | None]
) -> _Tried:
    call = _torch_call(model, inputs, device, form[1], way[1])
    call()
    warm_up(call, limit=WARM_UP)
    return _Tried(min(sample(call, TRIALS)), way[0] + form[0], form, call)


def _ways(contender: str, device: str) -> list[tuple[str, dict[str, Any] | None]]:
    """Names, and the options of torch.compile; None: nothing is compiled."""
    if contender == "torch-eager":
        return [("eager", None)]
    if device == "cuda":
        return [("max-autotune, CUDA graphs", {"mode": "max-autotune"}), ("default", {})]
    # Freezing makes the weights constants, which are then packed for the processor.
    return [("default", {}), ("freezing", {"options": {"freezing": True}})]


def _torch_call(
    model: Any, inputs: Tensors, device: str, form: Any, options: dict[str, Any] | None
) -> Callable[[], Outputs]:
    import torch

    if form is not None:
        model = _with_attention(model, form)
    run = model if options is None else torch.compile(model, **options)

    def call() -> Outputs:
        with torch.inference_mode():
            return _arrays(run(**{name: tensor.to(device) for name, tensor in inputs.items()}))

    return call


def tensors(feeds: Mapping[str, Array]) -> Tensors:
    """The inputs as PyTorch takes them, on the CPU."""
    import torch

    return {name: torch.from_numpy(array) for name, array in feeds.items()}


def _arrays(result: Any) -> Outputs:
    """The outputs of a trained model, one tensor or several by name, as arrays."""
    if isinstance(result, Mapping):
        return {name: tensor.cpu().numpy() for name, tensor in result.items()}
    return (result.cpu().numpy(),)


def _with_attention(model: Any, attend: Any) -> Any:
    """A copy of an Edifice model whose attention function is written as one writes it in PyTorch."""
    from mega_deploy.models.edifice import GatedAttention

    model = copy.deepcopy(model)
    for module in model.modules():
        if isinstance(module, GatedAttention):
            module.attend = attend
    return model


def _cdist_laplace(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    import torch

    weights = 1 / (1 + torch.cdist(q, k, p=1.0))
    return weights / (weights.sum(-1, keepdim=True) + EPSILON) @ v


def compile_ahead(task: Task) -> None:
    """Write the package that `ahead_of_time_peer` loads into the task's folder."""
    import torch

    model, inputs = exportable(task), tensors(load_case(task.place).inputs)
    torch.set_num_threads(task.threads)
    with torch.inference_mode():
        program = torch.export.export(model, (), inputs)
        torch._inductor.aoti_compile_and_package(
            program, package_path=os.fspath(task.place / PACKAGE), inductor_configs={"freezing": True}
        )


def ahead_of_time_peer(task: Task, feeds: Mapping[str, Array]) -> Contender:
    """PyTorch's AOTInductor: the package that `compile_ahead` wrote."""
    torch = require("torch", "export", task.contender)
    torch.set_num_threads(task.threads)
    run = torch._inductor.aoti_load_package(os.fspath(task.place / PACKAGE))
    inputs = tensors(feeds)

    def call() -> Outputs:
        with torch.inference_mode():
            return _arrays(run(**inputs))

    return Contender(call, "torch.export and aoti_compile_and_package for this very batch, freezing, float32")


def exportable(task: Task) -> Any:
    """The trained model with Laplace attention in plain operators: torch.cdist does not export."""
    from mega_deploy.plugins.laplace.torch_op import naive_laplace_attention

    model = load_trained(OpenBundle.open(task.bundle))
    laplace = isinstance(model.config, EdificeConfig) and model.config.laplace_attention
    return _with_attention(model, naive_laplace_attention) if laplace else model


def torch_tensorrt_peer(task: Task, feeds: Mapping[str, Array]) -> Contender:
    """Torch-TensorRT, compiled as the contender is loaded."""
    import torch
    import torch_tensorrt

    model = exportable(task).cuda()
    inputs = {name: tensor.cuda() for name, tensor in tensors(feeds).items()}
    compiled = torch_tensorrt.compile(
        model, ir="dynamo", kwarg_inputs=inputs, enabled_precisions={torch.float32}, disable_tf32=True
    )

    def call() -> Outputs:
        with torch.inference_mode():
            return _arrays(compiled(**{name: tensor.cuda() for name, tensor in inputs.items()}))

    return Contender(
        call, "torch_tensorrt.compile for this very batch, float32 without TF32", details=gpu_details("cuda")
    )


def gpu_details(device: str) -> dict[str, Any] | None:
    """The GPU that a contender runs on, as its driver names it."""
    if device == "cpu":
        return None
    gpus = look().gpus
    if not gpus:
        raise OptionError("no GPU is here")
    return {"gpu": vars(gpus[0])}
