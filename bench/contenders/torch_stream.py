"""What one would write in PyTorch to step a trained model: keys, values and moving averages kept between frames."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


class CachedMega:
    """A trained Edifice Mega, one frame a call.

    Args:
        model: the trained form, in eval mode.
        batch: streams.
        window: frames that attention reaches back.
    """

    def __init__(self, model: Any, batch: int, window: int) -> None:
        self.model, self.batch, self.window = model, batch, window
        self.reset()

    def reset(self) -> None:
        """Begin a new sequence."""
        import torch

        config, blocks = self.model.config, len(self.model.blocks)
        self.averages = [torch.zeros(self.batch, config.ema_dim) for _ in range(blocks)]
        self.keys, self.values = (
            [torch.zeros(self.batch, 0, config.hidden_size) for _ in range(blocks)] for _ in range(2)
        )

    def step(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """`frames` [batch, embed_dim] -> `features` [batch, hidden_size] at the next frame."""
        import torch
        import torch.nn.functional as F

        x = self.model.input_projection(inputs["frames"])
        for index, block in enumerate(self.model.blocks):
            decay = torch.sigmoid(block.ema.alpha)
            u = block.ema.proj(block.ema_norm(x))
            self.averages[index] = decay * self.averages[index] + (1 - decay) * u
            x = x + block.ema.out(self.averages[index])
            n, attention = block.attention_norm(x), block.attention
            for cache, layer in ((self.keys, attention.k), (self.values, attention.v)):
                cache[index] = torch.cat([cache[index], layer(n)[:, None]], 1)[:, -self.window :]
            context = F.scaled_dot_product_attention(attention.q(n)[:, None], self.keys[index], self.values[index])
            x = x + attention.out(torch.sigmoid(attention.gate(n)) * context[:, 0])
            x = x + block.ffn(block.ffn_norm(x))
        return {"features": self.model.final_norm(x)}
