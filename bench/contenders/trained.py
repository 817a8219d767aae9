"""The trained model that a bundle carries, and what it gives in float64."""

from __future__ import annotations

from typing import Any

import numpy as np

from mega_deploy.arrays import Array
from mega_deploy.errors import require
from mega_deploy.runtime import OpenBundle


def load_trained(bundle: OpenBundle) -> Any:
    """The trained model that a bundle carries, in eval mode."""
    from mega_deploy.checkpoints import bundled

    return bundled.load_trained(bundle)


def run_trained(bundle: OpenBundle, batch: int, seq_len: int) -> dict[str, Array]:
    """Random inputs and what the trained model gives for them in float64: arrays for case.CASE."""
    require("torch", "export", f"the reference for {seq_len} frames, which the bundle does not hold,")
    from mega_deploy.exporters.families import family_of
    from mega_deploy.exporters.reference.cases import RANDOM
    from mega_deploy.exporters.reference.trained import run

    model, signature = load_trained(bundle), bundle.manifest.signature
    drawn = family_of(model).kinds(signature, np.random.default_rng(0))[RANDOM](batch, seq_len)
    inputs = {spec.name: drawn[spec.name].astype(spec.dtype) for spec in signature.inputs if spec.name in drawn}
    outputs, _ = run(model.double(), inputs, [spec.name for spec in signature.outputs])
    return {f"input/{name}": array for name, array in inputs.items()} | {
        f"output/{name}": array for name, array in outputs.items()
    }
