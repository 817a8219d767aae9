"""What building a native library takes: a C++17 compiler, and a way into the cache that no reader can trip over."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mega_deploy.errors import InputError, MissingComponentError
from mega_deploy.files.hashing import sha256_of
from mega_deploy.files.leftovers import Naming, claimed_folder
from mega_deploy.files.writing import put_bytes, settle_file, settle_folder
from mega_deploy.plugins.cache import RECORD, Library, Recipe, Unusable
from mega_deploy.plugins.private import NotPrivateError, make_folder

COMPILERS = ("g++", "clang++", "c++")


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
    raise MissingComponentError("building a native kernel needs a C++17 compiler; run: apt install g++, or set CXX")


def call(command: Sequence[str], folder: Path | None = None) -> str:
    """Run the compiler, in that folder if there is one, and return what it prints.

    Raises:
        MissingComponentError: it does not start, or refuses the sources.
    """
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=folder)
    except OSError as error:
        raise MissingComponentError(f"{command[0]} does not start: {error}; set CXX to a C++17 compiler") from error
    except subprocess.CalledProcessError as error:
        said = next((line for line in error.stderr.splitlines() if "error" in line), error.stderr.strip()[-300:])
        raise MissingComponentError(
            f"{shlex.join(command[:1])} cannot build the native kernel: {said}; "
            "set CXX to a C++17 compiler (g++ 9 or clang++ 10, or newer)"
        ) from error
    return done.stdout


def describe(command: Sequence[str]) -> str:
    """The compiler's own name and version, in one line."""
    lines = call([*command, "--version"]).splitlines()
    return lines[0] if lines else command[0]


def build_into(recipe: Recipe, version: str, make: Callable[[Path], Mapping[str, Any]]) -> Library:
    """Build a library into its folder of the cache.

    Args:
        recipe: of the library.
        version: of its target.
        make: writes library.so into the empty folder that it is given, and returns what the record is to say of it.

    Raises:
        InputError: the cache cannot be written or read back, or is another user's.
        MissingComponentError: this user has no cache.
    """
    target = recipe.folder(version)
    try:
        make_folder(target.parent, target.name)
        with claimed_folder(Naming(target, ".", ".partial"), 0o700) as work:
            _publish(work, target, make(work))
    except NotPrivateError as error:
        raise InputError(f"{error}, so nothing is put there; name a cache of your own in XDG_CACHE_HOME") from error
    except OSError as error:
        raise InputError(f"{target} cannot be written: {error}; name another cache in XDG_CACHE_HOME") from error
    built = recipe.find(version)
    if isinstance(built, Unusable):
        raise InputError(built.reason)
    return built


def _publish(work: Path, target: Path, record: Mapping[str, Any]) -> None:
    """Move the library to its place under a name that no other build has, then the record that points to it.

    Whoever looks meanwhile sees the old pair or the new one, and a library that a process has mapped stays as it is.
    """
    digest = sha256_of(work / "library.so")
    name = f"mega_deploy-{digest[:16]}.so"
    text = json.dumps({"library": name, "sha256": digest, **record}, indent=2)
    put_bytes(work / RECORD, f"{text}\n".encode())
    settle_file(work / "library.so")
    for made, final, mode in (("library.so", name, 0o755), (RECORD, RECORD, 0o644)):
        (work / made).chmod(mode)  # whatever the umask: what a group may write is not loaded
        (work / made).replace(target / final)
        settle_folder(target)  # the record never survives a power failure without its library
