"""What is asked of an export, from the command line to the files of the bundle."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, get_args

from mega_deploy.config.common import AttentionChoice, Form, Output, Precision
from mega_deploy.errors import OptionError
from mega_deploy.signature import Dim, Range

DEFAULT_BATCH = Range(1, 1, 64)
FORMS: Mapping[str, tuple[Form, ...]] = {"window": ("window",), "stream": ("stream",), "both": ("window", "stream")}
"""What a bundle of each form holds."""


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """The options of an export: see mega_deploy.export for what each of them says."""

    source: str = "auto"
    config: Mapping[str, Any] | None = None
    attention: AttentionChoice | None = None
    seq_len: int | None = None
    """Steps of every sequence; None for the model's own."""
    output: Output | None = None
    seq_range: Range | str | None = None
    """Lengths instead of the one of `seq_len`, also as "MIN:OPT:MAX"."""
    batch_range: Range | str = DEFAULT_BATCH
    ema: str = "auto"
    """How the moving average is lowered: see exporters.ema.lowering.choose."""
    precision: Precision = "float32"
    float32: tuple[str, ...] = ()
    """Further nodes that stay float32: see exporters.precision.lowering.lower."""
    half_io: bool = False
    form: str = "window"
    """One of FORMS."""
    force: bool = False
    """Whether to replace a bundle that is there already."""

    @property
    def batch(self) -> Range:
        """Batches that sessions take."""
        return Range.parse(self.batch_range) if isinstance(self.batch_range, str) else self.batch_range

    @property
    def lengths(self) -> Range | None:
        """Lengths that sessions take, where they take several."""
        return Range.parse(self.seq_range) if isinstance(self.seq_range, str) else self.seq_range

    @property
    def length(self) -> Dim | None:
        """The lengths, or the only one; None for the model's own."""
        return self.lengths or self.seq_len

    @property
    def usual_length(self) -> int | None:
        """The length that a model is loaded for."""
        return self.seq_len if self.lengths is None else self.lengths.opt

    @property
    def forms(self) -> tuple[Form, ...]:
        """What the bundle is to hold."""
        return FORMS[self.form]

    def check(self) -> None:
        """Refuse options that are impossible, or contradict each other, whatever the model.

        Raises:
            OptionError: naming the option, and what there is instead.
        """
        _, lengths = self.batch, self.lengths  # which refuse what is no range
        if lengths is not None and self.seq_len is not None:
            raise OptionError("seq_len is for one length and seq_range for several; give one of them")
        if self.precision not in get_args(Precision):
            raise OptionError(f"there is no precision {self.precision!r}; there are {', '.join(get_args(Precision))}")
        if self.form not in FORMS:
            raise OptionError(f"there is no form {self.form!r}; there are {', '.join(FORMS)}")
        if lengths is not None and self.form == "stream":
            raise OptionError(
                "a stream has one length, how far its attention reaches back: give --seq-len, or --form both for "
                f"windows of this range and a stream of {lengths.max}"
            )
        if self.half_io and self.form != "window":
            raise OptionError("float16 inputs and outputs (--half-io) are for --form window; a stream's are float32")
        if self.form == "stream" and self.ema != "auto":
            raise OptionError("a stream carries the moving average as it is; --ema is for --form window or both")
