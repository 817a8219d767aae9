"""Checkpoints: files of trained weights in, trained modules out, and back."""

from mega_deploy.checkpoints.loading import load_checkpoint
from mega_deploy.checkpoints.reading import Checkpoint, describe_checkpoint, read_checkpoint
from mega_deploy.checkpoints.saving import model_source, save_checkpoint
from mega_deploy.checkpoints.sources.trained import weights_sha256

__all__ = [
    "Checkpoint",
    "describe_checkpoint",
    "load_checkpoint",
    "model_source",
    "read_checkpoint",
    "save_checkpoint",
    "weights_sha256",
]
