"""The LaplaceAttention plugin for TensorRT: C++ sources and GPU kernels, built on demand into the user's cache.

`recipe` says what the library is made from and so where it lies; `headers` finds what it is compiled against; `build`
makes it. Neither TensorRT nor a GPU is needed for that.

In C++, `plugin` is the layer that TensorRT sees and `creator` makes it, `attributes` reads and writes its fields,
`shapes` checks its tensors, `plan` turns sizes into launches, `kernels` is the table of embedded images, `driver` loads
and launches them, `log` speaks through TensorRT's logger, and `library` holds what the library exports.
"""
