"""Engines of TensorRT and TensorRT-RTX from a bundle's ONNX graph.

One Python interface serves both: `network` parses and checks the graph, as `runtime.tensorrt.parsed` writes it
for their parsers, and sets its shapes, `library` listens to them while they build, `compiling` takes these steps in
order, `options` says how an engine may be built, `timing` keeps what was measured on a GPU, and `engine` puts all of
them together. `refitting` gives an engine other weights.
"""
