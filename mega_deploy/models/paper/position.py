"""Relative positional biases: what is added to the score of query i and key j, from j - i alone."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from mega_deploy.errors import OptionError
from mega_deploy.paper import MegaConfig


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
        ends = torch.arange(keys, device=self.table.device) - torch.arange(queries, device=self.table.device)[:, None]
        return self.table[self.reach - 1 + ends]


class RotaryBias(nn.Module):
    """bias[i, j] = R(i) alpha . R(j) beta, where R(t) turns the plane of c and c + z/2 by t 10000^(-2c/z).

    A function of j - i, of any length, that no query or key enters: not RoPE. Angles are taken in float64.
    """

    def __init__(self, z_dim: int) -> None:
        super().__init__()
        self.alpha, self.beta = (nn.Parameter(torch.empty(z_dim)) for _ in range(2))
        nn.init.normal_(self.alpha, std=0.02)
        nn.init.normal_(self.beta, std=0.02)

    def forward(self, queries: int, keys: int) -> Tensor:
        """[queries, keys]."""
        return _turned(self.alpha, queries) @ _turned(self.beta, keys).T


def _turned(vector: Tensor, steps: int) -> Tensor:
    """The vector [z] as it stands at each step: [steps, z]."""
    half = vector.shape[0] // 2
    channels = torch.arange(half, dtype=torch.float64, device=vector.device)
    speed = torch.exp(channels * (-math.log(10000) / half))
    angle = torch.arange(steps, dtype=torch.float64, device=vector.device)[:, None] * speed  # [steps, z/2]
    sin, cos = angle.sin().to(vector.dtype), angle.cos().to(vector.dtype)
    first, second = vector[:half], vector[half:]
    return torch.cat([first * cos - second * sin, second * cos + first * sin], 1)


def position_bias(config: MegaConfig, reach: int) -> SimpleBias | RotaryBias:
    """The bias that a configuration asks for; `reach` matters to the simple one alone."""
    return SimpleBias(reach) if config.position == "simple" else RotaryBias(config.z_dim)
