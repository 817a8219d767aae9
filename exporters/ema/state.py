"""The states of a moving average from one call of a stream to the next, whatever the number of calls.

    h' = h - leak h + gained,    leak = 1 - decay^T,    gained = sum_t decay^(T - 1 - t) n_t    over T steps

leak is a constant of its own because float32's nearest to a decay of 0.999 is 3e-8 off: 3e-5 of what parts it from 1,
by which the sum of a thousand steps would be off. And what is rounded away in an addition is kept, to be added to the
next (Kahan, doi 10.1145/363707.363723): without it slow decays add up one rounding a step.
"""

from __future__ import annotations

from onnxscript import ir

from mega_deploy.exporters.graph import Graph

PARTS = 2
"""Numbers of a state: h, and what h is too large by."""


def carried(graph: Graph, old: ir.Value, leak: ir.Value, gained: ir.Value) -> tuple[ir.Value, ir.Value]:
    """The next h [batch, D, N], and all that is carried on [batch, PARTS, D, N].

    Args:
        graph: where the nodes go.
        old: what was carried, [batch, PARTS, D, N].
        leak: [D, N].
        gained: [batch, 1, D, N].
    """
    op = graph.op
    h, excess = op.Split(old, axis=1, num_outputs=PARTS, _outputs=PARTS)
    change = op.Sub(op.Sub(gained, op.Mul(h, leak)), excess)
    new = op.Add(h, change)
    excess = op.Sub(op.Sub(new, h), change)
    return op.Squeeze(new, [1]), op.Concat(new, excess, axis=1)


def last(graph: Graph, old: ir.Value) -> ir.Value:
    """h [batch, D, N] of what was carried."""
    return graph.op.Squeeze(graph.op.Slice(old, [0], [1], [1]), [1])
