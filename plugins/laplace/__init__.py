"""LaplaceAttention, domain `mega.deploy`, version 1.

    inputs   q [B, M, D], k [B, N, D], v [B, N, Dv]
    output   o [B, M, Dv]
    l1       w_ij = 1 / (1 + sum_c |q_ic - k_jc|), masked entries 0;  o_i = (sum_j w_ij v_j) / (sum_j w_ij + 1e-8)

`reference` computes it in the plainest way; `function` writes it as an ONNX function of standard operators, so that any
runtime can run a graph that holds the op.
"""

DOMAIN = "mega.deploy"
NAME = "LaplaceAttention"
VERSION = 1
EPSILON = 1e-8
"""Added to the sum of the weights before dividing by it."""
