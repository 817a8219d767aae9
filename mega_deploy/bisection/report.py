"""What bisection found: values of a graph held against float64, the first bad block and node, and what to do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from mega_deploy.bundle import MODEL
from mega_deploy.config.common import Precision
from mega_deploy.parity import LIMIT_FACTOR, UNIT_ROUNDOFF, Error


@dataclass(frozen=True)
class Value:
    """A value of the graph, held against float64."""

    name: str
    node: str
    """The node that makes it."""
    op: str
    error: Error
    floor: Error

    @property
    def limit(self) -> Error:
        return Error(
            LIMIT_FACTOR * max(self.floor.relative_l2, UNIT_ROUNDOFF["float32"]),
            LIMIT_FACTOR * max(self.floor.max_over_rms, UNIT_ROUNDOFF["float32"]),
            float("inf"),
        )

    @property
    def passed(self) -> bool:
        return self.error.within(self.limit)

    @property
    def share(self) -> float:
        """The error as a share of its limit, by the worse of the two measures."""
        error, limit = self.error, self.limit
        return max(error.relative_l2 / limit.relative_l2, error.max_over_rms / limit.max_over_rms)

    def to_json(self) -> dict[str, Any]:
        """For a report; null stands for the error of what is not finite."""
        error = self.error.relative_l2
        return {
            "name": self.name,
            "node": self.node,
            "op": self.op,
            "passed": self.passed,
            "relative_l2": error if np.isfinite(error) else None,
            "limit": self.limit.relative_l2,
        }


@dataclass(frozen=True)
class Bisection:
    """What was found; all is well where `block` is None."""

    backend: str
    precision: Precision
    native_ops: tuple[str, ...]
    parity: bool
    """Whether the outputs passed in every case, as `validate` compares them."""
    case: str
    """Looked at: the one that is nearest to its limit, or farthest beyond."""
    blocks: tuple[Value, ...]
    """The residual stream behind each block, then the model's outputs, as they came."""
    block: str | None = None
    """The first bad one, as `--float32` takes it, or "output" for what follows the last block."""
    values: tuple[Value, ...] = ()
    """All of the bad block, from exact numbers before it, in the graph's order."""
    spoilt: tuple[str, ...] = ()
    """Constants of the whole graph that are not what the trained weights give."""

    @property
    def passed(self) -> bool:
        return self.parity and self.block is None and not self.spoilt

    @property
    def node(self) -> Value | None:
        """The first bad node of the bad block; None where each is fine by itself and errors only add up.

        Rounding may pass a limit by a little, so a node is no culprit whose excess is nothing beside the worst one's.
        """
        bad = [value for value in self.values if not value.passed]
        beyond = max((value.share for value in bad), default=0.0) ** 0.5
        return next((value for value in bad if value.share >= beyond), None)

    @property
    def advice(self) -> str:
        """The remedy for what was found, in one line: a command, or whom to report it to."""
        if self.spoilt:
            return (
                f"{', '.join(self.spoilt)} in {MODEL} is not what the trained weights of this bundle give: export the "
                "model anew"
            )
        if self.passed:
            return "nothing to do"
        if self.precision in ("float16", "bfloat16", "int8"):
            suspect = max(self.blocks[:-1], key=lambda value: value.error.relative_l2, default=self.blocks[-1])
            block = self.block or suspect.name.removesuffix(".output")
            layer = block if self.node is None else _label(self.node.node)
            return f"keep it in float32: mega-deploy export ... --precision {self.precision} --float32 {layer}"
        if self.native_ops and (self.node is None or self.node.op in self.native_ops):
            return "try it with --no-native-ops; if that mends it, build the kernel anew: mega-deploy plugins build"
        if self.block is None or self.node is None:
            return "no node is bad by itself; the errors add up: report it with this table"
        return f"{self.backend} computes {self.node.op} wrongly here: try another release of it, and report it"

    def to_json(self) -> dict[str, Any]:
        """The report as JSON values."""
        return {
            "passed": self.passed,
            "parity": self.parity,
            "backend": self.backend,
            "precision": self.precision,
            "native_ops": list(self.native_ops),
            "case": self.case,
            "first_bad_block": self.block,
            "first_bad_node": None if self.node is None else self.node.to_json(),
            "spoilt_constants": list(self.spoilt),
            "advice": self.advice,
            "blocks": [value.to_json() for value in self.blocks],
            "values": [value.to_json() for value in self.values],
        }


def _label(node: str) -> str:
    """A node's name as exports keep it: its scope, for its number is the writer's own."""
    scope, _, _ = node.rpartition("/")
    return scope.replace("/", ".") or node
