"""What an engine needs of a machine, and what this one lacks of it: a library runs, or crashes on, what it is given."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from mega_deploy.bundle.engines import (
    ANY_LATER,
    ENGINE_CODE_VARIABLE,
    ONE_GPU,
    SAME_CAPABILITY,
    TARGETS,
    Engine,
    build_anew,
    version_numbers,
)
from mega_deploy.errors import BundleError, MissingComponentError
from mega_deploy.machine.gpu import REMEDY, Machine

AMPERE = (8, 0)


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
                f"({plugin['sha256'][:12]}); {build_anew(engine.target)}"
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
    if version_numbers(installed) == version_numbers(built) or (
        engine.options["version_compatible"] and _reads(installed, built)
    ):
        return []
    text = f"it was built with {target.title} {built}, {installed} is installed; run: {install}, or build it anew"
    return [Lack(text, True)]


def _hardware(engine: Engine, machine: Machine) -> list[Lack]:
    found = []
    # TensorRT-RTX's engines are for every system that it knows.
    if engine.target == "tensorrt" and machine.platform != engine.platform:
        text = f"it was built for {engine.platform}, this is {machine.platform}; {build_anew(engine.target)}"
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
            f"{build_anew(engine.target)}{option}"
        )
        found.append(Lack(text, False))
    return found


def _serves(engine: Engine, capability: str, gpu: str) -> bool:
    compatibility = engine.options["hardware_compatibility"]
    if compatibility == ANY_LATER and version_numbers(capability) >= AMPERE:
        return True
    if capability not in engine.compute_capabilities:
        return False
    # Without hardware compatibility TensorRT tunes for one model of GPU.
    return engine.target == "tensorrt-rtx" or compatibility == SAME_CAPABILITY or gpu == engine.gpu


def _reads(installed: str, built: str) -> bool:
    """Whether TensorRT reads a version-compatible engine: of the same or the previous major version, and not newer."""
    ours, its = version_numbers(installed), version_numbers(built)
    return ours >= its and ours[0] - its[0] <= 1
