"""The NVIDIA driver and the GPUs of this machine, asked of the driver itself; no CUDA package is needed."""

from __future__ import annotations

import ctypes
import platform
import sys
from dataclasses import dataclass

from mega_deploy.errors import MegaDeployError

DRIVER_LIBRARY = "libcuda.so.1"
MANAGEMENT_LIBRARY = "libnvidia-ml.so.1"
REMEDY = "run it on a machine with an NVIDIA GPU and its driver (in a container: start it with --gpus all)"
# Attributes of a device, as the driver numbers them.
_CAPABILITY_MAJOR, _CAPABILITY_MINOR = 75, 76
_TEXT_BYTES = 256


@dataclass(frozen=True)
class Gpu:
    """One GPU that CUDA programs see."""

    name: str
    compute_capability: str
    """As NVIDIA writes it, such as "8.9"."""


@dataclass(frozen=True)
class Machine:
    """What of NVIDIA's is here."""

    driver: str | None
    """The driver's version, such as "580.65.06"; None where no driver can be loaded."""
    gpus: tuple[Gpu, ...]
    """In CUDA's order, which CUDA_VISIBLE_DEVICES changes; sessions use the first."""
    lacks: str | None
    """Why there is no GPU, in a few words; None where there is one."""
    platform: str
    """Operating system and processor, such as "linux-x86_64"."""


class _DriverError(MegaDeployError):
    """A call of the driver failed."""


def look() -> Machine:
    """Ask the driver; where there is none, or it fails, `lacks` says so."""
    here = f"{sys.platform}-{platform.machine()}"
    try:
        cuda = ctypes.CDLL(DRIVER_LIBRARY)
    except OSError as error:
        return Machine(None, (), f"no NVIDIA driver ({error})", here)
    try:
        _call(cuda, "cuInit", 0)
        count = _integer(cuda, "cuDeviceGetCount")
        gpus = tuple(_gpu(cuda, index) for index in range(count))
        return Machine(_driver_version(), gpus, None if gpus else "the NVIDIA driver shows no GPU", here)
    except (_DriverError, AttributeError) as error:  # AttributeError: a library that lacks the function
        return Machine(_driver_version(), (), f"the NVIDIA driver does not work: {error}", here)


def _gpu(cuda: ctypes.CDLL, index: int) -> Gpu:
    device = _integer(cuda, "cuDeviceGet", index)
    name = ctypes.create_string_buffer(_TEXT_BYTES)
    _call(cuda, "cuDeviceGetName", name, _TEXT_BYTES, device)
    major, minor = (
        _integer(cuda, "cuDeviceGetAttribute", attribute, device)
        for attribute in (_CAPABILITY_MAJOR, _CAPABILITY_MINOR)
    )
    return Gpu(name.value.decode(errors="replace"), f"{major}.{minor}")


def _driver_version() -> str | None:
    """The driver's own number, or else the version of CUDA that it speaks."""
    text = ctypes.create_string_buffer(_TEXT_BYTES)
    try:
        management = ctypes.CDLL(MANAGEMENT_LIBRARY)
        if management.nvmlInit_v2() == 0:
            found = management.nvmlSystemGetDriverVersion(text, _TEXT_BYTES) == 0
            management.nvmlShutdown()
            if found:
                return text.value.decode(errors="replace")
    except (OSError, AttributeError):
        text.value = b""  # the second library of the driver is not everywhere
    version = cuda_version()
    return None if version is None else f"CUDA {version}"


def cuda_version() -> str | None:
    """The newest version of CUDA that the driver runs, such as "13.0"; None where there is no driver."""
    try:
        version = _integer(ctypes.CDLL(DRIVER_LIBRARY), "cuDriverGetVersion")
    except (OSError, _DriverError, AttributeError):
        return None
    return f"{version // 1000}.{version % 1000 // 10}"


def _integer(cuda: ctypes.CDLL, function: str, *arguments: int) -> int:
    """What a function gives through its first argument."""
    value = ctypes.c_int()
    _call(cuda, function, ctypes.byref(value), *arguments)
    return value.value


def _call(cuda: ctypes.CDLL, function: str, *arguments: object) -> None:
    code = getattr(cuda, function)(*arguments)
    if code == 0:
        return
    text = ctypes.c_char_p()
    cuda.cuGetErrorString(code, ctypes.byref(text))
    raise _DriverError(f"{function} says {(text.value or b'').decode(errors='replace') or f'error {code}'}")
