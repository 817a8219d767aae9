"""Giving an engine its weights from an ONNX graph; needs onnx."""

from __future__ import annotations

from types import ModuleType
from typing import Any

from mega_deploy.bundle import Loadable
from mega_deploy.errors import BundleError
from mega_deploy.runtime.tensorrt import parsed


def fill(trt: ModuleType, engine: Any, logger: Any, graph: Loadable, *, plugin: bool) -> None:
    """Put all weights of a graph into an engine that was built from one of the same names, on the GPU.

    Args:
        trt: the library.
        engine: refittable, or stripped of these very weights.
        logger: of the library.
        graph: that has the weights.
        plugin: whether a plugin serves LaplaceAttention in the engine.

    Raises:
        BundleError: the library refuses, or a weight of the engine is not in the graph.
    """
    with graph.opened() as opened:
        model, _ = parsed.read(opened.data, plugin=plugin)
        refitter = trt.Refitter(engine, logger)
        parser = trt.OnnxParserRefitter(refitter, logger)
        if not parser.refit_from_bytes(model.SerializeToString(), str(opened.place)):
            raise BundleError(f"the engine does not take the weights of {graph}: {_reason(parser)}; build it anew")
        if missing := sorted(refitter.get_missing_weights()):
            raise BundleError(
                f"the engine has weights that {graph} does not name: {', '.join(missing[:5])}; build it anew"
            )
        if not refitter.refit_cuda_engine():
            raise BundleError(f"{trt.__name__} cannot put the weights of {graph} into the engine; build it anew")


def _reason(parser: Any) -> str:
    errors = (" ".join(str(parser.get_error(index).desc()).split()) for index in range(parser.num_errors))
    return next(errors, "it gives no reason")
