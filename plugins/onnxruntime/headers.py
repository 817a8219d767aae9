"""onnxruntime's C++ headers: the user's, the system's, or Debian's package unpacked without root."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from mega_deploy.errors import InputError, MissingComponentError
from mega_deploy.plugins.cache import home
from mega_deploy.plugins.private import NotPrivateError, make_folder, opened_file, opened_folder

HEADER = "onnxruntime_cxx_api.h"
VARIABLE = "ORT_INCLUDE_DIR"
PACKAGE = "libonnxruntime-dev"
SYSTEM = tuple(
    Path(root) / "include" / below
    for root in ("/usr", "/usr/local")
    for below in ("onnxruntime", "onnxruntime/core/session", "")
)
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
SUITE = "trixie"  # Debian 13, whose package has the headers of onnxruntime 1.21
REMEDY = f"run: apt install {PACKAGE}, or unpack onnxruntime's release archive and set {VARIABLE} to its include folder"
SECONDS = 300


def present() -> Path | None:
    """The folder of the headers that are on this machine already.

    Raises:
        InputError: ORT_INCLUDE_DIR is set and holds none.
    """
    if given := os.environ.get(VARIABLE):
        for folder in (Path(given), Path(given) / "onnxruntime"):
            if (folder / HEADER).is_file():
                return folder
        raise InputError(
            f"{VARIABLE} is {given}, which holds no {HEADER}; set it to the folder of onnxruntime's headers"
        )
    return next((folder for folder in SYSTEM if (folder / HEADER).is_file()), None) or _own()


def locate() -> Path:
    """The folder of the headers, fetched from Debian where this machine has none.

    Raises:
        InputError: ORT_INCLUDE_DIR is set and holds none.
        MissingComponentError: there are none and none can be fetched.
    """
    found = present()
    if found is None:
        _fetch(_unpacked())
        found = _unpacked()
    return found


def fetchable() -> bool:
    """Whether this machine has what it takes to fetch Debian's package, a network aside."""
    return all(map(shutil.which, ("apt-get", "dpkg"))) and KEYRING.is_file()


def _unpacked() -> Path:
    return home() / "onnxruntime-headers-debian13"


def _own() -> Path | None:
    """The folder of headers that this user has fetched; None where there is none, or others could have changed it."""
    try:
        folder = _unpacked()
        with opened_folder(folder.parent, folder.name) as opened, opened_file(HEADER, opened, folder / HEADER):
            return folder
    except (OSError, NotPrivateError, MissingComponentError):
        return None


def _fetch(target: Path) -> None:
    """Unpack Debian 13's headers to `target`, by apt with a source list and folders of its own, signatures checked.

    A library built with them loads in any later onnxruntime: its API only grows.
    """
    if not fetchable():
        raise MissingComponentError(f"building the native kernel needs onnxruntime's C++ headers; {REMEDY}")
    make_folder(target.parent)
    with tempfile.TemporaryDirectory(prefix=".headers-", suffix=".partial", dir=target.parent) as name:
        work = Path(name)
        source = f"deb [signed-by={KEYRING}] {_mirror(work)} {SUITE} main\n"
        (work / "sources.list").write_text(source, "utf-8")
        for below in ("lists/partial", "cache/archives/partial"):
            (work / below).mkdir(parents=True)
        apt = ["apt-get", "-qq", "-o", f"Dir::Etc::sourcelist={work}/sources.list", "-o", "Dir::Etc::sourceparts=-"]
        apt += ["-o", f"Dir::State::Lists={work}/lists", "-o", f"Dir::Cache={work}/cache"]
        _call([*apt, "update"], work)
        _call([*apt, "download", PACKAGE], work)
        packages = list(work.glob(f"{PACKAGE}_*.deb"))
        if len(packages) != 1:
            raise MissingComponentError(f"apt-get brought no {PACKAGE}; {REMEDY}")
        _call(["dpkg", "-x", str(packages[0]), str(work / "unpacked")], work)
        headers = work / "unpacked/usr/include/onnxruntime"
        if not (headers / HEADER).is_file():
            raise MissingComponentError(f"Debian's {PACKAGE} holds no {HEADER}; {REMEDY}")
        try:
            headers.rename(target)
        except OSError:  # another process was quicker
            if not (target / HEADER).is_file():
                raise


def _mirror(work: Path) -> str:
    """The mirror of Debian that this machine takes its own packages from."""
    listed = _call(["apt-get", "indextargets", "--format", "$(REPO_URI)", "Origin: Debian"], work)
    listed = listed or _call(["apt-get", "indextargets", "--format", "$(REPO_URI)"], work)
    mirrors = [line for line in listed.split() if line.rstrip("/").endswith("/debian")]
    if not mirrors:
        raise MissingComponentError(f"apt-get names no mirror of Debian to fetch {PACKAGE} from; {REMEDY}")
    return mirrors[0]


def _call(command: Sequence[str], folder: Path) -> str:
    try:
        return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=SECONDS, check=True).stdout
    except (OSError, subprocess.SubprocessError) as error:
        said = (getattr(error, "stderr", "") or str(error)).strip().splitlines()
        raise MissingComponentError(f"{' '.join(command[:1])} cannot fetch {PACKAGE}: {said[-1]}; {REMEDY}") from error
