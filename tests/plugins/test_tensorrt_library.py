"""The built TensorRT plugin as a file: what it exports, who loads it, what its kernels expect, and how it is found."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from laplace_models import for_tensorrt, op_model

from mega_deploy.errors import InputError, MissingComponentError
from mega_deploy.plugins.gpu.tiles import ARCHITECTURES
from mega_deploy.plugins.tensorrt import headers

SIZES = {"ptr": 8, "i32": 4, "f32": 4}
ELSEWHERE = ("libnvinfer", "libcuda", "libcudart", "libtensorrt")


def said(*words):
    return subprocess.run([str(word) for word in words], capture_output=True, text=True, check=True).stdout


@pytest.mark.skipif(
    not (shutil.which("nm") and shutil.which("readelf")), reason="no binutils; run: apt install binutils"
)
def test_the_library_exports_its_three_functions_and_needs_no_nvidia_library(plugin):
    exported = [line.split()[-1] for line in said("nm", "-D", "--defined-only", plugin["library"]).splitlines()]
    assert sorted(exported) == ["getCreators", "initMegaDeployPlugins", "setLoggerFinder"]
    needed = re.findall(r"\(NEEDED\).*\[(.+)\]", said("readelf", "-d", plugin["library"]))
    assert needed and not [name for name in needed if name.startswith(ELSEWHERE)]


def test_the_sources_compile_without_a_warning(plugin, compiled_kernels, tmp_path, monkeypatch):
    from mega_deploy.plugins.compiler import call, compiler
    from mega_deploy.plugins.gpu.compile import Compiled
    from mega_deploy.plugins.tensorrt import build
    from mega_deploy.plugins.tensorrt.recipe import SOURCE_FOLDER, UNITS

    assert sorted(path.stem for path in SOURCE_FOLDER.glob("*.cc")) == sorted(UNITS)
    build.write_table([Compiled(**made) for made in compiled_kernels], "test", tmp_path)
    include = [word for path in headers.locate() for word in ("-isystem", str(path))]
    for unit in UNITS:
        flags = [*build.FLAGS, "-Wextra", "-Wshadow", "-Werror", *include, "-I.", "-fsyntax-only"]
        call([*compiler(), *flags, str(SOURCE_FOLDER / f"{unit}.cc")], tmp_path)


RTX = """
import json, sys, numpy as np, tensorrt_rtx as trt
registry = trt.get_plugin_registry()
print(registry.load_library(sys.argv[1]) is not None)
creator = registry.get_creator("LaplaceAttention", "1", "mega.deploy")
print(json.dumps([[field.name, field.type.name] for field in creator.field_names]))
kinds = {"kernel": (np.int8, trt.PluginFieldType.CHAR), "causal": (np.int32, trt.PluginFieldType.INT32),
         "mu": (np.float32, trt.PluginFieldType.FLOAT32), "sigma": (np.float32, trt.PluginFieldType.FLOAT32)}
for given in json.loads(sys.argv[2]):
    fields = []
    for name, value in given.items():
        dtype, kind = kinds[name]
        data = np.frombuffer(value.encode(), dtype).copy() if name == "kernel" else np.array([value], dtype)
        fields.append(trt.PluginField(name, data, kind))
    try:
        plugin = creator.create_plugin("layer", trt.PluginFieldCollection(fields), trt.TensorRTPhase.BUILD)
    except Exception:
        plugin = None
    if plugin is None:
        print("refused")
        continue
    core = plugin.get_capability_interface(trt.PluginCapabilityType.CORE)
    build = plugin.get_capability_interface(trt.PluginCapabilityType.BUILD)
    assert plugin.get_capability_interface(trt.PluginCapabilityType.RUNTIME) is not None
    print(core.plugin_name, core.plugin_version, core.plugin_namespace, build.num_outputs, build.timing_cache_id)
"""


def test_nvidias_own_registry_loads_the_library_and_creates_the_layer(plugin):
    pytest.importorskip("tensorrt_rtx", reason="pip install tensorrt-rtx")
    given = [{"kernel": "l1"}, {"kernel": "erf\0", "causal": 1, "mu": 0.5, "sigma": 0.25}, {"kernel": "huh"}]
    given += [{"causal": 3}, {"sigma": -1.0}]
    command = [sys.executable, "-c", RTX, plugin["library"], json.dumps(given)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    loaded, fields, first, second, *refused = done.stdout.splitlines()
    assert loaded == "True"
    kinds = [["kernel", "CHAR"], ["causal", "INT32"], ["mu", "FLOAT32"], ["sigma", "FLOAT32"], ["inputs", "INT32"]]
    assert json.loads(fields) == kinds
    assert first.startswith("LaplaceAttention 1 mega.deploy 1 ") and first.endswith(" l1 inputs -1")
    assert second.endswith(" erf causal inputs -1")
    assert refused == ["refused"] * 3
    for reason in ('the attribute kernel is "huh"', "the attribute causal is 3", "the attribute sigma is -1"):
        assert reason in done.stderr


PARSE = """
import sys, tensorrt_rtx as trt
class Logger(trt.ILogger):
    def __init__(self): trt.ILogger.__init__(self)
    def log(self, severity, message): print(message, flush=True)
logger = Logger()
assert trt.get_plugin_registry().load_library(sys.argv[1]) is not None
network = trt.Builder(logger).create_network(0)
trt.OnnxParser(network, logger).parse(open(sys.argv[2], "rb").read())
"""


@pytest.mark.parametrize("kernel", ["l1", "erf"])
def test_nvidias_own_parser_makes_the_layer_of_the_changed_model(plugin, tmp_path, kernel):
    """TensorRT-RTX has no plugins and gives up afterwards; that the parser creates the layer is what counts."""
    pytest.importorskip("tensorrt_rtx", reason="pip install tensorrt-rtx")
    optional = {"row_scale": True, "causal": True, "mu": 0.25, "sigma": 0.5} if kernel == "erf" else {}
    for_tensorrt(op_model(3, 4, 5, 6, kernel=kernel, **optional), tmp_path)
    command = [sys.executable, "-c", PARSE, plugin["library"], str(tmp_path / "for_tensorrt.onnx")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "Successfully created plugin: LaplaceAttention" in done.stdout, done.stdout[-500:] + done.stderr
    assert "LaplaceAttention: " not in done.stderr
    assert ("[row_scale -> (-1, 3)[FLOAT]]" in done.stdout) == (kernel == "erf")


LOAD = """
import sys, types, tensorrt_rtx as trt
from pathlib import Path
from mega_deploy.exporters.tensorrt import engine, library
from mega_deploy.exporters.tensorrt.options import EngineOptions
manifest = types.SimpleNamespace(plugins=[{"name": name} for name in sys.argv[2:]])
job = types.SimpleNamespace(
    bundle=types.SimpleNamespace(manifest=manifest), options=EngineOptions(plugin_library=Path(sys.argv[1])), trt=trt,
    target=engine.TARGETS["tensorrt"], listener=library.Listener(trt, print), graph="model.onnx",
)
for _ in range(2):  # NVIDIA's registry refuses the same library the second time
    with engine._loaded_plugin(job) as plugin:
        digest = plugin and plugin.entry["sha256"]
print(digest)
"""


@pytest.mark.parametrize("operators", [("LaplaceAttention",), ()])
def test_a_build_loads_the_plugin_for_a_model_that_has_the_operator(plugin, operators):
    pytest.importorskip("tensorrt_rtx", reason="pip install tensorrt-rtx")
    library = Path(plugin["library"])
    command = [sys.executable, "-c", LOAD, str(library), *operators]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    digest = hashlib.sha256(library.read_bytes()).hexdigest() if operators else None
    assert done.stdout.strip() == str(digest)


REGISTER = """
import ctypes, sys
library, tensorrt, way = sys.argv[1:]
nvinfer = ctypes.CDLL(tensorrt) if way != "init first" else None
if way == "TensorRT loads it":
    assert nvinfer.fake_load(library.encode())
else:
    opened = ctypes.CDLL(library)
    init = opened.initMegaDeployPlugins
    init.restype = ctypes.c_bool
    if way == "init first":
        assert not init()
        nvinfer = ctypes.CDLL(tensorrt)
        assert init()
    assert not init()
print(nvinfer.fake_registered())
"""


@pytest.mark.parametrize("way", ["a program opens it", "TensorRT loads it", "init first"])
def test_the_plugin_is_registered_once_whoever_loads_it(plugin, stand_ins, way):
    """By itself where a program only opens the library, and left to TensorRT where that loads it."""
    command = [sys.executable, "-c", REGISTER, plugin["library"], f"{stand_ins}/libnvinfer.so", way]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "1"), done.stderr
    assert ("load TensorRT first" in done.stderr) == (way == "init first")


def test_without_a_driver_the_layer_says_so(plugin, stand_ins):
    code = """
import sys
import fake_gpu
gpu = fake_gpu.Gpu.__new__(fake_gpu.Gpu)
class NoDriver:
    def __getattr__(self, name): return lambda *given: None
fake_gpu.ctypes.CDLL = (lambda real: lambda path: NoDriver() if "libcuda" in path else real(path))(fake_gpu.ctypes.CDLL)
gpu.__init__(sys.argv[1], sys.argv[2], fake_gpu.pickle.dumps([]))
print(gpu.ask("enqueue_sizes", ((1, 2, 3),), ((1, 2, 3),), ((1, 2, 3),)))
"""
    helpers = str(Path(__file__).parents[1] / "helpers" / "gpu")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([helpers, os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, "-c", code, str(stand_ins), plugin["library"]]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    if "libcuda.so.1" not in done.stdout:
        pytest.skip("this machine has NVIDIA's driver")
    assert "install NVIDIA's driver" in done.stdout


@pytest.fixture(scope="module")
def cuobjdump():
    from mega_deploy.plugins.gpu.compile import tool

    return tool("cuobjdump")


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_cubin_takes_the_parameters_that_the_plan_passes(compiled_kernels, cuobjdump, architecture, tmp_path):
    """Their order, offsets and sizes are in the cubin; the library compares each launch with this list."""
    file = tmp_path / "kernel.cubin"
    rows = [made for made in compiled_kernels if made["architecture"] == f"sm_{architecture}"]
    assert rows
    for made in rows:
        file.write_bytes(made["image"])
        listed = re.findall(
            r"EIATTR_KPARAM_INFO.*\n.*\n.*Ordinal : (0x\w+)\s+Offset  : (0x\w+)\s+Size    : (0x\w+)",
            said(cuobjdump, "--dump-elf", file),
        )
        found = sorted(tuple(int(number, 16) for number in row) for row in listed)
        wanted, offset = [], 0
        for ordinal, kind in enumerate(made["parameters"]):
            offset = -(-offset // SIZES[kind]) * SIZES[kind]
            wanted.append((ordinal, offset, SIZES[kind]))
            offset += SIZES[kind]
        assert found == wanted, made["name"]


def test_the_ptx_takes_the_same_parameters(compiled_kernels):
    kinds = {"u64": "ptr", "u32": "i32", "f32": "f32", "b64": "ptr", "b32": "i32"}
    rows = [made for made in compiled_kernels if made["architecture"].startswith("compute")]
    for made in rows:
        found = re.findall(
            r"\.param \.(\w+) (?:\.ptr [^,\n]*)?\s*" + made["name"] + r"_param_\d+", made["image"].decode()
        )
        sizes = [SIZES[kinds[kind]] for kind in found]
        assert sizes == [SIZES[kind] for kind in made["parameters"]], made["name"]


def test_the_list_tells_every_kernel_and_the_build_is_kept(plugin, command):
    assert plugin["plugin"] == {"name": "LaplaceAttention", "version": "1", "namespace": "mega.deploy"}
    listed = json.loads(command("plugins", "list", "--json").stdout)["plugins"]
    (row,) = [one for one in listed if one["target"] == "tensorrt"]
    assert row["library"] == plugin["library"]
    assert row["architectures"] == ["sm_80", "sm_86", "sm_89", "compute_89", "sm_90", "sm_100", "sm_120"]
    assert {kernel["architecture"] for kernel in row["kernels"]} == set(row["architectures"])
    assert all(kernel["spill_bytes"] == 0 for kernel in row["kernels"])
    before = Path(plugin["library"]).stat().st_mtime_ns
    assert json.loads(command("plugins", "build", "tensorrt", "--json").stdout) == plugin
    assert Path(plugin["library"]).stat().st_mtime_ns == before
    assert Path(plugin["library"]).name in command("plugins", "list", COLUMNS="400").stdout


def test_the_list_needs_neither_triton_nor_headers(plugin, command, tmp_path):
    for name in ("triton", "kernel_lens", "torch"):
        (tmp_path / f"{name}.py").write_text("raise ImportError('blocked')\n")
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    listed = json.loads(command("plugins", "list", "--json", PYTHONPATH=path).stdout)["plugins"]
    assert listed[1]["library"] == plugin["library"]


def test_a_damaged_library_is_not_listed(plugin, command, tmp_path):
    shutil.copytree(Path(plugin["library"]).parent, tmp_path / "mega-deploy" / Path(plugin["library"]).parent.name)
    (copy,) = tmp_path.glob("mega-deploy/*/*.so")
    copy.write_bytes(copy.read_bytes()[:-1])
    listed = json.loads(command("plugins", "list", "--json", XDG_CACHE_HOME=str(tmp_path)).stdout)["plugins"]
    assert listed[1] == {"target": "tensorrt", "library": None, "architectures": [], "kernels": []}


@pytest.mark.parametrize(
    ("environment", "code", "reason"),
    [
        ({"CXX": "no-such-compiler"}, 4, "no-such-compiler, which is not there"),
        ({"PATH": ""}, 4, "apt install g++"),
        ({"TENSORRT_INCLUDE_DIR": "/nowhere"}, 2, "TENSORRT_INCLUDE_DIR is /nowhere"),
        ({"CUDA_INCLUDE_DIR": "/nowhere"}, 2, "CUDA_INCLUDE_DIR is /nowhere"),
    ],
    ids=str,
)
def test_what_is_missing_is_named_in_one_line(plugin, command, tmp_path, environment, code, reason):
    done = command("plugins", "build", "tensorrt", XDG_CACHE_HOME=str(tmp_path), **environment)
    assert done.returncode == code and done.stderr.count("\n") == 1 and reason in done.stderr
    assert list(tmp_path.rglob("*.so")) == []


def test_without_triton_the_extra_is_named(plugin, command, tmp_path):
    (tmp_path / "triton.py").write_text("raise ImportError('blocked')\n")
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    # The headers of CUDA may come from triton's wheel, which is then not found either.
    done = command("plugins", "build", "tensorrt", XDG_CACHE_HOME=str(tmp_path), PYTHONPATH=path)
    assert done.returncode == MissingComponentError.exit_code
    assert "pip install 'mega-deploy[plugins]'" in done.stderr


def test_headers_are_found_where_a_variable_names_them(tmp_path, monkeypatch):
    monkeypatch.setenv(headers.TENSORRT_VARIABLE, str(tmp_path))
    with pytest.raises(InputError, match=r"does not hold NvInferRuntime\.h"):
        headers.tensorrt()
    (tmp_path / "NvInferRuntime.h").touch()
    assert headers.tensorrt() == tmp_path


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("#define NV_TENSORRT_MAJOR 8 //!< \n#define NV_TENSORRT_MINOR 6\n#define NV_TENSORRT_PATCH 1\n", "8.6.1"),
        (
            "#define TRT_MAJOR_ENTERPRISE 10\n#define TRT_MINOR_ENTERPRISE 14\n#define TRT_PATCH_ENTERPRISE 0\n"
            "#define NV_TENSORRT_MAJOR TRT_MAJOR_ENTERPRISE\n#define NV_TENSORRT_MINOR TRT_MINOR_ENTERPRISE\n"
            "#define NV_TENSORRT_PATCH TRT_PATCH_ENTERPRISE\n",
            "10.14.0",
        ),
    ],
)
def test_the_version_is_read_from_the_headers(tmp_path, text, version):
    (tmp_path / "NvInferVersion.h").write_text(text)
    assert headers.version(tmp_path) == version


@pytest.mark.parametrize("text", ["", "#define NV_TENSORRT_MAJOR TEN\n#define NV_TENSORRT_MINOR 1\n"])
def test_headers_without_a_version_are_refused(tmp_path, text):
    (tmp_path / "NvInferVersion.h").write_text(text)
    with pytest.raises(MissingComponentError, match="TENSORRT_INCLUDE_DIR"):
        headers.version(tmp_path)


def test_doctor_tells_of_the_plugin(plugin, command):
    components = {one["name"]: one for one in json.loads(command("doctor", "--json").stdout)["components"]}
    for name in ("triton", "TensorRT C++ headers", "CUDA C++ headers", "TensorRT plugin"):
        assert components[name]["works"] and components[name]["version"], components[name]
