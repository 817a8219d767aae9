"""What a path is, what it needs, and whether it can be used here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mega_deploy.bundle import MANIFEST
from mega_deploy.doctor import missing
from mega_deploy.errors import InputError
from mega_deploy.runtime import OpenBundle
from mega_deploy.runtime.session import native_ops


def inspect(path: Path, source: str = "auto") -> dict[str, Any]:
    """JSON values that tell a bundle or a checkpoint: `kind`, what it holds, `runs_here` and what is `missing` for it.

    A bundle runs here where its engine is installed, a checkpoint where it can be exported.

    Raises:
        InputError: the path is neither, or is damaged.
    """
    try:
        path.stat()
    except OSError as error:
        raise InputError(f"{path} cannot be looked at: {error.strerror}") from error
    if path.is_dir() and (path / MANIFEST).is_file():
        bundle = OpenBundle.open(path)
        manifest = bundle.manifest.to_json()
        size = sum(entry["bytes"] for entry in bundle.manifest.files.values())
        lacking = [*missing("onnxruntime"), *filter(None, [bundle.lacking])]
        found = {"kind": "bundle", "path": str(path), "bytes": size, **manifest, "native_ops": _native_ops(bundle)}
    else:
        from mega_deploy.checkpoints import describe_checkpoint

        found = {"path": str(path), **describe_checkpoint(path, source=source)}
        lacking = missing("torch", "safetensors", "onnx", "onnxscript", "onnxruntime")
    return {**found, "runs_here": not lacking, "missing": lacking}


def _native_ops(bundle: OpenBundle) -> list[str]:
    """Operators of the bundle that a native kernel serves on this machine."""
    try:
        from onnxruntime import __version__ as version
    except ImportError:
        return []
    return list(native_ops(bundle.plugins, version)[0])


def export_report(bundle: OpenBundle, seconds: float) -> dict[str, Any]:
    """What `export` tells of the bundle that it wrote, as JSON values."""
    manifest = bundle.manifest.to_json()
    return {
        "bundle": str(bundle.path),
        "config": manifest["config"],
        "source": manifest["source"],
        "inputs": manifest["signature"]["inputs"],
        "outputs": manifest["signature"]["outputs"],
        "precision": manifest["precision"],
        "float32_islands": manifest["float32_islands"],
        "advice": manifest["advice"],
        "ema": manifest["ema"],
        "flops": manifest["flops"],
        "parity": manifest["parity"],
        "bytes": sum(entry["bytes"] for entry in manifest["files"].values()),
        "seconds": seconds,
    }
