"""What a path is, what it needs, and whether it can be used here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mega_deploy.bundle import MANIFEST
from mega_deploy.bundle.engine_file import read_header
from mega_deploy.bundle.engine_needs import lacks
from mega_deploy.bundle.engines import FOLDER, Engine
from mega_deploy.doctor import missing
from mega_deploy.errors import InputError
from mega_deploy.files.hashing import sha256_of
from mega_deploy.files.reading import check_name
from mega_deploy.runtime import OpenBundle, find_backend
from mega_deploy.runtime.backends import DEFAULT
from mega_deploy.runtime.onnxruntime.session import native_ops
from mega_deploy.runtime.tensorrt.library import engines_of, find_engine, here


def inspect(path: Path, source: str = "auto") -> dict[str, Any]:
    """JSON values that tell a bundle, an engine or a checkpoint: `kind`, what it holds, `runs_here`, what is `missing`.

    A bundle runs here where onnxruntime is installed, a checkpoint where it can be exported, an engine where its
    library and its GPU are. No engine is loaded for it.

    Raises:
        InputError: the path is none of them, or is damaged.
    """
    check_name(path)
    try:
        path.stat()
    except OSError as error:
        raise InputError(f"{path} cannot be looked at: {error.strerror}") from error
    if path.is_dir() and (path / MANIFEST).is_file():
        bundle = OpenBundle.open(path)
        manifest = bundle.manifest.to_json()
        size = sum(entry["bytes"] for entry in bundle.manifest.files.values())
        lacking = [*missing("onnxruntime"), *filter(None, [find_backend(DEFAULT).lacking(bundle)])]
        found = {"kind": "bundle", "path": str(path), "bytes": size, **manifest, "native_ops": _native_ops(bundle)}
    elif path.is_file() and (engine := _engine(path)):
        return engine
    else:
        from mega_deploy.checkpoints import describe_checkpoint

        found = {"path": str(path), **describe_checkpoint(path, source=source)}
        lacking = missing("torch", "safetensors", "onnx", "onnxscript", "onnxruntime")
    return {**found, "runs_here": not lacking, "missing": lacking}


def _engine(path: Path) -> dict[str, Any] | None:
    """An engine: all that the manifest of the bundle around it says, or by itself what its header does."""
    place = path.resolve()
    folder, name = place.parent.parent, f"{FOLDER}/{place.name}"
    if place.parent.name == FOLDER and (folder / MANIFEST).is_file():
        bundle = OpenBundle.open(folder)
        entry = next((entry for entry in bundle.manifest.engines if entry["file"] == name), None)
        if entry is not None:
            engine = find_engine(bundle, entry["target"], entry.get("graph"))
            lacking = [lack.text for lack in lacks(engine, here(engine))]
            found = {**engine.to_json(), **bundle.manifest.files[name], "bundle": str(folder)}
            return {"kind": "engine", "path": str(path), **found, "runs_here": not lacking, "missing": lacking}
    header = read_header(path)
    if header is None:
        return None
    return {
        "kind": "engine",
        "path": str(path),
        "target": header.target.name,
        "library_version": header.library_version,
        "bytes": path.stat().st_size,
        "sha256": sha256_of(path),
        "bundle": None,
        "runs_here": False,
        "missing": ["its bundle: the file by itself does not say what it takes and which GPUs it is for"],
    }


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
        "state": manifest["signature"].get("state", []),
        "stream": manifest.get("stream"),
        "precision": manifest["precision"],
        "float32_islands": manifest["float32_islands"],
        "advice": manifest["advice"],
        "ema": manifest["ema"],
        "flops": manifest["flops"],
        "parity": manifest["parity"],
        "bytes": sum(entry["bytes"] for entry in manifest["files"].values()),
        "seconds": seconds,
    }


def engine_report(bundle: Path, engine: Engine) -> dict[str, Any]:
    """What `build` tells of the engine that it added, as JSON values; `engines` are of the bundle's other graphs."""
    holder = OpenBundle.open(bundle)

    def describe(one: Engine) -> dict[str, Any]:
        return {"bytes": holder.manifest.files[one.file]["bytes"], **one.to_json()}

    others = [describe(one) for one in engines_of(holder, engine.target) if one.file != engine.file]
    return {"bundle": str(bundle), **describe(engine), "engines": others}
