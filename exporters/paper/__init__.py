"""The paper's Mega, from its trained form to an ONNX graph."""
