"""The trained model that a bundle carries."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mega_deploy.bundle import TRAINED, Bundle
from mega_deploy.checkpoints.loading import load_checkpoint

if TYPE_CHECKING:
    from mega_deploy.models.edifice import Mega
    from mega_deploy.models.paper import PaperModel


def load_trained(bundle: Bundle) -> Mega | PaperModel:
    """The trained model of a bundle, in eval mode, float32.

    Raises:
        BundleError: the file has changed since the bundle was opened.
        MissingComponentError: torch or safetensors is not installed.
    """
    with bundle.copied(TRAINED) as path:
        return load_checkpoint(path)
