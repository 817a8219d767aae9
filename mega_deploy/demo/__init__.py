"""The demo, the main job on real data: a trained Mega that tells nine speakers apart by their vowels (see DATA.md)."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from mega_deploy import deploy
from mega_deploy.bench.measure.latency import Latency, sample, warm_up
from mega_deploy.bundle import Bundle
from mega_deploy.errors import BundleError
from mega_deploy.files.hashing import sha256_of
from mega_deploy.files.npy import load_arrays
from mega_deploy.inspection import export_report

FOLDER = Path(__file__).parent
CHECKPOINT = FOLDER / "speakers.safetensors"
DATA = "Japanese Vowels (UCI), 12 coefficients x 29 frames, 9 speakers"
TIMED_CALLS = 500
BATCH = 64


def run(out: Path, on_step: Callable[[str], None]) -> dict[str, Any]:
    """Export the shipped checkpoint to `out`, verify it, score it on the held-out utterances, and time one window.

    The readout, a linear layer on the features, stays outside of the deployed model, as an application's head would.

    Raises:
        BundleError: something that is not an earlier demo's bundle is at `out`.
    """
    started = time.perf_counter()
    bundle = deploy.export(CHECKPOINT, out, force=_is_earlier_demo(out), on_step=on_step)
    seconds = time.perf_counter() - started
    on_step("score the held-out utterances")
    heldout, readout = load_arrays(FOLDER / "heldout.npz"), load_arrays(FOLDER / "readout.npz")
    session = bundle.session()
    frames, labels = heldout["frames"], heldout["labels"]
    features = np.concatenate([session.run(frames[start : start + BATCH]) for start in range(0, len(frames), BATCH)])
    decisions = (features @ readout["weight"].T + readout["bias"]).argmax(-1)
    on_step("time one window")
    window = frames[:1]
    warm_up(lambda: session.run(window))
    latency = Latency.of(sample(lambda: session.run(window), TIMED_CALLS))
    return {
        **export_report(bundle, seconds),
        "data": DATA,
        "samples": len(labels),
        "accuracy": {
            "trained": float((readout["predictions"] == labels).mean()),
            "deployed": float((decisions == labels).mean()),
            "agreement": float((decisions == readout["predictions"]).mean()),
        },
        "latency": vars(latency),
    }


def _is_earlier_demo(out: Path) -> bool:
    """Whether a bundle of the shipped checkpoint is at `out`, which may be replaced."""
    try:
        return Bundle.open(out).manifest.source["sha256"] == sha256_of(CHECKPOINT)
    except BundleError:
        return False
