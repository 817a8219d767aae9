"""A bundle that can be run."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial

from mega_deploy.bundle import ENCODE, MODEL, PREFILL, REFERENCE, STEP, STREAM_REFERENCE, Bundle
from mega_deploy.config.common import Form
from mega_deploy.errors import BundleError, MissingComponentError, OptionError
from mega_deploy.parity import Reference
from mega_deploy.parity.fitting import check_fits
from mega_deploy.runtime.backends import DEFAULT, Backend, find_backend
from mega_deploy.runtime.model import Model
from mega_deploy.runtime.options import SessionOptions
from mega_deploy.runtime.streams.loading import load_stream
from mega_deploy.runtime.streams.prefill import replayed
from mega_deploy.runtime.streams.replay import ReplaySession
from mega_deploy.runtime.streams.session import StreamSession
from mega_deploy.signature.stream_form import StreamForm


class OpenBundle(Bundle):
    """A bundle whose files are verified; it makes sessions.

    bundle = mega_deploy.open_bundle("game.mega")
    features = bundle.session().run(frames)
    """

    def session(
        self,
        backend: str = DEFAULT,
        *,
        threads: int | None = None,
        spinning: bool = True,
        memory_arena: bool = True,
        native_ops: bool = True,
        split_batches: bool = True,
        check_outputs: bool = True,
        config: Mapping[str, str] | None = None,
        plugin_library: str | os.PathLike[str] | None = None,
        engine_code: bool | None = None,
    ) -> Model:
        """Load the model on a backend.

        Args:
            backend: "onnxruntime", on the CPU; "onnxruntime-cuda" or "onnxruntime-tensorrt", its GPU providers; or
                "tensorrt" or "tensorrt-rtx", for which the bundle must hold an engine.
            threads: of onnxruntime, as the rest: see SessionOptions.
            spinning: whether idle threads spin.
            memory_arena: whether memory is kept between calls.
            native_ops: whether native kernels serve our operators where they were built.
            split_batches: whether batches are run in parts, one a thread, for which the model is loaded twice.
            check_outputs: whether outputs that are NaN or infinite are an error; of any backend.
            config: further entries of onnxruntime's session configuration.
            plugin_library: for an engine, the library of its plugin, instead of the one in this user's cache.
            engine_code: for an engine, whether code that it holds may run on the host, see EngineTrust.

        Raises:
            OptionError: there is no such backend, or an option is impossible.
            BundleError: the bundle holds no engine for the backend, or none for this machine.
            MissingComponentError: the backend's library, or the GPU that it needs, is not there, or it has not the
                bundle's precision.
        """
        found = find_backend(backend)
        self._check_window()
        options = SessionOptions(
            threads=threads,
            spinning=spinning,
            memory_arena=memory_arena,
            native_ops=native_ops,
            split_batches=split_batches,
            check_outputs=check_outputs,
            config=dict(config or {}),
            plugin_library=plugin_library,
            engine_code=engine_code,
        )
        self._check_options(found, options)
        return found.load(self, MODEL, options)

    def stream(
        self,
        batch: int = 1,
        *,
        backend: str = DEFAULT,
        threads: int | None = None,
        spinning: bool = True,
        memory_arena: bool = True,
        check_outputs: bool = True,
        config: Mapping[str, str] | None = None,
        plugin_library: str | os.PathLike[str] | None = None,
        engine_code: bool | None = None,
    ) -> StreamSession:
        """Load the model as a stream: one frame at a time, with carried state, which stays where the model runs.

        Args:
            batch: streams that are served at once.
            backend: see `session`; the bundle must hold an engine of its step, and of what takes a source where it
                reads one. Without one that takes many frames at once, as of earlier releases, frames are stepped.
            threads: as the rest: see SessionOptions.
            spinning: whether idle threads spin.
            memory_arena: whether memory is kept between calls.
            check_outputs: whether outputs that are NaN or infinite are an error, and their streams broken from then
                on; of any backend.
            config: further entries of onnxruntime's session configuration.
            plugin_library: for an engine, the library of its plugin, instead of the one in this user's cache.
            engine_code: for an engine, whether code that it holds may run on the host, see EngineTrust.

        Raises:
            OptionError: there is no such backend, the batch is outside the bundle's range, or an option is impossible.
            BundleError: the bundle holds no stream, or no engine of it for the backend, or none for this machine.
            MissingComponentError: the backend's library, or the GPU that it needs, is not there, or it has not the
                bundle's precision.
        """
        found, form = find_backend(backend), self.stream_form
        options = SessionOptions(
            threads=threads,
            spinning=spinning,
            memory_arena=memory_arena,
            check_outputs=check_outputs,
            config=dict(config or {}),
            plugin_library=plugin_library,
            engine_code=engine_code,
        )
        self._check_options(found, options)
        return self._load_stream(found, form, partial(found.load, self), options, batch)

    def runner(
        self, form: Form | None, backend: str = DEFAULT, *, threads: int | None = None, check_outputs: bool = True
    ) -> Model | ReplaySession:
        """What `run` runs: a session, or a stream that takes whole sequences; by default the first of `forms`."""
        if (form or self.forms[0]) == "window":
            return self.session(backend, threads=threads, check_outputs=check_outputs)
        return ReplaySession(self.stream(backend=backend, threads=threads, check_outputs=check_outputs))

    @property
    def stream_form(self) -> StreamForm:
        """What the manifest says of the stream.

        Raises:
            BundleError: the bundle holds none.
        """
        if self.manifest.stream is None:
            raise BundleError(f"{self.path} holds no stream; export the model with --form stream or both")
        return self.manifest.stream

    @property
    def forms(self) -> tuple[Form, ...]:
        """The forms of the model that it holds."""
        window: tuple[Form, ...] = ("window",) if MODEL in self.manifest.files else ()
        return (*window, "stream") if self.manifest.stream else window

    def parity_session(self, backend: str = DEFAULT, *, native_ops: bool = True) -> Model:
        """The session whose numbers parity judges: `session`, or an emulation where the backend lacks the precision."""
        found = find_backend(backend)
        self._check_window()
        options = SessionOptions(native_ops=native_ops, check_outputs=False)  # parity says what is wrong with them
        return (found.load_for_parity or found.load)(self, MODEL, options)

    def parity_stream(self, backend: str = DEFAULT) -> ReplaySession:
        """The stream whose numbers parity judges: an emulation where the backend lacks the precision."""
        found = find_backend(backend)
        load = partial(found.load_for_parity or found.load, self)
        return ReplaySession(self._load_stream(found, self.stream_form, load, SessionOptions(check_outputs=False)))

    def forms_on(self, backend: str) -> tuple[Form, ...]:
        """The forms that a backend serves: of a bundle's engines those that it holds, as earlier releases built one."""
        graphs = find_backend(backend).graphs(self)
        found = tuple(form for form in self.forms if {"window": MODEL, "stream": STEP}[form] in graphs)
        return found or self.forms[:1]

    def reference(self, form: Form = "window") -> Reference:
        """The parity reference that was recorded at export for a form.

        Raises:
            BundleError: it is damaged, of another precision than the bundle, or of another model.
        """
        name = REFERENCE if form == "window" else STREAM_REFERENCE
        file = self.file(name)
        reference = Reference.load(file, self.read(name))
        if reference.precision != self.manifest.precision:
            raise BundleError(
                f"{self.path} is in {self.manifest.precision}, but its parity reference is for {reference.precision}; "
                "export the bundle anew"
            )
        signature = self.signature(MODEL) if form == "window" else replayed(self.stream_form)
        try:
            check_fits(reference, signature, stepped=form == "stream")
        except ValueError as error:
            raise BundleError(f"{file} is the parity reference of another model: {error}; export it anew") from error
        return reference

    def _load_stream(
        self,
        backend: Backend,
        form: StreamForm,
        load: Callable[[str, SessionOptions], Model],
        options: SessionOptions,
        batch: int = 1,
    ) -> StreamSession:
        if form.encode is not None:
            backend.check(self, ENCODE, options)  # it is loaded when the first source comes
        prefills = PREFILL in backend.graphs(self)
        identity = self.manifest.files[STEP]["sha256"]
        of_graphs = replace(options, check_outputs=False)  # the stream itself checks, for it knows whose they are
        return load_stream(
            lambda graph: load(graph, of_graphs),
            form,
            batch,
            identity,
            prefills=prefills,
            check_outputs=options.check_outputs,
        )

    def _check_window(self) -> None:
        if self.manifest.stream and MODEL not in self.manifest.files:
            raise BundleError(
                f"{self.path} holds only a stream: take bundle.stream() (`run --form stream`), or export with "
                "--form both"
            )

    def _check_options(self, backend: Backend, options: SessionOptions) -> None:
        """Refuse options that a backend does not take, and a bundle that it cannot run."""
        any_backend = SessionOptions(check_outputs=options.check_outputs)
        engines = replace(any_backend, plugin_library=options.plugin_library, engine_code=options.engine_code)
        if not backend.needs_engine and engines != any_backend:
            raise OptionError(f"plugin_library and engine_code are for engines; {backend.name} takes none")
        if not backend.takes_options and options != engines:
            raise OptionError(
                f"threads and the other options of a session are onnxruntime's; {backend.name} takes none"
            )
        if lacking := backend.lacking(self):
            raise MissingComponentError(lacking)


def open_bundle(path: str | os.PathLike[str]) -> OpenBundle:
    """Open a bundle and verify the hashes of all its files.

    Raises:
        BundleError: it is no bundle, is damaged, or is of another format version.
    """
    return OpenBundle.open(path)
