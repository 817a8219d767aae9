"""What it would gain and cost to keep the worst block of a lower precision in float32."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from onnxscript import ir

from mega_deploy.exporters import save_graph
from mega_deploy.exporters.precision.lowering import lower
from mega_deploy.parity import Reference, Report
from mega_deploy.runtime import parity_session
from mega_deploy.signature import Signature


def measure_float32_fallback(
    model: ir.Model,
    report: Report,
    reference: Reference,
    signature: Signature,
    written: Path,
    *,
    keep_float32: Sequence[str] = (),
    half_io: bool = False,
) -> dict[str, Any] | None:
    """The first case's error and the file's size as they are, and as they would be; None where nothing can be kept.

    Args:
        model: the float32 graph.
        report: on the lowered one, with its blocks.
        reference: that it was compared with.
        signature: of the model.
        written: the lowered model's file.
        keep_float32: what stays float32 already, as `lower` takes it.
        half_io: as `lower` takes it.
    """
    worst = report.worst_block
    if worst is None or report.precision == "float32":
        return None
    block = worst.name.removesuffix(".output")
    if block in keep_float32:
        return None
    kept = lower(model, report.precision, keep_float32=[*keep_float32, block], half_io=half_io)
    case = reference.cases[0]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / written.name
        save_graph.save(kept.model, path)
        session = parity_session(path, signature, report.precision)
        error = reference.error(case, (session.run_named(feeds) for feeds in reference.feeds(case)))
        then, size = error.relative_l2, _bytes(path)
    now = report.cases[0].error.relative_l2
    return {
        "block": block,
        "case": case.name,
        "relative_l2": {
            name: value if math.isfinite(value) else None for name, value in (("now", now), ("then", then))
        },
        "bytes": {"now": _bytes(written), "then": size},
    }


def _bytes(model: Path) -> int:
    """The size of a model with its weights, which may lie beside it."""
    return sum(path.stat().st_size for path in model.parent.glob(f"{model.name}*"))
