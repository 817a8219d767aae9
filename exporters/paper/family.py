"""The models of the paper's family, as the pipeline takes them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from onnxscript import ir
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from mega_deploy.config.common import Precision
from mega_deploy.config.paper import MegaConfig
from mega_deploy.config.paper_signature import check_lengths, stacks
from mega_deploy.config.paper_signature import signature as whole_signature
from mega_deploy.config.tasks import architecture, to_dict
from mega_deploy.errors import OptionError
from mega_deploy.exporters.flops import counted_flops
from mega_deploy.exporters.paper.cases import paper_kinds
from mega_deploy.exporters.paper.padding import reaching_padding
from mega_deploy.exporters.paper.stream.encode import encode_graph
from mega_deploy.exporters.paper.stream.source import SEEN
from mega_deploy.exporters.paper.stream.stream_io import StreamModel, stack_of
from mega_deploy.exporters.paper.stream.tasks import StreamWriter, check_stream, reach
from mega_deploy.exporters.paper.stream_reference import given_sequences, stream_sequences, untruncated
from mega_deploy.exporters.paper.tasks.heads import computed_row
from mega_deploy.exporters.paper.tasks.writer import paper_graph
from mega_deploy.exporters.reference.cases import Inputs, Kinds
from mega_deploy.exporters.reference.sequences import Sequences
from mega_deploy.exporters.state import SourceGraph, StreamGraphs
from mega_deploy.exporters.window_graph import MegaGraph
from mega_deploy.models.paper import MegaHuggingFace, MegaLanguageModel, MegaTranslation, PaperModel
from mega_deploy.signature import SEQUENCE_AXES, Dim, Range, Signature, largest


class PaperFamily:
    """A Family: see there for its methods.

    Args:
        model: trained, in eval mode; it stays as it is.
    """

    def __init__(self, model: PaperModel) -> None:
        config = model.config
        self.model, self._config, self._stacks = model, config, stacks(config)
        self.config: Mapping[str, Any] = {"architecture": architecture(config), **to_dict(config)}
        self.length = None
        self.chunk = self._stacks[-1].chunk_size
        self.computed_row = computed_row(config)

    def signature(self, batch: Range, length: Dim) -> Signature:
        check_lengths(self._config, length)
        return whole_signature(self._config, length, batch)

    def graph(self, signature: Signature, ema: str, dtype: ir.DataType) -> MegaGraph:
        return paper_graph(self.model, signature, ema=ema, dtype=dtype)

    def flops(self, signature: Signature) -> int:
        return counted_flops(reaching_padding(self.model, largest(signature.dim(*SEQUENCE_AXES))), signature)

    def kinds(self, signature: Signature, random: np.random.Generator) -> Kinds:
        return paper_kinds(self._config, signature, random)

    def width(self, length: int) -> int:
        chunks = [stack.chunk_size or length for stack in self._stacks]
        return max(*map(_widest, self._stacks), min(length, max(chunks)))

    def score_at(self, trained: nn.Module, steps: Tensor) -> RemovableHandle | None:
        match trained:
            case MegaLanguageModel() | MegaTranslation():
                return trained.output.register_forward_pre_hook(lambda _module, given: (given[0][:, steps], *given[1:]))
            case MegaHuggingFace() if trained.config.head in ("masked_lm", "causal_lm"):
                return trained.encoder.register_forward_hook(lambda _module, _given, last: last[:, steps])
            case _:
                return None

    def check_stream(self) -> None:
        self._streamed()

    @property
    def own_window(self) -> int | None:
        if not isinstance(self.model, StreamModel):
            return None
        window, limit = reach(stack_of(self.model)[1].config, 1)
        return window if limit is None else None

    def window(self, length: int) -> int:
        return reach(self._stream_config, length)[0]

    @property
    def moving_average(self) -> str:
        truncation = self._stream_config.truncation
        not_even = f", not even at {truncation} steps as over whole sequences" if truncation else ""
        return f"reaches back to the first step of the stream; nothing is cut{not_even}"

    def stream_graphs(self, length: int, batch: Range) -> StreamGraphs:
        model = self._streamed()
        writer = StreamWriter(model, length, batch)
        encode = None
        if self._stream_config.cross_positions is not None:
            source = encode_graph(model, length, batch)
            encode = SourceGraph(source.model, source.signature, SEEN)
        return StreamGraphs(writer.step(), writer.prefill(), encode)

    def sequences(self, length: int, most: int, *, samples: int, seed: int, precision: Precision) -> Sequences:
        del precision  # the same for all
        return stream_sequences(self._streamed(), length, most, samples=samples, seed=seed)

    def given_sequences(self, length: int, inputs: Inputs, precision: Precision) -> Sequences:
        del length, precision
        return given_sequences(self._streamed(), inputs)

    def trained_stream(self, length: int, steps: int) -> nn.Module:
        del length
        return reaching_padding(untruncated(self._streamed()), steps)

    @property
    def _stream_config(self) -> MegaConfig:
        """The options of the layers that a stream goes through."""
        return stack_of(self._streamed())[1].config

    def _streamed(self) -> StreamModel:
        """The model, which has a stream.

        Raises:
            OptionError: it has none.
        """
        if not isinstance(self.model, StreamModel):
            raise OptionError(
                f"{type(self.model).__name__} has no stream: its output is of a whole sequence, not of its steps; "
                "export it with --form window"
            )
        check_stream(self.model)
        return self.model


def _widest(stack: MegaConfig) -> int:
    """Features of the widest activation of a stack."""
    return max(2 * stack.embed_dim + stack.z_dim + stack.hidden_dim, stack.ffn_dim or 0)
