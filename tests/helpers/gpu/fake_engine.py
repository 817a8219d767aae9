"""TensorRT-RTX where no GPU is: a library whose engine is onnxruntime, over a driver whose GPU is host memory."""

import ctypes
import enum
import sys
import types

import fake_driver
import numpy as np
import onnxruntime
import tensorrt_rtx

RECORDED = {}
"""By the number of a captured graph: the context that recorded it, shapes and addresses."""
DTYPES = {"tensor(float)": np.float32, "tensor(int64)": np.int64, "tensor(bool)": np.bool_}


class Validity(enum.IntEnum):
    VALID, SUBOPTIMAL, INVALID = range(3)


class Context:
    """Runs a model on the arrays at the addresses that it was given, or records that it would.

    Inputs and outputs may not overlap: TensorRT promises nothing of those that do.
    """

    def __init__(self, model, driver):
        self.session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
        self.shapes, self.addresses, self.capturable = {}, {}, True
        self.driver, self.streams, self.calls = ctypes.CDLL(str(driver)), [], 0
        self.driver.fake_on_launch(REPLAY)

    def is_stream_capturable(self, stream):
        return self.capturable

    def set_input_shape(self, name, shape):
        self.shapes[name] = tuple(shape)
        for given in self.session.get_outputs():
            self.shapes[given.name] = (shape[0], *given.shape[1:])

    def set_tensor_address(self, name, address):
        self.addresses[name] = address

    def get_tensor_shape(self, name):
        return self.shapes[name]

    def execute_async_v3(self, stream):
        self.calls += 1
        if capture := self.driver.fake_capturing():
            RECORDED[capture] = self, dict(self.shapes), dict(self.addresses)
        else:
            self.run(stream, self.shapes, self.addresses)
        return True

    def run(self, stream, shapes, addresses):
        self.streams.append(stream)
        taken, given = (
            {value.name: memory(addresses[value.name], shapes[value.name], DTYPES[value.type]) for value in side}
            for side in (self.session.get_inputs(), self.session.get_outputs())
        )
        assert not any(np.shares_memory(one, other) for one in taken.values() for other in given.values())
        results = self.session.run(list(given), taken)
        for array, result in zip(given.values(), results, strict=True):
            array[...] = result


def _replay(graph, stream):
    context, shapes, addresses = RECORDED[graph]
    context.run(stream, shapes, addresses)
    return 0


REPLAY = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int, ctypes.c_size_t)(_replay)


def memory(address, shape, dtype=np.float32):
    """The GPU's memory, which is the host's."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    return np.frombuffer((ctypes.c_char * size).from_address(address), dtype).reshape(shape)


class Engine:
    """An engine of one graph; what runs it is kept in `contexts`."""

    def __init__(self, model, driver):
        self.model, self.driver, self.contexts = model, driver, []

    def create_execution_context(self):
        self.contexts.append(Context(self.model, self.driver))
        return self.contexts[-1]


def install_all(monkeypatch, driver, bundle):
    """The library with an engine for each of a bundle's, in `by_graph` by the file that it was built of."""
    module = install(monkeypatch, driver, bundle.path / bundle.graphs[0])
    module.by_graph = {}
    for entry in bundle.manifest.engines:
        engine = module.by_graph[entry["graph"]] = Engine(bundle.path / entry["graph"], driver)
        module.engines[(bundle.path / entry["file"]).read_bytes()] = engine
    return module


def install(monkeypatch, driver, model):
    """The library in the place of the real one; its `validity`, `context` and what the runtime gives can be set."""
    module = types.ModuleType("tensorrt_rtx")

    class Runtime:
        engine_host_code_allowed = False

        def __init__(self, logger):
            self.logger = logger
            module.runtime = self

        def get_engine_validity(self, plan):
            return module.validity

        def deserialize_cuda_engine(self, plan):
            assert plan[:4] == b"vtrt"
            self.logger.log(tensorrt_rtx.ILogger.Severity.ERROR, "a reason of the\nlibrary's own")
            return module.engines.get(plan, module.engine)

    module.__dict__.update(
        __version__=tensorrt_rtx.__version__,
        ILogger=tensorrt_rtx.ILogger,
        EngineInvalidityDiagnostics=tensorrt_rtx.EngineInvalidityDiagnostics,
        EngineValidity=Validity,
        Runtime=Runtime,
        validity=(Validity.VALID, 0),
        context=Context(model, driver),
    )
    module.engine = types.SimpleNamespace(create_execution_context=lambda: module.context)
    module.engines = {}
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", module)
    monkeypatch.setattr("mega_deploy.machine.gpu.DRIVER_LIBRARY", str(driver))
    fake_driver.install()
    return module
