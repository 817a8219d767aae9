"""The header of an engine's file, which is compared with the manifest before any library sees the engine's bytes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mega_deploy.bundle.engines import TARGETS, Engine, Target, build_anew, version_numbers
from mega_deploy.errors import BundleError

HEADER_BYTES = 28


@dataclass(frozen=True)
class Header:
    """What the first bytes of an engine's file say."""

    target: Target
    library_version: str


def read_header(path: Path) -> Header | None:
    """The header of a file, or None where it is no engine's.

    Raises:
        BundleError: it cannot be read, or is an engine that was cut short, or of a layout that nothing is known about.
    """
    try:
        with path.open("rb") as file:
            return _header(file.read(HEADER_BYTES), path.stat().st_size, path)
    except OSError as error:
        raise BundleError(f"{path} cannot be read: {error.strerror}") from error


def _header(head: bytes, size: int, place: Path) -> Header | None:
    """What the first bytes say.

    The layout is what NVIDIA's trtexec reads: four letters, four bytes of the layout's version (0), and the library's
    version from byte 24 on. TensorRT-RTX puts the size of the whole there too, in the eight bytes from 16 on.
    """
    target = next((target for target in TARGETS.values() if head[:4] == target.magic), None)
    if target is None:
        return None
    if len(head) < HEADER_BYTES:
        raise BundleError(
            f"{place} is a {target.title} engine that was cut short after {len(head)} bytes; copy it again"
        )
    if layout := int.from_bytes(head[4:8], "little"):
        raise BundleError(
            f"{place} is a {target.title} engine of layout {layout}, newer than this mega-deploy, which reads layout "
            "0; upgrade mega-deploy, or build the engine anew"
        )
    announced = int.from_bytes(head[16:24], "little")
    if target.name == "tensorrt-rtx" and size != announced:
        raise BundleError(
            f"{place} is a {target.title} engine of {announced} bytes by its header, but has {size}; copy it again"
        )
    return Header(target, ".".join(str(byte) for byte in head[24:28]))


def check_file(path: Path, engine: Engine) -> None:
    """Refuse an engine's file that is not what its manifest says.

    Raises:
        BundleError: naming what its header says instead.
    """
    _compare(read_header(path), path, engine)


def check_plan(plan: bytes, engine: Engine) -> None:
    """Refuse an engine on its way into a bundle that is not what the manifest will say.

    Raises:
        BundleError: naming what its header says instead.
    """
    place = Path(engine.file)
    _compare(_header(plan[:HEADER_BYTES], len(plan), place), place, engine)


def _compare(header: Header | None, place: Path, engine: Engine) -> None:
    target = TARGETS[engine.target]
    if header is None:
        raise BundleError(f"{place} is no engine of {target.title}; {build_anew(engine.target)}")
    found = f"{header.target.title} {header.library_version}"
    if header.target is not target or version_numbers(header.library_version) != version_numbers(
        engine.library_version
    ):
        raise BundleError(
            f"{place} is an engine of {found}, but its bundle's manifest says {target.title} "
            f"{engine.library_version}; {build_anew(engine.target)}"
        )
