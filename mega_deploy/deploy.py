"""The pipeline in one call: a trained model or its checkpoint in, a verified bundle out."""

from __future__ import annotations

import copy
import dataclasses
import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from mega_deploy import bundle as files
from mega_deploy.config.common import Precision
from mega_deploy.config.edifice import Attention, Output
from mega_deploy.errors import InputError, OptionError, require
from mega_deploy.exporters import PACKAGES
from mega_deploy.runtime import OpenBundle, open_bundle
from mega_deploy.signature import Range

if TYPE_CHECKING:
    from mega_deploy.exporters.families import Model

PathLike = str | os.PathLike[str]
DEFAULT_BATCH = Range(1, 1, 64)


def export(
    model: Model | PathLike,
    out: PathLike,
    *,
    source: str = "auto",
    config: Mapping[str, Any] | None = None,
    attention: Attention | None = None,
    seq_len: int | None = None,
    output: Output | None = None,
    seq_range: Range | str | None = None,
    batch_range: Range | str = DEFAULT_BATCH,
    ema: str = "auto",
    precision: Precision = "float32",
    float32: Sequence[str] = (),
    half_io: bool = False,
    form: Literal["window", "stream", "both"] = "window",
    force: bool = False,
    on_step: Callable[[str], None] = lambda step: None,
) -> OpenBundle:
    """Fold, write the ONNX graph, hold it against the trained model, and only then let the bundle appear.

    Args:
        model: a trained model in eval mode, or the path of a checkpoint.
        out: the folder that the bundle becomes.
        source: of a checkpoint: see mega_deploy.load_checkpoint, as for `config`, `attention`, `seq_len` and `output`.
        config: hyperparameters that the checkpoint does not carry.
        attention: "softmax" or "laplace", for checkpoints that do not say.
        seq_len: frames of a window; for a model the default is its own.
        output: "last" or "sequence".
        seq_range: lengths that sessions take, also as "MIN:OPT:MAX", instead of the one of `seq_len`.
        batch_range: batches that sessions take, also as "MIN:OPT:MAX".
        ema: how the moving average is lowered: "kernel", "blocked", or "auto", which chooses and says why in the
            manifest.
        precision: "float32", "float16", "bfloat16" or "int8"; written into the graph, with float32 islands.
        float32: further islands: layers, nodes or blocks by the names that the manifest and the report use.
        half_io: float16 inputs and outputs, for precision "float16"; otherwise they are float32.
        form: whole windows, a stream of one frame or token at a time with carried state, or both. A stream's attention
            reaches back `seq_len` frames; of the paper's models to the beginning of a chunk, or where they have no
            chunks to the first of `seq_len` steps, which are all that a stream can have before it is reset; so it is
            where they read a source (translation, cross attention), which can have as many. Beside windows of a
            `seq_range` that is the longest of them.
        force: replace a bundle that is there already.
        on_step: called with the name of each step as it begins.

    Returns:
        The opened bundle.

    Raises:
        InputError: an option, the checkpoint or the place is unusable.
        QualityGateError: the deployed model is not equal to the trained one; no bundle is written.
        MissingComponentError: torch, onnx or onnxruntime is not installed.
    """
    out = Path(out)
    files.check_target(out, force=force)
    batch = Range.parse(batch_range) if isinstance(batch_range, str) else batch_range
    lengths = Range.parse(seq_range) if isinstance(seq_range, str) else seq_range
    if lengths is not None:
        if seq_len is not None:
            raise OptionError("seq_len is for one length and seq_range for several; give one of them")
        seq_len = lengths.opt
    if precision not in get_args(Precision):
        raise OptionError(f"there is no precision {precision!r}; there are {', '.join(get_args(Precision))}")
    if form not in ("window", "stream", "both"):
        raise OptionError(f"there is no form {form!r}; there are window, stream, both")
    if form != "window":
        _check_stream_options(lengths, form, half_io=half_io)
    if form == "stream" and ema != "auto":
        raise OptionError("a stream carries the moving average as it is; --ema is for --form window or both")
    for module in PACKAGES:
        require(module, "export", "exporting")
    require("onnxruntime", "cpu", "verifying an export")
    if isinstance(model, str | os.PathLike):
        from mega_deploy.checkpoints import load_checkpoint

        on_step("read the checkpoint")
        model = load_checkpoint(
            model, source=source, config=config, attention=attention, seq_len=seq_len, output=output
        )
    else:
        model = _own_model(model, seq_len, {"attention": attention, "output": output, "config": config})
    from mega_deploy.exporters.assemble import Form, assemble

    asked = Form(
        batch=batch,
        seq_len=lengths or seq_len,
        ema=ema,
        precision=precision,
        keep=tuple(float32),
        half_io=half_io,
        forms=("window", "stream") if form == "both" else (form,),
    )
    with _workspace() as folder:
        manifest = assemble(model, asked, folder, on_step)
        on_step("write the bundle")
        with files.writing(out, force=force) as staging:
            for name in manifest.files:
                shutil.copyfile(folder / name, staging / name)
            files.write_json(staging / files.MANIFEST, manifest.to_json())
    return open_bundle(out)


def _check_stream_options(lengths: Range | None, form: str, *, half_io: bool) -> None:
    if lengths is not None and form == "stream":
        raise OptionError(
            "a stream has one length, how far its attention reaches back: give --seq-len, or --form both for windows "
            f"of this range and a stream of {lengths.max}"
        )
    if half_io:
        raise OptionError("float16 inputs and outputs (--half-io) are for --form window; a stream's are float32")


def _own_model(model: Model, seq_len: int | None, for_checkpoints: Mapping[str, object]) -> Model:
    """A model that came as a module; an Edifice Mega for windows of `seq_len` frames."""
    import torch

    from mega_deploy.exporters.families import family_of
    from mega_deploy.models.edifice import Mega

    family_of(model)
    if given := [name for name, value in for_checkpoints.items() if value is not None]:
        raise OptionError(f"{given[0]} is for checkpoints that do not say; this model has options of its own")
    if any(parameter.dtype != torch.float32 for parameter in model.parameters()):
        model = copy.deepcopy(model).float()  # what the bundle's checkpoint holds
    if seq_len is None or not isinstance(model, Mega):
        return model
    longer = copy.copy(model)  # shares the weights
    longer.config = dataclasses.replace(model.config, seq_len=seq_len)
    return longer


@contextmanager
def _workspace() -> Iterator[Path]:
    """A folder for files on their way into a bundle, elsewhere than its place: a killed export leaves nothing there.

    Named before it is made, unlike tempfile's, which a signal right behind the making would leave to nobody.
    """
    folder = None
    try:
        folder = Path(tempfile.gettempdir()) / f"mega-deploy-{uuid.uuid4().hex}"
        folder.mkdir(mode=0o700)
        yield folder
    except OSError as error:
        where = tempfile.tempdir or "no folder for temporary files"
        raise InputError(f"{where} cannot hold the bundle on its way: {error}; name another place in TMPDIR") from error
    finally:
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)
