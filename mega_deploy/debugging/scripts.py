"""Shell scripts and a page that use a bundle's parity cases with Polygraphy's commands."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources

import numpy as np

from mega_deploy.config.common import Form
from mega_deploy.debugging.cases import KEEP_STEPS, Tolerance, WrittenCase
from mega_deploy.signature import Range, Signature
from mega_deploy.text import printable

ONNXRUNTIME, TENSORRT, TENSORRT_RTX, REDUCE, README = (
    "onnxruntime.sh",
    "tensorrt.sh",
    "tensorrt-rtx.sh",
    "reduce.sh",
    "README.md",
)
COMMON = "common.sh"
# Errors of inner values may be larger than those of outputs: a tenth of the accuracy, in decibels.
INNER_SLACK = 20.0

_HEAD = """\
#!/usr/bin/env bash
# {purpose}
written_from={bundle}
source -- "$(dirname -- "${{BASH_SOURCE[0]}}")"/{common}
"""


@dataclass(frozen=True)
class Graph:
    """A graph of the bundle whose cases were written."""

    form: Form
    file: str
    """In the bundle."""
    signature: Signature
    """With the state among inputs and outputs."""
    inlined: str | None
    """The same without functions, relative to the folder; None where it has none."""
    plugin: str | None
    """The same with nodes of TensorRT's plugin in it; None where it has none."""
    engines: Mapping[str, str]
    """By target: the bundle's file."""

    @property
    def in_bundle(self) -> str:
        """For a shell."""
        return _in_bundle(self.file)

    @property
    def plain(self) -> str:
        """The graph without functions, for a shell."""
        return self.in_bundle if self.inlined is None else shlex.quote(self.inlined)


def is_tensor_name(name: str) -> bool:
    """Whether a name can stand in Polygraphy's options, where a colon ends it and a dash begins another option."""
    return re.fullmatch(r"[A-Za-z_][\w./-]*", name, re.ASCII) is not None


def onnxruntime_script(bundle: str, graphs: Sequence[Graph], cases: Sequence[WrittenCase]) -> str:
    """Hold onnxruntime against the reference; exit code 3 where a case fails."""
    models = {graph.form: graph.in_bundle for graph in graphs}
    head = _head(bundle, "Hold onnxruntime against the trained model; options given here go to each `polygraphy run`.")
    return f'{head}need onnxruntime cpu\nrunner=(--onnxrt "$@")\n{_checks(cases, models)}'


def tensorrt_script(bundle: str, graphs: Sequence[Graph], cases: Sequence[WrittenCase]) -> str:
    """Hold TensorRT against the reference: engines of the bundle, and where it has none, built of its graphs."""
    head = _head(bundle, "Hold TensorRT against the trained model; options given here go to each `polygraphy run`.")
    parts = [head, "need tensorrt gpu\n"]
    if any(graph.plugin for graph in graphs):
        parts.append("find_plugin\n")
    models = {}
    for graph in graphs:
        if engine := graph.engines.get("tensorrt"):
            models[graph.form] = _in_bundle(engine)
            continue
        models[graph.form] = f"{graph.form}/tensorrt.engine"
        parts.append(f"model={graph.plain}\n")
        if graph.plugin:
            parts.append(f"((${{#plugins[@]}})) && model={shlex.quote(graph.plugin)}\n")
        options = "".join(f" {option}" for option in _profile(graph.signature))
        parts.append(f'build {models[graph.form]} "$model"{options}\n')
    parts.append('runner=(--model-type engine --trt "${plugins[@]}" "$@")\n')
    return "".join([*parts, _checks(cases, models)])


def tensorrt_rtx_script(bundle: str, graphs: Sequence[Graph], cases: Sequence[WrittenCase]) -> str:
    """Hold the bundle's engines of TensorRT-RTX against the reference."""
    head = _head(bundle, "Hold TensorRT-RTX against the trained model; options given here go to each `polygraphy run`.")
    models = {
        graph.form: _in_bundle(graph.engines["tensorrt-rtx"]) for graph in graphs if "tensorrt-rtx" in graph.engines
    }
    served = [case for case in cases if case.form in models]
    return (
        f"{head}export POLYGRAPHY_USE_TENSORRT_RTX=1\nneed tensorrt_rtx rtx\n"
        f'runner=(--model-type engine --trt "$@")\n{_checks(served, models)}'
    )


def reduce_script(bundle: str, graphs: Sequence[Graph], cases: Sequence[WrittenCase]) -> str:
    """Cut a model that a backend computes wrongly down to the nodes that it gets wrong."""
    head = _head(
        bundle,
        "Cut a model that a backend computes wrongly down to what it gets wrong, reduced/CASE/reduced.onnx:\n"
        "#     bash reduce.sh CASE [RUNNER OPTION...]     by default: --trt --strongly-typed\n"
        "# MODEL names another graph than the bundle's to cut down; SNR is the least ratio of signal to noise, in\n"
        "# decibels, that each value must have.",
    )
    lines = [
        head,
        "need onnx_graphsurgeon debug\n",
        "case=${1-}\nshift\n",
        'runner=("$@")\n(($#)) || runner=(--trt --strongly-typed)\n',
    ]
    if any(graph.plugin for graph in graphs):
        lines.append('[[ " ${runner[*]} " == *" --trt "* ]] && find_plugin\nrunner+=("${plugins[@]}")\n')
    lines.append('case "$case" in\n')
    for graph in graphs:
        least = max(1.0, min(case.snr for case in cases if case.form == graph.form) - INNER_SLACK)
        lines.append(f"    {graph.form}/*)\n        good={graph.plain} model={graph.plain} snr={least:.0f}\n")
        if graph.plugin:
            lines.append(f"        ((${{#plugins[@]}})) && model={shlex.quote(graph.plugin)}\n")
        lines.append("        ;;\n")
    lines.append(f'    *)\n        echo "error: name a case, such as {cases[0].folder}" >&2\n        exit 2\n')
    lines.append('        ;;\nesac\nreduce "$good" "${MODEL:-$model}" "$case" "${SNR:-$snr}"\n')
    return "".join(lines)


def _head(bundle: str, purpose: str) -> str:
    return _HEAD.format(purpose=purpose, bundle=shlex.quote(bundle), common=COMMON)


def _in_bundle(file: str) -> str:
    """A file of the bundle, for a shell."""
    return f'"$bundle"/{shlex.quote(file)}'


def _checks(cases: Sequence[WrittenCase], models: Mapping[Form, str]) -> str:
    """A line for each case, then the verdict on all."""
    lines = [f"check {models[case.form]} {shlex.quote(case.folder)} {' '.join(_options(case))}\n" for case in cases]
    return "".join([*lines, "verdict\n"])


def _options(case: WrittenCase) -> list[str]:
    """A case's tolerances as Polygraphy's options."""
    bounded = {name: one for name, one in case.tolerances.items() if np.isfinite(one.max_abs)}
    options = ["--compare", "l2", *(["simple"] if bounded else [])]
    options += ["--l2-threshold", *(_setting(name, one.l2) for name, one in case.tolerances.items())]
    if bounded:
        options += ["--atol", *(_setting(name, one.max_abs) for name, one in bounded.items())]
        options += ["--rtol", "0", "--check-error-stat", "max"]
    if case.kept_steps:
        options += ["--postprocess-func-script", shlex.quote(f"{case.folder}/{KEEP_STEPS}")]
    return options


def _setting(name: str, value: float) -> str:
    return shlex.quote(f"{name}:{value!r}")


def _profile(signature: Signature) -> list[str]:
    """The ranges of the inputs as Polygraphy's options, where one has a range."""
    if not any(isinstance(dim, Range) for spec in signature.inputs for dim in spec.dims):
        return []
    options = []
    for kind in ("min", "opt", "max"):
        options.append(f"--trt-{kind}-shapes")
        for spec in signature.inputs:
            shape = ",".join(str(getattr(dim, kind) if isinstance(dim, Range) else dim) for dim in spec.dims)
            options.append(shlex.quote(f"{spec.name}:[{shape}]"))
    return options


def common() -> str:
    """What the scripts share."""
    return resources.files("mega_deploy.debugging").joinpath(COMMON).read_text("utf-8")


def readme(bundle: str, commands: Sequence[str], cases: Sequence[WrittenCase]) -> str:
    """The page that tells what the folder holds and how it is used."""
    rows = "".join(
        f"| `{case.folder}` | {_cell(case.name)} | {case.batch} | {case.iterations} | "
        f"{'; '.join(_describe(name, one) for name, one in case.tolerances.items())} |\n"
        for case in cases
    )
    return _README.format(bundle=_cell(bundle), rows=rows, commands="".join(f"    {command}\n" for command in commands))


_README = """\
# Parity cases for Polygraphy

`mega-deploy debug polygraphy` wrote this folder, of the bundle {bundle}.

Each case holds `inputs.json`, what goes into the graph, and `outputs.json`, what the trained model gives in float64, in
Polygraphy's own format: for `polygraphy run --load-inputs --load-outputs`, or `polygraphy inspect data`.

{commands}
Each script but `reduce.sh` runs every case on a backend (`polygraphy run`), and ends with 3 where one is beyond the
tolerances below, which are the bundle's own limits. Options are passed on. `BUNDLE=/where/it/is bash ...` finds the
bundle on another machine. `reduce.sh` cuts a model that a backend gets wrong down to the nodes that it gets wrong
(`polygraphy debug reduce`), for one case; the head of the script tells its options.

| case | of | batch | iterations | tolerances |
|---|---|--:|--:|---|
{rows}
A stream's case holds some steps of its sequences: the frame and the state before it, as onnxruntime carried it there,
go in; the new state is not compared, for the trained model has none.
"""


def _cell(text: str) -> str:
    """Text from a file as it stands in a table: nothing in it is markup or ends a line."""
    return "`" + printable(text).replace("`", "'").replace("|", "\\|") + "`"


def _describe(name: str, tolerance: Tolerance) -> str:
    bounded = f", largest {tolerance.max_abs:.2g}" if np.isfinite(tolerance.max_abs) else ""
    return f"{name}: L2 {tolerance.l2:.2g}{bounded}"
