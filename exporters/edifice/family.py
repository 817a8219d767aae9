"""Edifice's Mega, as the pipeline takes it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from onnxscript import ir
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from mega_deploy.config.common import Precision
from mega_deploy.exporters.edifice.fold import fold
from mega_deploy.exporters.edifice.prefill import prefill_graph
from mega_deploy.exporters.edifice.signature import trained_flops, window_signature
from mega_deploy.exporters.edifice.step import check_causal, step_graph
from mega_deploy.exporters.edifice.stream_reference import LimitedMega, given_sequences, stream_sequences
from mega_deploy.exporters.edifice.window import mega_graph
from mega_deploy.exporters.reference.cases import Inputs, Kinds, frame_kinds
from mega_deploy.exporters.reference.sequences import Sequences
from mega_deploy.exporters.state import StreamGraphs
from mega_deploy.exporters.window_graph import MegaGraph
from mega_deploy.models.edifice import Mega
from mega_deploy.signature import Dim, Range, Signature


class EdificeFamily:
    """A Family: see there for its methods.

    Args:
        model: trained, in eval mode; it stays as it is.
    """

    def __init__(self, model: Mega) -> None:
        config = model.config
        self.model, self._config = model, config
        self.config: Mapping[str, Any] = {"architecture": "edifice", **config.to_dict()}
        self.length = config.length
        self.chunk = None
        self.computed_row = -1 if config.output == "last" else None
        self.own_window = None
        self.moving_average = "reaches back to the first frame of the stream; nothing is cut"

    def signature(self, batch: Range, length: Dim) -> Signature:
        return window_signature(self._config, batch, length)

    def graph(self, signature: Signature, ema: str, dtype: ir.DataType) -> MegaGraph:
        length = signature.dim("seq_len")
        return mega_graph(
            fold(self.model), ema=ema, seq_range=length if isinstance(length, Range) else None, dtype=dtype
        )

    def flops(self, signature: Signature) -> int:
        del signature  # its usual length is the model's own
        return trained_flops(self._config)

    def kinds(self, signature: Signature, random: np.random.Generator) -> Kinds:
        del signature
        return frame_kinds("frames", self._config.embed_dim, random)

    def width(self, length: int) -> int:
        return max(length, 4 * self._config.hidden_size)

    def score_at(self, trained: object, steps: Tensor) -> RemovableHandle | None:
        del trained, steps  # it has no vocabulary
        return None

    def check_stream(self) -> None:
        check_causal(self._config)

    def window(self, length: int) -> int:
        return length

    def stream_graphs(self, length: int, batch: Range) -> StreamGraphs:
        self.check_stream()
        folded = fold(self.model.with_length(length), one_row=True)
        return StreamGraphs(step_graph(folded, batch), prefill_graph(folded, batch))

    def sequences(self, length: int, most: int, *, samples: int, seed: int, precision: Precision) -> Sequences:
        self.check_stream()
        return stream_sequences(self._config, length, most, samples=samples, seed=seed, precision=precision)

    def given_sequences(self, length: int, inputs: Inputs, precision: Precision) -> Sequences:
        del length
        self.check_stream()
        return given_sequences(self._config, inputs, precision)

    def trained_stream(self, length: int, steps: int) -> LimitedMega:
        del steps
        return LimitedMega(self.model, length)
