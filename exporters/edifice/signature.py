"""The inputs and outputs of an Edifice Mega over whole windows, and its work."""

from __future__ import annotations

from mega_deploy.config.edifice import EdificeConfig
from mega_deploy.exporters.flops import L1_OPERATIONS
from mega_deploy.signature import Dim, Range, Signature, TensorSpec


def window_signature(config: EdificeConfig, batch: Range, length: Dim) -> Signature:
    """`frames` [batch, seq_len, embed_dim] -> `features` [batch, hidden_size], or every frame's."""
    inputs: dict[str, Dim] = {"batch": batch, "seq_len": length, "embed_dim": config.embed_dim}
    outputs: dict[str, Dim] = {"batch": batch, "seq_len": length, "hidden_size": config.hidden_size}
    if config.output == "last":
        del outputs["seq_len"]
    return Signature(
        inputs=(TensorSpec("frames", "float32", tuple(inputs.values()), tuple(inputs)),),
        outputs=(TensorSpec("features", "float32", tuple(outputs.values()), tuple(outputs)),),
    )


def trained_flops(config: EdificeConfig) -> int:
    """Floating-point operations of the trained form for a window: every row of every block, each projection alone."""
    length, hidden, inner = config.length, config.hidden_size, config.inner_size

    def linear(features_in: int, features_out: int) -> int:
        return 2 * length * features_in * features_out

    scores = length * length * hidden * (L1_OPERATIONS if config.laplace_attention else 2)
    attention = 5 * linear(hidden, hidden) + scores + 2 * length * length * hidden
    block = linear(hidden, config.ema_dim) + linear(config.ema_dim, hidden) + attention + 3 * linear(hidden, inner)
    projection = 0 if config.embed_dim == hidden else linear(config.embed_dim, hidden)
    return projection + config.num_layers * block
