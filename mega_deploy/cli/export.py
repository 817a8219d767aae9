"""The commands that make something: bundles, engines, native plugins."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from mega_deploy.cli import tables
from mega_deploy.cli.shared import BundlePath, Json, print_report
from mega_deploy.config.common import Precision, SourceName
from mega_deploy.errors import InputError
from mega_deploy.files.reading import read_text
from mega_deploy.files.strict_json import parse_json

app = typer.Typer()

MAX_CONFIG_BYTES = 16 << 20
PluginTarget = Literal["onnxruntime", "tensorrt"]


@app.command(epilog="Example:  mega-deploy export params.safetensors -o game.mega --attention softmax --seq-len 60")
def export(
    checkpoint: Annotated[
        Path, typer.Argument(metavar="CHECKPOINT", help="A trained checkpoint: a file, or a Hugging Face folder.")
    ],
    out: Annotated[Path, typer.Option("-o", "--out", metavar="BUNDLE", help="The folder to write.")],
    source: Annotated[SourceName, typer.Option(help="Whose format; auto decides from the content.")] = "auto",
    config: Annotated[
        Path | None,
        typer.Option(
            metavar="CONFIG.json", help="Hyperparameters that the file does not carry; it must not contradict the file."
        ),
    ] = None,
    attention: Annotated[
        Literal["softmax", "laplace"] | None, typer.Option(help="For checkpoints that do not say, as Edifice's.")
    ] = None,
    seq_len: Annotated[
        int | None,
        typer.Option(
            help="Frames of a window; default: the checkpoint's own. Of a stream without chunks, or with a source to "
            "read, as translation's: the most steps of the stream, and of its source."
        ),
    ] = None,
    output: Annotated[
        Literal["last", "sequence"] | None,
        typer.Option(help="Features of the last frame (default), or of every frame."),
    ] = None,
    seq_range: Annotated[
        str | None, typer.Option(metavar="MIN:OPT:MAX", help="Lengths that sessions take, instead of a single one.")
    ] = None,
    batch_range: Annotated[str, typer.Option(metavar="MIN:OPT:MAX", help="Batches that sessions take.")] = "1:1:64",
    ema: Annotated[
        Literal["auto", "kernel", "blocked"],
        typer.Option(help="How the moving average is lowered; auto takes what is expected to be faster."),
    ] = "auto",
    precision: Annotated[Precision, typer.Option(help="Of the deployed model, with float32 islands.")] = "float32",
    float32: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME", help="Keep this layer or block in float32 as well, such as blocks.1; may be repeated."
        ),
    ] = None,
    half_io: Annotated[
        bool, typer.Option("--half-io", help="With --precision float16: inputs and outputs in it, too.")
    ] = False,
    form: Annotated[
        Literal["window", "stream", "both"],
        typer.Option(help="Whole windows, or one frame at a time with carried state (causal models)."),
    ] = "window",
    force: Annotated[bool, typer.Option("--force", help="Replace an existing bundle.")] = False,
    as_json: Json = False,
) -> None:
    """Turn a trained checkpoint into a bundle, proven equal to it."""
    from mega_deploy import deploy, inspection
    from mega_deploy.exporters.options import ExportOptions

    started = time.perf_counter()
    options = ExportOptions(
        source=source,
        config=None if config is None else _read_config(config),
        attention=attention,
        seq_len=seq_len,
        output=output,
        seq_range=seq_range,
        batch_range=batch_range,
        ema=ema,
        precision=precision,
        float32=tuple(float32 or ()),
        half_io=half_io,
        form=form,
        force=force,
    )
    with tables.progress() as on_step:
        bundle = deploy.export_with(checkpoint, out, options, on_step)
    report = inspection.export_report(bundle, time.perf_counter() - started)
    print_report(report, as_json, tables.export_table)


def _read_config(path: Path) -> dict[str, Any]:
    try:
        value = parse_json(read_text(path, MAX_CONFIG_BYTES), finite=False)
    except ValueError as error:  # InputError, too
        reason = str(error).removeprefix(f"{path} cannot be read: ")
        raise InputError(
            f"{path} cannot be read as JSON: {reason}; --config takes one object of options by name"
        ) from error
    if not isinstance(value, dict):
        raise InputError(f"{path} must hold one JSON object of hyperparameters by name")
    return value


@app.command(epilog="Example:  mega-deploy build game.mega --target tensorrt-rtx")
def build(
    bundle: BundlePath,
    target: Annotated[
        Literal["tensorrt", "tensorrt-rtx"],
        typer.Option(help="tensorrt builds on and for this machine's GPU; tensorrt-rtx needs none."),
    ],
    compute_capability: Annotated[
        str, typer.Option(metavar="8.9,12.0", help="GPUs that a tensorrt-rtx engine is for; default: all from 8.0 on.")
    ] = "",
    version_compatible: Annotated[
        bool, typer.Option("--version-compatible", help="Of tensorrt: let later releases read the engine.")
    ] = False,
    hardware_compatibility: Annotated[
        Literal["none", "same", "ampere+"],
        typer.Option(help="Of tensorrt: for this GPU, its compute capability, or all from 8.0 on."),
    ] = "none",
    plugin_library: Annotated[
        Path | None,
        typer.Option(metavar="LIBRARY", help="Of tensorrt: the plugin to use instead of the one that was built here."),
    ] = None,
    plugin: Annotated[
        Literal["reference", "embed"],
        typer.Option(help="Of tensorrt: name the plugin's library by its hash, or put it into the engine."),
    ] = "reference",
    refit: Annotated[bool, typer.Option("--refit", help="Let the engine take other weights later.")] = False,
    strip_plan: Annotated[
        bool, typer.Option("--strip-plan", help="Leave weights out of the engine; sessions take them from model.onnx.")
    ] = False,
    refit_from: Annotated[
        Path | None,
        typer.Option(
            metavar="OLD_BUNDLE", help="Take this bundle's engine, built with --refit, and replace its weights."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Build an engine for NVIDIA GPUs, and add it to the bundle."""
    from mega_deploy.exporters.tensorrt import engine, options
    from mega_deploy.inspection import engine_report

    chosen = options.EngineOptions(
        compute_capabilities=tuple(compute_capability.replace(",", " ").split()),
        version_compatible=version_compatible,
        hardware_compatibility=hardware_compatibility,
        plugin_library=plugin_library,
        plugin=plugin,
        refit=refit,
        strip_plan=strip_plan,
    )
    with tables.progress() as on_step:
        built = engine.build(bundle, target=target, options=chosen, refit_from=refit_from, on_step=on_step)
    print_report(engine_report(bundle, built), as_json, tables.built_engine_table)


plugins = typer.Typer(
    help="Build and list native kernels of our operators.",
    epilog="Example:  mega-deploy plugins list",
)
app.add_typer(plugins, name="plugins")


@plugins.command("build", epilog="Example:  mega-deploy plugins build onnxruntime")
def plugins_build(
    target: Annotated[PluginTarget, typer.Argument(help="Whose plugin to build.")],
    as_json: Json = False,
) -> None:
    """Build native kernels into this user's cache.

    That needs a C++ compiler, for tensorrt the extra `plugins` too.
    """
    from mega_deploy.plugins.listing import build

    with tables.progress() as on_step:
        report = build(target, on_step)
    print_report(report, as_json, tables.built_line)


@plugins.command("list", epilog="Example:  mega-deploy plugins list")
def plugins_list(as_json: Json = False) -> None:
    """Tell which native kernels are built for this version."""
    from mega_deploy.plugins.listing import rows

    print_report({"plugins": rows()}, as_json, tables.plugins_table)


@app.command(epilog="Example:  mega-deploy demo -o speakers.mega")
def demo(
    out: Annotated[
        Path, typer.Option("-o", "--out", metavar="BUNDLE", help="The bundle to write; an earlier demo's is replaced.")
    ] = Path("speakers.mega"),
    as_json: Json = False,
) -> None:
    """Export, verify, score and time the shipped trained checkpoint."""
    from mega_deploy import demo as demonstration

    with tables.progress() as on_step:
        report = demonstration.run(out, on_step)
    print_report(report, as_json, tables.demo_table)
