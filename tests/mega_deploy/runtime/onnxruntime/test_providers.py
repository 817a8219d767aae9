"""onnxruntime's GPU providers: what is asked of them, and that the CPU never serves in their place unsaid.

No GPU is here. The decisions are tried on an onnxruntime that claims to have the providers, whose nodes the CPU runs,
and whose profile is then rewritten to say where a node is to have run.
"""

import hashlib
import json
import sys
import types
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

import mega_deploy as md
from mega_deploy.errors import MissingComponentError
from mega_deploy.machine.gpu import Gpu, Machine
from mega_deploy.models.edifice import Mega
from mega_deploy.runtime.onnxruntime import providers
from mega_deploy.runtime.onnxruntime.providers import (
    CPU,
    CUDA,
    TENSORRT,
    Placement,
    lacks,
    provider_options,
    refuse_placement,
)

BACKENDS = ["onnxruntime-cuda", "onnxruntime-tensorrt"]
HERE = Machine("580.1", (Gpu("Fake GPU 0", "8.9"),), None, "linux-x86_64")
WITHOUT = Machine(None, (), "no NVIDIA driver (x)", "linux-x86_64")
EVERY = [TENSORRT.name, CUDA.name, CPU]


def _of_shapes(node):
    """What onnxruntime leaves to the CPU: shapes and masks."""
    if node["op_name"] == "Concat":
        return all("int64" in given for given in node["output_type_shape"])
    return node["op_name"] in ("Shape", "Range", "Where")


class OnTheGpu:
    """onnxruntime's value in a GPU's memory, which here is the host's: it is reached by address and copies alone."""

    def __init__(self, array):
        self._array = array.copy()

    @classmethod
    def ortvalue_from_numpy(cls, array, device, number):
        assert (device, number) == ("cuda", 0)
        return cls(array)

    def data_ptr(self):
        return self._array.ctypes.data

    def numpy(self):
        return self._array.copy()

    def update_inplace(self, array):
        self._array[...] = array


class Binding:
    """What is bound on a GPU lies on the host; `places` tells device and address of each input and output."""

    def __init__(self, real):
        self.real, self.places = real, {}

    def bind_input(self, name, device, number, dtype, shape, address):
        self.places[name] = device, address
        self.real.bind_input(name, "cpu", number, dtype, shape, address)

    def bind_output(self, name, device, number, dtype, shape, address):
        self.places[name] = device, address
        self.real.bind_output(name, "cpu", number, dtype, shape, address)


@pytest.fixture
def ort(monkeypatch, driver, tmp_path):
    """An onnxruntime with every provider: `taken` are those that it takes, `serves` says who serves a node."""
    module = types.ModuleType("onnxruntime")
    module.asked = []

    class InferenceSession(onnxruntime.InferenceSession):
        def __init__(self, source, settings, providers, enable_fallback):
            assert enable_fallback is False
            module.asked = providers
            super().__init__(source, settings, providers=[CPU])

        def get_providers(self):
            return module.taken

        def end_profiling(self):
            path = Path(super().end_profiling())
            events = json.loads(path.read_text())
            for event in events:
                if event.get("cat") == "Node":
                    event["args"]["provider"] = module.serves(event["args"])
            path.write_text(json.dumps(events))
            return str(path)

        def io_binding(self):
            return Binding(super().io_binding())

        def run_with_iobinding(self, binding):
            super().run_with_iobinding(binding.real)

    module.__dict__.update(
        __version__=onnxruntime.__version__,
        __file__=str(tmp_path / "__init__.py"),
        SessionOptions=onnxruntime.SessionOptions,
        InferenceSession=InferenceSession,
        OrtValue=OnTheGpu,
        get_available_providers=lambda: EVERY,
        preload_dlls=lambda: print("Failed to load libcudnn.so.9"),
        taken=EVERY,
        serves=lambda node: CPU if _of_shapes(node) else module.taken[0],
    )
    monkeypatch.setitem(sys.modules, "onnxruntime", module)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("mega_deploy.machine.gpu.DRIVER_LIBRARY", str(driver))
    return module


@pytest.fixture(scope="module")
def ranged(tmp_path_factory):
    torch.manual_seed(0)
    model = Mega.build(embed_dim=6, hidden_size=16, ema_dim=3, num_layers=1, window_size=8).eval()
    return md.export(model, tmp_path_factory.mktemp("ranged") / "x.mega", seq_range="1:8:24", batch_range="1:2:4").path


@pytest.fixture(scope="module")
def causal(model, tmp_path_factory):
    return md.export(model, tmp_path_factory.mktemp("causal") / "x.mega", form="stream").path


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_real_onnxruntime_here_is_refused_with_the_command_that_mends_it(pristine, backend):
    if providers.PROVIDERS[backend].name in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime has the provider")
    with pytest.raises(MissingComponentError, match=rf"{backend} cannot serve: .*pip install 'mega-deploy\[gpu\]'"):
        md.open_bundle(pristine).session(backend)


def test_a_machine_without_a_gpu_is_refused_before_onnxruntime_is_asked():
    assert "no usable GPU: no NVIDIA driver" in lacks(CUDA, EVERY, WITHOUT)
    assert lacks(CUDA, EVERY, HERE) is None
    assert "has no TensorrtExecutionProvider" in lacks(TENSORRT, [CUDA.name, CPU], HERE)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_session_gives_the_models_numbers_and_says_who_served(ort, ranged, backend, capfd):
    ort.taken = EVERY if backend == "onnxruntime-tensorrt" else EVERY[1:]
    session = md.open_bundle(ranged).session(backend)
    frames = np.random.default_rng(0).standard_normal((3, 5, 6), np.float32)
    assert session.run(frames).shape == (3, 16) and session.backend == backend
    assert session.providers == (ort.taken[0], CPU)  # CUDA's had no node beside TensorRT's
    assert session.placement.served[CPU] < session.placement.served[ort.taken[0]]
    assert capfd.readouterr().out == ""
    assert md.validate(ranged, backend=backend).passed


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_state_of_streams_stays_on_the_gpu(ort, causal, backend):
    ort.taken = EVERY if backend == "onnxruntime-tensorrt" else EVERY[1:]
    bundle = md.open_bundle(causal)
    stream, reference = bundle.stream(3, backend=backend), bundle.stream(3)
    random = np.random.default_rng(0)
    for step in range(20):
        rows = [0, 1, 2] if step % 3 else random.permutation(3)[: random.integers(1, 4)]
        frames = random.standard_normal((len(rows), 6), np.float32)
        np.testing.assert_allclose(stream.step(frames, rows), reference.step(frames, rows), atol=1e-6)
    many = random.standard_normal((3, 11, 6), np.float32)
    np.testing.assert_allclose(stream.prefill(many), reference.prefill(many), atol=1e-6)
    np.testing.assert_allclose(stream.step(many[:, 0]), reference.step(many[:, 0]), atol=1e-6)
    assert stream.backend == backend and stream.providers == (ort.taken[0], CPU)
    for bound in stream._step._bindings.values():
        places = bound._binding.places
        assert places["frames"][0] == places["features"][0] == "cpu"
        for spec in stream.signature.state:
            (device, old), (_, new) = places[spec.name], places[spec.output]
            assert device == "cuda" and (old == new) == (backend == "onnxruntime-cuda")


def test_validate_takes_streams_to_a_provider_too(ort, causal):
    ort.taken = EVERY[1:]
    assert md.validate(causal, backend="onnxruntime-cuda").passed


def test_a_provider_that_onnxruntime_drops_in_silence_is_an_error_with_its_reason(ort, pristine):
    ort.taken = [CPU]
    with pytest.raises(MissingComponentError, match=r"did not take its CUDA.*_shared\.so.*cannot open.*pip install"):
        md.open_bundle(pristine).session("onnxruntime-cuda")


def test_nodes_that_compute_on_the_cpu_are_refused_by_name(ort, pristine):
    ort.taken = EVERY[1:]
    ort.serves = lambda node: CPU if node["op_name"] == "Softmax" else CUDA.name
    with pytest.raises(MissingComponentError, match=r"no kernel for blocks\.0/attention/Softmax.* \(Softmax\)"):
        md.open_bundle(pristine).session("onnxruntime-cuda")


def test_a_provider_that_serves_no_node_is_refused(ort, pristine):
    ort.serves = lambda node: CUDA.name
    with pytest.raises(MissingComponentError, match="took no node of this model, CUDAExecutionProvider did"):
        md.open_bundle(pristine).session("onnxruntime-tensorrt")


def node(provider, inputs, outputs, op="Where"):
    args = {"provider": provider, "op_name": op, "input_type_shape": inputs, "output_type_shape": outputs}
    return {"cat": "Node", "name": "n_kernel_time", "args": args}


@pytest.mark.parametrize(
    ("inputs", "outputs", "op", "fine"),
    [
        ([{"float": [1, 8, 6]}], [{"int64": [3]}], "Shape", True),
        ([{"int64": [2]}, {"int64": [1]}], [{"int64": [3]}], "Concat", True),
        ([{"bool": [8, 8]}, {"float": []}, {"float": []}], [{"float": [8, 8]}], "Where", True),
        ([{"float": [8, 8]}], [{"float": [8, 8]}], "MemcpyToHost", True),
        ([{"float": [8, 6]}, {"float": [6]}], [{"float": [8, 6]}], "Mul", False),
        ([{"float16": [8, 6]}], [{"float16": [8, 6]}], "Sigmoid", False),
    ],
)
def test_shapes_and_masks_may_come_from_the_cpu_and_numbers_may_not(inputs, outputs, op, fine):
    placement = Placement.read([node(CPU, inputs, outputs, op), node(CUDA.name, inputs, outputs), {"cat": "Session"}])
    assert placement.served == {CPU: 1, CUDA.name: 1}
    if fine:
        refuse_placement(CUDA, placement)
    else:
        with pytest.raises(MissingComponentError, match="run on the CPU"):
            refuse_placement(CUDA, placement)


def test_the_bundles_ranges_become_profiles_and_no_flag_lowers_the_precision(ranged, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    opened = md.open_bundle(ranged)
    model = opened.graph("model.onnx")
    (name, options), (behind, cuda) = provider_options(TENSORRT, model, opened.manifest.signature, "1.32.0", HERE)
    assert (name, behind) == (TENSORRT.name, CUDA.name) and cuda["use_tf32"] == "0"
    shapes = [options[f"trt_profile_{kind}_shapes"] for kind in ("min", "opt", "max")]
    assert shapes == ["frames:1x1x6", "frames:2x8x6", "frames:4x24x6"]
    assert not [option for option in options if "fp16" in option or "int8" in option or "bf16" in option]


def test_models_of_one_architecture_never_share_an_engine(ranged, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    one, another = (hashlib.sha256(content).hexdigest() for content in (b"one", b"another"))
    folders = {providers.engine_cache(model, "1.32.0", HERE) for model in (one, another)}
    folders.add(providers.engine_cache(one, "1.33.0", HERE))
    assert len(folders) == 3 and all(folder.stat().st_mode & 0o077 == 0 for folder in folders)
