"""What configurations of every family have in common: forms, precisions, and where the weights came from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Precision = Literal["float32", "float16", "bfloat16", "int8"]
Form = Literal["window", "stream"]
Output = Literal["last", "sequence"]
"""The last frame's features, or those of all frames, of models that leave the choice."""
AttentionChoice = Literal["softmax", "laplace"]
"""The attention functions that one may ask for where a checkpoint does not say which it was trained with."""
SourceName = Literal["auto", "native", "edifice", "fairseq", "huggingface"]


@dataclass(frozen=True)
class Source:
    """Where the weights of a model came from, kept with the model so that its bundle can say so."""

    format: str
    """A checkpoint's (see mega_deploy.checkpoints.Checkpoint), or "torch-module" for a model that came from no file."""
    sha256: str
    """The checkpoint file's hash, or that of a folder's weights file, in hex; for a "torch-module" `weights_sha256`."""
    weights_sha256: str
    """The hash of the weights as loaded: differs from the model's own once it has been trained further."""
