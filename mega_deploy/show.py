"""What a person sees: tables on stdout, progress on stderr. Each table shows the very values that --json prints."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from mega_deploy.signature import StateSpec, TensorSpec

Report = dict[str, Any]
Table = Callable[[Report], None]


@contextmanager
def progress() -> Iterator[Callable[[str], None]]:
    """A function that shows the name of the step under way on stderr, where that is a terminal."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda step: None
        return
    with console.status("") as status:
        yield lambda step: status.update(f"{step} ...")


def export_table(report: Report) -> None:
    """Of `export`."""
    ema = report["ema"]
    _facts(
        f"{report['bundle']}",
        {
            "source": f"{report['source']['format']}, SHA-256 {report['source']['sha256'][:12]}",
            **_tensors(report),
            "work of a step" if ema["taps"] is None else "work of a window": _work(report["flops"]),
            "moving average": ema["reason"]
            if ema["taps"] is None
            else f"{ema['lowering']}, {ema['taps']} taps, {ema['bound']:.1e} of the kernel cut",
            **_precision(report),
            "parity": _verdict(report["parity"]),
            **_stream(report["stream"], report["state"]),
            "took": f"{report['seconds']:.1f} s",
        },
    )


def parity_table(report: Report) -> None:
    """Of `validate`."""
    console, table = Console(), RichTable(title=f"parity on {report['backend']}, {report['precision']}")
    for column, right in (
        ("case", False),
        ("batch", True),
        ("relative error", True),
        ("PyTorch's own", True),
        ("limit", True),
        ("", False),
    ):
        table.add_column(column, justify="right" if right else "left")
    for part in ("cases", "blocks"):
        for case in report[part]:
            error = "not finite" if case["relative_l2"] is None else f"{case['relative_l2']:.1e}"
            numbers = (str(case["batch"]), error, f"{case['floor']:.1e}", f"{case['limit']:.1e}")
            table.add_row(_plain(case["name"]), *numbers, _passed(case["passed"]))
        table.add_section()
    console.print(table)
    if left_out := report["left_out"]:
        console.print(_plain(f"left out, for PyTorch's own {report['precision']} fails there: {', '.join(left_out)}"))
    if sampled := report["sampled"]:
        console.print(_plain(f"sampled, for this is a large model: {', '.join(sampled)}"))
    console.print(_verdict(report))


def bisection_table(report: Report) -> None:
    """Of `validate --bisect`: the blocks, and of the bad one what leads to the first bad node."""
    console, table = Console(), RichTable(title=f"{report['case']} on {report['backend']}, {report['precision']}")
    for column, right in (("", False), ("made by", False), ("error", True), ("limit", True), ("", False)):
        table.add_column(column, justify="right" if right else "left", overflow="fold")
    bad = next((index for index, value in enumerate(report["values"]) if not value["passed"]), 0)
    for title, part in (("behind", report["blocks"]), ("in it", report["values"][max(0, bad - 3) : bad + 1])):
        for value in part:
            error = "not finite" if value["relative_l2"] is None else f"{value['relative_l2']:.1e}"
            told = (value["name"] if title == "behind" else value["op"], value["node"])
            table.add_row(*map(_plain, told), error, f"{value['limit']:.1e}", _passed(value["passed"]))
        table.add_section()
    console.print(table)
    console.print(_passed(report["passed"]) + f": {report['advice']}")


def run_line(report: Report) -> None:
    """Of `run`."""
    outputs = ", ".join(f"{name} {value['dtype']} {value['shape']}" for name, value in report["outputs"].items())
    native = f", {', '.join(report['native_ops'])} native" if report["native_ops"] else ""
    took = f"{report['seconds'] * 1e3:.2f} ms on {report['backend']}{native}"
    Console().print(_plain(f"{report['output']}: {outputs} in {took}"))


def inspect_table(report: Report) -> None:
    """Of `inspect`."""
    facts: dict[str, object] = {}
    if report["kind"] == "bundle":
        facts |= {
            "source": f"{report['source']['format']}, SHA-256 {report['source']['sha256'][:12]}",
            **_tensors(report["signature"]),
            **_precision(report),
            "parity": _verdict(report["parity"]),
            **_stream(report.get("stream"), report["signature"].get("state", [])),
            **_served(report),
            "engines": ", ".join(_engine_name(engine) for engine in report["engines"]) or "none",
            "made with": ", ".join(f"{name} {version}" for name, version in report["tools"].items()),
        }
    elif report["kind"] == "engine":
        facts |= _engine(report)
    else:
        facts |= {
            "format": report["format"],
            "SHA-256": report["sha256"],
            "parameters": f"{report['parameters']:,}",
        }
        if "task" in report:
            facts |= _paper(report)
        else:
            facts["the file does not say"] = ", ".join(report["unknown"]) or "nothing"
    options = report["config"] if "config" in report else report.get("options", {})
    if "task" not in report:
        facts["options"] = ", ".join(f"{name}={value}" for name, value in options.items()) or "unknown"
    facts["size"] = f"{report['bytes'] / 1e6:.1f} MB"
    missing = Text.assemble(("no", "red"), ": ", _plain("; ".join(report["missing"])))
    facts["can be used here"] = "yes" if report["runs_here"] else missing
    _facts(f"{report['path']}: {report['kind']}", facts)


def built_engine_table(report: Report) -> None:
    """Of `build`."""
    facts = {"engine": _engine_name(report), **_engine(report), "size": f"{report['bytes'] / 1e6:.1f} MB"}
    _facts(f"{report['bundle']}/{report['file']}", {**facts, "took": f"{report['seconds']:.1f} s"})


def plugins_table(report: Report) -> None:
    """Of `plugins list`."""
    table = RichTable()
    for column in ("target", "library", "architectures", "kernels"):
        table.add_column(column, overflow="fold")
    for row in report["plugins"]:
        kernels = row["kernels"]
        compiled = [kernel["registers"] for kernel in kernels if kernel["registers"]]
        told = ""
        if compiled:
            spilled = sum(kernel["spill_bytes"] for kernel in kernels)
            told = f"{len(kernels)}, of {min(compiled)} to {max(compiled)} registers, {spilled or 'no'} bytes spilled"
        library = row["library"] or f"not built: mega-deploy plugins build {row['target']}"
        table.add_row(row["target"], _plain(library), ", ".join(row["architectures"]), told)
    Console().print(table)


def built_line(report: Report) -> None:
    """Of `plugins build`."""
    Console().print(_plain(f"{report['plugin']['name']} for {report['target']}: {report['library']}"), soft_wrap=True)


def doctor_table(report: Report) -> None:
    """Of `doctor`."""
    table = RichTable()
    for column in ("component", "version", "", "for", "remedy"):
        table.add_column(column)
    for part in report["components"]:
        state = Text("works", "green") if part["works"] else Text("missing", "red")
        table.add_row(part["name"], part["version"] or "", state, part["purpose"], _plain(part["remedy"] or ""))
    Console().print(table)


def demo_table(report: Report) -> None:
    """Of `demo`."""
    accuracy, latency = report["accuracy"], report["latency"]
    _facts(
        "demo: who is speaking?",
        {
            "data": report["data"],
            "bundle": report["bundle"],
            "work of a window": _work(report["flops"]),
            "parity": _verdict(report["parity"]),
            "accuracy, trained model": f"{accuracy['trained']:.2%}",
            "accuracy, deployed model": f"{accuracy['deployed']:.2%} of {report['samples']} held-out utterances",
            "same decision as trained": f"{accuracy['agreement']:.2%}",
            "one window": "p50 {p50_ms:.3f} ms, p99 {p99_ms:.3f} ms, of {samples} calls".format(**latency),
            "next": f"mega-deploy inspect {report['bundle']}",
        },
    )


def warning(line: str) -> None:
    """Something that went wrong and did not end the command."""
    Console(stderr=True).print(_plain(f"warning: {line}"), soft_wrap=True)


def _facts(title: str, facts: dict[str, object]) -> None:
    table = RichTable(title=_plain(title), show_header=False, title_justify="left")
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, value in facts.items():
        table.add_row(_plain(name), value if isinstance(value, Text) else _plain(value))
    Console().print(table)


def _engine_name(engine: Report) -> str:
    return f"{engine['target']} {engine['library_version']}"


def _engine(report: Report) -> dict[str, object]:
    """What is known of an engine: nothing beyond its header where its bundle is not around it."""
    facts: dict[str, object] = {"engine": _engine_name(report)}
    if report["bundle"] is None:
        return facts | {"SHA-256": report["sha256"]}
    profiles = [
        f"{name} {' to '.join(str(shapes[kind]) for kind in ('min', 'max'))}, tuned for {shapes['opt']}"
        for profile in report["profiles"]
        for name, shapes in profile.items()
    ]
    plugins = [
        f"{plugin['name']} {plugin['version']}, SHA-256 {plugin['sha256'][:12]}, "
        f"{'in the engine' if plugin.get('embedded') else 'loaded from ' + plugin.get('library', 'this machine')}"
        for plugin in report["plugins"]
    ]
    return facts | {
        **_tensors(report),
        "precision": report["precision"],
        "compute capabilities": ", ".join(report["compute_capabilities"]),
        "shapes": "; ".join(profiles) or "all fixed",
        "plugins": "; ".join(plugins) or "none",
        "built from": ", ".join(f"{name} of SHA-256 {digest[:12]}" for name, digest in report["source"].items()),
        "built on": ", ".join(filter(None, (report["platform"], report["gpu"], report["driver"]))),
        "layers": report["layers"],
    }


def _paper(report: Report) -> dict[str, object]:
    """What is known of a checkpoint of the paper's Mega, instead of its many options."""
    facts: dict[str, object] = {"what": f"{report['family']}: {report['task']}"}
    for stack in report["layers"]:
        sizes = ", ".join(
            f"{name} {stack[name]}" for name in ("embed_dim", "z_dim", "hidden_dim", "ffn_dim", "ema_dim")
        )
        facts[f"{stack['name']}, {stack['num_layers']} layers"] = f"{sizes}; {stack['norm']}"
        seen = "causal" if stack["causal"] else "of all steps"
        crossed = ", with cross attention" if stack["cross_attention"] else ""
        facts[f"{stack['name']}'s attention"] = f"{stack['attention']}, {seen}, {stack['position']} bias{crossed}"
        ways = "both ways" if stack["bidirectional"] else "back"
        cut = f", cut at {stack['truncation']} lags" if stack["truncation"] else ""
        facts[f"{stack['name']}'s moving average"] = f"{ways}{cut}"
    lengths = report["lengths"]
    limit = f"at most {lengths['max']} steps" if lengths["max"] else "any"
    facts["lengths"] = limit + (f"; chunks {lengths['chunks']}" if lengths["chunks"] else "")
    return facts | _tensors(report) | {"export needs": report["export_needs"]}


def _tensors(signature: Report) -> dict[str, object]:
    return {
        f"{side[:-1]} {spec.name}": f"{spec.dtype} {spec}"
        for side in ("inputs", "outputs")
        for spec in map(TensorSpec.from_json, signature[side])
    }


def _precision(report: Report) -> dict[str, object]:
    """The precision, and for a lower one what its float32 islands are and what a further one would bring."""
    facts: dict[str, object] = {"precision": report["precision"]}
    if report["precision"] == "float32":
        return facts
    facts["in float32"] = ", ".join(dict.fromkeys(re.sub(r"\.\d+\b", ".*", name) for name in report["float32_islands"]))
    if worst := report["parity"].get("worst_block_in_float32"):
        error, size = worst["relative_l2"], worst["bytes"]
        facts["worst block"] = (
            f"{worst['block']}; with --float32 {worst['block']} the error ({worst['case']}) would be "
            f"{error['then'] or 0:.1e} instead of {error['now'] or 0:.1e}, and model.onnx {size['then'] / 1e6:.1f} MB "
            f"instead of {size['now'] / 1e6:.1f}"
        )
    return facts | ({"advice": "; ".join(report["advice"])} if report["advice"] else {})


def _stream(stream: Report | None, state: list[Report]) -> dict[str, object]:
    """Of a bundle that holds a stream."""
    if stream is None:
        return {}
    specs = [StateSpec.from_json(spec) for spec in state]
    size = sum(math.prod(spec.shape(1)) * np.dtype(spec.dtype).itemsize for spec in specs)
    limits = [spec.limit for spec in specs if spec.limit is not None]
    reach = f"at most {min(limits)} steps" if limits else f"a window of {stream['window']} steps"
    told = f"{reach}, {size / 1024:.0f} KB of state in {len(specs)} tensors"
    return {"stream": told, **_source(stream), "parity of the stream": _verdict(stream["parity"])}


def _source(stream: Report) -> dict[str, object]:
    """Of one whose steps read a source."""
    if "encode" not in stream:
        return {}
    inputs = (TensorSpec.from_json(spec) for spec in stream["encode"]["inputs"])
    return {"source, encoded once": ", ".join(f"{spec.name} {spec.dtype} {spec}" for spec in inputs)}


def _work(flops: Report) -> str:
    return f"{flops['deployed'] / 1e6:.4g} MFLOP ({flops['trained'] / 1e6:.4g} as trained)"


def _plain(value: object) -> Text:
    """Text as it stands: what comes from a file is no markup, and sends nothing to the terminal but letters."""
    return Text("".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in str(value)))


def _passed(passed: bool) -> Text:
    return Text("passed", "green") if passed else Text("FAILED", "red")


def _served(report: Report) -> dict[str, object]:
    """Who serves the operators of ours that a bundle holds."""
    native = "a native kernel"
    body = "its function body; a native kernel is faster: mega-deploy plugins build onnxruntime"
    return {
        f"{plugin['name']} is served by": native if plugin["name"] in report["native_ops"] else body
        for plugin in report["plugins"]
    }


def _verdict(parity: Report) -> Text:
    error = "not finite" if parity["relative_l2"] is None else f"{parity['relative_l2']:.1e}"
    beside = f"PyTorch's own {parity['floor']:.1e}, limit {parity['limit']:.1e}"
    sampled = "; sampled, for this is a large model" if parity.get("sampled") else ""
    return _passed(parity["passed"]) + f": relative error {error} against float64 in the worst case, {beside}{sampled}"
