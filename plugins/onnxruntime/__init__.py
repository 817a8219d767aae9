"""The native kernel of LaplaceAttention for onnxruntime's CPU provider: C++ sources, built on demand into a cache.

`cache` says what the library is made from and so where it lies; `build` makes it.
"""
