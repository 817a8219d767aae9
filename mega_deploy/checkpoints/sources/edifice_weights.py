"""The weights of an Edifice Mega under our own names: what they tell of its options, and whether they are whole."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from mega_deploy.arrays import Array
from mega_deploy.checkpoints.sources.trained import Trained, as_float32, is_transposed
from mega_deploy.config.edifice import EdificeConfig
from mega_deploy.errors import CheckpointError, OptionError

_BLOCK = re.compile(r"blocks\.([0-9]{1,6})\.")


def is_state(names: Mapping[str, object]) -> bool:
    """Whether tensors with these names are a state dict of our Mega."""
    return "final_norm.weight" in names and any(_BLOCK.match(name) for name in names)


def edifice_model(
    form: str, arrays: Mapping[str, Array], names: Mapping[str, str], stated: Mapping[str, Any]
) -> Trained:
    """An Edifice Mega.

    Args:
        form: the checkpoint's format, see Trained.
        arrays: by our module's names.
        names: for each of those names what the file calls it; names that are not in it stand for themselves.
        stated: what the file says of the options.

    Raises:
        CheckpointError: the weights are not whole, or not those of the options.
    """
    found = dimensions(arrays, names)
    for name, value in found.items():
        if stated.get(name, value) != value:
            raise CheckpointError(f"it says {name} {stated[name]}, but its tensors make {value}")
    return Trained(form, as_float32(arrays, names), {**found, **stated})


def dimensions(state: Mapping[str, Array], names: Mapping[str, str]) -> dict[str, int]:
    """The options that the weights tell (embed_dim, hidden_size, ema_dim, num_layers); all shapes must agree.

    Args:
        state: weights by our module's names.
        names: for each of those names what the file calls it; names that are not in it stand for themselves.

    Raises:
        CheckpointError: a tensor is missing, unknown, or of another shape than the others ask for.
    """

    def size(name: str, axes: int, axis: int) -> int:
        if name not in state:
            raise CheckpointError(f"the tensor {names.get(name, name)} is missing")
        if state[name].ndim != axes:
            raise CheckpointError(
                f"the tensor {names.get(name, name)} has the shape {list(state[name].shape)}, not {axes} axes"
            )
        return int(state[name].shape[axis])

    hidden = size("final_norm.weight", 1, 0)
    layers = {int(match[1]) for match in map(_BLOCK.match, state) if match}
    if layers != set(range(len(layers))) or not layers:
        raise CheckpointError(f"the blocks must be numbered 0, 1, ... without gaps, got {sorted(layers)[:20]}")
    projected = any(name.startswith("input_projection.") for name in state)
    found = {
        "embed_dim": size("input_projection.weight", 2, 1) if projected else hidden,
        "hidden_size": hidden,
        "ema_dim": size("blocks.0.ema.alpha", 1, 0),
        "num_layers": len(layers),
    }
    if projected and found["embed_dim"] == hidden:
        raise CheckpointError(_needless_projection(state["input_projection.weight"], hidden, names))
    try:
        shapes = expected_shapes(EdificeConfig.from_dict(found))
    except OptionError as error:
        raise CheckpointError(f"the tensors make an impossible model: {error}") from error
    _check_shapes(state, shapes, names)
    return found


def _needless_projection(tensor: Array, hidden: int, names: Mapping[str, str]) -> str:
    name = "input_projection.weight"
    sizes = [int(size) for size in tensor.shape]
    if is_transposed(name, names):
        sizes.reverse()
    return (
        f"the tensor {names.get(name, name)} has the shape {sizes} beside a hidden_size of {hidden}: a projection "
        "exists only where embed_dim differs from hidden_size"
    )


def _check_shapes(state: Mapping[str, Array], shapes: Mapping[str, tuple[int, ...]], names: Mapping[str, str]) -> None:
    for name, shape in shapes.items():
        if name not in state:
            raise CheckpointError(f"the tensor {names.get(name, name)} is missing")
        if state[name].shape != shape:
            swapped = is_transposed(name, names) and len(shape) == 2
            want, got = (tuple(reversed(s)) if swapped else s for s in (shape, state[name].shape))
            raise CheckpointError(
                f"the tensor {names.get(name, name)} has the shape {list(got)}, expected {list(want)}"
            )
    if unknown := sorted(state.keys() - shapes.keys()):
        raise CheckpointError(f"the tensor {names.get(unknown[0], unknown[0])} belongs to no such Mega")


def expected_shapes(config: EdificeConfig) -> dict[str, tuple[int, ...]]:
    """Name and shape of every weight of a Mega."""
    hidden, ema, inner = config.hidden_size, config.ema_dim, config.inner_size
    shapes: dict[str, tuple[int, ...]] = {}

    def linear(name: str, features_in: int, features_out: int) -> None:
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = (features_out, features_in), (features_out,)

    def norm(name: str) -> None:
        shapes[f"{name}.weight"] = shapes[f"{name}.bias"] = (hidden,)

    if config.embed_dim != hidden:
        linear("input_projection", config.embed_dim, hidden)
    for index in range(config.num_layers):
        block = f"blocks.{index}"
        for part in ("ema", "attention", "ffn"):
            norm(f"{block}.{part}_norm")
        shapes[f"{block}.ema.alpha"] = (ema,)
        linear(f"{block}.ema.proj", hidden, ema)
        linear(f"{block}.ema.out", ema, hidden)
        for part in ("q", "k", "v", "gate", "out"):
            linear(f"{block}.attention.{part}", hidden, hidden)
        for part in ("gate", "up"):
            linear(f"{block}.ffn.{part}", hidden, inner)
        linear(f"{block}.ffn.down", inner, hidden)
    norm("final_norm")
    return shapes
