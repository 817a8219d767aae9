"""What each form of a bundle adds to it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mega_deploy.exporters.precision.lowering import Lowered
from mega_deploy.signature import Signature


@dataclass(frozen=True, kw_only=True)
class Part:
    """What the manifest says of a form whose files are written, and were held against the trained model."""

    signature: Signature
    lowered: Lowered
    """The graph that the signature is of, in the bundle's precision."""
    ema: Mapping[str, Any]
    """How its moving average is lowered."""
    flops: int
    """Floating-point operations of the deployed graph, for one row of the usual length or one step."""
    parity: Mapping[str, Any]
    """The verdict, without its cases."""
    plugins: tuple[Mapping[str, Any], ...] = ()
    """Operators of ours in the graph."""


def summary(parity: Mapping[str, Any]) -> dict[str, Any]:
    """What a manifest says of a report on parity, which stands in a file of its own."""
    return {key: value for key, value in parity.items() if key not in ("cases", "blocks")}
