"""A checkpoint as a trained module: what the file says, what the caller says, and no contradiction between them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mega_deploy.checkpoints.reading import Checkpoint, read_checkpoint
from mega_deploy.checkpoints.sources import paper
from mega_deploy.checkpoints.sources.trained import weights_sha256
from mega_deploy.config.common import AttentionChoice, Output, Source
from mega_deploy.config.edifice import USES_LAPLACE, EdificeConfig
from mega_deploy.errors import OptionError, require

if TYPE_CHECKING:
    from mega_deploy.models.edifice import Mega
    from mega_deploy.models.paper import PaperModel


def load_checkpoint(
    path: str | os.PathLike[str],
    *,
    source: str = "auto",
    config: Mapping[str, Any] | None = None,
    attention: AttentionChoice | None = None,
    seq_len: int | None = None,
    output: Output | None = None,
) -> Mega | PaperModel:
    """A trained model in eval mode, float32.

    Args:
        path: native (.safetensors, .pt), a state dict of our Mega (the same), Edifice's (.safetensors, .nx), fairseq's
            (.pt), or a Hugging Face folder.
        source: whose format: "auto" decides from the content; "native", "edifice", "fairseq", "huggingface".
        config: hyperparameters that the file does not carry, by EdificeConfig's names; files of the paper's Mega carry
            all, and must not be contradicted.
        attention: "softmax" or "laplace", for files that do not say.
        seq_len: frames of a window; it stands above the file's own, for no weight depends on it. A model of the paper's
            has no window: this is refused where it could not take such a length, and not kept.
        output: "last" or "sequence"; the file's own, or "last". Of Edifice alone.

    Raises:
        CheckpointError: the file cannot be used.
        OptionError: something that the file does not say is missing, or two sources contradict each other.
        MissingComponentError: torch or safetensors is not installed.
    """
    torch = require("torch", "export", "loading a model")
    from mega_deploy.models.edifice import Mega
    from mega_deploy.models.paper import build_model

    checkpoint = read_checkpoint(path, source)
    model: Mega | PaperModel
    with torch.device("meta"):  # the fresh initialisation would be thrown away
        if checkpoint.paper is not None:
            paper.agree(checkpoint.paper, config or {}, attention, seq_len, output)
            model = build_model(checkpoint.paper)
        else:
            model = Mega(resolve(checkpoint, config or {}, attention, seq_len, output))
    weights = {name: torch.from_numpy(array) for name, array in checkpoint.weights.items()}
    model.load_state_dict(weights, assign=True)
    model.source = Source(checkpoint.format, checkpoint.sha256, weights_sha256(checkpoint.weights))
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    return model.eval()


def resolve(
    checkpoint: Checkpoint,
    config: Mapping[str, Any],
    attention: AttentionChoice | None,
    seq_len: int | None,
    output: Output | None,
) -> EdificeConfig:
    """All options of the model from the file, the config and the single options; arguments as of load_checkpoint.

    Raises:
        OptionError: see load_checkpoint.
    """
    if not isinstance(config, Mapping):
        raise OptionError(f"the config must map options to values, got a {type(config).__name__}")
    options = {name: value for name, value in checkpoint.options.items() if value is not None}
    config = {name: value for name, value in config.items() if value is not None}
    EdificeConfig.from_dict({"embed_dim": 1, **config})  # refuses what is impossible by itself
    for name, value in config.items():
        if options.setdefault(name, value) != value:
            raise OptionError(f"{name} is {value!r} in the config, but the checkpoint says {options[name]!r}")
    if attention is not None:
        if attention not in ("softmax", "laplace"):
            raise OptionError(f'attention must be "softmax" or "laplace", got {attention!r}')
        if options.setdefault("laplace_attention", USES_LAPLACE[attention]) != USES_LAPLACE[attention]:
            other = "laplace" if options["laplace_attention"] else "softmax"
            origin = "checkpoint" if "laplace_attention" in checkpoint.options else "config"
            raise OptionError(
                f"attention {attention} was asked for, but the {origin} says {other}; leave the option out"
            )
    if seq_len is not None:
        if config.get("seq_len") not in (None, seq_len):
            raise OptionError(f"seq_len is {config['seq_len']!r} in the config, but {seq_len} was asked for")
        options["seq_len"] = seq_len
    if output is not None:
        if config.get("output") not in (None, output):
            raise OptionError(f"output is {config['output']!r} in the config, but {output!r} was asked for")
        options["output"] = output
    if "laplace_attention" not in options:
        raise OptionError(
            "the checkpoint does not say which attention the model was trained with; say --attention softmax or "
            '--attention laplace (attention="..." in Python)'
        )
    if not {"window_size", "seq_len"} & options.keys():
        raise OptionError(
            "the checkpoint does not say how many frames a window has; say --seq-len N (seq_len=N in Python)"
        )
    return EdificeConfig.from_dict(options)
