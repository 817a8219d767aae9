"""mega-deploy takes trained Mega models to production.

    import mega_deploy as md

    model = md.load_checkpoint("params.safetensors", attention="softmax", seq_len=60)
    bundle = md.export(model, "game.mega")
    features = md.open_bundle("game.mega").session().run(frames)

Importing this package imports neither torch nor an inference engine; each name brings what it needs on first use.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mega_deploy.bisection.search import bisect
    from mega_deploy.checkpoints import load_checkpoint, save_checkpoint
    from mega_deploy.deploy import export
    from mega_deploy.errors import (
        BundleError,
        CheckpointError,
        InputError,
        MegaDeployError,
        MissingComponentError,
        OptionError,
        QualityGateError,
    )
    from mega_deploy.exporters.tensorrt.engine import build
    from mega_deploy.exporters.tensorrt.options import EngineOptions
    from mega_deploy.parity import Report
    from mega_deploy.runtime import (
        EngineSession,
        Generated,
        NewTokens,
        OpenBundle,
        Sampling,
        Session,
        SessionOptions,
        StreamSession,
        generate,
        generate_steps,
        open_bundle,
    )
    from mega_deploy.signature import Range
    from mega_deploy.validation import validate

# From 1.29 on onnxruntime writes an identifier of the device into the user's cache and reports to its makers, unless
# this is in the environment before it is imported. Who wants that sets it to 0.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

_HOMES = {
    "mega_deploy.checkpoints": ("load_checkpoint", "save_checkpoint"),
    "mega_deploy.deploy": ("export",),
    "mega_deploy.errors": (
        "BundleError",
        "CheckpointError",
        "InputError",
        "MegaDeployError",
        "MissingComponentError",
        "OptionError",
        "QualityGateError",
    ),
    "mega_deploy.bisection.search": ("bisect",),
    "mega_deploy.exporters.tensorrt.engine": ("build",),
    "mega_deploy.exporters.tensorrt.options": ("EngineOptions",),
    "mega_deploy.parity": ("Report",),
    "mega_deploy.runtime": (
        "EngineSession",
        "Generated",
        "NewTokens",
        "OpenBundle",
        "Sampling",
        "Session",
        "SessionOptions",
        "StreamSession",
        "generate",
        "generate_steps",
        "open_bundle",
    ),
    "mega_deploy.signature": ("Range",),
    "mega_deploy.validation": ("validate",),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "BundleError",
    "CheckpointError",
    "EngineOptions",
    "EngineSession",
    "Generated",
    "InputError",
    "MegaDeployError",
    "MissingComponentError",
    "NewTokens",
    "OpenBundle",
    "OptionError",
    "QualityGateError",
    "Range",
    "Report",
    "Sampling",
    "Session",
    "SessionOptions",
    "StreamSession",
    "bisect",
    "build",
    "export",
    "generate",
    "generate_steps",
    "load_checkpoint",
    "open_bundle",
    "save_checkpoint",
    "validate",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'mega_deploy' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME_OF[name]), name)


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
