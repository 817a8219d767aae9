"""Engines of TensorRT and TensorRT-RTX from a bundle's ONNX graph.

One Python interface serves both: `graph` writes the ONNX graph as their parsers take it, `network` parses and checks
it and sets its shapes, `library` listens to them while they build, `options` says how an engine may be built, `timing`
keeps what was measured on a GPU, and `engine` puts all of them together.
"""
