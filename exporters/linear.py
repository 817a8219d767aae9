"""A linear layer in its deployment form, float64, and how the weights of torch's modules become arrays.

Weights are [in, out] here, so that a layer reads x @ weight + bias.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from mega_deploy.arrays import Float64Array
from mega_deploy.errors import InputError, OptionError


@dataclass(frozen=True)
class Linear:
    """x @ weight + bias, float64: [..., in] -> [..., out]."""

    weight: Float64Array
    """Columns for the outputs, [in, out]."""
    bias: Float64Array
    """Added to every output, [out]."""

    def scaled(self, factor: float) -> Linear:
        """The layer whose output is `factor` times this one's."""
        return Linear(self.weight * factor, self.bias * factor)

    def parts(self, *widths: int) -> list[Linear]:
        """Layers of the same input that give so many of the outputs each."""
        ends = np.cumsum(widths)[:-1]
        weights, biases = np.split(self.weight, ends, axis=1), np.split(self.bias, ends)
        return [Linear(*pair) for pair in zip(weights, biases, strict=True)]


def check_trained(model: nn.Module) -> None:
    """Refuse a model that cannot be deployed at all.

    Raises:
        OptionError: it is in training mode, where dropout makes it another function.
        InputError: a weight is NaN or infinite.
    """
    if any(module.training for module in model.modules()):
        raise OptionError("the model, or a part of it, is in training mode; call model.eval() first")
    for name, weight in model.state_dict().items():
        if not torch.isfinite(weight).all():
            raise InputError(
                f"the weight {name} holds NaN or infinite values; a model that diverged cannot be deployed"
            )


def join(*layers: Linear) -> Linear:
    """Layers with one input as one layer with their outputs side by side."""
    return Linear(
        np.concatenate([layer.weight for layer in layers], axis=1), np.concatenate([layer.bias for layer in layers])
    )


def as_linear(layer: nn.Linear) -> Linear:
    """A layer of torch in float64; one without a bias has zeros."""
    bias = np.zeros(layer.out_features) if layer.bias is None else as_array(layer.bias)
    return Linear(as_array(layer.weight).T, bias)


def as_array(tensor: torch.Tensor) -> Float64Array:
    """The numbers of a tensor in float64, on the CPU."""
    return tensor.detach().to("cpu", torch.float64).numpy()
