"""A session on onnxruntime: arrays in, arrays out."""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mega_deploy.arrays import Array
from mega_deploy.bundle import ChangedError
from mega_deploy.errors import BundleError, require
from mega_deploy.machine.cores import cores_for
from mega_deploy.plugins.cache import Unusable
from mega_deploy.plugins.laplace import NAME as LAPLACE
from mega_deploy.plugins.onnxruntime.cache import RECIPE
from mega_deploy.plugins.private import NotPrivateError
from mega_deploy.runtime import forking
from mega_deploy.runtime.finite import WINDOW_REMEDY, check_finite
from mega_deploy.runtime.onnxruntime import native
from mega_deploy.runtime.onnxruntime.calls import call_error, is_onnxruntimes
from mega_deploy.runtime.onnxruntime.native import Source, loadable
from mega_deploy.runtime.onnxruntime.splitting import Split, rows_are_apart
from mega_deploy.runtime.onnxruntime.step import OrtStep
from mega_deploy.runtime.options import SessionOptions
from mega_deploy.signature import Signature, TensorSpec
from mega_deploy.signature.outputs import OutputCheck
from mega_deploy.text import logger

CPU = "CPUExecutionProvider"
OPTIMISED = "optimised.onnx"
# How onnxruntime calls the types of a signature.
_TYPES = {
    "float32": "tensor(float)",
    "float64": "tensor(double)",
    "float16": "tensor(float16)",
    "int64": "tensor(int64)",
    "int32": "tensor(int32)",
    "bool": "tensor(bool)",
}


class Session:
    """A model that is ready to run on onnxruntime, here on its CPU provider.

    `run` may be called from many threads at once: it keeps no state, and onnxruntime's sessions are made for it. In a
    process that was forked the first call loads the model anew, for onnxruntime's threads stay with the parent.

    Args:
        model: a bundle's graph, the path of an ONNX file, or its bytes.
        signature: what it takes and gives.
        options: how it uses the machine.
        plugins: names of the operators in it that a native kernel may serve, as the bundle's manifest has them.
        work: multiply-adds of one row of a batch at the usual length, by which is decided what is split; None: nothing
            is.

    Raises:
        MissingComponentError: onnxruntime is not installed.
        BundleError: onnxruntime cannot load the model with these options.
    """

    backend: str = "onnxruntime"
    state_device: str = "cpu"
    """Where the state of streams lies."""
    writes_in_place: bool = True
    """Whether an output of the graph may lie where an input does."""
    _providers: Sequence[str | tuple[str, Mapping[str, str]]] = (CPU,)

    def __init__(
        self,
        model: Source,
        signature: Signature,
        options: SessionOptions | None = None,
        plugins: Sequence[str] = (),
        work: int | None = None,
    ) -> None:
        ort = require("onnxruntime", "cpu", "the onnxruntime backend")
        self.signature = signature
        self.options = options = options or SessionOptions()
        self._native_ops: tuple[str, ...] = ()
        self._source = loadable(model)
        self._plugins = plugins
        self._lock = threading.Lock()
        """Held while the model is loaded in a process that was forked."""
        loaded = self._load(ort, options.threads)
        self._session: Any = loaded
        """Onnxruntime's own; None in a process that was forked, until the first call."""
        _check_names(signature.outputs, loaded.get_outputs())
        _check_names(signature.inputs, loaded.get_inputs())
        _check_tensors("takes", signature.inputs, loaded.get_inputs())
        _check_tensors("gives", [spec for spec in signature.outputs if spec.dims], loaded.get_outputs())
        self._check_outputs = OutputCheck(signature)
        self._outputs = [spec.name for spec in signature.outputs]
        self._split: Split | None = None
        many = options.threads or len(cores_for(None))
        if work and many > 1 and options.split_batches and rows_are_apart(signature):
            self._split = Split(self._load_again, many, work)
        forking.watch(self)

    def _load(self, ort: Any, threads: int | None) -> Any:
        """onnxruntime's session, with so many threads for each node."""
        options = self.options
        settings = ort.SessionOptions()
        settings.intra_op_num_threads = threads or 0
        settings.enable_cpu_mem_arena = options.memory_arena
        settings.log_severity_level = 4  # what fails, the error says: no second line on stderr
        settings.add_session_config_entry("session.intra_op.allow_spinning", str(int(options.spinning)))
        if options.native_ops:
            self._native_ops = _register(ort, settings, self._plugins)
        try:
            for key, value in options.config.items():
                settings.add_session_config_entry(key, value)
            if options.profile:
                settings.enable_profiling = True
                settings.profile_file_prefix = os.fspath(options.profile / "nodes")
                settings.optimized_model_filepath = os.fspath(options.profile / OPTIMISED)
            self._configure(settings)
        except Exception as error:  # onnxruntime's own classes have no base of theirs
            raise native.refused(ort, self._source, error) from error
        return native.load(ort, self._source, settings, list(self._providers))

    def _load_again(self) -> Any:
        """The model for batches in parts; None where another one is in the file's place by now."""
        try:
            return self._load(require("onnxruntime", "cpu", "the onnxruntime backend"), 1)
        except ChangedError:
            return None

    @property
    def native(self) -> Any:
        """Onnxruntime's own session, of this very process.

        Raises:
            BundleError: the process was forked, and the file has changed since.
        """
        if self._session is None:
            with self._lock:
                if self._session is None:
                    ort = require("onnxruntime", "cpu", "the onnxruntime backend")
                    self._session = self._load(ort, self.options.threads)
        return self._session

    def after_fork(self) -> None:
        """Let go of the parent's session: its threads are not in this process, and a lock of its may be held."""
        forking.keep(self._session)
        self._session, self._lock = None, threading.Lock()

    def _configure(self, settings: Any) -> None:
        """Settings of a kind of session."""

    @property
    def providers(self) -> tuple[str, ...]:
        """The execution providers that serve, in onnxruntime's order."""
        return tuple(self.native.get_providers())

    @property
    def native_ops(self) -> tuple[str, ...]:
        """Operators of ours that a native kernel serves; the others run as their function bodies."""
        return self._native_ops

    def run(self, inputs: Array | Mapping[str, Array]) -> Any:
        """The model's output for one batch.

        Args:
            inputs: one array where the model has one input, or arrays by name; shapes and dtypes as `signature` says.

        Returns:
            One array where the model has one output, or a dict by name.

        Raises:
            InputError: an input does not fit; the message names it, the axis, the size and what is allowed. Or there is
                not enough memory for so many rows.
            BundleError: the model fails on them, or gives what its signature does not say.
            NonFiniteError: an output is NaN or infinite, and the options check that.
        """
        outputs = self.run_named(inputs)
        return outputs[self._outputs[0]] if len(self._outputs) == 1 else outputs

    def run_named(self, inputs: Array | Mapping[str, Array]) -> dict[str, Array]:
        """As `run`, but always a dict by name."""
        outputs = self.run_feeds(self.signature.feeds(inputs))
        if self.options.check_outputs:
            check_finite(outputs, WINDOW_REMEDY)
        return outputs

    def run_feeds(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """The outputs by name for inputs that were checked, held against the signature.

        Raises:
            InputError: there is not enough memory for so many rows.
            BundleError: the model fails on them, or gives what its signature does not say.
        """
        try:
            results = self._split.run(self._outputs, feeds) if self._split else None
            if results is None:
                results = self.native.run(self._outputs, feeds)
        except Exception as error:
            raise call_error(error, feeds) from error
        outputs = {name: np.asarray(value) for name, value in zip(self._outputs, results, strict=True)}
        self._check_outputs(feeds, outputs)
        return outputs

    def step(self, signature: Signature, batch: int) -> OrtStep:
        """Steps of `batch` streams on this graph, loaded with `signature.with_state`."""
        return OrtStep(self, signature, batch, self.state_device, in_place=self.writes_in_place)

    def stop_profiling(self) -> Path:
        """The file of onnxruntime's trace, for a session with `SessionOptions.profile`."""
        return Path(self.native.end_profiling())


def native_ops(plugins: Sequence[str], onnxruntime_version: str) -> tuple[tuple[str, ...], str | None]:
    """Which of the operators a native kernel would serve on this machine, and why the others are not, in one line."""
    if LAPLACE not in plugins:
        return (), None
    library = RECIPE.find(onnxruntime_version)
    return ((), library.reason) if isinstance(library, Unusable) else ((LAPLACE,), None)


def _register(ort: Any, settings: Any, plugins: Sequence[str]) -> tuple[str, ...]:
    """Register our library, if it is in the cache and intact, for a model that holds its operator."""
    if LAPLACE not in plugins:
        return ()
    library = RECIPE.find(ort.__version__)
    if isinstance(library, Unusable):
        _warn_once(f"{LAPLACE} runs as its function body, which is slower: {library.reason}")
        return ()
    try:
        with library.loadable() as path:
            settings.register_custom_ops_library(path)
    except Exception as error:
        if not is_onnxruntimes(error) and not isinstance(error, OSError | NotPrivateError):
            raise
        _warn_once(f"{LAPLACE} runs as its function body, which is slower: {library.path} does not load: {error}")
        return ()
    return (LAPLACE,)


@functools.cache
def _warn_once(message: str) -> None:
    logger("mega_deploy").warning(message)


def _check_names(ours: Sequence[TensorSpec], theirs: Sequence[Any]) -> None:
    if unknown := {spec.name for spec in ours} - {value.name for value in theirs}:
        raise BundleError(f"the model has no {', '.join(sorted(unknown))}, which its signature names; export it anew")


def _check_tensors(does: str, ours: Sequence[TensorSpec], theirs: Sequence[Any]) -> None:
    """Refuse a signature whose inputs, or outputs, have other types or sizes than the model declares."""
    found = {value.name: value for value in theirs}
    for spec in ours:
        value = found[spec.name]
        fits = len(value.shape) == len(spec.dims) and all(
            size == dim for size, dim in zip(value.shape, spec.dims, strict=True) if isinstance(size, int)
        )
        if value.type != _TYPES.get(spec.dtype) or not fits:
            raise BundleError(
                f'the model {does} "{spec.name}" as {value.type} {value.shape}, but its signature says '
                f"{spec.dtype} {spec}; export it anew"
            )
