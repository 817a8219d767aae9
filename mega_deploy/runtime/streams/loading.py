"""Streams on the graphs of a bundle, on whichever backend they are loaded."""

from __future__ import annotations

from collections.abc import Callable

from mega_deploy.bundle import ENCODE, PREFILL, STEP
from mega_deploy.runtime.model import Model
from mega_deploy.runtime.streams.encoder import Encoder
from mega_deploy.runtime.streams.prefill import Prefill
from mega_deploy.runtime.streams.session import StreamSession
from mega_deploy.signature.stream_form import StreamForm


def load_stream(
    load: Callable[[str], Model],
    form: StreamForm,
    batch: int = 1,
    identity: str = "",
    *,
    prefills: bool = True,
    check_outputs: bool = True,
) -> StreamSession:
    """Streams whose step is loaded at once, and what takes many steps or a source when it is first used.

    Args:
        load: gives a graph, by its file's name in a bundle, as it is loaded.
        form: what the graphs take and give.
        batch: streams that are served at once.
        identity: of the model, in hex: see StreamSession.
        prefills: whether there is a graph that takes many steps at once.
        check_outputs: see StreamSession.

    Raises:
        OptionError: the batch is outside the bundle's range.
    """
    prefill = Prefill(lambda: load(PREFILL), form.prefill) if prefills else None
    encoder = None if form.encode is None else Encoder(lambda: load(ENCODE), form.encode)
    return StreamSession(load(STEP), form.step, batch, identity, prefill, encoder=encoder, check_outputs=check_outputs)
