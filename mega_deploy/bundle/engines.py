"""What an engine is: the identity that its bundle's manifest holds, the header of its file, and what it needs here.

These are checked before any library sees an engine's bytes: a runtime takes what it is given.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from mega_deploy.errors import BundleError, MissingComponentError
from mega_deploy.machine.gpu import REMEDY, Machine
from mega_deploy.signature import TensorSpec


@dataclass(frozen=True)
class Target:
    """A library that builds and runs engines."""

    name: str
    title: str
    module: str
    distribution: str
    extra: str
    """The extra of mega-deploy that installs it."""
    magic: bytes
    """How its files begin."""


TARGETS = {
    target.name: target
    for target in (
        Target("tensorrt", "TensorRT", "tensorrt", "tensorrt", "gpu", b"ftrt"),
        Target("tensorrt-rtx", "TensorRT-RTX", "tensorrt_rtx", "tensorrt-rtx", "rtx", b"vtrt"),
    )
}
FOLDER = "engines"
ANY_LATER = "ampere+"
SAME_CAPABILITY = "same"
ONE_GPU = "none"
HARDWARE_COMPATIBILITY = (ONE_GPU, SAME_CAPABILITY, ANY_LATER)
AMPERE = (8, 0)
ENGINE_CODE_VARIABLE = "MEGA_DEPLOY_ENGINE_CODE"
"""The variable of the environment that, set to 1, lets code that engines hold run on the host."""


@dataclass(frozen=True, kw_only=True)
class Engine:
    """An entry of the manifest's `engines`."""

    target: str
    file: str
    """In the bundle, with forward slashes."""
    graph: str = "model.onnx"
    """The bundle's file that it was built of."""
    library_version: str
    compute_capabilities: tuple[str, ...]
    """The GPUs that it was built for, such as ("8.0", "8.9")."""
    precision: str
    profiles: tuple[Mapping[str, Mapping[str, Any]], ...]
    """Each optimization profile, as {input: {"min": shape, "opt": shape, "max": shape}}."""
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    plugins: tuple[Mapping[str, Any], ...]
    """Each plugin that it calls: `name`, `version`, `namespace`, the library's `sha256`, and whether the engine holds
    it (`embedded`). Earlier releases said where it lay, too (`library`): nothing is read from there."""
    source: Mapping[str, str]
    """SHA-256 of the bundle's `model` and of the `checkpoint` that it was made from."""
    options: Mapping[str, Any]
    """How it was built: strongly_typed, tf32, version_compatible, hardware_compatibility, ..."""
    platform: str
    """Operating system and processor that it was built on."""
    driver: str | None
    gpu: str | None
    """What it was timed on; None where it was built without a GPU."""
    layers: int
    """Layers of the network that the library was given; it fuses them as it likes."""
    seconds: float
    """Seconds that the library took to build it."""

    @property
    def host_code(self) -> bool:
        """Whether it brings code that runs on the host: the part of TensorRT that reads it, or a plugin."""
        return self.options["version_compatible"] or any(plugin.get("embedded") for plugin in self.plugins)

    @property
    def outside_plugins(self) -> tuple[Mapping[str, Any], ...]:
        """The plugins that must be here for it, for it does not hold them."""
        return tuple(plugin for plugin in self.plugins if not plugin.get("embedded"))

    def to_json(self) -> dict[str, Any]:
        """As the manifest has it."""
        return {
            **vars(self),
            "compute_capabilities": list(self.compute_capabilities),
            "profiles": [dict(profile) for profile in self.profiles],
            "inputs": [spec.to_json() for spec in self.inputs],
            "outputs": [spec.to_json() for spec in self.outputs],
            "plugins": [dict(plugin) for plugin in self.plugins],
            "source": dict(self.source),
            "options": dict(self.options),
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """From an entry that the manifest's schema has passed."""
        entries = {name: value[name] for name in cls.__dataclass_fields__ if name in value}
        for name in ("compute_capabilities", "profiles", "plugins"):
            entries[name] = tuple(value[name])
        for name in ("inputs", "outputs"):
            entries[name] = tuple(TensorSpec.from_json(spec) for spec in value[name])
        return cls(**entries)


@dataclass(frozen=True)
class Header:
    """What the first bytes of an engine's file say."""

    target: Target
    library_version: str


HEADER_BYTES = 28


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
        raise BundleError(f"{place} is no engine of {target.title}; {_build(engine.target)}")
    found = f"{header.target.title} {header.library_version}"
    if header.target is not target or _numbers(header.library_version) != _numbers(engine.library_version):
        raise BundleError(
            f"{place} is an engine of {found}, but its bundle's manifest says {target.title} "
            f"{engine.library_version}; {_build(engine.target)}"
        )


@dataclass(frozen=True)
class Here:
    """What this machine has for an engine."""

    machine: Machine
    library_version: str | None
    """The version of the target's library; None where it is not installed or does not import."""
    plugins: Mapping[str, str]
    """SHA-256 of the plugin library that would be loaded here, by the name of its operator."""
    cuda_bindings: bool = True
    """Whether NVIDIA's bindings of the driver are installed."""
    engine_code: bool = False
    """Whether the caller lets code that an engine holds run on the host."""


@dataclass(frozen=True)
class Lack:
    """One reason why an engine cannot run here, with its remedy."""

    text: str
    component: bool
    """Whether the machine lacks a component; otherwise the engine is for another machine."""


def lacks(engine: Engine, here: Here) -> list[Lack]:
    """Every reason why an engine cannot run on this machine; empty where it can."""
    found = [*_library(engine, here.library_version), *_hardware(engine, here.machine)]
    if not here.cuda_bindings:
        found.append(Lack("NVIDIA's cuda-bindings is not installed; run: pip install cuda-bindings", True))
    for plugin in engine.outside_plugins:
        built = here.plugins.get(plugin["name"])
        if built is None:
            command = f"mega-deploy plugins build {engine.target}"
            found.append(Lack(f"the plugin {plugin['name']} is not built; run: {command}", True))
        elif built != plugin["sha256"]:
            text = (
                f"the plugin {plugin['name']} that is here (SHA-256 {built[:12]}) is not the engine's "
                f"({plugin['sha256'][:12]}); {_build(engine.target)}"
            )
            found.append(Lack(text, False))
    if engine.host_code and not here.engine_code:
        what = "the part of TensorRT that reads it" if engine.options["version_compatible"] else "a plugin"
        text = (
            f"it holds code that would run on the host ({what}); if you trust whoever built it, allow that with "
            f"engine_code=True, or {ENGINE_CODE_VARIABLE}=1 in the environment"
        )
        found.append(Lack(text, False))
    return found


def refuse(engine: Engine, here: Here) -> None:
    """Raise where an engine cannot run on this machine, with all that is missing in one line.

    Raises:
        MissingComponentError: the machine lacks a component.
        BundleError: the engine is for another machine, or another plugin.
    """
    if found := lacks(engine, here):
        text = f"{engine.file} cannot run here: {'; '.join(lack.text for lack in found)}"
        raise (MissingComponentError if any(lack.component for lack in found) else BundleError)(text)


def _library(engine: Engine, installed: str | None) -> list[Lack]:
    target, built = TARGETS[engine.target], engine.library_version
    release = ".".join(built.split(".")[:3])
    install = f"pip install '{target.distribution}=={release}.*'"
    if installed is None:
        return [Lack(f"{target.title} {built} is not installed; run: {install}", True)]
    if _numbers(installed) == _numbers(built) or (engine.options["version_compatible"] and _reads(installed, built)):
        return []
    text = f"it was built with {target.title} {built}, {installed} is installed; run: {install}, or build it anew"
    return [Lack(text, True)]


def _hardware(engine: Engine, machine: Machine) -> list[Lack]:
    found = []
    # TensorRT-RTX's engines are for every system that it knows.
    if engine.target == "tensorrt" and machine.platform != engine.platform:
        text = f"it was built for {engine.platform}, this is {machine.platform}; {_build(engine.target)}"
        found.append(Lack(text, False))
    if not machine.gpus:
        return [*found, Lack(f"this machine has no usable GPU: {machine.lacks}; {REMEDY}", True)]
    gpu = machine.gpus[0]
    if not _serves(engine, gpu.compute_capability, gpu.name):
        made_for = f"compute capability {', '.join(engine.compute_capabilities)}"
        if engine.options["hardware_compatibility"] == ANY_LATER:
            made_for += " and any other from 8.0 on"
        elif engine.target == "tensorrt" and engine.options["hardware_compatibility"] == ONE_GPU:
            made_for = f"{engine.gpu} only"
        option = f" --compute-capability {gpu.compute_capability}, where TensorRT-RTX knows it"
        option = option if engine.target == "tensorrt-rtx" else ""
        text = (
            f"it was built for GPUs of {made_for}, this is {gpu.name} of {gpu.compute_capability}; "
            f"{_build(engine.target)}{option}"
        )
        found.append(Lack(text, False))
    return found


def _serves(engine: Engine, capability: str, gpu: str) -> bool:
    compatibility = engine.options["hardware_compatibility"]
    if compatibility == ANY_LATER and _numbers(capability) >= AMPERE:
        return True
    if capability not in engine.compute_capabilities:
        return False
    # Without hardware compatibility TensorRT tunes for one model of GPU.
    return engine.target == "tensorrt-rtx" or compatibility == SAME_CAPABILITY or gpu == engine.gpu


def _reads(installed: str, built: str) -> bool:
    """Whether TensorRT reads a version-compatible engine: of the same or the previous major version, and not newer."""
    ours, its = _numbers(installed), _numbers(built)
    return ours >= its and ours[0] - its[0] <= 1


def _numbers(version: str) -> tuple[int, ...]:
    """The first four numbers of a version; what else it has, as "post1", tells nothing of engines."""
    return tuple(int(part) for part in version.split(".")[:4] if part.isdecimal())


def _build(target: str) -> str:
    return f"build it anew: mega-deploy build BUNDLE --target {target}"
