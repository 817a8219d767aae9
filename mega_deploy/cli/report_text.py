"""The words of a report's parts, as tables show them: its parity, its tensors, its stream, its engine."""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np
from rich.text import Text

from mega_deploy.signature import StateSpec, TensorSpec
from mega_deploy.text import printable

Report = dict[str, Any]


def plain(value: object) -> Text:
    """Text as it stands: what comes from a file is no markup, and sends nothing to the terminal but letters."""
    return Text(printable(value))


def passed(value: bool) -> Text:
    """The word "passed" in green, or "FAILED" in red."""
    return Text("passed", "green") if value else Text("FAILED", "red")


def verdict(parity: Report) -> Text:
    """The verdict on parity in a line: whether it passed, and the error and limit of the worst case."""
    error = "not finite" if parity["relative_l2"] is None else f"{parity['relative_l2']:.1e}"
    beside = f"PyTorch's own {parity['floor']:.1e}, limit {parity['limit']:.1e}"
    sampled = "; sampled, for this is a large model" if parity.get("sampled") else ""
    return passed(parity["passed"]) + f": relative error {error} against float64 in the worst case, {beside}{sampled}"


def work(flops: Report) -> str:
    """The work of a window or a step in MFLOP, before and after folding."""
    return f"{flops['deployed'] / 1e6:.4g} MFLOP ({flops['trained'] / 1e6:.4g} as trained)"


def megabytes(report: Report) -> str:
    """The size of a file or a bundle in megabytes."""
    return f"{report['bytes'] / 1e6:.1f} MB"


def source(report: Report) -> str:
    """The format and hash of the checkpoint that a bundle was made from."""
    return f"{report['source']['format']}, SHA-256 {report['source']['sha256'][:12]}"


def tensors(signature: Report) -> dict[str, object]:
    """Rows about inputs and outputs: dtype and shape of each."""
    return {
        f"{side[:-1]} {spec.name}": f"{spec.dtype} {spec}"
        for side in ("inputs", "outputs")
        for spec in map(TensorSpec.from_json, signature[side])
    }


def precision(report: Report) -> dict[str, object]:
    """Rows about the precision; for a lower one also which nodes stay float32, and what one block more would bring."""
    rows: dict[str, object] = {"precision": report["precision"]}
    if report["precision"] == "float32":
        return rows
    rows["in float32"] = ", ".join(dict.fromkeys(re.sub(r"\.\d+\b", ".*", name) for name in report["float32_islands"]))
    if worst := report["parity"].get("worst_block_in_float32"):
        error, size = worst["relative_l2"], worst["bytes"]
        rows["worst block"] = (
            f"{worst['block']}; with --float32 {worst['block']} the error ({worst['case']}) would be "
            f"{error['then'] or 0:.1e} instead of {error['now'] or 0:.1e}, and model.onnx {size['then'] / 1e6:.1f} MB "
            f"instead of {size['now'] / 1e6:.1f}"
        )
    return rows | ({"advice": "; ".join(report["advice"])} if report["advice"] else {})


def stream(form: Report | None, state: list[Report]) -> dict[str, object]:
    """Rows about a bundle's stream: how far back it reaches, the size of its state, its parity; none without one."""
    if form is None:
        return {}
    specs = [StateSpec.from_json(spec) for spec in state]
    size = sum(math.prod(spec.shape(1)) * np.dtype(spec.dtype).itemsize for spec in specs)
    limits = [spec.limit for spec in specs if spec.limit is not None]
    reach = f"at most {min(limits)} steps" if limits else f"a window of {form['window']} steps"
    size_and_reach = f"{reach}, {size / 1024:.0f} KB of state in {len(specs)} tensors"
    return {"stream": size_and_reach, **_encoded(form), "parity of the stream": verdict(form["parity"])}


def _encoded(form: Report) -> dict[str, object]:
    """A row about the source that a stream's steps read; none where they read no source."""
    if "encode" not in form:
        return {}
    inputs = (TensorSpec.from_json(spec) for spec in form["encode"]["inputs"])
    return {"source, encoded once": ", ".join(f"{spec.name} {spec.dtype} {spec}" for spec in inputs)}


def served(report: Report) -> dict[str, object]:
    """A row for each operator of ours in a bundle: a native kernel serves it, or its function body does."""
    native = "a native kernel"
    body = "its function body; a native kernel is faster: mega-deploy plugins build onnxruntime"
    return {
        f"{plugin['name']} is served by": native if plugin["name"] in report["native_ops"] else body
        for plugin in report["plugins"]
    }


def bundle(report: Report) -> dict[str, object]:
    """Rows about a bundle, as `inspect` shows them."""
    return {
        "source": source(report),
        **tensors(report["signature"]),
        **precision(report),
        "parity": verdict(report["parity"]),
        **stream(report.get("stream"), report["signature"].get("state", [])),
        **served(report),
        "engines": ", ".join(dict.fromkeys(map(_engine_name, report["engines"]))) or "none",
        "made with": ", ".join(f"{name} {version}" for name, version in report["tools"].items()),
    }


def _engine_name(engine: Report) -> str:
    return f"{engine['target']} {engine['library_version']}"


def checkpoint(report: Report) -> dict[str, object]:
    """Rows about a checkpoint, as `inspect` shows them."""
    rows = {
        "format": report["format"],
        "SHA-256": report["sha256"],
        "parameters": f"{report['parameters']:,}",
    }
    if "task" in report:
        return rows | _paper(report)
    return rows | {"the file does not say": ", ".join(report["unknown"]) or "nothing"}


def engine(report: Report) -> dict[str, object]:
    """Rows about an engine: nothing beyond its header where its bundle is not around it."""
    rows: dict[str, object] = {"engine": _engine_name(report)}
    if report["bundle"] is None:
        return rows | {"SHA-256": report["sha256"]}
    profiles = [
        f"{name} {' to '.join(str(shapes[kind]) for kind in ('min', 'max'))}, tuned for {shapes['opt']}"
        for profile in report["profiles"]
        for name, shapes in profile.items()
    ]
    plugins = [
        f"{plugin['name']} {plugin['version']}, SHA-256 {plugin['sha256'][:12]}, "
        f"{'in the engine' if plugin.get('embedded') else 'from the cache of this user'}"
        for plugin in report["plugins"]
    ]
    return rows | {
        **tensors(report),
        "precision": report["precision"],
        "compute capabilities": ", ".join(report["compute_capabilities"]),
        "shapes": "; ".join(profiles) or "all fixed",
        "plugins": "; ".join(plugins) or "none",
        "built from": ", ".join(f"{name} of SHA-256 {digest[:12]}" for name, digest in report["source"].items()),
        "built on": ", ".join(filter(None, (report["platform"], report["gpu"], report["driver"]))),
        "layers": report["layers"],
    }


def _paper(report: Report) -> dict[str, object]:
    """Rows about a checkpoint of the paper's Mega: sizes, attention and moving average of each stack, and lengths."""
    rows: dict[str, object] = {"what": f"{report['family']}: {report['task']}"}
    for stack in report["layers"]:
        sizes = ", ".join(
            f"{name} {stack[name]}" for name in ("embed_dim", "z_dim", "hidden_dim", "ffn_dim", "ema_dim")
        )
        rows[f"{stack['name']}, {stack['num_layers']} layers"] = f"{sizes}; {stack['norm']}"
        seen = "causal" if stack["causal"] else "of all steps"
        crossed = ", with cross attention" if stack["cross_attention"] else ""
        rows[f"{stack['name']}'s attention"] = f"{stack['attention']}, {seen}, {stack['position']} bias{crossed}"
        ways = "both ways" if stack["bidirectional"] else "back"
        cut = f", cut at {stack['truncation']} lags" if stack["truncation"] else ""
        rows[f"{stack['name']}'s moving average"] = f"{ways}{cut}"
    lengths = report["lengths"]
    limit = f"at most {lengths['max']} steps" if lengths["max"] else "any"
    rows["lengths"] = limit + (f"; chunks {lengths['chunks']}" if lengths["chunks"] else "")
    return rows | tensors(report) | {"export needs": report["export_needs"]}
