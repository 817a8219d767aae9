"""Two models of one shape, their bundles, and what each gives for windows and for every step of sequences."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import mega_deploy as md
from mega_deploy.bundle import writing
from mega_deploy.files.writing import put_copy

NAMES = ("one", "two")
LENGTH, STEPS = 16, 96
"""Frames of a window, and of a sequence."""
WINDOWS, SEQUENCES = 64, 24
EMBED_DIM = 12
LARGEST_BATCH = 16
STREAMS = 8


def make(folder: Path) -> None:
    """Export both models, and record what they give, one window and one stream at a time."""
    import torch

    from mega_deploy.models.edifice import Mega

    random = np.random.default_rng(7)
    windows = random.standard_normal((WINDOWS, LENGTH, EMBED_DIM), dtype=np.float32)
    sequences = random.standard_normal((SEQUENCES, STEPS, EMBED_DIM), dtype=np.float32)
    arrays: dict[str, Any] = {"windows": windows, "sequences": sequences}
    for seed, name in enumerate(NAMES):
        torch.manual_seed(seed)
        model = Mega.build(embed_dim=EMBED_DIM, hidden_size=32, ema_dim=4, num_layers=2, window_size=LENGTH).eval()
        bundle = md.export(model, folder / f"{name}.mega", form="both", batch_range=f"1:1:{LARGEST_BATCH}")
        session, stream = bundle.session(threads=1), bundle.stream(1, threads=1)
        arrays[f"{name}.windows"] = np.concatenate([session.run(window[None]) for window in windows])
        outputs = []
        for sequence in sequences:
            stream.reset()
            outputs.append([stream.step(frame[None])[0].copy() for frame in sequence])
        arrays[f"{name}.steps"] = np.array(outputs)
    np.savez(folder / "expected.npz", **arrays)


@dataclass(frozen=True)
class Model:
    """A model's bundle, and what is expected of it."""

    bundle: Any
    windows: Any
    """[windows, hidden_size]"""
    steps: Any
    """[sequences, steps, hidden_size]"""


class Models:
    """Both models, and a bundle that is now one of them and now the other."""

    def __init__(self, folder: Path) -> None:
        with np.load(folder / "expected.npz") as arrays:
            self.windows, self.sequences = arrays["windows"], arrays["sequences"]
            self.by_name = {
                name: Model(md.open_bundle(folder / f"{name}.mega"), arrays[f"{name}.windows"], arrays[f"{name}.steps"])
                for name in NAMES
            }
        self.folder, self.live = folder, folder / "live.mega"
        self._by_source = {model.bundle.manifest.source["sha256"]: model for model in self.by_name.values()}
        self._swap(NAMES[0])

    def of(self, bundle: Any) -> Model:
        """The model that a bundle is of."""
        return self._by_source[bundle.manifest.source["sha256"]]

    def swapper(self, measures: Any, stop: threading.Event) -> Any:
        """Replaces the live bundle, several times a second."""
        return Swapper(self._swap, measures, stop)

    def _swap(self, name: str) -> None:
        source = self.by_name[name].bundle
        with writing(self.live, force=self.live.exists()) as staging:
            for file in (*source.manifest.files, "manifest.json"):
                put_copy(source.path / file, staging / file)


@dataclass(frozen=True)
class Swapper:
    """Replaces the live bundle by the other model's, again and again."""

    swap: Callable[[str], None]
    measures: Any
    stop: threading.Event

    def run(self) -> None:
        """Until told to stop."""
        turn = 0
        while not self.stop.wait(0.3):
            turn += 1
            with self.measures.watched("replace the bundle"):
                self.swap(NAMES[turn % 2])


if __name__ == "__main__":
    make(Path(sys.argv[1]))
