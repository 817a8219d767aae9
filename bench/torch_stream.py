"""What one would write in PyTorch to step a trained model: keys, values and moving averages kept between frames."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mega_deploy.bundle import TRAINED
from mega_deploy.errors import OptionError
from mega_deploy.runtime import OpenBundle

if TYPE_CHECKING:
    from torch import Tensor


class CachedMega:
    """A trained Edifice Mega, one frame a call: [batch, embed_dim] -> [batch, hidden_size].

    Args:
        model: the trained form, in eval mode.
        batch: streams.
    """

    def __init__(self, model: Any, batch: int) -> None:
        self.model, self.batch, self.window = model, batch, model.config.length
        self.reset()

    @classmethod
    def of(cls, bundle: OpenBundle, batch: int) -> CachedMega:
        """Of the trained weights in a bundle.

        Raises:
            OptionError: they are of another family.
        """
        from mega_deploy.checkpoints import load_checkpoint
        from mega_deploy.models.edifice import Mega

        model = load_checkpoint(bundle.file(TRAINED))
        if not isinstance(model, Mega):
            raise OptionError(f"a cache in PyTorch is written for Edifice's Mega alone, not for {type(model).__name__}")
        return cls(model, batch)

    def reset(self) -> None:
        """Begin anew."""
        import torch

        config, blocks = self.model.config, len(self.model.blocks)
        self.averages = [torch.zeros(self.batch, config.ema_dim) for _ in range(blocks)]
        self.keys, self.values = (
            [torch.zeros(self.batch, 0, config.hidden_size) for _ in range(blocks)] for _ in range(2)
        )

    def step(self, frame: Tensor) -> Tensor:
        """The features at the next frame."""
        import torch
        import torch.nn.functional as F

        x = self.model.input_projection(frame)
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
        return self.model.final_norm(x)
