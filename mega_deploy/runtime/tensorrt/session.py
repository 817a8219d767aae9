"""A session on a GPU: arrays in, arrays out, through an engine of TensorRT or TensorRT-RTX."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

from mega_deploy.bundle import Bundle
from mega_deploy.bundle.engine_needs import refuse
from mega_deploy.bundle.engines import TARGETS, Engine
from mega_deploy.errors import InputError, require
from mega_deploy.runtime.finite import WINDOW_REMEDY, check_finite
from mega_deploy.runtime.tensorrt.execution import Execution
from mega_deploy.runtime.tensorrt.library import find_engine, here, load, load_plugins
from mega_deploy.runtime.tensorrt.step import EngineStep
from mega_deploy.runtime.tensorrt.tensors import DeviceArray, empty_like, on_device, read, stream_handle
from mega_deploy.runtime.tensorrt.trust import EngineTrust
from mega_deploy.signature import Signature


class EngineSession:
    """A model that is ready to run on this machine's first GPU.

    `run` may be called from many threads; one call runs at a time, for the memory on the GPU is kept between calls.

    Args:
        bundle: that holds the engine.
        target: "tensorrt" or "tensorrt-rtx".
        graph: which of the bundle's graphs; the first one by default. Of a stream's, the state is not in `signature`'s
            inputs and outputs: see EngineStep.
        trust: whose code may run for the engine; what the environment says by default.
        check_outputs: whether outputs on the host that are NaN or infinite are an error.

    Raises:
        BundleError: the bundle holds no engine for the target, or none for this machine.
        MissingComponentError: the library, the driver, the GPU or the plugin is missing.
    """

    def __init__(
        self,
        bundle: Bundle,
        target: str,
        graph: str | None = None,
        trust: EngineTrust | None = None,
        *,
        check_outputs: bool = True,
    ) -> None:
        engine, trust = find_engine(bundle, target, graph), trust or EngineTrust.chosen()
        refuse(engine, here(engine, trust))
        self.backend, self._check_outputs = target, check_outputs
        self.signature = bundle.signature(engine.graph)
        trt = load(TARGETS[target], f"the {target} backend")
        load_plugins(trt, engine, trust)
        self.native_ops = tuple(plugin["name"] for plugin in engine.plugins)
        self.execution = Execution(
            trt,
            bundle.read(engine.file),
            bundle.file(engine.file),
            self.signature,
            host_code=engine.host_code and trust.engine_code,
            refit=_filler(trt, bundle, engine) if engine.options.get("stripped") else None,
        )
        self.providers = (f"{TARGETS[target].title} {trt.__version__}",)

    def run(self, inputs: Any, *, stream: Any = None, out: Mapping[str, Any] | None = None) -> Any:
        """The model's output for one batch.

        Args:
            inputs: as Session.run takes them; or arrays that lie on the GPU already, such as PyTorch's CUDA tensors,
                which are read where they are. Those must have the signature's very types, and be contiguous.
            stream: with arrays on the GPU, the CUDA stream to work in: torch.cuda.Stream, cupy.cuda.Stream or a handle.
                The call then returns at once. Without it, work on the default stream is waited for, and the outputs
                are there on return.
            out: with arrays on the GPU, those to write to, by name; otherwise outputs are made by the inputs' library.

        Raises:
            InputError: an input does not fit.
            NonFiniteError: an output on the host is NaN or infinite, and that is checked.
        """
        outputs = self.run_named(inputs, stream=stream, out=out)
        return next(iter(outputs.values())) if len(outputs) == 1 else outputs

    def run_named(self, inputs: Any, *, stream: Any = None, out: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """As `run`, but always a dict by name."""
        by_name = inputs if isinstance(inputs, Mapping) else {self.signature.inputs[0].name: inputs}
        if any(on_device(value) for value in by_name.values()):
            return self._on_device(inputs, stream, out)
        if stream is not None or out is not None:
            raise InputError("stream and out are for inputs on the GPU; these are on the host")
        outputs = self.execution.run(self.signature.feeds(inputs))
        if self._check_outputs:
            check_finite(outputs, WINDOW_REMEDY)
        return outputs

    def step(self, signature: Signature, batch: int) -> EngineStep:
        """Steps of `batch` streams on this engine, with the state on the GPU."""
        return EngineStep(self.execution, signature, batch)

    def _on_device(self, inputs: Any, stream: Any, out: Mapping[str, Any] | None) -> dict[str, Any]:
        values = self.signature.named(inputs)
        taken = {spec.name: read(spec, values[spec.name]) for spec in self.signature.inputs}
        like = next(iter(values.values()))
        outputs: dict[str, Any] = {}

        def make(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, DeviceArray]:
            for spec in self.signature.outputs:
                shape = shapes[spec.name]
                if out is None:
                    outputs[spec.name] = empty_like(like, shape, spec.dtype)
                elif spec.name not in out:
                    raise InputError(f'"{spec.name}" is missing in `out`, which must hold every output')
                else:
                    outputs[spec.name] = out[spec.name]
                found = read(spec, outputs[spec.name])
                if found.shape != shape:
                    raise InputError(f'"{spec.name}" in `out` is {list(found.shape)}, this call gives {list(shape)}')
            return {spec.name: read(spec, outputs[spec.name]) for spec in self.signature.outputs}

        self.execution.run_on_device(taken, make, None if stream is None else stream_handle(stream))
        return outputs


def _filler(trt: ModuleType, bundle: Bundle, engine: Engine) -> Callable[[Any, Any], None]:
    """What gives a stripped engine the weights of its bundle's graph."""
    require("onnx", "export", f"{engine.file} holds no weights, and reading them from {engine.graph}")
    from mega_deploy.runtime.tensorrt.refit import fill

    return lambda loaded, logger: fill(trt, loaded, logger, bundle.graph(engine.graph), plugin=bool(engine.plugins))
