"""The pipeline in one call: a trained model or its checkpoint in, a verified bundle out."""

from __future__ import annotations

import copy
import dataclasses
import importlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy.typing as npt

from mega_deploy import bundle as files
from mega_deploy.arrays import load_arrays
from mega_deploy.bundle import Manifest
from mega_deploy.config import Attention, EdificeConfig, Output, Precision
from mega_deploy.engines import TARGETS
from mega_deploy.errors import InputError, OptionError, QualityGateError, require
from mega_deploy.parity import Reference, Report
from mega_deploy.runtime import OpenBundle, judging_session
from mega_deploy.runtime.validate import compare, compare_blocks
from mega_deploy.signature import Dim, Range, Signature, TensorSpec

if TYPE_CHECKING:
    from mega_deploy.models.edifice import Mega

Array = npt.NDArray[Any]
PathLike = str | os.PathLike[str]
OnStep = Callable[[str], None]
DEFAULT_BATCH = Range(1, 1, 64)
MAX_SEED = 2**32 - 1
EXPORT_PACKAGES = ("torch", "onnx", "onnxscript", "safetensors")


def _silent(step: str) -> None:
    """No progress is shown."""


def export(
    model: Mega | PathLike,
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
    force: bool = False,
    on_step: OnStep = _silent,
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
    for module in EXPORT_PACKAGES:
        require(module, "export", "exporting")
    require("onnxruntime", "cpu", "verifying an export")
    if isinstance(model, str | os.PathLike):
        from mega_deploy.checkpoints import load_checkpoint

        on_step("read the checkpoint")
        model = _exportable(
            load_checkpoint(model, source=source, config=config, attention=attention, seq_len=seq_len, output=output)
        )
    else:
        model = _own_model(model, seq_len, {"attention": attention, "output": output, "config": config})
    with _workspace() as folder:
        asked = _Precision(precision, tuple(float32), half_io)
        manifest = _make_files(
            model, folder, batch, lengths or model.config.length, ema=ema, precision=asked, on_step=on_step
        )
        on_step("write the bundle")
        with files.writing(out, force=force) as staging:
            for name in manifest.files:
                shutil.copyfile(folder / name, staging / name)
            files.write_json(staging / files.MANIFEST, manifest.to_json())
    return open_bundle(out)


def open_bundle(path: PathLike) -> OpenBundle:
    """Open a bundle and verify the hashes of all its files.

    Raises:
        BundleError: it is no bundle, is damaged, or is of another format version.
    """
    return OpenBundle.open(path)


def validate(
    bundle: OpenBundle | PathLike,
    *,
    backend: str = "onnxruntime",
    inputs: PathLike | Array | Mapping[str, Array] | None = None,
    samples: int | None = None,
    seed: int | None = None,
    on_step: OnStep = _silent,
) -> Report:
    """Hold a backend on this machine against the trained model.

    Without `inputs`, `samples` and `seed` the cases recorded at export are run, for which no torch is needed; with any
    of them the trained model, whose weights the bundle holds, is run anew.

    Args:
        bundle: opened, or its path.
        backend: what is judged: see OpenBundle.session.
        inputs: of one's own: an array, arrays by name, or the path of an .npz or .npy that holds them.
        samples: number of random windows (default 8).
        seed: of the random windows (default 0).
        on_step: called with the name of each step as it begins.

    Returns:
        The report; its `passed` is the verdict.

    Raises:
        InputError: an option or input does not fit.
        MissingComponentError: the backend, or torch where the trained model must be run, is not installed.
    """
    if not isinstance(bundle, OpenBundle):
        bundle = open_bundle(bundle)
    signature = bundle.manifest.signature
    session = bundle.judged_session(backend)
    if inputs is None and samples is None and seed is None:
        reference = bundle.reference()
    else:
        on_step("run the trained model in float64")
        reference = _fresh_reference(bundle, inputs, samples, seed)
    report = compare(session, reference, bundle.manifest.precision, lambda case: on_step(f"compare: {case}"))
    # An engine shows nothing of its blocks.
    engine = backend in TARGETS
    blocks = () if engine else compare_blocks(bundle.file(files.MODEL), signature, reference)
    return dataclasses.replace(report, blocks=blocks)


def _fresh_reference(
    bundle: OpenBundle, inputs: PathLike | Array | Mapping[str, Array] | None, samples: int | None, seed: int | None
) -> Reference:
    require("torch", "export", "validating on fresh inputs")
    from mega_deploy.checkpoints import load_checkpoint
    from mega_deploy.exporters.reference import SAMPLES, record, record_for

    for name, value, least in (("samples", samples, 1), ("seed", seed, 0)):
        if value is not None and (type(value) is not int or not least <= value <= MAX_SEED):
            raise OptionError(f"{name} must be a whole number from {least} to {MAX_SEED}, got {value!r}")
    if inputs is not None and (samples is not None or seed is not None):
        raise OptionError("samples and seed are for random windows; give them or inputs, not both")
    signature = bundle.manifest.signature
    model = _exportable(load_checkpoint(bundle.file(files.TRAINED)))
    recorded = bundle.reference()
    names = [block.name for block in recorded.blocks]
    if inputs is None:
        batch, seq_len, _ = signature.inputs[0].dims
        assert isinstance(batch, Range)
        return record(
            model,
            names,
            batch,
            seq_len,
            samples=samples or SAMPLES,
            seed=seed or 0,
            precision=recorded.precision,
            kept=recorded.kept,
        )
    if isinstance(inputs, str | os.PathLike):
        inputs = load_arrays(Path(inputs))
    frames = signature.feeds(inputs)["frames"].astype("float32")
    return record_for(model, names, frames, precision=recorded.precision, kept=recorded.kept)


def _own_model(model: Mega, seq_len: int | None, for_checkpoints: Mapping[str, object]) -> Mega:
    """A model that came as a module, for windows of `seq_len` frames."""
    import torch

    model = _exportable(model)
    if given := [name for name, value in for_checkpoints.items() if value is not None]:
        raise OptionError(f"{given[0]} is for checkpoints that do not say; this model has options of its own")
    if any(parameter.dtype != torch.float32 for parameter in model.parameters()):
        model = copy.deepcopy(model).float()  # what the bundle's checkpoint holds
    if seq_len is None:
        return model
    longer = copy.copy(model)  # shares the weights
    longer.config = dataclasses.replace(model.config, seq_len=seq_len)
    return longer


def _exportable(model: object) -> Mega:
    """The model, where this version exports such.

    Raises:
        OptionError: it does not.
    """
    from mega_deploy.models.edifice import Mega
    from mega_deploy.models.paper import PaperModel

    if isinstance(model, PaperModel):
        raise OptionError(
            "this version loads and inspects the paper's Mega, but does not export it; it exports Edifice's"
        )
    if type(model) is not Mega:  # a subclass may compute anything, and what torch.compile returns is no Mega
        raise OptionError(
            f"a model must be a mega_deploy.models.edifice.Mega itself or the path of a checkpoint, got {type(model)}; "
            "of a compiled model pass the one that was compiled"
        )
    return model


@contextmanager
def _workspace() -> Iterator[Path]:
    """A folder for files on their way into a bundle, elsewhere than its place: a killed export leaves nothing there."""
    try:
        with tempfile.TemporaryDirectory(prefix="mega-deploy-") as folder:
            yield Path(folder)
    except OSError as error:
        where = tempfile.tempdir or "no folder for temporary files"
        raise InputError(f"{where} cannot hold the bundle on its way: {error}; name another place in TMPDIR") from error


@dataclasses.dataclass(frozen=True)
class _Precision:
    """What an export asks of exporters.precision."""

    name: Precision
    keep: tuple[str, ...]
    half_io: bool


def _make_files(
    model: Mega, folder: Path, batch: Range, seq_len: Dim, *, ema: str, precision: _Precision, on_step: OnStep
) -> Manifest:
    """Everything that a bundle holds, in `folder`, and its manifest."""
    from mega_deploy.checkpoints import model_source, save_checkpoint
    from mega_deploy.exporters import onnx as onnx_file
    from mega_deploy.exporters.edifice import mega_graph
    from mega_deploy.exporters.flops import graph_flops, trained_flops
    from mega_deploy.exporters.fold import fold
    from mega_deploy.exporters.precision import lower
    from mega_deploy.exporters.reference import record
    from mega_deploy.exporters.weighing import weigh_worst_block

    model_config = model.config
    on_step("fold the weights")
    graph = mega_graph(fold(model), ema=ema, seq_range=seq_len if isinstance(seq_len, Range) else None)
    on_step("write the ONNX graph")
    lowered = lower(graph.model, precision.name, keep=precision.keep, half_io=precision.half_io)
    proto = onnx_file.save(lowered.model, folder / files.MODEL)
    save_checkpoint(model, folder / files.TRAINED)
    on_step("run the trained model in float64")
    reference = record(model, graph.block_outputs, batch, seq_len, precision=precision.name, kept=precision.keep)
    reference.save(folder / files.REFERENCE)
    reference = Reference.load(folder / files.REFERENCE)
    signature = _signature(model_config, batch, seq_len, "float16" if precision.half_io else "float32")
    on_step("compare the deployed model with it")
    report = _judge(folder / files.MODEL, signature, reference)
    parity = report.to_json()
    if precision.name != "float32":
        on_step("weigh the worst block")
        parity["worst_block_in_float32"] = weigh_worst_block(
            graph.model,
            report,
            reference,
            signature,
            folder / files.MODEL,
            keep=precision.keep,
            half_io=precision.half_io,
        )
    files.write_json(folder / files.PARITY, parity)
    summary = {key: value for key, value in parity.items() if key not in ("cases", "blocks")}
    source = model_source(model)
    averages = [block.to_json() for block in graph.lowering.blocks]
    return Manifest(
        config={"architecture": "edifice", **model_config.to_dict()},
        source={"format": source.format, "sha256": source.sha256},
        signature=signature,
        precision=precision.name,
        float32_islands=lowered.islands,
        advice=lowered.advice,
        ema={
            "lowering": graph.lowering.name,
            "reason": graph.lowering.reason,
            "taps": max(average["taps"] for average in averages),
            "bound": max(average["bound"] for average in averages),
            "blocks": averages,
        },
        flops={"trained": trained_flops(model_config), "deployed": graph_flops(proto, model_config.length)},
        parity=summary,
        tools={"mega-deploy": metadata.version("mega-deploy")}
        | {name: importlib.import_module(name).__version__ for name in (*EXPORT_PACKAGES, "onnxruntime", "numpy")},
        files=files.describe_files(folder),
        plugins=tuple(
            {"name": function.name, "version": "1", "namespace": function.domain, "function": True}
            for function in proto.functions[:1]
        ),
    )


def _signature(config: EdificeConfig, batch: Range, seq_len: Dim, dtype: str) -> Signature:
    """`frames` -> `features`."""
    inputs: dict[str, Dim] = {"batch": batch, "seq_len": seq_len, "embed_dim": config.embed_dim}
    outputs: dict[str, Dim] = {"batch": batch, "seq_len": seq_len, "hidden_size": config.hidden_size}
    if config.output == "last":
        del outputs["seq_len"]
    return Signature(
        inputs=(TensorSpec("frames", dtype, tuple(inputs.values()), tuple(inputs)),),
        outputs=(TensorSpec("features", dtype, tuple(outputs.values()), tuple(outputs)),),
    )


def _judge(model: Path, signature: Signature, reference: Reference) -> Report:
    """The report on a model that is about to be shipped.

    Raises:
        QualityGateError: it is not equal to the trained one.
    """
    report = compare(judging_session(model, signature, reference.precision), reference, reference.precision)
    report = dataclasses.replace(report, blocks=compare_blocks(model, signature, reference))
    if not report.passed:
        worst = report.worst
        bad = next((block.name for block in report.blocks if not block.passed), "none of the blocks by itself")
        raise QualityGateError(
            f'parity failed in case "{worst.name}": relative error {worst.error.relative_l2:.2g}, limit '
            f"{worst.limit.relative_l2:.2g} ({worst.floor.relative_l2:.2g} is PyTorch's own); first bad block: {bad}; "
            f"no bundle was written{_way_out(report)}"
        )
    return report


def _way_out(report: Report) -> str:
    """What to do about a lower precision that is not near enough."""
    block = report.worst_block
    if report.precision == "float32" or block is None:
        return ""
    name = block.name.removesuffix(".output")
    return (
        f"; keep blocks in float32, {name} first (--float32 {name}), or take a higher precision than {report.precision}"
    )
