"""The NVIDIA driver and the GPUs of this machine, asked of the driver itself; no CUDA package is needed.

CUDA's part of the driver is asked through ctypes, for it alone tells which GPUs CUDA programs see; the driver's own
version comes from NVML, by nvidia-ml-py.
"""

from __future__ import annotations

import ctypes
import platform
import sys
from dataclasses import dataclass

from mega_deploy.errors import MegaDeployError

DRIVER_LIBRARY = "libcuda.so.1"
REMEDY = "run it on a machine with an NVIDIA GPU and its driver (in a container: start it with --gpus all)"
# The numbers that the driver's interface gives to what is asked of a device.
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
    """The driver and the GPUs of NVIDIA's that this machine has."""

    driver: str | None
    """The driver's version, such as "580.65.06", or CUDA's, such as "CUDA 13.0"; None where no driver can be loaded."""
    gpus: tuple[Gpu, ...]
    """In CUDA's order, which CUDA_VISIBLE_DEVICES changes; sessions use the first."""
    lacks: str | None
    """Why there is no GPU, in a few words; None where there is one."""
    platform: str
    """Operating system and processor, such as "linux-x86_64"."""
    driver_note: str | None = None
    """Why `driver` is CUDA's version and not its own, in a few words."""


class _DriverError(MegaDeployError):
    """A call of the driver failed."""


def look() -> Machine:
    """Ask the driver; where there is none, or it fails, `lacks` says so."""
    here = f"{sys.platform}-{platform.machine()}"
    try:
        cuda = ctypes.CDLL(DRIVER_LIBRARY)
    except OSError as error:
        return Machine(None, (), f"no NVIDIA driver ({error})", here)
    version, note = _driver()
    try:
        _call(cuda, "cuInit", 0)
        count = _integer(cuda, "cuDeviceGetCount")
        gpus = tuple(_gpu(cuda, index) for index in range(count))
        return Machine(version, gpus, None if gpus else "the NVIDIA driver shows no GPU", here, note)
    except (_DriverError, AttributeError) as error:  # AttributeError: a library that lacks the function
        return Machine(version, (), f"the NVIDIA driver does not work: {error}", here, note)


def _gpu(cuda: ctypes.CDLL, index: int) -> Gpu:
    device = _integer(cuda, "cuDeviceGet", index)
    name = ctypes.create_string_buffer(_TEXT_BYTES)
    _call(cuda, "cuDeviceGetName", name, _TEXT_BYTES, device)
    major, minor = (
        _integer(cuda, "cuDeviceGetAttribute", attribute, device)
        for attribute in (_CAPABILITY_MAJOR, _CAPABILITY_MINOR)
    )
    return Gpu(name.value.decode(errors="replace"), f"{major}.{minor}")


def _driver() -> tuple[str | None, str | None]:
    """The driver's own number, or else the version of CUDA that it speaks and why it is not the number."""
    number, reason = _driver_number()
    version = cuda_version()
    return number or (None if version is None else f"CUDA {version}"), reason


def _driver_number() -> tuple[str | None, str | None]:
    """The driver's version as NVML, the second library of the driver, gives it; or else why there is none."""
    try:
        import pynvml
    except ImportError:
        return None, "its number is told by nvidia-ml-py, which is not installed; run: pip install 'mega-deploy[gpu]'"
    try:
        pynvml.nvmlInit()
        try:
            return str(pynvml.nvmlSystemGetDriverVersion()), None
        finally:
            pynvml.nvmlShutdown()
    except pynvml.NVMLError as error:  # it is not everywhere
        return None, f"its number is not told: NVML says {error}"


def cuda_version() -> str | None:
    """The newest version of CUDA that the driver runs, such as "13.0"; None where there is no driver."""
    try:
        version = _integer(ctypes.CDLL(DRIVER_LIBRARY), "cuDriverGetVersion")
    except (OSError, _DriverError, AttributeError):
        return None
    return f"{version // 1000}.{version % 1000 // 10}"


def _integer(cuda: ctypes.CDLL, function: str, *arguments: int) -> int:
    """The integer that a function of the driver gives through its first argument."""
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
