"""The paper's multi-dimensional damped exponential moving average."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mega_deploy.config.paper import MegaConfig


class MultiHeadEMA(nn.Module):
    """silu(EMA(x) + omega x): [B, L, D] -> [B, L, D].

    Each channel is expanded into h numbers that decay on their own, and are summed up again:

        state_n(t) = p_n beta_n x(t) + q_n state_n(t - 1),  p = sigmoid(delta), q = 1 - p sigmoid(alpha)
        EMA(x)(t)  = sum_n gamma_n state_n(t) / sqrt(h)

    Over a whole sequence that is a convolution with the kernel K(l) = sum_n p_n beta_n q_n^l gamma_n / sqrt(h). The
    paper writes alpha for p, delta for sigmoid(alpha) and eta for gamma; names here are the official code's, and so are
    the factor 1 / sqrt(h), the residual omega and the activation inside. Bidirectional: rows 0 to D of the parameters
    look back, rows D to 2D ahead, and both take the present step. Truncation cuts the kernel.
    """

    def __init__(self, config: MegaConfig) -> None:
        super().__init__()
        self.bidirectional, self.truncation = config.bidirectional, config.truncation
        rows = config.embed_dim * (1 + config.bidirectional)
        self.delta, self.alpha, self.beta, self.gamma = (
            nn.Parameter(torch.empty(rows, config.ema_dim)) for _ in range(4)
        )
        self.omega = nn.Parameter(torch.empty(config.embed_dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """The official initial values; beta alternates in sign, so that the h numbers begin unlike."""
        nn.init.normal_(self.delta, std=0.2)
        nn.init.normal_(self.alpha, std=0.2)
        nn.init.normal_(self.beta, std=0.02)
        with torch.no_grad():
            self.beta[:, 0::2] += 1
            self.beta[:, 1::2] -= 1
        nn.init.normal_(self.gamma)
        nn.init.normal_(self.omega)

    def kernel(self, length: int) -> Tensor:
        """The first lags of every row, at most `truncation`: [rows, lags]."""
        lags = length if self.truncation is None else min(length, self.truncation)
        p = torch.sigmoid(self.delta)
        # log1p keeps the decays next to 1 apart, which log(1 - p sigmoid(alpha)) does not. One of 0 has the logarithm
        # -inf, and lag 0 of it would be NaN: at -1e4 the powers are 1, 0, 0, ... as they should be.
        log_q = torch.log1p(-p * torch.sigmoid(self.alpha)).clamp(min=-1e4)  # [rows, h]
        weight = p * self.beta * self.gamma * self.gamma.shape[1] ** -0.5
        # q^(i w + j) = q^(i w) q^j: two tables of sqrt(lags) powers each instead of one of [rows, h, lags].
        width = math.isqrt(lags - 1) + 1
        steps = torch.arange(width, dtype=log_q.dtype, device=log_q.device)
        coarse, fine = torch.exp(log_q[..., None] * (steps * width)), torch.exp(log_q[..., None] * steps)
        return torch.einsum("rni,rnj->rij", weight[..., None] * coarse, fine).flatten(1)[:, :lags]

    def forward(self, x: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """The average; steps that `attention_mask` [B, L] leaves out enter no other step, but keep their residual."""
        length = x.shape[1]
        inputs = x if attention_mask is None else x * attention_mask[..., None]
        kernels = self.kernel(length)
        size = 2 * length  # a circle so large that neither end meets the other
        spectrum = torch.fft.rfft(kernels.to(_at_least_float32(x.dtype)), size)
        if self.bidirectional:
            back, ahead = spectrum.chunk(2)
            spectrum = back + ahead.conj()  # a conjugate spectrum is a kernel turned round
        signal = inputs.to(spectrum.real.dtype).transpose(1, 2)  # [B, D, L]
        average = torch.fft.irfft(torch.fft.rfft(signal, size) * spectrum, size)[..., :length]
        return F.silu(average.transpose(1, 2).to(x.dtype) + self.omega * x)


def _at_least_float32(dtype: torch.dtype) -> torch.dtype:
    """The type in which the transform is taken, which half precision has none for."""
    return torch.promote_types(dtype, torch.float32)
