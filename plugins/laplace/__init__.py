"""LaplaceAttention, domain `mega.deploy`, version 1.

    inputs      q [B, M, D], k [B, N, D], v [B, N, Dv], bias [1|B, M, N] (optional), row_scale [1|B, M] (optional)
    output      o [B, M, Dv], the type of v
    attributes  kernel "l1" | "erf"   causal 0 | 1   mu, sigma (erf only)

    l1          w_ij = 1 / (1 + sum_c |q_ic - k_jc|), masked entries 0;  o_i = (sum_j w_ij v_j) / (sum_j w_ij + 1e-8)
    erf         s_ij = row_scale_i (q_i . k_j) + bias_ij;  w_ij = (1 + erf((s_ij - mu) / (sigma sqrt 2))) / 2, masked 0;
                o_i = sum_j w_ij v_j
    causal      query i sees the keys 0..i; the others are masked
    bias and row_scale belong to erf; l1 takes neither

l1 is Edifice's form, erf that of the paper (arXiv 2209.10655, equation 16 and appendix), which does not normalise.

`reference` computes it in the plainest way; `torch_op` is the PyTorch operator that models are trained with, gradients
included; `function` writes it as an ONNX function of standard operators, so that any runtime can run a graph that holds
the op; `mega_deploy.plugins.onnxruntime` is a native kernel for onnxruntime's CPU provider.
"""

import math
from typing import Literal

DOMAIN = "mega.deploy"
NAME = "LaplaceAttention"
VERSION = 1
EPSILON = 1e-8
"""Added to the sum of the weights of a row before dividing by it (l1)."""
MU = math.sqrt(0.5)
SIGMA = math.sqrt(1 / (4 * math.pi))

Kind = Literal["l1", "erf"]
