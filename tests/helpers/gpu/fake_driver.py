"""NVIDIA's driver for tests, one a process: cuda-bindings keeps to the first driver that it finds."""

import atexit
import ctypes
import functools
import shutil
import subprocess
import tempfile
import types
from pathlib import Path

from cuda.bindings._internal import driver as bindings


@functools.cache
def library() -> Path:
    """The library, compiled, in a folder for LD_LIBRARY_PATH."""
    folder = Path(tempfile.mkdtemp(prefix="fake-driver-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    built, source = folder / "libcuda.so.1", Path(__file__).with_suffix(".c")
    subprocess.run(["cc", "-shared", "-fPIC", "-Wall", "-Werror", "-o", str(built), str(source)], check=True)
    return built


@functools.cache
def install() -> None:
    """Let cuda-bindings take it for the driver as long as this process lives, whatever driver the machine has."""
    loaded = ctypes.CDLL(str(library()))
    bindings.load_nvidia_dynamic_lib = lambda name: types.SimpleNamespace(_handle_uint=loaded._handle)
