"""Building the library with any C++17 compiler, into the user's cache."""

from __future__ import annotations

import json
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from mega_deploy.errors import InputError, MegaDeployError, MissingComponentError, require
from mega_deploy.plugins.laplace import DOMAIN, NAME, VERSION
from mega_deploy.plugins.onnxruntime import cache, headers

COMPILERS = ("g++", "clang++", "c++")
FLAGS = ("-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-ffp-contract=fast", "-DNDEBUG")
AVX2 = ("-mavx2", "-mfma")
AVX512 = (*AVX2, "-mavx512f", "-mavx512dq", "-mavx512bw", "-mavx512vl", "-mprefer-vector-width=512")
LEVELS: dict[str, Sequence[str]] = {"portable": ()}
"""Instruction sets, each with the flags of its source file laplace_<level>.cc."""
if platform.machine().lower() in ("x86_64", "amd64"):
    LEVELS |= {"avx2": AVX2, "avx512": AVX512}


def compiler() -> list[str]:
    """The command of the C++ compiler: CXX, or the first of g++, clang++ and c++ on the PATH.

    Raises:
        MissingComponentError: there is none.
    """
    if given := shlex.split(os.environ.get("CXX", "")):
        if shutil.which(given[0]) is None:
            raise MissingComponentError(f"CXX names {given[0]}, which is not there; unset CXX or install that compiler")
        return given
    for name in COMPILERS:
        if found := shutil.which(name):
            return [found]
    raise MissingComponentError("building the native kernel needs a C++17 compiler; run: apt install g++, or set CXX")


def build(on_step: Callable[[str], None] = lambda step: None) -> cache.Library:
    """Build the library for the installed onnxruntime; one that is there already and intact is kept.

    Args:
        on_step: called with the name of each step as it begins.

    Raises:
        MissingComponentError: onnxruntime, a compiler or onnxruntime's headers are missing.
        InputError: ORT_INCLUDE_DIR holds no headers, or the cache cannot be written.
        MegaDeployError: the compiler refuses the sources.
    """
    version = require("onnxruntime", "cpu", "the native kernel").__version__
    built = cache.find(version)
    if isinstance(built, cache.Library):
        return built
    command = compiler()
    target = cache.folder(version)
    try:
        on_step("find onnxruntime's headers")
        include = headers.locate()
        target.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".", suffix=".partial", dir=target) as work:
            _compile(command, include, Path(work), on_step)
            _publish(command, include, Path(work), target)
    except OSError as error:
        raise InputError(f"{target} cannot be written: {error}; name another cache in XDG_CACHE_HOME") from error
    built = cache.find(version)
    if isinstance(built, cache.Unusable):
        raise MegaDeployError(built.reason)
    return built


def _compile(command: Sequence[str], include: Path, work: Path, on_step: Callable[[str], None]) -> None:
    """work/library.so from the sources."""
    units = {"library": (f"-I{include}",)} | {f"laplace_{level}": flags for level, flags in LEVELS.items()}
    for unit, flags in units.items():
        on_step(f"compile {unit}.cc")
        source = cache.SOURCE_FOLDER / f"{unit}.cc"
        _call([*command, *FLAGS, *flags, "-c", str(source), "-o", str(work / f"{unit}.o")])
    on_step("link")
    objects = [str(work / f"{unit}.o") for unit in units]
    _call([*command, "-shared", *objects, "-o", str(work / "library.so")])


def _publish(command: Sequence[str], include: Path, work: Path, target: Path) -> None:
    """Move the library to its place under a name that no other build has, then the record that points to it.

    Whoever looks meanwhile sees the old pair or the new one, and a library that a process has mapped stays as it is.
    """
    digest = cache.sha256_of(work / "library.so")
    name = f"mega_deploy-{digest[:16]}.so"
    described = _call([*command, "--version"]).splitlines()
    record = {
        "library": name,
        "sha256": digest,
        "plugin": {"name": NAME, "version": str(VERSION), "namespace": DOMAIN},
        "levels": list(LEVELS),
        "compiler": described[0] if described else command[0],
        "flags": {"common": list(FLAGS), **{level: list(flags) for level, flags in LEVELS.items()}},
        "headers": str(include),
    }
    (work / cache.RECORD).write_text(json.dumps(record, indent=2) + "\n", "utf-8")
    for made, final in (("library.so", name), (cache.RECORD, cache.RECORD)):
        (work / made).replace(target / final)


def _call(command: Sequence[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except OSError as error:
        raise MissingComponentError(f"{command[0]} does not start: {error}; set CXX to a C++17 compiler") from error
    except subprocess.CalledProcessError as error:
        said = next((line for line in error.stderr.splitlines() if "error" in line), error.stderr.strip()[-300:])
        raise MissingComponentError(
            f"{shlex.join(command[:1])} cannot build the native kernel: {said}; "
            "set CXX to a C++17 compiler (g++ 9 or clang++ 10, or newer)"
        ) from error
    return done.stdout
