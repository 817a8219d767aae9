"""What an engine is: the targets of engines, and the identity that a bundle's manifest holds of each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

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


def version_numbers(version: str) -> tuple[int, ...]:
    """The first four numbers of a version; what else it has, as "post1", tells nothing of engines."""
    return tuple(int(part) for part in version.split(".")[:4] if part.isdecimal())


def build_anew(target: str) -> str:
    """The remedy for an engine that is not the one that its bundle needs here."""
    return f"build it anew: mega-deploy build BUNDLE --target {target}"
