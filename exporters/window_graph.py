"""What the graphs of whole sequences have in common: what their bundle says of them, and the longest that they take."""

from __future__ import annotations

from dataclasses import dataclass

from onnxscript import ir

from mega_deploy.exporters.ema.lowering import Lowering

# The attention of one window of this length takes 1 GiB in float32, and its causal mask as much.
LONGEST = 16384


@dataclass(frozen=True)
class MegaGraph:
    """A graph, and what its bundle says of it."""

    model: ir.Model
    lowering: Lowering
    block_outputs: tuple[str, ...]
    """Names of the values that hold the residual stream behind each block: [batch * seq_len, hidden_size], or
    [batch, hidden_size] behind a block that computes the last row only."""
