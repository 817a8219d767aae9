"""How an engine may be built, and which of it a target can do."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from mega_deploy.bundle.engines import HARDWARE_COMPATIBILITY, ONE_GPU, TARGETS
from mega_deploy.errors import OptionError
from mega_deploy.exporters.tensorrt.network import TURING

ZEROS_ON_TURING = ("float32", "bfloat16")
REFERENCE = "reference"
EMBED = "embed"


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """How an engine is built."""

    compute_capabilities: tuple[str, ...] = ()
    """What a TensorRT-RTX engine is for, such as ("8.9", "12.0"); none: all from 8.0 on."""
    version_compatible: bool = False
    """Whether later releases of TensorRT shall read its engine too, which may be slower."""
    hardware_compatibility: str = ONE_GPU
    """What TensorRT's engine runs on: "none", this GPU; "same", its compute capability; "ampere+", 8.0 and up."""
    plugin_library: Path | None = None
    """The plugin of LaplaceAttention for TensorRT; by default the one that `mega-deploy plugins build` made, if any."""

    plugin: str = REFERENCE
    """Whether an engine of TensorRT names its plugin's library by hash ("reference") or holds it ("embed"), which by
    its headers TensorRT offers to version-compatible engines."""
    refit: bool = False
    """Whether the engine can be given other weights later, which may make it slower."""
    strip_plan: bool = False
    """Whether weights are left out of the engine; a session takes them from the bundle's model.onnx as it loads it."""

    @property
    def flags(self) -> tuple[str, ...]:
        """Names of the library's builder flags for these options."""
        return tuple(
            name
            for name, wanted in (
                ("VERSION_COMPATIBLE", self.version_compatible),
                ("REFIT", self.refit),
                ("STRIP_PLAN", self.strip_plan),
                # Without REFIT these very weights and no others are put back, which costs no speed.
                ("REFIT_IDENTICAL", self.strip_plan and not self.refit),
            )
            if wanted
        )

    def check(self, target: str, precision: str) -> None:
        """Raise OptionError where they are impossible, or not for this target or precision."""
        if target not in TARGETS:
            raise OptionError(f"there is no target {target!r}; this version builds for {', '.join(TARGETS)}")
        if self.hardware_compatibility not in HARDWARE_COMPATIBILITY:
            known = ", ".join(HARDWARE_COMPATIBILITY)
            raise OptionError(f"hardware compatibility is one of {known}, got {self.hardware_compatibility!r}")
        if target == "tensorrt" and self.compute_capabilities:
            raise OptionError(
                "TensorRT builds for the GPU of this machine: compute capabilities are for tensorrt-rtx; "
                "hardware compatibility widens an engine of TensorRT"
            )
        if target == "tensorrt-rtx" and (self.version_compatible or self.hardware_compatibility != ONE_GPU):
            raise OptionError(
                "version and hardware compatibility are for tensorrt: an engine of TensorRT-RTX is for one release of "
                "it, and for all GPUs of its compute capabilities"
            )
        if target == "tensorrt-rtx" and self.plugin_library is not None:
            raise OptionError("TensorRT-RTX supports no plugins: the operator runs as its function there")
        if self.plugin not in (REFERENCE, EMBED):
            raise OptionError(f"a plugin is taken by {REFERENCE} or by {EMBED}, got {self.plugin!r}")
        if target == "tensorrt-rtx" and self.plugin == EMBED:
            raise OptionError("TensorRT-RTX supports no plugins, so that there is none to put into its engine")
        if self.plugin == EMBED and not self.version_compatible:
            raise OptionError("TensorRT puts plugins into version-compatible engines alone; add --version-compatible")
        if TURING in self.compute_capabilities and precision in ZEROS_ON_TURING:
            raise OptionError(
                f"TensorRT-RTX returns zeros in {precision} on compute capability {TURING}; build for 8.0 and up"
            )

    def choose(self, known: Iterable[str]) -> tuple[str, ...]:
        """The compute capabilities to build for, lowest first, of those that the library knows, lowest first.

        Raises:
            OptionError: it does not know one.
        """
        known = tuple(known)
        if strange := [capability for capability in self.compute_capabilities if capability not in known]:
            raise OptionError(
                f"TensorRT-RTX builds for the compute capabilities {', '.join(known)}, not for {strange[0]!r}"
            )
        wanted = self.compute_capabilities or tuple(capability for capability in known if capability != TURING)
        return tuple(capability for capability in known if capability in wanted)
