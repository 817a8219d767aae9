"""The five norms of the official code, over the last axis of [B, L, D]; epsilon is 1e-5 in all of them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mega_deploy.config.norm import NORM_EPSILON
from mega_deploy.config.paper import Norm


class ScaleNorm(nn.Module):
    """g x / sqrt(mean(x^2) + eps), with a single g."""

    def __init__(self, affine: bool) -> None:
        super().__init__()
        self.scalar = nn.Parameter(torch.ones(1)) if affine else None

    def forward(self, x: Tensor) -> Tensor:
        y = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + NORM_EPSILON)
        return y if self.scalar is None else self.scalar * y


class RMSNorm(nn.Module):
    """w x / sqrt(mean(x^2) + eps), with a w for each channel."""

    def __init__(self, dim: int, affine: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim)) if affine else None

    def forward(self, x: Tensor) -> Tensor:
        y = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + NORM_EPSILON)
        return y if self.weight is None else self.weight * y


class BatchNorm(nn.Module):
    """w (x - mean) / sqrt(var + eps) + b by the channel's running statistics; in training by those of all steps.

    fairseq's batchnorm and syncbatchnorm, which differ in training only.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, dim: int, affine: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim)) if affine else None
        self.bias = nn.Parameter(torch.zeros(dim)) if affine else None
        self.register_buffer("running_mean", torch.zeros(dim))
        self.register_buffer("running_var", torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        mean, var = self.running_mean, self.running_var
        y = F.batch_norm(x.transpose(1, 2), mean, var, self.weight, self.bias, self.training, 0.1, NORM_EPSILON)
        return y.transpose(1, 2)


class Scaling(nn.Module):
    """w x: what Hugging Face's MegaRMSNorm computes, since it throws the normalised value away."""

    def __init__(self, dim: int, affine: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim)) if affine else None

    def forward(self, x: Tensor) -> Tensor:
        return x if self.weight is None else self.weight * x


def make_norm(name: Norm, dim: int, affine: bool = True) -> nn.Module:
    """The norm by its name in MegaConfig."""
    match name:
        case "layernorm":
            return nn.LayerNorm(dim, NORM_EPSILON, elementwise_affine=affine)
        case "scalenorm":
            return ScaleNorm(affine)
        case "rmsnorm":
            return RMSNorm(dim, affine)
        case "batchnorm":
            return BatchNorm(dim, affine)
        case "scaling":
            return Scaling(dim, affine)
