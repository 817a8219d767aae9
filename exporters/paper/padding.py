"""A translation's target that is padded to whole chunks, beyond what a simple bias of cross attention reaches.

The official code refuses such whole sequences. Step by step it pads nothing and goes as far as the bias, as a stream.
"""

from __future__ import annotations

import copy
from typing import TypeVar

import torch.nn.functional as F
from torch import nn

from mega_deploy.config.paper import MegaConfig
from mega_deploy.errors import OptionError
from mega_deploy.exporters.paper.embedding import padded
from mega_deploy.models.paper import MegaTranslation
from mega_deploy.models.paper.attention import GatedCrossAttention
from mega_deploy.models.paper.position import SimpleBias

AnyModel = TypeVar("AnyModel", bound=nn.Module)


def check_padding(model: nn.Module, steps: int) -> None:
    """Refuse whole sequences of so many steps where the official code does.

    Raises:
        OptionError: with the lengths that go.
    """
    if not isinstance(model, MegaTranslation) or not _beyond(model.decoder.config, steps):
        return
    chunk, reach = model.decoder.config.chunk_size, model.decoder.config.cross_positions
    assert chunk is not None and reach is not None
    most = max(min(chunk, reach), reach - reach % chunk)
    raise OptionError(
        f"{steps} steps are padded to whole chunks of {chunk}, and {padded(steps, chunk)} are more than the bias of "
        f"cross attention reaches, at most {reach}; export with --seq-len {most} or less, or with --form stream, which "
        "pads nothing"
    )


def reaching_padding(model: AnyModel, steps: int) -> AnyModel:
    """The model with a bias that may be asked for the padding of so many steps, and is 0 there, where no step sees it.

    With it whole sequences tell what a stream must give. The given model stays, and comes back where it reaches so far.
    """
    if not isinstance(model, MegaTranslation) or not (beyond := _beyond(model.decoder.config, steps)):
        return model
    model = copy.deepcopy(model)
    for module in model.decoder.modules():
        if isinstance(module, GatedCrossAttention) and isinstance(module.position, SimpleBias):
            module.position.reach += beyond
            module.position.table = nn.Parameter(F.pad(module.position.table, [beyond, beyond]))
    return model


def _beyond(config: MegaConfig, steps: int) -> int:
    """Padded steps beyond the bias."""
    if config.position != "simple" or config.cross_positions is None:
        return 0
    return max(0, padded(steps, config.chunk_size) - config.cross_positions)
