"""What works on this machine, what is missing, and the command that mends it."""

from __future__ import annotations

import importlib
import platform
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from mega_deploy.errors import InputError, MissingComponentError
from mega_deploy.machine.gpu import REMEDY, cuda_version, look
from mega_deploy.plugins.cache import Library, Recipe, Unusable
from mega_deploy.plugins.compiler import compiler, describe
from mega_deploy.plugins.onnxruntime import headers as ort_headers
from mega_deploy.plugins.onnxruntime.cache import RECIPE as ort_recipe
from mega_deploy.plugins.tensorrt import headers as trt_headers
from mega_deploy.plugins.tensorrt import recipe as trt_recipe
from mega_deploy.runtime.onnxruntime.providers import PROVIDERS, lacks, unloadable


@dataclass(frozen=True)
class Component:
    """One thing that mega-deploy can use."""

    name: str
    version: str | None
    works: bool
    remedy: str | None
    """The command that mends it, where it does not work and something can be done."""
    purpose: str

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class _Package:
    module: str
    extra: str
    purpose: str
    distributions: tuple[str, ...] = ()
    """What may bring the module, where its own name does not."""


PACKAGES = (
    _Package("numpy", "", "arrays"),
    _Package("onnxruntime", "cpu", "run bundles, verify exports", ("onnxruntime", "onnxruntime-gpu")),
    _Package("torch", "export", "the trained form"),
    _Package("safetensors", "export", "read checkpoints"),
    _Package("onnx", "export", "check and save graphs"),
    _Package("onnxscript", "export", "build graphs"),
    _Package("scipy", "bench", "the intervals of the benchmark"),
    _Package("jinja2", "bench", "the page of the benchmark"),
    _Package("polygraphy", "debug", "its files and commands for parity cases"),
    _Package("tensorrt", "gpu", "engines for this machine's GPU"),
    _Package("cuda.bindings", "gpu", "run engines", ("cuda-bindings",)),
    _Package("tensorrt_rtx", "rtx", "engines for RTX GPUs, built without one", ("tensorrt-rtx", "tensorrt_rtx_cu13")),
)

BUILDING = "build the native Laplace kernels"


def examine() -> list[Component]:
    """Every component, each tried and not just looked up."""
    python = Component("python", platform.python_version(), True, None, "3.11 or newer")
    packages = (_package(package) for package in PACKAGES)
    return [python, *packages, _session(), *_providers(), *_native_kernels(), *_gpu(), _cuda()]


def missing(*modules: str) -> list[str]:
    """One line for each of the modules that does not work here, with its remedy."""
    found = (_package(package) for package in PACKAGES if package.module in modules)
    return [f"{component.name}: {component.remedy}" for component in found if not component.works]


def _package(package: _Package) -> Component:
    try:
        importlib.import_module(package.module)
    except (ImportError, OSError):
        extra = f"[{package.extra}]" if package.extra else ""
        return Component(package.module, None, False, f"pip install 'mega-deploy{extra}'", package.purpose)
    return Component(package.module, _version(package), True, None, package.purpose)


def _version(package: _Package) -> str | None:
    for name in package.distributions or (package.module,):
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return None


def _session() -> Component:
    """Whether onnxruntime's CPU provider is there: an installation that is half broken often imports all the same."""
    name, purpose = "onnxruntime CPU provider", "the default backend"
    try:
        import onnxruntime
    except (ImportError, OSError):
        return Component(name, None, False, "pip install 'mega-deploy[cpu]'", purpose)
    providers = onnxruntime.get_available_providers()
    works = "CPUExecutionProvider" in providers
    return Component(
        name, onnxruntime.__version__, works, None if works else "pip install --force-reinstall onnxruntime", purpose
    )


def _providers() -> list[Component]:
    """The GPU providers of onnxruntime, as far as can be told without a model."""
    try:
        import onnxruntime
    except (ImportError, OSError):
        available = []
    else:
        available = onnxruntime.get_available_providers()
    machine, found = look(), []
    for provider in PROVIDERS.values():
        lacking = lacks(provider, available, machine) or unloadable(provider)
        version = onnxruntime.__version__ if provider.name in available else None
        found.append(Component(provider.name, version, lacking is None, lacking, f"the {provider.backend} backend"))
    return found


def _cuda() -> Component:
    """The newest CUDA that the driver runs; what programs need of it they bring along."""
    version = cuda_version()
    remedy = "install NVIDIA's driver, on a machine with an NVIDIA GPU; no CUDA toolkit is needed"
    return Component("CUDA", version, version is not None, None if version else remedy, "of the driver, run engines")


def _native_kernels() -> list[Component]:
    """The native kernels of LaplaceAttention, and what building them needs."""
    try:
        compiling = Component("C++ compiler", describe(compiler()), True, None, BUILDING)
    except MissingComponentError:
        compiling = Component("C++ compiler", None, False, "apt install g++, or set CXX", BUILDING)
    return [compiling, *_for_onnxruntime(), *_for_tensorrt()]


def _for_onnxruntime() -> list[Component]:
    remedy = f"{ort_recipe.build_command} fetches them" if ort_headers.fetchable() else ort_headers.REMEDY
    found = _headers("onnxruntime C++ headers", ort_headers.present, remedy, BUILDING)
    name, purpose = "native Laplace kernel", "fast Laplace attention; its function body serves without it"
    try:
        from onnxruntime import __version__ as version
    except (ImportError, OSError):
        return [found, Component(name, None, False, "pip install 'mega-deploy[cpu]'", purpose)]
    return [found, _built(name, ort_recipe, ort_recipe.find(version), purpose)]


def _for_tensorrt() -> list[Component]:
    building = "build the TensorRT plugin"
    triton = find_spec("triton") is not None  # not imported, for it takes seconds
    return [
        Component(
            "triton",
            _version(_Package("triton", "plugins", building)),
            triton,
            None if triton else "pip install 'mega-deploy[plugins]'",
            building,
        ),
        _headers("TensorRT C++ headers", _tensorrt_headers, trt_headers.TENSORRT_REMEDY, building),
        _headers("CUDA C++ headers", trt_headers.cuda, trt_headers.CUDA_REMEDY, building),
        _built("TensorRT plugin", trt_recipe.RECIPE, trt_recipe.find(), "Laplace attention in TensorRT engines"),
    ]


def _tensorrt_headers() -> str | None:
    folder = trt_headers.tensorrt()
    return None if folder is None else f"{trt_headers.version(folder)} in {folder}"


def _headers(name: str, present: Callable[[], Path | str | None], remedy: str, purpose: str) -> Component:
    try:
        found = present()
    except (InputError, MissingComponentError) as error:
        found, remedy = None, str(error)
    return Component(
        name, None if found is None else str(found), found is not None, remedy if not found else None, purpose
    )


def _built(name: str, recipe: Recipe, library: Library | Unusable, purpose: str) -> Component:
    if isinstance(library, Unusable):
        return Component(name, None, False, recipe.build_command, purpose)
    return Component(name, library.record["sha256"][:12], True, None, purpose)


def _gpu() -> list[Component]:
    """The driver, and the GPU that sessions use."""
    machine = look()
    gpu = machine.gpus[0] if machine.gpus else None
    found = f"{gpu.name}, compute capability {gpu.compute_capability}" if gpu else None
    remedy = None if gpu else f"{machine.lacks}: {REMEDY}"
    driver = machine.driver is not None
    return [
        Component(
            "NVIDIA driver",
            machine.driver,
            driver,
            machine.driver_note if driver else "install NVIDIA's driver, on a machine with an NVIDIA GPU",
            "run engines",
        ),
        Component("GPU", found, gpu is not None, remedy, "run engines; not needed on a CPU"),
    ]
