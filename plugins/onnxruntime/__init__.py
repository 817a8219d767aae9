"""The native kernel of LaplaceAttention for onnxruntime's CPU provider: C++ sources, built on demand into a cache.

`cache` finds and verifies the built library, and needs nothing but the standard library; `build` makes it.
"""
