"""Edifice's Mega, from its trained form to ONNX graphs: whole windows, steps, many steps at once."""
