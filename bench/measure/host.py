"""The machine that a figure was taken on: its processor, the cores that are used, and what others do on them."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from mega_deploy.machine.cores import CPUS

PACKAGES = ("mega-deploy", "onnxruntime", "numpy", "torch", "onnx", "openvino", "tensorrt", "tensorrt-rtx")
FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "avx_vnni", "amx_tile", "asimd", "sve")
# What must be the same for two runs to be compared.
IDENTITY = ("cpu", "platform", "memory_gb", "threads", "cores_seen", "governor", "gpu")


def describe(cores: Sequence[int], gpu: dict[str, Any] | None = None) -> dict[str, Any]:
    """Processor, cores, memory and versions of this machine, and a fingerprint of what two runs must have in common."""
    info = _read(Path("/proc/cpuinfo")) or ""
    model = re.search(r"^(?:model name|Hardware)\s*:\s*(.+)$", info, re.MULTILINE)
    flags = set(re.findall(r"\S+", (re.search(r"^(?:flags|Features)\s*:(.+)$", info, re.MULTILINE) or [""])[0]))
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    found: dict[str, Any] = {
        "cpu": model[1].strip() if model else platform.processor() or platform.machine(),
        "instructions": [flag for flag in FLAGS if flag in flags],
        "cores": list(cores),
        "cores_seen": os.cpu_count(),
        "threads": len(cores),
        "virtual": "hypervisor" in flags,
        "governor": _read(CPUS / f"cpu{cores[0]}/cpufreq/scaling_governor"),
        "memory_gb": _memory_gb(),
        "load_before": load,
        "system": f"{platform.system()} {platform.release()}",
        "platform": f"{platform.system()}-{platform.machine()}",
        "python": platform.python_version(),
        "packages": {name: version for name in PACKAGES if (version := _version(name))},
        "gpu": gpu,
    }
    return found | {"fingerprint": fingerprint(found)}


def fingerprint(found: dict[str, Any]) -> str:
    """A hash of the properties that must be the same for figures to be comparable."""
    same = json.dumps({name: found.get(name) for name in IDENTITY}, sort_keys=True)
    return hashlib.sha256(same.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Busy:
    """Seconds that the cores worked, for whomever, since the system started."""

    seconds: float

    @classmethod
    def read(cls, cores: Sequence[int]) -> Busy | None:
        """The seconds of the cores by /proc/stat, time stolen by the hypervisor included; None where there is none."""
        table = dict(re.findall(r"^cpu(\d+) (.+)$", _read(Path("/proc/stat")) or "", re.MULTILINE))
        if not all(str(core) in table for core in cores):
            return None
        ticks = 0
        for core in cores:
            user, nice, system, _idle, _wait, irq, softirq, steal, *_ = map(int, table[str(core)].split())
            ticks += user + nice + system + irq + softirq + steal
        return cls(ticks / os.sysconf("SC_CLK_TCK"))

    def until(self, later: Busy | None) -> float | None:
        """Seconds worked between the two."""
        return None if later is None else later.seconds - self.seconds


def peak_rss_mb() -> float:
    """The most memory that this process ever held, in MB."""
    # Not getrusage's: a child inherits its parent's peak there.
    if peak := re.search(r"^VmHWM:\s*(\d+) kB", _read(Path("/proc/self/status")) or "", re.MULTILINE):
        return int(peak[1]) * 1024 / 1e6
    import resource

    unit = 1 if platform.system() == "Darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def _memory_gb() -> int | None:
    total = re.search(r"^MemTotal:\s*(\d+)", _read(Path("/proc/meminfo")) or "", re.MULTILINE)
    return round(int(total[1]) / 1e6) if total else None


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _read(path: Path) -> str | None:
    try:
        return path.read_text("utf-8", "replace").strip()
    except OSError:
        return None
