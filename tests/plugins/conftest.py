"""What the tests of native plugins share: compiled kernels, the built TensorRT plugin, and a GPU that is not there."""

import json
import multiprocessing
import os
import pickle
import shutil
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest

from mega_deploy.errors import MissingComponentError
from mega_deploy.plugins.compiler import call, compiler
from mega_deploy.plugins.tensorrt import headers

FAKE = Path(__file__).parent / "fake_cuda"
COMPILE = """
import dataclasses, pickle, sys
from mega_deploy.plugins.gpu.compile import compile_kernels
with open(sys.argv[1], "wb") as file:
    pickle.dump([dataclasses.asdict(kernel) for kernel in compile_kernels()], file)
"""


@pytest.fixture(scope="session")
def compiled_kernels(tmp_path_factory):
    """Every `Compiled` as a dict; compiled in a child, for this process interprets Triton."""
    pytest.importorskip("triton")
    path = tmp_path_factory.mktemp("compiled") / "kernels.pickle"
    subprocess.run([sys.executable, "-c", COMPILE, str(path)], check=True)
    return pickle.loads(path.read_bytes())


@pytest.fixture(scope="session")
def cache_home(tmp_path_factory):
    """A cache of the tests' own, for XDG_CACHE_HOME."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def command(cache_home):
    """Runs mega-deploy in a child, with that cache."""

    def run(*words, **environment):
        return subprocess.run(
            [sys.executable, "-m", "mega_deploy", *map(str, words)],
            capture_output=True,
            text=True,
            cwd=cache_home,
            env={**os.environ, "XDG_CACHE_HOME": str(cache_home), **environment},
            check=False,
        )

    return run


@pytest.fixture(scope="session")
def plugin(compiled_kernels, command):
    """The report of `plugins build tensorrt --json`."""
    done = command("plugins", "build", "tensorrt", "--json")
    if done.returncode == MissingComponentError.exit_code:
        pytest.skip(done.stderr.strip())
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="session")
def stand_ins(tmp_path_factory):
    """A folder of the driver, the program that drives the plugin, and the TensorRT library, all for tests alone."""
    folder = tmp_path_factory.mktemp("stand-ins")
    try:
        include = [word for path in headers.locate() for word in ("-isystem", str(path))]
        cxx = [*compiler(), "-std=c++17", "-shared", "-fPIC", *include]
    except MissingComponentError as error:
        pytest.skip(str(error))
    cc = shutil.which("gcc") or shutil.which("cc") or pytest.skip("no C compiler; run: apt install gcc")
    call([cc, "-shared", "-fPIC", "-Wl,-soname,libcuda.so.1", f"{FAKE}/libcuda.c", "-o", f"{folder}/libcuda.so.1"])
    call([*cxx, f"{FAKE}/tensorrt.cc", "-o", f"{folder}/tensorrt.so", "-ldl"])
    soname = f"libnvinfer.so.{headers.version(headers.locate()[0]).partition('.')[0]}"
    call([*cxx, "-w", f"-Wl,-soname,{soname}", f"{FAKE}/nvinfer.cc", "-o", f"{folder}/libnvinfer.so", "-ldl"])
    return folder


@pytest.fixture(scope="session")
def gpu(plugin, compiled_kernels, stand_ins):
    """Calls a method of `fake_gpu.Gpu`, by its name, in the process that holds the GPU that is not there."""
    import fake_gpu

    arguments = (str(stand_ins), plugin["library"], pickle.dumps(compiled_kernels))
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, context, fake_gpu.start, arguments) as process:
        yield lambda *given, **options: process.submit(fake_gpu.call, *given, **options).result()
