"""What each attention function is like: asked here once by trained forms, exporters and benchmarks.

A new function of the paper's layers is a name and its traits here, a formula in models.paper.activation, and its ONNX
nodes in exporters.paper.attention.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Attention = Literal["softmax", "laplace", "relu2"]
"""The functions of the paper's layers by their names in a configuration (Ma et al., arXiv 2209.10655, section 3.4)."""


@dataclass(frozen=True, kw_only=True)
class AttentionTraits:
    """What those who write or run an attention function must know of it beside its formula."""

    normalised: bool
    """Whether the weights of a query sum to 1, so that padding must be masked. Where they do not, a weight depends on
    its own key alone, and it is enough that the values of padding are zero."""
    shift_invariant: bool
    """Whether a number added to all scores of a query changes no weight, so that what no key changes may be left out of
    the scores."""
    divides_by_keys: bool
    """Whether scores are divided by the number of keys that a query sees, instead of the root of their width."""
    masks_itself: bool
    """Whether the operator that writes the function in ONNX masks the keys ahead of a causal query by itself, and holds
    no scores."""


SOFTMAX = AttentionTraits(normalised=True, shift_invariant=True, divides_by_keys=False, masks_itself=False)
LAPLACE = AttentionTraits(normalised=False, shift_invariant=False, divides_by_keys=True, masks_itself=True)
RELU2 = AttentionTraits(normalised=False, shift_invariant=False, divides_by_keys=True, masks_itself=False)
L1_LAPLACE = AttentionTraits(normalised=True, shift_invariant=False, divides_by_keys=False, masks_itself=True)
"""Edifice's Laplace attention, whose scores are l1 distances."""

TRAITS: Mapping[Attention, AttentionTraits] = {"softmax": SOFTMAX, "laplace": LAPLACE, "relu2": RELU2}
