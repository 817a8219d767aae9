"""From an ONNX graph to a network with its shapes, each checked against what the bundle promises."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import onnx

from mega_deploy.errors import BundleError, OptionError
from mega_deploy.exporters.tensorrt.library import Listener
from mega_deploy.signature import Dim, Range, Signature, TensorSpec

DYNAMIC = -1
TURING = "7.5"
Profile = dict[str, dict[str, list[int]]]


def dtype_names(trt: ModuleType) -> dict[Any, str]:
    """Names of the manifest for the library's data types."""
    kinds = trt.DataType
    return {
        kinds.FLOAT: "float32",
        kinds.HALF: "float16",
        kinds.BF16: "bfloat16",
        kinds.INT64: "int64",
        kinds.INT32: "int32",
        kinds.INT8: "int8",
        kinds.BOOL: "bool",
    }


def parse(trt: ModuleType, builder: Any, model: onnx.ModelProto, path: Path, listener: Listener) -> Any:
    """A strongly typed network: each value has the type that the graph gives it.

    Args:
        trt: the library.
        builder: its builder.
        model: the graph.
        path: where it comes from, for weights in files beside it.
        listener: what the library speaks to.

    Raises:
        BundleError: the parser refuses the graph; the message names the node.
    """
    typed = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)  # later versions know no other kind
    network = builder.create_network(0 if typed is None else 1 << int(typed))
    parser = trt.OnnxParser(network, listener.logger)
    if not parser.parse(model.SerializeToString(), str(path)):
        error = parser.get_error(0)
        where = f"node {error.node_name() or error.node()} ({error.node_operator()})"
        reason = " ".join(str(error.desc()).split())
        raise BundleError(
            f"{trt.__name__} {trt.__version__} does not take {path} at {where}: {reason:.300}; "
            "export it in another precision, or take another release of the library"
        )
    return network


def check(trt: ModuleType, network: Any, signature: Signature) -> None:
    """Refuse a network whose inputs or outputs have other names, types or shapes than the signature.

    Raises:
        BundleError: naming the tensor and both.
    """
    names = dtype_names(trt)
    inputs = [network.get_input(index) for index in range(network.num_inputs)]
    outputs = [network.get_output(index) for index in range(network.num_outputs)]
    for ours, theirs in ((signature.inputs, inputs), (signature.outputs, outputs)):
        check_tensors(ours, {value.name: (names.get(value.dtype, value.dtype), value.shape) for value in theirs})


def check_tensors(ours: Sequence[TensorSpec], theirs: Mapping[str, tuple[Any, Sequence[int]]]) -> None:
    """The same for one side, given type and shape by name."""
    if odd := {spec.name for spec in ours} ^ set(theirs):
        raise BundleError(f"the model and its signature differ in {', '.join(sorted(odd))}; export it anew")
    for spec in ours:
        dtype, shape = theirs[spec.name]
        fits = len(shape) == len(spec.dims) and all(map(_fits, shape, spec.dims))
        if dtype != spec.dtype or not fits:
            raise BundleError(
                f'the model has "{spec.name}" as {dtype} {list(shape)}, but its signature says {spec.dtype} {spec}; '
                "export it anew"
            )


def _fits(size: int, dim: Dim) -> bool:
    return size == (DYNAMIC if isinstance(dim, Range) else dim)


def check_turing(trt: ModuleType, network: Any) -> None:
    """Refuse for compute capability 7.5 what TensorRT-RTX gets wrong there without a word: it returns zeros.

    Raises:
        OptionError: a layer multiplies in float32, or holds bfloat16; the message names it.
    """
    products = {trt.LayerType.MATRIX_MULTIPLY, trt.LayerType.CONVOLUTION, trt.LayerType.EINSUM}
    for layer in map(network.get_layer, range(network.num_layers)):
        dtypes = {tensor.dtype for tensor in map(layer.get_output, range(layer.num_outputs)) if tensor is not None}
        if trt.DataType.BF16 in dtypes or (layer.type in products and trt.DataType.FLOAT in dtypes):
            raise OptionError(
                f"TensorRT-RTX has no bfloat16 and no float32 products on compute capability {TURING} (it returns "
                f"zeros there), and this model has them: {layer.name}; build for 8.0 and up"
            )


def profile_shapes(signature: Signature) -> Profile:
    """The smallest, the usual and the largest shape of each input that has a dynamic axis."""
    return {
        spec.name: {
            kind: [getattr(dim, kind) if isinstance(dim, Range) else dim for dim in spec.dims]
            for kind in ("min", "opt", "max")
        }
        for spec in signature.inputs
        if any(isinstance(dim, Range) for dim in spec.dims)
    }


def add_profile(builder: Any, config: Any, shapes: Profile) -> None:
    """Give the shapes to the library, and see that it has taken them.

    Raises:
        BundleError: it has not.
    """
    profile = builder.create_optimization_profile()
    for name, wanted in shapes.items():
        profile.set_shape(name, *wanted.values())
        if [list(shape) for shape in profile.get_shape(name)] != list(wanted.values()):
            raise BundleError(f'the shapes {wanted} of input "{name}" are refused; export with another range')
    if config.add_optimization_profile(profile) < 0:
        raise BundleError(f"the shapes {shapes} contradict each other; export with other ranges")


def check_engine(
    trt: ModuleType, plan: bytes, signature: Signature, shapes: Profile, listener: Listener, *, host_code: bool
) -> None:
    """Load an engine on the GPU that it was built on, and hold its tensors and its profile against the signature.

    Args:
        trt: the library.
        plan: the engine.
        signature: of the bundle.
        shapes: of the profile.
        listener: what the library speaks to.
        host_code: whether it brings code that runs on the host.

    Raises:
        BundleError: it does not load, or differs.
    """
    listener.errors.clear()  # what the build survived
    runtime = trt.Runtime(listener.logger)
    if host_code:
        runtime.engine_host_code_allowed = True
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        raise BundleError(f"{trt.__name__} {trt.__version__} does not load the engine it built: {listener.reason()}")
    names = dtype_names(trt)
    found: dict[Any, dict[str, tuple[Any, Sequence[int]]]] = {
        mode: {} for mode in trt.TensorIOMode.__members__.values()
    }
    for name in map(engine.get_tensor_name, range(engine.num_io_tensors)):
        dtype = engine.get_tensor_dtype(name)
        found[engine.get_tensor_mode(name)][name] = (names.get(dtype, dtype), engine.get_tensor_shape(name))
    check_tensors(signature.inputs, found[trt.TensorIOMode.INPUT])
    check_tensors(signature.outputs, found[trt.TensorIOMode.OUTPUT])
    for name, wanted in shapes.items():
        built = [list(shape) for shape in engine.get_tensor_profile_shape(name, 0)]
        if built != list(wanted.values()):
            raise BundleError(f'the engine takes "{name}" in the shapes {built} instead of {list(wanted.values())}')
