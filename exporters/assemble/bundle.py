"""Everything that a bundle holds, made from a trained model and held against it."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

from mega_deploy.bundle import TRAINED, Manifest, describe_files
from mega_deploy.checkpoints import model_source, save_checkpoint
from mega_deploy.errors import OptionError
from mega_deploy.exporters import PACKAGES
from mega_deploy.exporters.assemble.stream import assemble_stream
from mega_deploy.exporters.assemble.window import assemble_window
from mega_deploy.exporters.family import Family
from mega_deploy.exporters.options import ExportOptions
from mega_deploy.signature import Dim, largest


def assemble(family: Family, options: ExportOptions, folder: Path, on_step: Callable[[str], None]) -> Manifest:
    """Write all files of a bundle but the manifest into `folder`, and return that.

    Args:
        family: the trained model's.
        options: what is asked of the deployed model.
        folder: empty.
        on_step: called with the name of each step as it begins.

    Raises:
        OptionError: the model has no such form.
        QualityGateError: the deployed model is not equal to the trained one.
    """
    if "stream" in options.forms:
        family.check_stream()
    length = _length(family, options)
    signature = family.signature(options.batch, length)
    main = stream = None
    if "stream" in options.forms:
        main, stream = assemble_stream(family, largest(length), options, folder, on_step)
    if "window" in options.forms:
        main = assemble_window(family, signature, options, folder, on_step)
    assert main is not None
    save_checkpoint(family.model, folder / TRAINED)
    source = model_source(family.model)
    both = stream is not None and "window" in options.forms
    return Manifest(
        config=family.config,
        source={"format": source.format, "sha256": source.sha256},
        precision=options.precision,
        tools={"mega-deploy": metadata.version("mega-deploy")}
        | {name: importlib.import_module(name).__version__ for name in (*PACKAGES, "onnxruntime", "numpy")},
        files=describe_files(folder),
        signature=dataclasses.replace(main.signature, state=stream.step.state) if both and stream else main.signature,
        float32_islands=main.lowered.float32_nodes,
        advice=main.lowered.advice,
        ema=main.ema,
        flops={"trained": family.flops(signature), "deployed": main.flops},
        parity=main.parity,
        stream=stream,
        plugins=main.plugins,
    )


def _length(family: Family, options: ExportOptions) -> Dim:
    """The lengths that are asked for, or the model's own.

    Raises:
        OptionError: nobody says.
    """
    length = options.length or family.length
    if length is None and "window" not in options.forms:
        length = family.own_window
    if length is None:
        ways = "--seq-len N" if "stream" in options.forms else "--seq-len N or --seq-range MIN:OPT:MAX"
        raise OptionError(f"this model takes sequences of any length; say which with {ways}")
    return length
