"""From a trained module to what production runs: fold the algebra, lower the moving average, write the ONNX graph."""

# What an export needs beside onnxruntime.
PACKAGES = ("torch", "onnx", "onnxscript", "safetensors")
