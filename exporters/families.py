"""Which family a trained model is of: the one place that names them all."""

from __future__ import annotations

from typing import get_args

from mega_deploy.errors import OptionError
from mega_deploy.exporters.edifice.family import EdificeFamily
from mega_deploy.exporters.family import Family, Model
from mega_deploy.exporters.paper.family import PaperFamily
from mega_deploy.models.edifice import Mega
from mega_deploy.models.paper import PaperModel


def family_of(model: Model) -> Family:
    """The family of a model.

    Raises:
        OptionError: it is of none that can be deployed.
    """
    # A subclass may compute anything, and what torch.compile returns is no Mega.
    if type(model) is Mega:
        return EdificeFamily(model)
    if not isinstance(model, Mega) and type(model) in get_args(PaperModel):
        return PaperFamily(model)
    raise OptionError(
        "a model must be a Mega of mega_deploy.models.edifice or one of the models of mega_deploy.models.paper itself, "
        f"or the path of a checkpoint, got {type(model)}; "
        "of a compiled model pass the one that was compiled"
    )
