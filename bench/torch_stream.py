"""What one would write in PyTorch to step a trained model: keys, values and moving averages kept between frames."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from mega_deploy.bundle import TRAINED
from mega_deploy.errors import MegaDeployError
from mega_deploy.runtime import OpenBundle

if TYPE_CHECKING:
    from torch import Tensor

Array = npt.NDArray[Any]
TOLERANCE = 1e-4


class CachedMega:
    """A trained Edifice Mega, one frame a call: [batch, embed_dim] -> [batch, hidden_size]."""

    def __init__(self, model: Any, batch: int) -> None:
        import torch

        self.model, self.window = model, model.config.length
        hidden = model.config.hidden_size
        self.averages = [torch.zeros(batch, model.config.ema_dim) for _ in model.blocks]
        self.keys, self.values = ([torch.zeros(batch, 0, hidden) for _ in model.blocks] for _ in range(2))

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


def cached_step(bundle: OpenBundle, frames: Array, threads: int) -> Callable[[], object]:
    """The call that is timed, once the cache is full and the output has proven to be the bundle's.

    Args:
        bundle: with a stream, and the trained weights.
        frames: [batch, window, embed_dim].
        threads: for the work within one call.

    Raises:
        MegaDeployError: the outputs differ.
    """
    import torch

    from mega_deploy.checkpoints import load_checkpoint

    torch.set_num_threads(threads)
    torch.set_grad_enabled(False)
    cached, stream = CachedMega(load_checkpoint(bundle.file(TRAINED)), len(frames)), bundle.stream(len(frames))
    for index in range(frames.shape[1]):
        want, got = stream.step(frames[:, index]), cached.step(torch.from_numpy(frames[:, index]))
    if bundle.manifest.precision == "float32":
        error = float(np.linalg.norm(got.numpy() - want) / np.linalg.norm(want))
        if not error <= TOLERANCE:
            raise MegaDeployError(f"PyTorch's stream differs from the verified bundle by {error:.1e}")
    frame = torch.from_numpy(np.ascontiguousarray(frames[:, 0]))
    return lambda: cached.step(frame)
