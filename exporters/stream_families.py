"""What the pipeline must know of a model as a stream, and only its family can tell."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

from mega_deploy.config.common import Precision
from mega_deploy.errors import OptionError
from mega_deploy.exporters.edifice.fold import fold
from mega_deploy.exporters.edifice.prefill import prefill_graph
from mega_deploy.exporters.edifice.step import check_causal, step_graph
from mega_deploy.exporters.edifice.stream_reference import record_stream, record_stream_for
from mega_deploy.exporters.families import Model
from mega_deploy.exporters.paper.encode import encode_graph
from mega_deploy.exporters.paper.stream_io import StreamModel, stack_of
from mega_deploy.exporters.paper.stream_reference import record, record_for
from mega_deploy.exporters.paper.stream_tasks import StreamWriter, check_stream, reach
from mega_deploy.exporters.reference.cases import Inputs
from mega_deploy.exporters.state import StreamGraph
from mega_deploy.models.edifice import Mega
from mega_deploy.parity import Reference
from mega_deploy.signature import Range

SAMPLES = 3
"""Shorter random sequences of a parity reference, where nobody says how many."""


@dataclass(frozen=True, kw_only=True)
class Streamed:
    """A trained causal model, as the pipeline takes it for a stream."""

    window: int
    """Steps that attention reaches back, the present one included."""
    moving_average: str
    """How far back that reaches."""
    graphs: Callable[[Range], tuple[StreamGraph, StreamGraph]]
    """For so many streams at once: of a step, and of many at once, with one state."""
    record: Callable[[int, int, int, Precision], Reference]
    """The parity reference, of: the most streams at once, random sequences, their seed, the bundle's precision."""
    record_for: Callable[[Inputs, Precision], Reference]
    """The same for sequences of one's own as a single case: arrays by name, [batch, steps, ...]."""
    encode: Callable[[Range], StreamGraph] | None = None
    """Of what steps read of a source, for so many at once; None for a model that has none."""


def check(model: Model) -> None:
    """Refuse a model that has no stream, whatever its length.

    Raises:
        OptionError: it is not causal, or an output is of a whole sequence.
    """
    if isinstance(model, Mega):
        check_causal(model.config)
    elif isinstance(model, StreamModel):
        check_stream(model)
    else:
        raise OptionError(
            f"{type(model).__name__} has no stream: its output is of a whole sequence, not of its steps; export it "
            "with --form window"
        )


def streamed(model: Model, length: int) -> Streamed:
    """A model as a stream.

    Args:
        model: trained, in eval mode.
        length: frames that attention reaches back, of Edifice's; of the paper's the steps that a stream can have where
            nothing else ends it: attention over all steps, without chunks.

    Raises:
        OptionError: as `check`.
    """
    check(model)
    if isinstance(model, Mega):
        return _edifice(model, length)
    assert isinstance(model, StreamModel)
    return _paper(model, length)


def own_window(model: Model) -> int | None:
    """The window of a stream that nobody needs to be asked for: a chunk; None where there is none."""
    if not isinstance(model, StreamModel):
        return None
    window, limit = reach(stack_of(model)[1].config, 1)
    return window if limit is None else None


def _edifice(model: Mega, length: int) -> Streamed:
    model = copy.copy(model)  # shares the weights
    model.config = dataclasses.replace(model.config, seq_len=length)

    def graphs(batch: Range) -> tuple[StreamGraph, StreamGraph]:
        folded = fold(model, one_row=True)
        return step_graph(folded, batch), prefill_graph(folded, batch)

    return Streamed(
        window=model.config.length,
        moving_average="reaches back to the first frame of the stream; nothing is cut",
        graphs=graphs,
        record=lambda most, samples, seed, precision: record_stream(
            model, most, samples=samples, seed=seed, precision=precision
        ),
        record_for=lambda inputs, precision: record_stream_for(model, inputs["frames"], precision=precision),
    )


def _paper(model: StreamModel, length: int) -> Streamed:
    config = stack_of(model)[1].config
    window, _ = reach(config, length)

    def graphs(batch: Range) -> tuple[StreamGraph, StreamGraph]:
        writer = StreamWriter(model, length, batch)
        return writer.step(), writer.prefill()

    not_even = f", not even at {config.truncation} steps as over whole sequences" if config.truncation else ""
    return Streamed(
        window=window,
        moving_average=f"reaches back to the first step of the stream; nothing is cut{not_even}",
        graphs=graphs,
        record=lambda most, samples, seed, precision: record(
            model, length, most, samples=samples, seed=seed, precision=precision
        ),
        record_for=lambda inputs, precision: record_for(model, inputs, precision),
        encode=None if config.cross_positions is None else lambda batch: encode_graph(model, length, batch),
    )
