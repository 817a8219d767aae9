"""Sessions on onnxruntime's GPU providers, which give an error where onnxruntime would quietly take the CPU.

onnxruntime falls back three times: to the CPU where a provider's library or driver is missing, to the CPU again where
a call of the provider fails, and node by node where a provider has no kernel. So a session here (1) asks for what it
needs beforehand, (2) switches the fallback of calls off, (3) looks whether the provider was taken at all, and (4)
profiles a first call, which tells what really served each node. Shapes are computed on the CPU on purpose, numbers not.

Laplace attention runs as its function body on both: onnxruntime's TensorRT provider would take the plugin only from a
model that was rewritten for it, for which a production host has no package. TensorRT's own engines take the plugin.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import re
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mega_deploy.bundle import GraphFile
from mega_deploy.errors import InputError, MegaDeployError, MissingComponentError, require
from mega_deploy.machine.gpu import REMEDY, Machine, look
from mega_deploy.plugins.cache import home
from mega_deploy.plugins.private import NotPrivateError, make_folder
from mega_deploy.runtime.forking import ON_GPU
from mega_deploy.runtime.onnxruntime.calls import call_error
from mega_deploy.runtime.onnxruntime.native import Source
from mega_deploy.runtime.onnxruntime.session import CPU, Session
from mega_deploy.runtime.options import SessionOptions
from mega_deploy.signature import Range, Signature, TensorSpec

INSTALL = "pip uninstall onnxruntime; pip install 'mega-deploy[gpu]'"
_SHARED = "libonnxruntime_providers_shared.so"
_FLOATS = ("float", "float16", "bfloat16", "double")


@dataclass(frozen=True)
class Provider:
    """An execution provider of onnxruntime for NVIDIA's GPUs."""

    backend: str
    """Its name for sessions and the command line."""
    name: str
    """Its name in onnxruntime."""
    library: str
    """The library that it lives in, beside onnxruntime's own."""
    needs: str
    """What that library loads, with the command that installs it."""
    writes_in_place: bool
    """Whether an output may lie where an input does: TensorRT promises nothing of such outputs."""


CUDA = Provider(
    "onnxruntime-cuda",
    "CUDAExecutionProvider",
    "libonnxruntime_providers_cuda.so",
    "CUDA and cuDNN; run: pip install 'onnxruntime-gpu[cuda,cudnn]'",
    writes_in_place=True,
)
TENSORRT = Provider(
    "onnxruntime-tensorrt",
    "TensorrtExecutionProvider",
    "libonnxruntime_providers_tensorrt.so",
    "CUDA, cuDNN and TensorRT 10; run: pip install 'onnxruntime-gpu[cuda,cudnn]' 'tensorrt>=10,<11'",
    writes_in_place=False,
)
PROVIDERS = {provider.backend: provider for provider in (CUDA, TENSORRT)}


class ProviderSession(Session):
    """A model on one of onnxruntime's GPU providers.

    Args:
        backend: a key of PROVIDERS.
        model: a bundle's graph, the path of an ONNX file, or its bytes.
        signature: what it takes and gives.
        options: how it uses the machine.

    Raises:
        MissingComponentError: onnxruntime lacks the provider, the provider lacks a library, the machine has no GPU, or
            the provider has no kernel for a node of this model.
        BundleError: onnxruntime cannot load the model.
    """

    state_device = "cuda"

    def __init__(
        self, backend: str, model: Source, signature: Signature, options: SessionOptions | None = None
    ) -> None:
        ort = require("onnxruntime", "gpu", f"the {backend} backend")
        provider = PROVIDERS[backend]
        machine = look()
        if lacking := lacks(provider, ort.get_available_providers(), machine):
            raise MissingComponentError(f"{backend} cannot serve: {lacking}")
        _preload(ort)
        self.backend, self.writes_in_place = backend, provider.writes_in_place
        with tempfile.TemporaryDirectory(prefix="mega-deploy-") as folder:
            self._profile = Path(folder) / "profile"
            self._providers = provider_options(provider, model, signature, ort.__version__, machine)
            super().__init__(model, signature, options)
            if provider.name not in self._session.get_providers():
                reason = unloadable(provider) or "it could not be set up; onnxruntime's own log on stderr says why"
                raise MissingComponentError(
                    f"{backend} cannot serve: onnxruntime {ort.__version__} did not take its {provider.name}: {reason}"
                )
            self.placement = self._place()
        refuse_placement(provider, self.placement)

    @property
    def providers(self) -> tuple[str, ...]:
        """The providers that served nodes of a call, in onnxruntime's order."""
        return tuple(name for name in self.native.get_providers() if name in self.placement.served)

    @property
    def native(self) -> Any:
        """Onnxruntime's own session; there is none in a process that was forked."""
        if self._session is None:
            raise MegaDeployError(ON_GPU)
        return self._session

    def _configure(self, settings: Any) -> None:
        settings.log_severity_level = 3  # why a provider cannot be set up, its log alone says
        settings.enable_profiling = True
        settings.profile_file_prefix = str(self._profile)

    def _place(self) -> Placement:
        """Run once, on zeros of the usual shapes, and read who served."""
        feeds = {spec.name: np.zeros(_sizes(spec, "opt"), spec.dtype) for spec in self.signature.inputs}
        try:
            self._session.run(self._outputs, feeds)
        except Exception as error:
            raise call_error(error, feeds) from error
        return Placement.read(json.loads(Path(self._session.end_profiling()).read_text("utf-8")))


@dataclass(frozen=True)
class Placement:
    """Which provider served each node of a call."""

    served: Mapping[str, int]
    """Number of nodes by provider."""
    computed_on_cpu: tuple[str, ...]
    """Nodes that worked on numbers there, as "name (operator)"."""

    @classmethod
    def read(cls, events: Iterable[Mapping[str, Any]]) -> Placement:
        """From the events of onnxruntime's profile."""
        nodes = [
            (str(event["name"]).removesuffix("_kernel_time"), event["args"])
            for event in events
            if event.get("cat") == "Node" and str(event["name"]).endswith("_kernel_time")
        ]
        computed = [
            f"{name} ({node['op_name']})" for name, node in nodes if node["provider"] == CPU and _computes(node)
        ]
        return cls(Counter(node["provider"] for _, node in nodes), tuple(computed))


def _computes(node: Mapping[str, Any]) -> bool:
    """Whether a node works on the model's numbers: a mask is made of whole numbers and of single values alone."""
    if node["op_name"].startswith("Memcpy"):
        return False
    numbers = [np.prod(shape) for side in node["input_type_shape"] for kind, shape in side.items() if kind in _FLOATS]
    made = any(kind in _FLOATS for side in node["output_type_shape"] for kind in side)
    return made and any(size > 1 for size in numbers)


def refuse_placement(provider: Provider, placement: Placement) -> None:
    """Raise MissingComponentError where the provider did not serve, or the CPU did in its place."""
    if not placement.served.get(provider.name):
        others = ", ".join(placement.served) or "nobody"
        raise MissingComponentError(
            f"{provider.backend} cannot serve: {provider.name} took no node of this model, {others} did; "
            "take another --backend"
        )
    if nodes := placement.computed_on_cpu:
        more = f" and {len(nodes) - 3} more" if len(nodes) > 3 else ""
        raise MissingComponentError(
            f"{provider.backend} cannot serve: it has no kernel for {', '.join(nodes[:3])}{more}, which would run on "
            "the CPU; export in another --precision, or take another --backend"
        )


def lacks(provider: Provider, available: Sequence[str], machine: Machine) -> str | None:
    """What stands in the way before onnxruntime is asked, with its remedy; None where nothing does."""
    if not available:
        return "onnxruntime is not installed; run: pip install 'mega-deploy[gpu]'"
    if provider.name not in available:
        return f"the installed onnxruntime has no {provider.name} (it has {', '.join(available)}); run: {INSTALL}"
    if not machine.gpus:
        return f"this machine has no usable GPU: {machine.lacks}; {REMEDY}"
    return None


def provider_options(
    provider: Provider, model: Source, signature: Signature, version: str, machine: Machine
) -> list[tuple[str, dict[str, str]]]:
    """What onnxruntime is given: the provider and, behind TensorRT's, CUDA's for what TensorRT leaves.

    The precision is the graph's: no flag that lowers it is set. CUDA's TF32 is off; TensorRT's has no option of
    onnxruntime's, and NVIDIA_TF32_OVERRIDE=0 in the environment switches it off.
    """
    cuda = (CUDA.name, {"device_id": "0", "use_tf32": "0"})
    if provider is CUDA:
        return [cuda]
    options = {"device_id": "0"}
    dynamic = [spec for spec in signature.inputs if any(isinstance(dim, Range) for dim in spec.dims)]
    if dynamic:
        for kind in ("min", "opt", "max"):
            shapes = (f"{spec.name}:{'x'.join(map(str, _sizes(spec, kind)))}" for spec in dynamic)
            options[f"trt_profile_{kind}_shapes"] = ",".join(shapes)
    if isinstance(model, GraphFile):
        folder = str(engine_cache(model.sha256, version, machine))
        options |= {
            "trt_engine_cache_enable": "1",
            "trt_engine_cache_path": folder,
            "trt_timing_cache_enable": "1",
            "trt_timing_cache_path": folder,
        }
    return [(TENSORRT.name, options), cuda]


def engine_cache(model: str, version: str, machine: Machine) -> Path:
    """A folder of this user's for the engines that the TensorRT provider builds from one model on one machine.

    onnxruntime names an engine by the names in its graph and not by its weights, so that two models of one architecture
    would take each other's: the model's hash is part of the folder's name.

    Args:
        model: SHA-256 of its file, in hex.
        version: of onnxruntime.
        machine: that it runs on.
    """
    key = f"{version}-{machine.gpus[0].name}-{machine.driver}-{model[:16]}"
    try:
        return make_folder(home(), "onnxruntime-tensorrt", re.sub(r"[^A-Za-z0-9.-]+", "_", key))
    except NotPrivateError as error:
        raise InputError(f"{error}, so no engine is kept there; name a cache of your own in XDG_CACHE_HOME") from error


def _preload(ort: Any) -> None:
    """Let onnxruntime find CUDA in NVIDIA's Python packages; what it says of it goes to stderr."""
    if hasattr(ort, "preload_dlls"):  # since 1.21
        with contextlib.redirect_stdout(sys.stderr):
            ort.preload_dlls()


def unloadable(provider: Provider) -> str | None:
    """Why a provider's library does not load, in the loader's own words, with the remedy; None where it does."""
    ort = require("onnxruntime", "gpu", f"the {provider.backend} backend")
    folder = Path(str(ort.__file__)).parent / "capi"
    try:
        ctypes.CDLL(str(folder / _SHARED), ctypes.RTLD_GLOBAL)
        ctypes.CDLL(str(folder / provider.library))
    except OSError as error:
        return f"{' '.join(str(error).split())}; it needs {provider.needs}"
    return None


def _sizes(spec: TensorSpec, kind: str) -> tuple[int, ...]:
    return tuple(getattr(dim, kind) if isinstance(dim, Range) else dim for dim in spec.dims)
