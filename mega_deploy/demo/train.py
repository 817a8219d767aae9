"""Train the demo's checkpoint: a small Mega that tells nine speakers apart by one utterance of two Japanese vowels.

Data set: Japanese Vowels, 270 utterances to train on and 370 held out, each of 7 to 29 frames of 12 LPC cepstrum
coefficients. M. Kudo, J. Toyama and M. Shimbo, "Multidimensional Curve Classification Using Passing-Through Regions",
Pattern Recognition Letters 20 (11-13), pages 1103-1111, 1999; https://doi.org/10.24432/C5NS47, CC BY 4.0.
The wheel of `aeon` carries it, so nothing is downloaded.

Recipe: coefficients standardised by the training utterances, windows of 29 frames filled at the front with the first
frame; AdamW with a one-cycle rate, dropout, label smoothing, mixup, and utterances trimmed, stretched, shifted and
noised anew in every epoch. It was chosen on the training utterances alone, by the cross-validation that this script
repeats before it trains on all of them. The held-out utterances are used once, at the end.

    pip install "mega-deploy[export,train]"
    python -m mega_deploy.demo.train [--out DIR]
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import nn

from mega_deploy.checkpoints import save_checkpoint
from mega_deploy.files.npy import save_arrays
from mega_deploy.models.edifice import Mega

Frames = NDArray[np.float32]  # [frames, COEFFICIENTS]
Labels = NDArray[np.int64]  # 0 to SPEAKERS - 1

SPEAKERS, COEFFICIENTS, WINDOW = 9, 12, 29
HIDDEN_SIZE, LAYERS, EMA_DIM, DROPOUT = 64, 2, 16, 0.2
EPOCHS, BATCH, LEARNING_RATE, WEIGHT_DECAY, LABEL_SMOOTHING = 120, 30, 2e-3, 0.05, 0.1
TRIM, STRETCH, NOISE, OFFSET = 6, 0.3, 0.2, 0.15  # frames, log of the factor, and two standard deviations
FOLDS, SEED = 3, 0


def load(split: str) -> tuple[list[Frames], Labels]:
    """Utterances of "train" or "test" and their speakers, in the order of the data set."""
    # By name: aeon has no type information, and its import takes a second that importers of this module need not pay.
    series, speakers = import_module("aeon.datasets").load_japanese_vowels(split=split)
    return [one.T.astype(np.float32) for one in series], np.array([int(one) - 1 for one in speakers], dtype=np.int64)


def fill(frames: Frames) -> Frames:
    """A window of WINDOW frames that ends as the utterance does, for the features are those of the last frame."""
    return np.concatenate([np.repeat(frames[:1], WINDOW - len(frames), axis=0), frames])


def augment(frames: Frames, rng: np.random.Generator) -> Frames:
    """The same speaker, said otherwise: ends trimmed, tempo changed, every frame noised, coefficients shifted."""
    most = min(TRIM, len(frames) // 4)
    start, stop = rng.integers(0, most + 1), len(frames) - rng.integers(0, most + 1)
    frames = frames[start:stop]
    stretched = np.clip(round(len(frames) * np.exp(rng.uniform(-STRETCH, STRETCH))), 5, WINDOW)
    at = np.linspace(0, len(frames) - 1, int(stretched))
    before = np.minimum(at.astype(int), len(frames) - 2)
    weight = (at - before)[:, None].astype(np.float32)
    frames = frames[before] * (1 - weight) + frames[before + 1] * weight
    # One shift for all frames of an utterance: another day, another microphone.
    noise = rng.normal(0, NOISE, frames.shape) + rng.normal(0, OFFSET, (1, COEFFICIENTS))
    return frames + noise.astype(np.float32)


@dataclass
class Classifier:
    """A Mega, the linear readout on its features, and the scale of its inputs."""

    model: Mega
    readout: nn.Linear
    mean: Frames
    deviation: Frames

    def windows(self, utterances: list[Frames]) -> Frames:
        """Standardised and filled, as the model takes them: [utterances, WINDOW, COEFFICIENTS]."""
        return np.stack([fill((frames - self.mean) / self.deviation) for frames in utterances])

    def predict(self, windows: Frames) -> Labels:
        self.model.eval()
        with torch.inference_mode():
            labels: Labels = self.readout(self.model(torch.from_numpy(windows))).argmax(1).numpy()
        return labels


def fit(utterances: list[Frames], labels: Labels, seed: int) -> Classifier:
    """Train on all the utterances given, by the fixed recipe."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    model = Mega.build(
        embed_dim=COEFFICIENTS,
        hidden_size=HIDDEN_SIZE,
        num_layers=LAYERS,
        ema_dim=EMA_DIM,
        dropout=DROPOUT,
        seq_len=WINDOW,
    )
    readout = nn.Linear(HIDDEN_SIZE, SPEAKERS)
    every = np.concatenate(utterances)
    mean, deviation = every.mean(0), every.std(0)
    scaled = [(frames - mean) / deviation for frames in utterances]
    parameters = [*model.parameters(), *readout.parameters()]
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": WEIGHT_DECAY},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},  # biases, norms, decays
    ]
    optimizer = torch.optim.AdamW(groups, lr=LEARNING_RATE)
    steps = EPOCHS * -(-len(utterances) // BATCH)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps, pct_start=0.1)
    model.train()
    for _ in range(EPOCHS):
        order = rng.permutation(len(utterances))
        for chosen in np.split(order, range(BATCH, len(order), BATCH)):
            frames = torch.from_numpy(np.stack([fill(augment(scaled[i], rng)) for i in chosen]))
            targets = F.one_hot(torch.from_numpy(labels[chosen]), SPEAKERS).float()
            # Mixup: of all that was tried, what helped validation most, for there are only 30 utterances of a speaker.
            share, other = rng.uniform(), torch.from_numpy(rng.permutation(len(chosen)))
            frames = share * frames + (1 - share) * frames[other]
            targets = share * targets + (1 - share) * targets[other]
            logits = readout(F.dropout(model(frames), DROPOUT))
            loss = F.cross_entropy(logits, targets, label_smoothing=LABEL_SMOOTHING)
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            scheduler.step()
    return Classifier(model, readout, mean, deviation)


def cross_validate(utterances: list[Frames], labels: Labels) -> float:
    """Accuracy on training utterances that were left out in turn, each speaker's first, middle and last third.

    Consecutive thirds and not random ones, because the held-out utterances are from other recording sessions too.
    """
    place = np.array([np.count_nonzero(labels[:i] == label) for i, label in enumerate(labels)])
    fold = place * FOLDS // np.bincount(labels)[labels]
    right = 0
    for k in range(FOLDS):
        kept, left_out = np.flatnonzero(fold != k), np.flatnonzero(fold == k)
        classifier = fit([utterances[i] for i in kept], labels[kept], SEED + k)
        windows = classifier.windows([utterances[i] for i in left_out])
        right += int((classifier.predict(windows) == labels[left_out]).sum())
    return right / len(labels)


def main() -> None:
    """Train, report and write the files."""
    parser = argparse.ArgumentParser(prog="python -m mega_deploy.demo.train", description="Train the demo's Mega.")
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).parent, metavar="DIR", help="default: the demo's own"
    )
    out: Path = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)  # The model is too small to share, and one thread sums in one order.
    started = time.perf_counter()
    utterances, labels = load("train")
    print(f"validation accuracy {cross_validate(utterances, labels):.4f} ({FOLDS}-fold, training utterances only)")
    classifier = fit(utterances, labels, SEED)
    trained = classifier.predict(classifier.windows(utterances))
    print(f"training accuracy   {(trained == labels).mean():.4f}")
    heldout_utterances, heldout_labels = load("test")
    windows = classifier.windows(heldout_utterances)
    predictions = classifier.predict(windows)
    accuracy = float((predictions == heldout_labels).mean())
    print(f"test accuracy       {accuracy:.4f} ({len(predictions)} held-out utterances)")
    print(f"{time.perf_counter() - started:.0f} s")
    save_checkpoint(classifier.model, out / "speakers.safetensors")
    save_arrays(out / "heldout.npz", {"frames": windows, "labels": heldout_labels}, compressed=True)
    readout = {
        "weight": classifier.readout.weight.detach().numpy(),
        "bias": classifier.readout.bias.detach().numpy(),
        "accuracy": np.float64(accuracy),
        "predictions": predictions,
    }
    save_arrays(out / "readout.npz", readout, compressed=True)


if __name__ == "__main__":
    main()
