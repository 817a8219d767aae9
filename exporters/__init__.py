"""From a trained module to what production runs: fold the algebra, lower the moving average, write the ONNX graph."""
