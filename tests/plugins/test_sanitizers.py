"""The native code under address, undefined-behaviour and thread sanitizers, with inputs that no honest caller gives.

Each driver runs for MEGA_DEPLOY_SANITIZE_SECONDS (3 by default; `make sanitize` gives it more), from the seed in
MEGA_DEPLOY_SANITIZE_SEED.
"""

import os
import subprocess
import sys
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import pytest

from mega_deploy.errors import MissingComponentError
from mega_deploy.plugins.compiler import call, compiler
from mega_deploy.plugins.onnxruntime import build as for_onnxruntime
from mega_deploy.plugins.onnxruntime import headers as onnxruntime_headers
from mega_deploy.plugins.tensorrt import build as for_tensorrt
from mega_deploy.plugins.tensorrt import headers as tensorrt_headers

HERE = Path(__file__).parent
DRIVERS = HERE / "sanitized"
SECONDS = os.environ.get("MEGA_DEPLOY_SANITIZE_SECONDS", "3")
SEED = os.environ.get("MEGA_DEPLOY_SANITIZE_SEED", "1")
SANITIZERS = {
    "address": ("-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-D_GLIBCXX_ASSERTIONS"),
    "thread": ("-fsanitize=thread",),
}
OPTIONS = {
    "ASAN_OPTIONS": "detect_leaks=1:detect_stack_use_after_return=1:exitcode=66",
    "TSAN_OPTIONS": "exitcode=66:halt_on_error=1",
    "UBSAN_OPTIONS": "print_stacktrace=1",
}
# What the plan passes to each kernel; a launch that differs is refused before the driver sees it.
KERNELS = {
    "pack_columns": "ppiiipp",
    "pack_rows": "ppiiipp",
    "l1_weights": "pppiiiiiipp",
    "erf_weights": "pppppiiiiiiiiffpp",
    "product": "pppiiiiiipp",
    "erf_fused": "ppppppiiiiiiiiiffpp",
}


@dataclass(frozen=True)
class Kernel:
    """A kernel for the library's table, whose image holds nothing."""

    name: str
    dtype: str
    tile: str
    parameters: str
    architecture: str = "sm_80"
    block_m: int = 32
    block_n: int = 64
    threads: int = 128
    shared_bytes: int = 64 * 1024
    image: bytes = b"\x7fELF, and no code"


@pytest.fixture(params=SANITIZERS)
def sanitizer(request, tmp_path):
    """Its name; skipped where the compiler has none."""
    probe = tmp_path / "probe.cc"
    probe.write_text("int main() {}\n")
    try:
        call([*compiler(), *SANITIZERS[request.param], str(probe), "-o", str(tmp_path / "probe")])
        subprocess.run([tmp_path / "probe"], check=True)
    except (MissingComponentError, subprocess.CalledProcessError) as error:
        pytest.skip(f"the {request.param} sanitizer is not here: {error}")
    return request.param


def run(program, *words, **environment):
    done = subprocess.run(
        [program, SECONDS, SEED, *map(str, words)],
        capture_output=True,
        text=True,
        env={**os.environ, **OPTIONS, **environment},
        check=False,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    return done.stdout


def test_the_cpu_kernels_touch_nothing_beyond_their_arrays(sanitizer, tmp_path):
    flags = [
        *SANITIZERS[sanitizer],
        "-std=c++17",
        "-O1",
        "-g",
        "-ffp-contract=fast",
        f"-I{for_onnxruntime.SOURCE_FOLDER}",
    ]
    for level, own in for_onnxruntime.LEVELS.items():
        source = for_onnxruntime.SOURCE_FOLDER / f"laplace_{level}.cc"
        call([*compiler(), *flags, *own, "-c", str(source), "-o", f"{level}.o"], tmp_path)
    objects = [f"{level}.o" for level in for_onnxruntime.LEVELS]
    call([*compiler(), *flags, str(DRIVERS / "kernel.cc"), *objects, "-pthread", "-o", "kernel"], tmp_path)
    assert int(run(tmp_path / "kernel").split()[0]) > 10


def test_the_tensorrt_plugin_takes_any_fields_and_shapes(sanitizer, tmp_path):
    try:
        folders = [word for folder in tensorrt_headers.locate() for word in ("-isystem", str(folder))]
    except MissingComponentError as error:
        pytest.skip(str(error))
    flags = [*SANITIZERS[sanitizer], "-std=c++17", "-O1", "-g", "-I.", f"-I{for_tensorrt.SOURCE_FOLDER}", *folders]
    rows = product(KERNELS, for_tensorrt.DTYPES, for_tensorrt.TILES)
    table = [Kernel(name, dtype, tile, KERNELS[name]) for name, dtype, tile in rows]
    for_tensorrt.write_table(table, "sanitized", tmp_path)
    units = [unit for unit in for_tensorrt.UNITS if unit != "library"]  # which registers with TensorRT's own
    for unit in units:
        source = for_tensorrt.SOURCE_FOLDER / f"{unit}.cc"
        call([*compiler(), *flags, "-c", str(source), "-o", f"{unit}.o"], tmp_path)
    objects = [f"{unit}.o" for unit in units]
    call([*compiler(), *flags, str(DRIVERS / "plugin.cc"), *objects, "-ldl", "-pthread", "-o", "plugin"], tmp_path)
    driver = ["-x", "c", str(HERE / "fake_cuda/libcuda.c"), "-shared", "-fPIC", "-Wl,-soname,libcuda.so.1"]
    call([*compiler(), *SANITIZERS[sanitizer], *driver, "-o", "libcuda.so.1"], tmp_path)
    said = run(tmp_path / "plugin", 4 if sanitizer == "thread" else 1, LD_LIBRARY_PATH=str(tmp_path))
    assert int(said.split()[0]) > 100


SESSION = """
import itertools, sys
import numpy as np, onnxruntime as ort
from onnx import TensorProto, helper

ort.set_default_logger_severity(4)

def session(kind=TensorProto.FLOAT, inputs=5, **attributes):
    names = ["q", "k", "v", "bias", "row_scale"][:inputs]
    values = [helper.make_tensor_value_info(name, kind, None) for name in names]
    node = helper.make_node("LaplaceAttention", names, ["o"], domain="mega.deploy", **attributes)
    graph = helper.make_graph([node], "g", values, [helper.make_tensor_value_info("o", kind, None)])
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("mega.deploy", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 2
    options.register_custom_ops_library(sys.argv[1])
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])

made = refused = 0
numbers = (0.0, -1.0, 1e-45, 3e38, float("nan"), float("inf"))
for attributes in (
    *({"kernel": name} for name in ("", "l2", "erf" * 2000, "l1\\0", b"\\xff\\xfe", "erf")),
    *({"kernel": "erf", "sigma": sigma, "mu": mu} for sigma, mu in itertools.product(numbers, numbers)),
    {"kernel": 3}, {"kernel": [1.0]}, {"causal": "x"}, {"causal": -(2**63)}, {"sigma": [1.0, 2.0]}, {"mu": "x"},
):
    try:
        one = session(inputs=3, **attributes)
        one.run(None, {name: np.ones((2, 3, 4), np.float32) for name in "qkv"})
        made += 1
    except Exception as error:
        refused += 1

random = np.random.default_rng(int(sys.argv[2]))
sizes = (0, 1, 2, 7, 8, 9, 17, 40)
for kind, dtype in ((TensorProto.FLOAT, np.float32), (TensorProto.FLOAT16, np.float16)):
    for inputs, kernel, causal in ((3, "l1", 0), (3, "l1", 1), (4, "erf", 0), (5, "erf", 1)):
        one = session(kind, inputs, kernel=kernel, causal=causal)
        for _ in range(60):
            b, m, n, d, dv = (int(random.choice(sizes)) for _ in range(5))
            shapes = [[b, m, d], [b, n, d], [b, n, dv], [1 if random.random() < 0.5 else b, m, n], [b, m]][:inputs]
            if random.random() < 0.4:  # shapes that do not belong together
                which = shapes[random.integers(inputs)]
                which[random.integers(len(which))] = int(random.choice(sizes))
            if random.random() < 0.1:
                shapes[random.integers(inputs)].append(1)
            feeds = {name: random.standard_normal(shape).astype(dtype) for name, shape in zip(
                ["q", "k", "v", "bias", "row_scale"], shapes)}
            try:
                (o,) = one.run(None, feeds)
                assert o.shape == (b, m, dv) or True
                made += 1
            except Exception:
                refused += 1
print(made, refused)
"""


def test_the_library_for_onnxruntime_takes_any_attributes_and_shapes(tmp_path, cache_home, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache_home))
    try:
        include = onnxruntime_headers.locate()
        libraries = [call([*compiler(), f"-print-file-name=lib{name}.so"]).strip() for name in ("asan", "ubsan")]
    except MissingComponentError as error:
        pytest.skip(str(error))
    if not all(Path(library).is_absolute() for library in libraries):
        pytest.skip(f"{compiler()[0]} has no address sanitizer that can be loaded first")
    flags = [*SANITIZERS["address"], "-std=c++17", "-O1", "-g", "-fPIC", f"-I{include}"]
    units = {"library": ()} | {f"laplace_{level}": own for level, own in for_onnxruntime.LEVELS.items()}
    for unit, own in units.items():
        call(
            [*compiler(), *flags, *own, "-c", str(for_onnxruntime.SOURCE_FOLDER / f"{unit}.cc"), "-o", f"{unit}.o"],
            tmp_path,
        )
    call([*compiler(), *flags, "-shared", *(f"{unit}.o" for unit in units), "-o", "library.so"], tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", SESSION, str(tmp_path / "library.so"), SEED],
        capture_output=True,
        text=True,
        # Python and onnxruntime keep what they allocate; only what is ours is looked at.
        env={**os.environ, "LD_PRELOAD": " ".join(libraries), "ASAN_OPTIONS": "detect_leaks=0:exitcode=66"},
        check=False,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    made, refused = map(int, done.stdout.splitlines()[-1].split())  # onnxruntime has printed, too
    assert made > 100 and refused > 100
