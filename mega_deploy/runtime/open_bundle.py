"""A bundle that can be run."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping

from mega_deploy.bundle import ENCODE, MODEL, PREFILL, REFERENCE, STEP, STREAM_REFERENCE, Bundle
from mega_deploy.bundle.engines import TARGETS
from mega_deploy.config.common import Form
from mega_deploy.errors import BundleError, MissingComponentError, OptionError
from mega_deploy.parity import Reference
from mega_deploy.runtime.onnxruntime.emulation import EmulatedSession
from mega_deploy.runtime.onnxruntime.providers import PROVIDERS, ProviderSession
from mega_deploy.runtime.onnxruntime.session import BACKENDS, Session, SessionOptions
from mega_deploy.runtime.streams.encoder import Encoder
from mega_deploy.runtime.streams.prefill import Prefill
from mega_deploy.runtime.streams.replay import CONFIG, SteppedSession, judging_stream
from mega_deploy.runtime.streams.session import StreamSession
from mega_deploy.runtime.tensorrt.library import engines_of, find_engine
from mega_deploy.runtime.tensorrt.session import EngineSession
from mega_deploy.signature.stream_form import StreamForm


class OpenBundle(Bundle):
    """A bundle whose files are verified; it makes sessions.

    bundle = mega_deploy.open_bundle("game.mega")
    features = bundle.session().run(frames)
    """

    def session(
        self,
        backend: str = "onnxruntime",
        *,
        threads: int | None = None,
        spinning: bool = True,
        memory_arena: bool = True,
        native_ops: bool = True,
        split_batches: bool = True,
        config: Mapping[str, str] | None = None,
    ) -> Session | EngineSession:
        """Load the model on a backend.

        Args:
            backend: "onnxruntime", on the CPU; "onnxruntime-cuda" or "onnxruntime-tensorrt", its GPU providers; or
                "tensorrt" or "tensorrt-rtx", for which the bundle must hold an engine.
            threads: of onnxruntime, as the rest: see SessionOptions.
            spinning: whether idle threads spin.
            memory_arena: whether memory is kept between calls.
            native_ops: whether native kernels serve our operators where they were built.
            split_batches: whether batches are run in parts, one a thread, for which the model is loaded twice.
            config: further entries of onnxruntime's session configuration.

        Raises:
            OptionError: there is no such backend, or an option is impossible.
            BundleError: the bundle holds no engine for the backend, or none for this machine.
            MissingComponentError: the backend's library, or the GPU that it needs, is not there, or it has not the
                bundle's precision.
        """
        _check_backend(backend)
        if self.manifest.stream and MODEL not in self.manifest.files:
            raise BundleError(
                f"{self.path} holds only a stream: take bundle.stream() (`run --form stream`), or export with "
                "--form both"
            )
        options = SessionOptions(
            threads=threads,
            spinning=spinning,
            memory_arena=memory_arena,
            native_ops=native_ops,
            split_batches=split_batches,
            config=dict(config or {}),
        )
        if backend in TARGETS:
            _check_no_options(backend, options)
            return EngineSession(self, backend, MODEL)
        if backend in PROVIDERS:
            return ProviderSession(backend, self.file(MODEL), self.manifest.signature, options)
        if lacking := self.lacking:
            raise MissingComponentError(lacking)
        work = self.manifest.flops["deployed"] // 2  # multiply-adds, of a row of the usual length
        return Session(self.file(MODEL), self.manifest.signature, options, self.plugins, work)

    def stream(
        self,
        batch: int = 1,
        *,
        backend: str = "onnxruntime",
        threads: int | None = None,
        spinning: bool = True,
        memory_arena: bool = True,
        config: Mapping[str, str] | None = None,
    ) -> StreamSession:
        """Load the model as a stream: one frame at a time, with carried state, which stays where the model runs.

        Args:
            batch: streams that are served at once.
            backend: see `session`; the bundle must hold an engine of its step, and of what takes a source where it
                reads one. Without one that takes many frames at once, as of earlier releases, frames are stepped.
            threads: as the rest: see SessionOptions.
            spinning: whether idle threads spin.
            memory_arena: whether memory is kept between calls.
            config: further entries of onnxruntime's session configuration.

        Raises:
            OptionError: there is no such backend, the batch is outside the bundle's range, or an option is impossible.
            BundleError: the bundle holds no stream, or no engine of it for the backend, or none for this machine.
            MissingComponentError: the backend's library, or the GPU that it needs, is not there, or it has not the
                bundle's precision.
        """
        _check_backend(backend)
        form = self.stream_form
        options = SessionOptions(
            threads=threads, spinning=spinning, memory_arena=memory_arena, config=dict(config or {})
        )
        if backend in TARGETS:
            _check_no_options(backend, options)
            if form.encode is not None:
                find_engine(self, backend, ENCODE)  # refuses before anything is loaded
        elif backend not in PROVIDERS and (lacking := self.lacking):
            raise MissingComponentError(lacking)

        def load(graph: str) -> Session | EngineSession:
            if backend in TARGETS:
                return EngineSession(self, backend, graph)
            signature = self.signature(graph).with_state
            if backend in PROVIDERS:
                return ProviderSession(backend, self.file(graph), signature, tuned)
            return Session(self.file(graph), signature, tuned)

        tuned = dataclasses.replace(options, config={**CONFIG, **options.config})
        many = backend not in TARGETS or any(e.graph == PREFILL for e in engines_of(self, backend))
        prefill = Prefill(lambda: load(PREFILL), form.prefill) if many else None
        encoder = None if form.encode is None else Encoder(lambda: load(ENCODE), form.encode)
        identity = self.manifest.files[STEP]["sha256"]
        return StreamSession(load(STEP), form.step, batch, identity, prefill, encoder=encoder)

    def runner(
        self, form: Form | None, backend: str = "onnxruntime", *, threads: int | None = None
    ) -> Session | EngineSession | SteppedSession:
        """What `run` runs: a session, or a stream that takes whole sequences; by default the first of `forms`."""
        if (form or self.forms[0]) == "window":
            return self.session(backend, threads=threads)
        return SteppedSession(self.stream(backend=backend, threads=threads))

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

    @property
    def plugins(self) -> tuple[str, ...]:
        """Names of the operators in the model that a native kernel may serve."""
        return tuple(plugin["name"] for plugin in self.manifest.plugins)

    @property
    def lacking(self) -> str | None:
        """Why onnxruntime's CPU provider cannot run the bundle, and what to do; None where it can."""
        if self.manifest.precision != "bfloat16":
            return None
        return (
            f"{self.path} is in bfloat16, for which onnxruntime's CPU provider has no kernels: it is for GPU engines; "
            "for a CPU export it with --precision float32, float16 or int8"
        )

    def judged_session(self, backend: str = "onnxruntime", *, native_ops: bool = True) -> Session | EngineSession:
        """The session whose numbers parity judges: `session`, or an emulation where the backend lacks the precision."""
        if backend == "onnxruntime" and self.lacking:
            return EmulatedSession(self.file(MODEL), self.manifest.signature)
        return self.session(backend, native_ops=native_ops or backend in TARGETS)

    def judged_stream(self, backend: str = "onnxruntime") -> SteppedSession:
        """The stream whose numbers parity judges: an emulation where the backend lacks the precision."""
        if backend == "onnxruntime":
            return judging_stream(self.path, self.stream_form, self.manifest.precision)
        return SteppedSession(self.stream(backend=backend))

    def forms_on(self, backend: str) -> tuple[Form, ...]:
        """The forms that a backend serves: of a bundle's engines those that it holds, as earlier releases built one."""
        if backend not in TARGETS:
            return self.forms
        graphs = {engine.graph for engine in engines_of(self, backend)}
        found = tuple(form for form in self.forms if {"window": MODEL, "stream": STEP}[form] in graphs)
        return found or self.forms[:1]

    def reference(self, form: Form = "window") -> Reference:
        """The parity reference that was recorded at export for a form.

        Raises:
            BundleError: it is damaged, or is of another precision than the bundle.
        """
        reference = Reference.load(self.file(REFERENCE if form == "window" else STREAM_REFERENCE))
        if reference.precision != self.manifest.precision:
            raise BundleError(
                f"{self.path} is in {self.manifest.precision}, but its parity reference is for {reference.precision}; "
                "export the bundle anew"
            )
        return reference


def _check_backend(backend: str) -> None:
    if backend not in BACKENDS:
        raise OptionError(f"there is no backend {backend!r}; this version has {', '.join(BACKENDS)}")


def _check_no_options(backend: str, options: SessionOptions) -> None:
    if options != SessionOptions():
        raise OptionError(f"threads and the other options of a session are onnxruntime's; {backend} takes none")


def open_bundle(path: str | os.PathLike[str]) -> OpenBundle:
    """Open a bundle and verify the hashes of all its files.

    Raises:
        BundleError: it is no bundle, is damaged, or is of another format version.
    """
    return OpenBundle.open(path)
