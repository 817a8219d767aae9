"""Sessions on engines of TensorRT and TensorRT-RTX."""
