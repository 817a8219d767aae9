"""TensorRT's and CUDA's C++ headers: the user's, the system's, or those that Python packages carry."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path

from mega_deploy.errors import InputError, MissingComponentError

TENSORRT_VARIABLE = "TENSORRT_INCLUDE_DIR"
TENSORRT_HEADER = "NvInferRuntime.h"
TENSORRT_REMEDY = (
    f"run: pip install 'mega-deploy[plugins]', or set {TENSORRT_VARIABLE} to the include folder of your TensorRT"
)
CUDA_VARIABLE = "CUDA_INCLUDE_DIR"
CUDA_HEADERS = ("cuda.h", "cuda_runtime_api.h")
CUDA_REMEDY = f"run: pip install 'mega-deploy[plugins]', or set {CUDA_VARIABLE} to the include folder of a CUDA toolkit"
SYSTEM = tuple(
    Path("/usr") / below
    for below in ("include", "include/x86_64-linux-gnu", "include/aarch64-linux-gnu", "local/tensorrt/include")
)


def tensorrt() -> Path | None:
    """The folder of TensorRT's headers, if this machine has them.

    Raises:
        InputError: TENSORRT_INCLUDE_DIR is set and holds none.
    """
    packaged = _in_package("kernel_lens", "include/tensorrt")
    return _find(TENSORRT_VARIABLE, (TENSORRT_HEADER,), (*SYSTEM, *packaged))


def cuda() -> Path | None:
    """The folder of CUDA's headers, if this machine has them.

    Raises:
        InputError: CUDA_INCLUDE_DIR is set and holds none.
    """
    toolkits = [Path(home) / "include" for name in ("CUDA_HOME", "CUDA_PATH") if (home := os.environ.get(name))]
    packaged = (
        *_in_package("triton", "backends/nvidia/include"),
        *_in_package("nvidia", "cuda_runtime/include"),
        *_in_package("nvidia", "cu13/include"),
    )
    return _find(CUDA_VARIABLE, CUDA_HEADERS, (*toolkits, Path("/usr/local/cuda/include"), *packaged, *SYSTEM))


def locate() -> tuple[Path, Path]:
    """The folders of TensorRT's and of CUDA's headers.

    Raises:
        InputError: a variable names a folder without them.
        MissingComponentError: there are none.
    """
    for_tensorrt, for_cuda = tensorrt(), cuda()
    if for_tensorrt is None:
        raise MissingComponentError(f"building the TensorRT plugin needs TensorRT's headers; {TENSORRT_REMEDY}")
    if for_cuda is None:
        raise MissingComponentError(f"building the TensorRT plugin needs CUDA's headers; {CUDA_REMEDY}")
    return for_tensorrt, for_cuda


def version(folder: Path) -> str:
    """TensorRT's version as its headers have it, such as 10.14.1; TensorRT 10 writes it by way of a second name.

    Raises:
        MissingComponentError: the folder's NvInferVersion.h does not tell it.
    """
    path = folder / "NvInferVersion.h"
    try:
        defined = dict(re.findall(r"^#define (\w+) (\w+)", path.read_text("utf-8", "replace"), re.MULTILINE))
        parts = [defined[f"NV_TENSORRT_{part}"] for part in ("MAJOR", "MINOR", "PATCH")]
        return ".".join(str(int(defined.get(part, part))) for part in parts)
    except (OSError, KeyError, ValueError) as error:
        raise MissingComponentError(f"{path} does not tell TensorRT's version ({error}); {TENSORRT_REMEDY}") from error


def _find(variable: str, wanted: Iterable[str], places: Iterable[Path]) -> Path | None:
    """The folder that the variable names, or the first of the places, that holds all wanted headers."""
    names = tuple(wanted)
    if given := os.environ.get(variable):
        if all((Path(given) / name).is_file() for name in names):
            return Path(given).absolute()
        raise InputError(
            f"{variable} is {given}, which does not hold {' and '.join(names)}; set it to a folder of them"
        )
    return next((folder for folder in places if all((folder / name).is_file() for name in names)), None)


def _in_package(package: str, below: str) -> list[Path]:
    """The folder `below` an installed package, which is not imported for it."""
    spec = find_spec(package)
    return [] if spec is None else [Path(root) / below for root in spec.submodule_search_locations or ()]
