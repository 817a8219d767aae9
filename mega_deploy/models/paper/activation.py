"""Activations, and the functions that make attention weights of scores."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from mega_deploy.config.attention import Attention
from mega_deploy.config.paper import Activation

# The official code's rounding of sqrt(1/2) and sqrt(1/(4 pi)): with them the paper's Laplace function meets relu2 best.
LAPLACE_MU, LAPLACE_SIGMA = 0.707107, 0.282095

ACTIVATIONS: dict[Activation, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu_accurate": lambda x: F.gelu(x, approximate="tanh"),
    "linear": lambda x: x,
    "tanh": torch.tanh,
}


def laplace(x: Tensor) -> Tensor:
    """(1 + erf((x - mu) / (sigma sqrt 2))) / 2, the paper's Laplace attention function."""
    return 0.5 * (1.0 + torch.erf((x - LAPLACE_MU) / (LAPLACE_SIGMA * math.sqrt(2.0))))


def relu2(x: Tensor) -> Tensor:
    """relu(x)^2, the paper's attention function relu2."""
    return F.relu(x).square()


ELEMENTWISE: dict[Attention, Callable[[Tensor], Tensor]] = {"laplace": laplace, "relu2": relu2}
"""What makes weights of scores, by the name of an attention function that is not normalised."""
