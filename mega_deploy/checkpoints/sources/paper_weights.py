"""The weights of a model of the paper's, whoever wrote them: exactly those that its configuration asks for."""

from __future__ import annotations

import re
from collections.abc import Mapping

from mega_deploy.arrays import Array
from mega_deploy.checkpoints.sources.trained import Trained, as_float32
from mega_deploy.config.paper_signature import stacks
from mega_deploy.config.tasks import PaperConfig, to_dict
from mega_deploy.errors import CheckpointError, require

_LAYER = re.compile(r"(?P<stack>encoder|decoder)\.layers\.([0-9]{1,6})\.")


def paper_model(form: str, config: PaperConfig, arrays: Mapping[str, Array], names: Mapping[str, str]) -> Trained:
    """A model of the paper's, once its weights are known to be all there.

    Args:
        form: the checkpoint's format, see Trained.
        config: of the model.
        arrays: by our names.
        names: for each of those what the file calls it; names that are not in it stand for themselves.

    Raises:
        CheckpointError: a tensor is missing, unknown, of another shape, not floating-point or not finite.
    """
    check_weights(config, arrays, names)
    return Trained(form, as_float32(arrays, names), to_dict(config), config)


def check_weights(config: PaperConfig, weights: Mapping[str, Array], names: Mapping[str, str]) -> None:
    """Refuse weights that are not exactly those of the model.

    Args:
        config: of the model.
        weights: by our names.
        names: for each of those what the file calls it; names that are not in it stand for themselves.

    Raises:
        CheckpointError: a tensor is missing, unknown, or of another shape.
    """
    torch = require("torch", "export", "reading a checkpoint of the paper's Mega")
    from mega_deploy.models.paper import build_model

    # Counted first: a number of layers from a hostile file must not be built on its word.
    found: dict[str, set[int]] = {}
    for match in filter(None, map(_LAYER.match, weights)):
        found.setdefault(match["stack"], set()).add(int(match[2]))
    layers = sum(stack.num_layers for stack in stacks(config))
    if layers != sum(map(len, found.values())):
        raise CheckpointError(
            f"its configuration has {layers} layers, but its tensors are of {sum(map(len, found.values()))}"
        )
    with torch.device("meta"):
        expected = {name: tuple(tensor.shape) for name, tensor in build_model(config).state_dict().items()}
    like = _foreign(names)
    for name, shape in expected.items():
        if name not in weights:
            raise CheckpointError(f"the tensor {names.get(name, name)} is missing{like}")
        if weights[name].shape != shape:
            raise CheckpointError(
                f"the tensor {names.get(name, name)} has the shape {list(weights[name].shape)}, expected {list(shape)}"
            )
    if unknown := sorted(weights.keys() - expected.keys()):
        raise CheckpointError(f"the tensor {names.get(unknown[0], unknown[0])} belongs to no such model")


def _foreign(names: Mapping[str, str]) -> str:
    return " (by our name for it)" if names else ""
