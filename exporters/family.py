"""What the pipeline must know of a trained model and only its family can tell; a folder of exporters implements it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from onnxscript import ir
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from mega_deploy.config.common import Precision
from mega_deploy.exporters.reference.cases import Inputs, Kinds
from mega_deploy.exporters.reference.sequences import Sequences
from mega_deploy.exporters.state import StreamGraphs
from mega_deploy.exporters.window_graph import MegaGraph
from mega_deploy.models.edifice import Mega
from mega_deploy.models.paper import PaperModel
from mega_deploy.signature import Dim, Range, Signature

Model = Mega | PaperModel
"""A trained form."""


class Family(Protocol):
    """A trained model, as the pipeline takes it: as a whole, for whole sequences, and for a stream.

    The methods for a stream raise OptionError where the model has none. Their `length` is what a stream is exported
    for: the steps that attention reaches back, or that a stream can have where nothing else ends it.
    """

    @property
    def model(self) -> Model:
        """The trained form, in eval mode."""
        ...

    @property
    def config(self) -> Mapping[str, Any]:
        """What the manifest says of it; its `architecture` names the family."""
        ...

    @property
    def length(self) -> int | None:
        """Steps that it was trained for, where it says so: what a bundle takes unless another length is asked for."""
        ...

    def signature(self, batch: Range, length: Dim) -> Signature:
        """Inputs and outputs for batches and lengths.

        Raises:
            OptionError: the model cannot take them.
        """
        ...

    def graph(self, signature: Signature, ema: str, dtype: ir.DataType) -> MegaGraph:
        """The deployed model.

        Args:
            signature: what it takes and gives.
            ema: how the moving average is lowered (exporters.ema.lowering.choose).
            dtype: of its constants and arithmetic.

        Raises:
            OptionError: the model is in training mode, a sequence is too long, or there is no such lowering.
            InputError: a weight is NaN or infinite, or exceeds the dtype.
        """
        ...

    def flops(self, signature: Signature) -> int:
        """Floating-point operations of the trained form for one row of the usual length."""
        ...

    def kinds(self, signature: Signature, random: np.random.Generator) -> Kinds:
        """Kinds of inputs for a parity reference."""
        ...

    def width(self, length: int) -> int:
        """Numbers that the widest activation, or attention's scores, hold for each of so many steps."""
        ...

    @property
    def chunk(self) -> int | None:
        """Steps whose attention sees each other, of the stack that gives the outputs; None for all."""
        ...

    @property
    def computed_row(self) -> int | None:
        """The only step that the graph computes behind the last block's moving average; None where it computes all."""
        ...

    def score_at(self, trained: nn.Module, steps: Tensor) -> RemovableHandle | None:
        """Have a trained form score its vocabulary at some steps alone, int64 [kept], until the hook is removed.

        Returns:
            The hook; None where the form has no vocabulary to score.
        """
        ...

    def check_stream(self) -> None:
        """Refuse a model that has no stream, whatever its length.

        Raises:
            OptionError: it is not causal, or an output is of a whole sequence.
        """
        ...

    @property
    def own_window(self) -> int | None:
        """The window of a stream that nobody needs to be asked for: a chunk; None where there is none."""
        ...

    def window(self, length: int) -> int:
        """Steps that the attention of a stream reaches back, the present one included."""
        ...

    @property
    def moving_average(self) -> str:
        """How far back the moving average of a stream reaches, in words."""
        ...

    def stream_graphs(self, length: int, batch: Range) -> StreamGraphs:
        """The graphs of a stream, for so many at once."""
        ...

    def sequences(self, length: int, most: int, *, samples: int, seed: int, precision: Precision) -> Sequences:
        """Sequences over which a stream is compared with the trained form.

        Args:
            length: see the class.
            most: streams that the bundle serves at once.
            samples: shorter random sequences, at least 1.
            seed: of the random ones.
            precision: of the bundle.
        """
        ...

    def given_sequences(self, length: int, inputs: Inputs, precision: Precision) -> Sequences:
        """The same for sequences of one's own: arrays by name, [batch, steps, ...]."""
        ...

    def trained_stream(self, length: int, steps: int) -> nn.Module:
        """A trained form that gives for sequences of up to so many steps what a stream must, at every step.

        It takes tensors by keyword, and gives one or several by name; it may share its weights with `model`.
        """
        ...
