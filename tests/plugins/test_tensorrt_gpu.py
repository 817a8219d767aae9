"""On real hardware: engines with the plugin, built and run by TensorRT. Run with `pytest -m gpu`."""

import math

import numpy as np
import pytest
import torch
from laplace_models import for_tensorrt, op_model
from onnxscript import ir

from mega_deploy.plugins.laplace.reference import laplace_attention

pytestmark = pytest.mark.gpu

# As the interpreter's, with room for another order of the sums.
ROUNDINGS = {"float32": 8.0, "float16": 2.0, "bfloat16": 2.0}
ONNX_TYPES = {"float32": ir.DataType.FLOAT, "float16": ir.DataType.FLOAT16, "bfloat16": ir.DataType.BFLOAT16}
FORMS = [
    {"kernel": "l1"},
    {"kernel": "l1", "causal": True},
    {"kernel": "erf", "mu": 0.5, "sigma": 0.75},
    {"kernel": "erf", "causal": True, "bias": True, "row_scale": True, "mu": 0.25, "sigma": 0.5},
    {"kernel": "erf", "row_scale": True, "mu": 0.25, "sigma": 0.5},
]
SIZES = [(1, 60, 60, 256, 256), (2, 1, 60, 256, 256), (2, 37, 65, 20, 35), (1, 1000, 900, 64, 64)]


@pytest.fixture(scope="session")
def trt(plugin):
    """TensorRT with the plugin in its registry."""
    module = pytest.importorskip("tensorrt", reason="pip install 'mega-deploy[gpu]'")
    if not torch.cuda.is_available():
        pytest.skip("torch sees no GPU")
    assert module.get_plugin_registry().load_library(plugin["library"]) is not None
    return module


def engine_of(trt, serialized_model, dynamic):
    """An engine for the types that the model has; `dynamic`: the largest size of its dynamic batch axis."""
    logger = trt.Logger(trt.Logger.WARNING)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    assert parser.parse(serialized_model), [parser.get_error(place).desc() for place in range(parser.num_errors)]
    config, profile = builder.create_builder_config(), builder.create_optimization_profile()
    for place in range(network.num_inputs):
        tensor = network.get_input(place)
        shapes = [tuple(size if known < 0 else known for known in tensor.shape) for size in (1, dynamic, dynamic)]
        profile.set_shape(tensor.name, *shapes)
    config.add_optimization_profile(profile)
    plan = builder.build_serialized_network(network, config)
    assert plan is not None
    return trt.Runtime(logger).deserialize_cuda_engine(plan)


def run(trt, engine, feeds):
    context, stream = engine.create_execution_context(), torch.cuda.Stream()
    held = {name: x.cuda().contiguous() for name, x in feeds.items()}
    for name, x in held.items():
        assert context.set_input_shape(name, tuple(x.shape))
        context.set_tensor_address(name, x.data_ptr())
    out = torch.full(tuple(context.get_tensor_shape("o")), math.nan, dtype=feeds["v"].dtype, device="cuda")
    context.set_tensor_address("o", out.data_ptr())
    torch.cuda.synchronize()
    assert context.execute_async_v3(stream.cuda_stream)
    stream.synchronize()
    return out.cpu()


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("form", FORMS, ids=lambda form: " ".join(map(str, form.values())))
@pytest.mark.parametrize("dtype", ROUNDINGS)
def test_an_engine_with_the_plugin_is_the_reference(trt, dtype, form, sizes, tmp_path):
    batch, m, n, d, dv = sizes
    model = for_tensorrt(op_model(m, n, d, dv, dtype=ONNX_TYPES[dtype], **form), tmp_path).SerializeToString()
    random = torch.Generator().manual_seed(0)
    shapes = {"q": (batch, m, d), "k": (batch, n, d), "v": (batch, n, dv)}
    shapes |= {"bias": (batch, m, n)} if form.get("bias") else {}
    shapes |= {"row_scale": (batch, m)} if form.get("row_scale") else {}
    feeds = {
        name: (torch.randn(shape, generator=random) / (math.sqrt(d) if name == "q" else 1)).to(getattr(torch, dtype))
        for name, shape in shapes.items()
    }
    got = run(trt, engine_of(trt, model, batch), feeds)
    exact = {name: x.double().numpy() for name, x in feeds.items()}
    options = {name: value for name, value in form.items() if name not in ("bias", "row_scale")}
    want, size = (laplace_attention(**exact | {"v": v}, **options) for v in (exact["v"], np.abs(exact["v"])))
    assert got.isfinite().all()
    error = np.linalg.norm(got.double().numpy() - want) / np.linalg.norm(size)
    assert error < ROUNDINGS[dtype] * torch.finfo(getattr(torch, dtype)).eps


def test_an_engine_replays_in_a_cuda_graph(trt, tmp_path):
    """Kernels are loaded when the shapes are known: a captured stream may not."""
    model = for_tensorrt(op_model(60, 60, 64, 64), tmp_path).SerializeToString()
    engine = engine_of(trt, model, 1)
    context, stream, graph = engine.create_execution_context(), torch.cuda.Stream(), torch.cuda.CUDAGraph()
    feeds = {name: torch.randn(1, 60, 64, device="cuda") for name in "qkv"}
    out = torch.empty(1, 60, 64, device="cuda")
    for name, x in (*feeds.items(), ("o", out)):
        if name != "o":
            context.set_input_shape(name, tuple(x.shape))
        context.set_tensor_address(name, x.data_ptr())
    assert context.execute_async_v3(stream.cuda_stream)
    stream.synchronize()
    with torch.cuda.graph(graph, stream=stream):
        assert context.execute_async_v3(stream.cuda_stream)
    first = out.clone()
    feeds["v"].mul_(2)
    graph.replay()
    torch.cuda.synchronize()
    assert torch.allclose(out, 2 * first, rtol=1e-5, atol=1e-6)
