"""Building the library with any C++17 compiler, into the user's cache."""

from __future__ import annotations

import platform
from collections.abc import Callable, Sequence
from pathlib import Path

from mega_deploy.errors import require
from mega_deploy.plugins.cache import Library
from mega_deploy.plugins.compiler import build_into, call, compiler, describe
from mega_deploy.plugins.laplace import DOMAIN, NAME, VERSION
from mega_deploy.plugins.onnxruntime import headers
from mega_deploy.plugins.onnxruntime.cache import RECIPE, SOURCE_FOLDER

FLAGS = ("-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-ffp-contract=fast", "-DNDEBUG")
AVX2 = ("-mavx2", "-mfma")
AVX512 = (*AVX2, "-mavx512f", "-mavx512dq", "-mavx512bw", "-mavx512vl", "-mprefer-vector-width=512")
LEVELS: dict[str, Sequence[str]] = {"portable": ()}
"""Instruction sets, each with the flags of its source file laplace_<level>.cc."""
if platform.machine().lower() in ("x86_64", "amd64"):
    LEVELS |= {"avx2": AVX2, "avx512": AVX512}


def build(on_step: Callable[[str], None] = lambda step: None) -> Library:
    """Build the library for the installed onnxruntime; one that is there already and intact is kept.

    Args:
        on_step: called with the name of each step as it begins.

    Raises:
        MissingComponentError: onnxruntime, a compiler or onnxruntime's headers are missing.
        InputError: ORT_INCLUDE_DIR holds no headers, or the cache cannot be written.
        MegaDeployError: the compiler refuses the sources.
    """
    version = require("onnxruntime", "cpu", "the native kernel").__version__
    built = RECIPE.find(version)
    if isinstance(built, Library):
        return built
    command = compiler()

    def make(work: Path) -> dict[str, object]:
        on_step("find onnxruntime's headers")
        include = headers.locate()
        _compile(command, include, work, on_step)
        return _record(command, include)

    return build_into(RECIPE, version, make)


def _compile(command: Sequence[str], include: Path, work: Path, on_step: Callable[[str], None]) -> None:
    """work/library.so from the sources."""
    units = {"library": (f"-I{include}",)} | {f"laplace_{level}": flags for level, flags in LEVELS.items()}
    for unit, flags in units.items():
        on_step(f"compile {unit}.cc")
        source = SOURCE_FOLDER / f"{unit}.cc"
        call([*command, *FLAGS, *flags, "-c", str(source), "-o", str(work / f"{unit}.o")])
    on_step("link")
    objects = [str(work / f"{unit}.o") for unit in units]
    call([*command, "-shared", *objects, "-o", str(work / "library.so")])


def _record(command: Sequence[str], include: Path) -> dict[str, object]:
    return {
        "plugin": {"name": NAME, "version": str(VERSION), "namespace": DOMAIN},
        "levels": list(LEVELS),
        "compiler": describe(command),
        "flags": {"common": list(FLAGS), **{level: list(flags) for level, flags in LEVELS.items()}},
        "headers": str(include),
    }
