"""The sequences of a stream's parity reference, as a family tells them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from mega_deploy.exporters.reference.cases import Inputs
from mega_deploy.signature import Signature

BEYOND = 1000
"""Steps behind the window of attention that the long sequence has, over which an error would add up."""
SHORT = 16
"""Steps behind it in the cases that are about the inputs and not about the length."""
GIVEN = "given inputs"
"""The name of a pool, and of a case, of one's own inputs."""


@dataclass(frozen=True, kw_only=True)
class Sequences:
    """Whole sequences that a stream is fed step by step, and held against the trained form over."""

    signature: Signature
    """What the trained form takes and gives over such sequences."""
    pools: Mapping[str, Inputs]
    """Inputs by the name of a pool, [rows, steps, ...]; the first one's is the long sequence."""
    most: int
    """Sequences that go through at once."""
    sampled: tuple[str, ...] = ()
    """What there is less of than for a smaller model, in words."""
    early: int = 0
    """Steps of the long sequence that are taken at once before the others are taken one by one."""
    nearby: int | None = None
    """Runs on inputs a last place away for a noise floor; None for as many as the recorder finds time for."""
