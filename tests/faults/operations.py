"""What writes files, each with what is there before and how one tells what is there after."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import mega_deploy as md
from mega_deploy.bundle import Bundle, add_engines, staging
from mega_deploy.files import writing

COMPILER = """#!/bin/sh
# Takes the place of a compiler: what it "compiles" is a line of text.
out=
while [ $# -gt 0 ]; do [ "$1" = -o ] && out=$2; shift; done
if [ -n "$out" ]; then echo "native code" > "$out"; else echo "compiler 1.0"; fi
"""


@dataclass(frozen=True)
class Seeds:
    """What the operations work from, made beforehand."""

    bundle: Path
    checkpoint: Path
    frames: Path


@dataclass(frozen=True)
class Operation:
    """Something that writes below a folder."""

    begin: Callable[[Seeds, Path], None]
    """Puts there what is there before."""
    act: Callable[[Seeds, Path], None]
    warm: Callable[[Seeds], None] = lambda seeds: None
    """Puts stand-ins in the place of what takes long, once for all trials."""
    state: Callable[[Path], object] | None = None
    """What a reader finds; by default all files that are not hidden."""


def visible(folder: Path) -> dict[str, str]:
    """The hashes of all files that are not hidden, nor in a hidden folder, nor on their way."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not any(_aside(part) for part in path.relative_to(folder).parts)
    }


def leftovers(folder: Path) -> list[str]:
    """What is hidden or on its way, as paths of the uppermost such folder or file."""
    found = []
    for path in sorted(folder.rglob("*")):
        parts = path.relative_to(folder).parts
        if _aside(parts[-1]) and not any(_aside(part) for part in parts[:-1]):
            found.append("/".join(parts))
    return found


def _aside(name: str) -> bool:
    return name.startswith((".", "mega-deploy-"))


def command(*arguments: str | Path) -> None:
    """Run the command line in this process."""
    from mega_deploy.cli import main

    sys.argv = ["mega-deploy", *map(str, arguments)]
    main()


def _old(name: str) -> Callable[[Seeds, Path], None]:
    return lambda seeds, folder: (folder / name).write_bytes(b"what was there before") and None


def _nothing(seeds: Seeds, folder: Path) -> None:
    """Nothing is there before."""


def _old_bundle(seeds: Seeds, folder: Path) -> None:
    (folder / "tmp").mkdir()
    shutil.copytree(seeds.bundle, folder / "x.mega")


def _temporary(seeds: Seeds, folder: Path) -> None:
    (folder / "tmp").mkdir()


def _ready_assembly(seeds: Seeds) -> None:
    """Let an export find its files ready-made, for tracing and proving take seconds and write nothing else."""
    from mega_deploy.exporters.assemble import bundle

    made = Bundle.open(seeds.bundle).manifest
    changed = dataclasses.replace(made, source={**made.source, "sha256": "12" * 32})

    def assemble(family: object, options: object, folder: Path, on_step: Callable[[str], None]) -> object:
        for name in changed.files:
            writing.put_copy(seeds.bundle / name, folder / name)
        return changed

    bundle.assemble = assemble


def _export(*options: str) -> Callable[[Seeds, Path], None]:
    def act(seeds: Seeds, folder: Path) -> None:
        tempfile.tempdir = str(folder / "tmp")
        command("export", seeds.checkpoint, "-o", folder / "x.mega", "--form", "both", *options)

    return act


def _whole_export(seeds: Seeds, folder: Path) -> None:
    _export("--seq-len", "8")(seeds, folder)


def _no_exchange(seeds: Seeds) -> None:
    """A file system that cannot swap two names."""
    _ready_assembly(seeds)
    staging.exchange = lambda one, other: False


def _engine(seeds: Seeds, folder: Path) -> None:
    add_engine(folder / "x.mega", "tensorrt-rtx")


def add_engine(place: Path, target: str) -> None:
    """What `build` does once an engine is built."""
    bundle = Bundle.open(place)
    signature = bundle.manifest.to_json()["signature"]
    options = {"strongly_typed": True, "tf32": False, "version_compatible": False, "hardware_compatibility": "none"}
    engine = {
        "target": target, "file": f"engines/{target}.engine", "library_version": "1.7.1.116",
        "compute_capabilities": ["8.9"], "precision": "float32", "driver": None, "gpu": None, "layers": 1,
        "inputs": signature["inputs"], "outputs": signature["outputs"], "options": options, "platform": "linux-x86_64",
        "plugins": [], "profiles": [{}], "seconds": 1.0, "source": {"model": "12" * 32, "checkpoint": "12" * 32},
    }  # fmt: skip
    add_engines(bundle, [(engine, b"a plan" * 5000)])


def _bench(seeds: Seeds, folder: Path) -> None:
    from mega_deploy.bench.report import files

    files.write({"results": []}, {kind: folder / f"report.{kind}" for kind in ("json", "csv", "html")})


def _warm_bench(seeds: Seeds) -> None:
    from mega_deploy.bench.report import files

    files.page = lambda report: "<html>" + "row " * 5000


def _old_reports(seeds: Seeds, folder: Path) -> None:
    for kind in ("json", "csv", "html"):
        (folder / f"report.{kind}").write_text("old")


def _save_stream(seeds: Seeds, folder: Path) -> None:
    md.open_bundle(seeds.bundle).stream(2, threads=1).save(folder / "state.npz")


def _save_checkpoint(ending: str) -> Callable[[Seeds, Path], None]:
    return lambda seeds, folder: md.save_checkpoint(md.load_checkpoint(seeds.checkpoint), folder / f"model.{ending}")


def _polygraphy(seeds: Seeds, folder: Path) -> None:
    command("debug", "polygraphy", seeds.bundle, "-o", folder / "cases")


def _damaged_cache(seeds: Seeds, folder: Path) -> None:
    """A compiler's stand-in, and a library in the cache that is not what was built."""
    _plugins(seeds, folder)
    for path in (folder / "cache").rglob("*.so"):
        path.write_bytes(b"damaged")


def _plugins(seeds: Seeds, folder: Path) -> None:
    compiler = seeds.frames.parent / "compiler"
    if not compiler.exists():
        compiler.write_text(COMPILER)
        compiler.chmod(0o755)
    os.environ |= {"CXX": str(compiler), "XDG_CACHE_HOME": str(folder / "cache")}
    from mega_deploy.plugins.onnxruntime.build import build

    build()


def _warm_plugins(seeds: Seeds) -> None:
    from mega_deploy.plugins.onnxruntime import headers

    headers.locate = lambda: Path("/usr/include")


def _library(folder: Path) -> str:
    """What a session would load: "unusable" is as good as nothing."""
    import onnxruntime

    from mega_deploy.plugins.cache import Library
    from mega_deploy.plugins.onnxruntime.cache import RECIPE

    os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
    found = RECIPE.find(onnxruntime.__version__)
    return f"{found.path.read_text()} {sorted(found.record)}" if isinstance(found, Library) else "unusable"


OPERATIONS: dict[str, Operation] = {
    "run to npy": Operation(
        _old("out.npy"), lambda seeds, at: command("run", seeds.bundle, seeds.frames, "-o", at / "out.npy"),
    ),
    "run to npz": Operation(
        _nothing, lambda seeds, at: command("run", seeds.bundle, seeds.frames, "-o", at / "out.npz")
    ),
    "save a stream": Operation(_old("state.npz"), _save_stream),
    "save safetensors": Operation(_old("model.safetensors"), _save_checkpoint("safetensors")),
    "save pt": Operation(_nothing, _save_checkpoint("pt")),
    "bench": Operation(_old_reports, _bench, _warm_bench),
    "polygraphy": Operation(_nothing, _polygraphy),
    "plugins build": Operation(_nothing, _plugins, _warm_plugins, _library),
    "plugins build anew": Operation(_damaged_cache, _plugins, _warm_plugins, _library),
    "build": Operation(_old_bundle, _engine),
    "export": Operation(_temporary, _export(), _ready_assembly),
    "export, every part of it": Operation(_temporary, _whole_export),
    "export --force": Operation(_old_bundle, _export("--force"), _ready_assembly),
    "export --force, without swaps": Operation(_old_bundle, _export("--force"), _no_exchange),
}  # fmt: skip
