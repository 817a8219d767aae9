"""A bundle's graphs on onnxruntime, as the table of backends loads them; and what parity judges, bundle or not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from mega_deploy.bundle import MODEL, Bundle, stream_signature
from mega_deploy.config.common import Precision
from mega_deploy.runtime.onnxruntime.emulation import EmulatedSession, emulated
from mega_deploy.runtime.onnxruntime.providers import ProviderSession
from mega_deploy.runtime.onnxruntime.session import Session
from mega_deploy.runtime.onnxruntime.step import STEP_CONFIG
from mega_deploy.runtime.options import SessionOptions
from mega_deploy.runtime.streams.loading import load_stream
from mega_deploy.runtime.streams.replay import ReplaySession
from mega_deploy.signature import Signature
from mega_deploy.signature.stream_form import StreamForm

if TYPE_CHECKING:
    from onnx import ModelProto


def load(bundle: Bundle, graph: str, options: SessionOptions) -> Session:
    """A graph of a bundle on onnxruntime's CPU provider."""
    signature, options = _as_loaded(bundle, graph, options)
    if graph != MODEL:
        return Session(bundle.graph(graph), signature, options)
    work = bundle.manifest.flops["deployed"] // 2  # multiply-adds, of a row of the usual length
    return Session(bundle.graph(graph), signature, options, bundle.plugins, work)


def load_on_provider(backend: str, bundle: Bundle, graph: str, options: SessionOptions) -> ProviderSession:
    """A graph of a bundle on one of onnxruntime's GPU providers."""
    return ProviderSession(backend, bundle.graph(graph), *_as_loaded(bundle, graph, options))


def load_for_parity(bundle: Bundle, graph: str, options: SessionOptions) -> Session:
    """As `load`, but by emulation where the CPU provider lacks the bundle's precision."""
    if lacking(bundle):
        return EmulatedSession(bundle.graph(graph), _as_loaded(bundle, graph, options)[0])
    return load(bundle, graph, options)


def load_part(bundle: Bundle, part: ModelProto, signature: Signature, options: SessionOptions) -> Session:
    """A part of a bundle's graph on the CPU provider, by emulation where that lacks the precision."""
    part = emulated(part) if lacking(bundle) else part
    return Session(part.SerializeToString(), signature, options, bundle.plugins)


def load_part_on_provider(
    backend: str, bundle: Bundle, part: ModelProto, signature: Signature, options: SessionOptions
) -> ProviderSession:
    """A part of a bundle's graph on one of the GPU providers."""
    return ProviderSession(backend, part.SerializeToString(), signature, options)


def lacking(bundle: Bundle) -> str | None:
    """Why onnxruntime's CPU provider cannot run a bundle, and what to do; None where it can."""
    if bundle.manifest.precision != "bfloat16":
        return None
    return (
        f"{bundle.path} is in bfloat16, for which onnxruntime's CPU provider has no kernels: it is for GPU engines; "
        "for a CPU export it with --precision float32, float16 or int8"
    )


def parity_session(model: Path, signature: Signature, precision: Precision) -> Session:
    """The session on the CPU provider whose numbers parity judges: an emulation where it lacks the precision.

    Args:
        model: path of the ONNX file.
        signature: what it takes and gives.
        precision: of the graph.
    """
    if precision == "bfloat16":
        return EmulatedSession(model, signature)
    return Session(model, signature, SessionOptions(check_outputs=False))


def parity_stream(folder: Path, form: StreamForm, precision: Precision) -> ReplaySession:
    """The stream on the CPU provider whose numbers parity judges: an emulation where it lacks the precision.

    Args:
        folder: that holds the stream's graphs, under their names in a bundle.
        form: what they take and give.
        precision: of the graphs.
    """

    def load_graph(graph: str) -> Session:
        signature = stream_signature(form, graph).with_state
        if precision == "bfloat16":
            return EmulatedSession(folder / graph, signature)
        return Session(folder / graph, signature, SessionOptions(config=STEP_CONFIG, check_outputs=False))

    return ReplaySession(load_stream(load_graph, form, check_outputs=False))


def _as_loaded(bundle: Bundle, graph: str, options: SessionOptions) -> tuple[Signature, SessionOptions]:
    """What a session on a graph takes and gives, and its options with those that a stream's graphs need."""
    if graph == MODEL:
        return bundle.manifest.signature, options
    return bundle.signature(graph).with_state, replace(options, config={**STEP_CONFIG, **options.config})
