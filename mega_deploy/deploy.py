"""The pipeline in one call: a trained model or its checkpoint in, a verified bundle out."""

from __future__ import annotations

import copy
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mega_deploy.bundle import MANIFEST, check_target, write_json, writing
from mega_deploy.config.common import AttentionChoice, Output, Precision
from mega_deploy.errors import InputError, OptionError, require
from mega_deploy.exporters import PACKAGES
from mega_deploy.exporters.options import DEFAULT_BATCH, ExportOptions
from mega_deploy.files.leftovers import Naming, claimed_folder
from mega_deploy.files.writing import put_copy
from mega_deploy.runtime import OpenBundle, open_bundle
from mega_deploy.signature import Range

if TYPE_CHECKING:
    from mega_deploy.exporters.family import Model

PathLike = str | os.PathLike[str]


def export(
    model: Model | PathLike,
    out: PathLike,
    *,
    source: str = "auto",
    config: Mapping[str, Any] | None = None,
    attention: AttentionChoice | None = None,
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
        precision: "float32", "float16", "bfloat16" or "int8"; written into the graph, with nodes
            left in float32 where rounding would hurt.
        float32: what else stays float32: layers, nodes or blocks by the names that the manifest and the report use.
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
    options = ExportOptions(
        source=source,
        config=config,
        attention=attention,
        seq_len=seq_len,
        output=output,
        seq_range=seq_range,
        batch_range=batch_range,
        ema=ema,
        precision=precision,
        float32=tuple(float32),
        half_io=half_io,
        form=form,
        force=force,
    )
    return export_with(model, out, options, on_step)


def export_with(
    model: Model | PathLike, out: PathLike, options: ExportOptions, on_step: Callable[[str], None] = lambda step: None
) -> OpenBundle:
    """Export a model as `export` does, by an options object.

    Args:
        model: a trained model in eval mode, or the path of a checkpoint.
        out: the folder that the bundle becomes.
        options: what is asked of it.
        on_step: called with the name of each step as it begins.

    Returns:
        The opened bundle.

    Raises:
        InputError: an option, the checkpoint or the place is unusable.
        QualityGateError: the deployed model is not equal to the trained one; no bundle is written.
        MissingComponentError: torch, onnx or onnxruntime is not installed.
    """
    out = Path(out)
    check_target(out, force=options.force)
    options.check()
    for module in PACKAGES:
        require(module, "export", "exporting")
    require("onnxruntime", "cpu", "verifying an export")
    from mega_deploy.exporters.assemble.bundle import assemble
    from mega_deploy.exporters.families import family_of

    model = _load(model, options, on_step) if isinstance(model, str | os.PathLike) else _own_model(model, options)
    with _workspace() as folder:
        manifest = assemble(family_of(model), options, folder, on_step)
        on_step("write the bundle")
        with writing(out, force=options.force) as staging:
            for name in manifest.files:
                put_copy(folder / name, staging / name)
            write_json(staging / MANIFEST, manifest.to_json())
    return open_bundle(out)


def _load(checkpoint: PathLike, options: ExportOptions, on_step: Callable[[str], None]) -> Model:
    """The model of a checkpoint."""
    from mega_deploy.checkpoints import load_checkpoint

    on_step("read the checkpoint")
    return load_checkpoint(
        checkpoint,
        source=options.source,
        config=options.config,
        attention=options.attention,
        seq_len=options.usual_length,
        output=options.output,
    )


def _own_model(model: Model, options: ExportOptions) -> Model:
    """A model that came as a module: in float32, and an Edifice Mega for windows of the length that is asked for."""
    import torch

    from mega_deploy.exporters.families import family_of
    from mega_deploy.models.edifice import Mega

    family_of(model)
    for name in ("attention", "output", "config"):
        if getattr(options, name) is not None:
            raise OptionError(f"{name} is for checkpoints that do not say; this model has options of its own")
    if any(parameter.dtype != torch.float32 for parameter in model.parameters()):
        model = copy.deepcopy(model).float()  # what the bundle's checkpoint holds
    length = options.usual_length
    return model.with_length(length) if isinstance(model, Mega) and length is not None else model


@contextmanager
def _workspace() -> Iterator[Path]:
    """A folder for files on their way into a bundle, elsewhere than its place: a killed export leaves nothing there.

    What killed exports have left where it lies is removed.
    """
    folder = None
    try:
        with claimed_folder(Naming(Path(tempfile.gettempdir()), "mega-deploy-", ""), 0o700) as folder:
            yield folder
    except (OSError, InputError) as error:
        cause = error if isinstance(error, OSError) else error.__cause__
        if not isinstance(cause, OSError) or (error is not cause and str(folder) not in str(error)):
            raise
        where = tempfile.tempdir or "no folder for temporary files"
        raise InputError(f"{where} cannot hold the bundle on its way: {cause}; name another place in TMPDIR") from error
