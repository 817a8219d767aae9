"""Laplace attention on NVIDIA GPUs: kernels in Triton, their plain forms, and their compilation ahead of time.

    pack       copies that the others ask for: transposed to float32, or rows padded to a multiple of 16
    weights    the weights of every pair of a query and a key, transposed, [B, N, MP]
    product    the weights times the values, and for l1 the division by their sum
    fused      erf in half precision: both products on tensor cores, the weights never leave the chip

`naive` says in plain tensors what each computes, `tiles` which shapes they take on which GPU; `launch` runs them on
PyTorch's tensors, and `compile` turns them into cubins on a machine without a GPU. Only `compile` and the kernels
themselves need triton; nothing here needs a driver.

Matrices are contiguous. Every kernel has a grid of one dimension, so that a batch may be as large as it likes.
"""
