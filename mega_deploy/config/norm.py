"""The epsilon of norms, which trained forms and graphs share."""

NORM_EPSILON = 1e-5
"""What the paper's official code adds to a variance or mean square."""
FLOAT32_NORM_EPSILON = float.fromhex("0x1.4f8b58p-17")
"""The same in float32, in which Edifice computes and ONNX stores it."""
