"""Relative positional biases: what is added to the score of query i and key j, from j - i alone."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from mega_deploy.config.paper import MegaConfig
from mega_deploy.errors import OptionError


class SimpleBias(nn.Module):
    """bias[i, j] = table[reach - 1 + j - i]: a learned number for each of the 2 reach - 1 distances."""

    def __init__(self, reach: int) -> None:
        super().__init__()
        self.reach = reach
        self.table = nn.Parameter(torch.empty(2 * reach - 1))
        nn.init.normal_(self.table, std=0.02)

    def forward(self, queries: int, keys: int) -> Tensor:
        """[queries, keys]; OptionError where either is beyond the table."""
        if max(queries, keys) > self.reach:
            raise OptionError(
                f"{max(queries, keys)} steps are more than the simple positional bias reaches: at most {self.reach}"
            )
        return _spread(self.table[self.reach - queries : self.reach + keys - 1], queries, keys)


class RotaryBias(nn.Module):
    """bias[i, j] = R(i) alpha . R(j) beta, where R(t) turns the plane of c and c + z/2 by t 10000^(-2c/z).

    That is alpha . R(j - i) beta, for turning both alike changes no product. Of any length, and no query or key enters:
    not RoPE. Angles are taken in float64.
    """

    def __init__(self, z_dim: int) -> None:
        super().__init__()
        self.alpha, self.beta = (nn.Parameter(torch.empty(z_dim)) for _ in range(2))
        nn.init.normal_(self.alpha, std=0.02)
        nn.init.normal_(self.beta, std=0.02)

    def forward(self, queries: int, keys: int) -> Tensor:
        """[queries, keys]."""
        distances = torch.arange(1 - queries, keys, dtype=torch.float64, device=self.alpha.device)
        return _spread(_turned(self.beta, distances) @ self.alpha, queries, keys)


def _turned(vector: Tensor, steps: Tensor) -> Tensor:
    """The vector [z] as it stands at each step [n]: [n, z]."""
    half = vector.shape[0] // 2
    channels = torch.arange(half, dtype=torch.float64, device=vector.device)
    angle = steps[:, None] * torch.exp(channels * (-math.log(10000) / half))  # [n, z/2]
    sin, cos = angle.sin().to(vector.dtype), angle.cos().to(vector.dtype)
    first, second = vector[:half], vector[half:]
    return torch.cat([first * cos - second * sin, second * cos + first * sin], 1)


def _spread(numbers: Tensor, queries: int, keys: int) -> Tensor:
    """Numbers of the distances j - i, from 1 - queries to keys - 1, where queries i and keys j are that far apart."""
    steps = torch.arange(max(queries, keys), device=numbers.device)
    return numbers[queries - 1 + steps[:keys] - steps[:queries, None]]


def position_bias(config: MegaConfig, reach: int) -> SimpleBias | RotaryBias:
    """The bias that a configuration asks for; `reach` matters to the simple one alone."""
    return SimpleBias(reach) if config.position == "simple" else RotaryBias(config.z_dim)
