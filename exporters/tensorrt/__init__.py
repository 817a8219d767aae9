"""Engines of TensorRT and TensorRT-RTX from a bundle's ONNX graph.

One Python interface serves both: `library` imports either and speaks with it, `graph` writes the ONNX graph as each
parser takes it, `network` parses and checks it and sets its shapes, `timing` keeps what was measured on a GPU, and
`engine` puts all of them together.
"""
