"""The regression gate: a report against an earlier one, like with like."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mega_deploy.bench.contenders.task import OURS
from mega_deploy.bench.measure.host import IDENTITY
from mega_deploy.bench.measure.statistics import change
from mega_deploy.errors import InputError, OptionError, QualityGateError
from mega_deploy.files.reading import read_text
from mega_deploy.files.strict_json import parse_json

# What makes two rows the same measurement.
LIKE = ("contender", "backend", "form", "config", "batch", "seq_len", "precision", "cuda_graph")
# What of the method must be the same.
MAX_REPORT_BYTES = 1 << 30
MAX_REPORT_PARTS = 50_000_000
METHOD = ("cores", "threads", "isolation", "clock")


def parse_limit(text: str) -> float:
    """The factor of "slower:1.10".

    Raises:
        OptionError: it is not of that form, or not above 1.
    """
    match = re.fullmatch(r"slower:(\d+(?:\.\d+)?)", text)
    if match is None or float(match[1]) <= 1:
        raise OptionError(f"--fail-if is slower:FACTOR with a factor above 1, such as slower:1.10, got {text!r}")
    return float(match[1])


def read_report(path: Path) -> dict[str, Any]:
    """A report that --json-file wrote, raw samples included.

    Raises:
        InputError: it cannot be read, or is no such report.
    """
    try:
        value = parse_json(read_text(path, MAX_REPORT_BYTES), MAX_REPORT_PARTS)
        for row in value["results"]:
            row.setdefault("form", "window")  # all that an earlier version timed
        rows = [(row["samples_ms"], [row.get(name) for name in LIKE]) for row in value["results"]]
        whole = isinstance(value["machine"], dict) and isinstance(value["method"], dict) and all(rows)
    except (ValueError, KeyError, TypeError, AttributeError) as error:  # ValueError: InputError, too
        raise InputError(f"{path} is no report of `bench --json-file`: {' '.join(repr(error).split()):.200}") from error
    if not whole:
        raise InputError(f"{path} is no report of `bench --json-file`")
    return dict(value)


def check_alike(old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    """Refuse to compare what was measured on unlike machines or in unlike ways.

    Raises:
        InputError: the message names what differs.
    """
    pairs = [(name, old["machine"].get(name), new["machine"].get(name)) for name in IDENTITY]
    pairs += [(name, old["method"].get(name), new["method"].get(name)) for name in METHOD]
    if differing := [f"{name} was {was!r} and is {now!r}" for name, was, now in pairs if was != now]:
        raise InputError(
            f"the earlier report is of another set-up ({'; '.join(differing)}): times do not compare; "
            "measure it anew here, or say --other-machine if you know better"
        )


def compare(old: Mapping[str, Any], new: Mapping[str, Any], factor: float) -> dict[str, Any]:
    """How each of our rows changed: {"factor", "rows", "only_old", "only_new", "machine_speed"}.

    A row is a regression where its p50 is at least `factor` times the earlier one, and the interval of the change lies
    above 1 as a whole. "machine_speed" is the change of the large product that both runs timed: what of it is not ours.

    Raises:
        InputError: the two have no row in common.
    """
    before, after = (_ours(report) for report in (old, new))
    common = [key for key in after if key in before]
    if not common:
        raise InputError("the two reports have no configuration in common: nothing can be compared")
    rows = []
    for key in common:
        found = change(before[key]["samples_ms"], after[key]["samples_ms"])
        about = {name: after[key].get(name) for name in LIKE}
        noisy = sorted({*before[key]["noise"], *after[key]["noise"]})
        p50 = {"old_p50_ms": before[key]["p50_ms"], "new_p50_ms": after[key]["p50_ms"]}
        worse = found.value >= factor and found.low > 1
        rows.append({**about, **p50, "change": found.to_json(), "regression": worse, "noise": noisy})
    speeds = [_peak(report) for report in (old, new)]
    return {
        "factor": factor,
        "rows": rows,
        "only_old": [before[key]["config"] for key in before if key not in after],
        "only_new": [after[key]["config"] for key in after if key not in before],
        "machine_speed": speeds[1] / speeds[0] if all(speeds) else None,
    }


def fail_on_regression(comparison: Mapping[str, Any]) -> None:
    """Raise where a row is a regression.

    Raises:
        QualityGateError: the message tells the worst one.
    """
    worse = [row for row in comparison["rows"] if row["regression"]]
    if not worse:
        return
    worst = max(worse, key=lambda row: float(row["change"]["value"]))
    changed, speed = worst["change"], comparison["machine_speed"]
    blame = "" if speed is None or speed > 0.95 else f"; the machine itself reached {speed:.2f} of its earlier speed"
    raise QualityGateError(
        f"slower: {len(worse)} of {len(comparison['rows'])} rows, the worst (batch {worst['batch']}, "
        f"{worst['seq_len']} frames, {worst['backend']}) by {changed['value']:.2f} ({changed['low']:.2f} to "
        f"{changed['high']:.2f}), where {comparison['factor']:g} is allowed{blame}"
    )


def _ours(report: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    return {
        json.dumps([row.get(name) for name in LIKE], sort_keys=True): row
        for row in report["results"]
        if row["contender"] == OURS
    }


def _peak(report: Mapping[str, Any]) -> float:
    return max((float(row["peak_gflop_s"]) for row in report.get("limit", [])), default=0.0)
