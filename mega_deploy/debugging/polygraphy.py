"""A bundle's parity cases as files and commands of Polygraphy, NVIDIA's toolkit for debugging inference.

A folder holds, for each case, `inputs.json` and `outputs.json` as `polygraphy run --load-inputs --load-outputs` reads
them, scripts that run all cases on a backend within the bundle's own limits, and one that cuts a model down to what a
backend gets wrong (`polygraphy debug reduce`).
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mega_deploy.bundle import MODEL, STEP, FolderKind, check_target, read_marker, write_json, writing
from mega_deploy.bundle.engines import TARGETS
from mega_deploy.config.common import Form
from mega_deploy.debugging import scripts
from mega_deploy.debugging.cases import WrittenCase, write_stream_case, write_window_case
from mega_deploy.errors import BundleError, InputError, MissingComponentError, require
from mega_deploy.files.writing import put_bytes, write_text
from mega_deploy.runtime import OpenBundle, find_backend, open_bundle
from mega_deploy.runtime.backends import DEFAULT
from mega_deploy.runtime.tensorrt.library import engines_of

PathLike = str | os.PathLike[str]
INDEX = "cases.json"
FORMAT = "mega-deploy's cases for Polygraphy"
GRAPHS: dict[Form, str] = {"window": MODEL, "stream": STEP}


@dataclass(frozen=True)
class PolygraphyFolder:
    """What was written for Polygraphy."""

    path: Path
    bundle: Path
    cases: tuple[WrittenCase, ...]
    commands: tuple[str, ...]
    """Each runs in the folder."""
    left_out: tuple[str, ...]
    """Forms of the bundle that were not written, and why."""

    def to_json(self) -> dict[str, Any]:
        """For a report, and as the folder's own index."""
        return {
            "folder": str(self.path),
            "bundle": str(self.bundle),
            "cases": [case.to_json() for case in self.cases],
            "commands": list(self.commands),
            "left_out": list(self.left_out),
        }


FOLDER = FolderKind(
    "a folder of Polygraphy's files", "those", lambda folder: read_marker(folder / INDEX).get("format") == FORMAT
)


def write_polygraphy_folder(
    bundle: OpenBundle | PathLike,
    out: PathLike,
    *,
    force: bool = False,
    on_step: Callable[[str], None] = lambda step: None,
) -> PolygraphyFolder:
    """Write a bundle's parity cases as Polygraphy's files and commands, all of them or nothing.

    Args:
        bundle: opened, or its path.
        out: the folder to write.
        force: replace an earlier folder of the kind.
        on_step: called with the name of each step as it begins.

    Raises:
        BundleError: the folder exists already, cannot be written, or the bundle is damaged.
        InputError: the folder would lie in the bundle.
        MissingComponentError: polygraphy is not installed, onnx is not and the bundle's graphs hold functions, or all
            that the bundle holds is a stream that onnxruntime cannot run.
    """
    require("polygraphy", "debug", "writing Polygraphy's files")
    opened = bundle if isinstance(bundle, OpenBundle) else open_bundle(bundle)
    place, home = Path(out), opened.path.resolve()
    check_target(place, force=force, kind=FOLDER)
    if place.resolve().is_relative_to(home):
        raise InputError(
            f"{place} would lie in the bundle {opened.path}, which holds its own files alone; name another"
        )
    forms, left_out = _forms(opened)
    with writing(place, force=force, kind=FOLDER) as root:
        graphs = [_write_graph(opened, root, form) for form in forms]
        cases = [case for form in forms for case in _write_cases(opened, root, form, on_step)]
        written = PolygraphyFolder(place, home, tuple(cases), _write_scripts(opened, root, graphs, cases), left_out)
        write_text(root / scripts.README, scripts.readme(str(home), written.commands, cases))
        index = {"format": FORMAT, **written.to_json(), "folder": "."}
        write_json(root / INDEX, index)
    return written


def _lacking(bundle: OpenBundle) -> str | None:
    """Why onnxruntime, which carries a stream's state, cannot run the bundle; None where it can."""
    return find_backend(DEFAULT).lacking(bundle)


def _forms(bundle: OpenBundle) -> tuple[tuple[Form, ...], tuple[str, ...]]:
    """The forms whose cases can be written, and why others cannot."""
    if _lacking(bundle) is None or "stream" not in bundle.forms:
        return bundle.forms, ()
    reason = f"the cases of a stream need its state, which onnxruntime carries: {_lacking(bundle)}"
    if bundle.forms == ("stream",):
        raise MissingComponentError(reason)
    return ("window",), (f"stream: {reason}",)


def _write_graph(bundle: OpenBundle, root: Path, form: Form) -> scripts.Graph:
    """Write what Polygraphy's tools and TensorRT's parser take in the place of a graph with functions, if it has any.

    Raises:
        BundleError: a tensor has a name that Polygraphy's options cannot hold.
    """
    file = GRAPHS[form]
    signature = bundle.signature(file).with_state
    for spec in (*signature.inputs, *signature.outputs):
        if not scripts.is_tensor_name(spec.name):
            raise BundleError(f"Polygraphy's options cannot name the tensor {spec.name!r:.80}; export the model anew")
    engines = {
        target: engine.file for target in TARGETS for engine in engines_of(bundle, target) if engine.graph == file
    }
    (root / form).mkdir()
    graph = scripts.Graph(form, file, signature, None, None, engines)
    if not bundle.plugins:
        return graph
    require("onnx", "export", "taking the functions out of a graph")
    import onnx

    from mega_deploy.runtime.tensorrt import parsed

    if not onnx.load_model_from_string(bundle.read(file)).functions:
        return graph
    weights = f"{file}.data"
    if weights in bundle.manifest.files:
        bundle.copy(weights, root / form / weights)
    inlined = f"{form}/inlined.onnx"
    put_bytes(root / inlined, parsed.read(bundle.read(file))[0].SerializeToString())
    model, called = parsed.read(bundle.read(file), plugin=True)
    plugin = f"{form}/plugin.onnx" if called else None
    if plugin:
        put_bytes(root / plugin, model.SerializeToString())
    return dataclasses.replace(graph, inlined=inlined, plugin=plugin)


def _write_cases(bundle: OpenBundle, root: Path, form: Form, on_step: Callable[[str], None]) -> Iterator[WrittenCase]:
    reference, precision = bundle.reference(form), bundle.manifest.precision
    stream = bundle.stream() if form == "stream" else None
    for number, case in enumerate(reference.cases, 1):
        on_step(f"{form}: {case.name}")
        words = re.sub(r"[^a-z0-9]+", "-", case.name.lower()).strip("-")[:40]
        folder = f"{form}/{number:02d}-{words}".rstrip("-")
        if stream is None:
            yield write_window_case(root, folder, reference, case, precision=precision)
        else:
            yield write_stream_case(root, folder, reference, case, precision=precision, stream=stream)


def _write_scripts(
    bundle: OpenBundle, root: Path, graphs: list[scripts.Graph], cases: list[WrittenCase]
) -> tuple[str, ...]:
    """Write a script for each backend that can be held against the reference; the commands that run them."""
    home = str(bundle.path.resolve())
    texts = {scripts.TENSORRT: scripts.tensorrt_script(home, graphs, cases)}
    if not _lacking(bundle):
        texts = {scripts.ONNXRUNTIME: scripts.onnxruntime_script(home, graphs, cases)} | texts
        texts[scripts.REDUCE] = scripts.reduce_script(home, graphs, cases)
    if any("tensorrt-rtx" in graph.engines for graph in graphs):
        texts[scripts.TENSORRT_RTX] = scripts.tensorrt_rtx_script(home, graphs, cases)
    write_text(root / scripts.COMMON, scripts.common())
    for name, text in texts.items():
        write_text(root / name, text)
    return tuple(f"bash {name}" + (f" {cases[0].folder}" if name == scripts.REDUCE else "") for name in texts)
