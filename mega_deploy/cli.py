"""The command line: parse, call the API, print. Nothing is decided here."""

from __future__ import annotations

import io
import json
import os
import signal
import sys
import time
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, Literal, NoReturn

import typer

from mega_deploy import show
from mega_deploy.config import Form, Precision, SourceName
from mega_deploy.errors import InputError, MegaDeployError, QualityGateError

app = typer.Typer(
    name="mega-deploy",
    help="Take trained Mega models to production: verified ONNX bundles, sessions and benchmarks.",
    no_args_is_help=True,
    rich_markup_mode=None,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

USAGE = 2

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout, everything else on stderr.")]
BundlePath = Annotated[Path, typer.Argument(metavar="BUNDLE", help="A bundle: the folder that `export` wrote.")]
PluginTarget = Literal["onnxruntime", "tensorrt"]
Backend = Annotated[
    str,
    typer.Option(
        help="What runs the model: onnxruntime (CPU), onnxruntime-cuda, onnxruntime-tensorrt; or an engine of the "
        "bundle: tensorrt, tensorrt-rtx."
    ),
]
SweepAxis = Annotated[
    str | None, typer.Option(metavar="V,...", help="Time models with random weights of these values.")
]


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
    seq_len: Annotated[int | None, typer.Option(help="Frames of a window; default: the checkpoint's own.")] = None,
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
    """Turn a trained checkpoint into a bundle that is proven equal to it."""
    from mega_deploy import deploy, inspection

    started = time.perf_counter()
    with show.progress() as on_step:
        bundle = deploy.export(
            checkpoint,
            out,
            source=source,
            config=None if config is None else _read_config(config),
            attention=attention,
            seq_len=seq_len,
            output=output,
            seq_range=seq_range,
            batch_range=batch_range,
            ema=ema,
            precision=precision,
            float32=float32 or (),
            half_io=half_io,
            form=form,
            force=force,
            on_step=on_step,
        )
    report = inspection.export_report(bundle, time.perf_counter() - started)
    _print(report, as_json, show.export_table)


@app.command(epilog="Example:  mega-deploy validate game.mega --samples 16 --seed 7")
def validate(
    bundle: BundlePath,
    backend: Backend = "onnxruntime",
    inputs: Annotated[Path | None, typer.Option(metavar="X.npz", help="Inputs of your own (.npz or .npy).")] = None,
    samples: Annotated[int | None, typer.Option(help="Random windows to draw anew; needs torch.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of the random windows.")] = None,
    native_ops: Annotated[
        bool, typer.Option("--native-ops/--no-native-ops", help="Whether native kernels serve, where they are built.")
    ] = True,
    bisect: Annotated[
        bool, typer.Option("--bisect", help="Find the first bad block, and in it the first bad node; needs torch.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Hold a bundle on this machine against the trained model. Exit code 3 where it fails."""
    if bisect:
        _bisect(bundle, backend, native_ops, [inputs, samples, seed], as_json)
        return
    from mega_deploy import validation

    with show.progress() as on_step:
        report = validation.validate(
            bundle,
            backend=backend,
            native_ops=native_ops,
            inputs=inputs,
            samples=samples,
            seed=seed,
            on_step=on_step,
        )
    _print(report.to_json(), as_json, show.parity_table)
    if not report.passed:
        raise QualityGateError(
            f'parity failed in case "{report.worst.name}": the error is {report.worst.share:.2g} times its limit'
        )


def _bisect(bundle: Path, backend: str, native_ops: bool, of_cases: list[object], as_json: bool) -> None:
    from mega_deploy import bisection

    if any(value is not None for value in of_cases):
        raise InputError("--bisect looks at the cases of the bundle; leave --inputs, --samples and --seed out")
    with show.progress() as on_step:
        report = bisection.bisect(bundle, backend=backend, native_ops=native_ops, on_step=on_step)
    _print(report.to_json(), as_json, show.bisection_table)
    if not report.passed:
        node = f", in {report.node.node} ({report.node.op})" if report.node else ""
        where = f"first bad block: {report.block}{node}" if report.block else "no block is bad by itself"
        raise QualityGateError(f"{where}; {report.advice}")


@app.command(epilog="Example:  mega-deploy run game.mega frames.npy -o features.npy")
def run(
    bundle: BundlePath,
    file: Annotated[Path, typer.Argument(metavar="INPUT", help=".npy for one input, .npz for inputs by name.")],
    out: Annotated[
        Path, typer.Option("-o", "--out", metavar="OUTPUT", help=".npy for one output, .npz for outputs by name.")
    ],
    backend: Backend = "onnxruntime",
    threads: Annotated[
        int | None, typer.Option(help="Threads that share one call; default: one a physical core.")
    ] = None,
    form: Annotated[
        Form | None,
        typer.Option(help="stream: feed [batch, steps, ...] step by step; default: window, where the bundle has it."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Run a bundle on arrays in a file."""
    from mega_deploy.arrays import load_arrays, save_arrays
    from mega_deploy.runtime import OpenBundle

    session = OpenBundle.open(bundle).runner(form, backend, threads=threads)
    inputs = load_arrays(file)
    started = time.perf_counter()
    outputs = session.run_named(inputs)
    seconds = time.perf_counter() - started
    save_arrays(out, outputs)
    report = {
        "backend": session.backend,
        "providers": list(session.providers),
        "seconds": seconds,
        "native_ops": list(session.native_ops),
        "output": str(out),
        "outputs": {name: {"dtype": str(array.dtype), "shape": list(array.shape)} for name, array in outputs.items()},
    }
    _print(report, as_json, show.run_line)


@app.command(epilog="Example:  mega-deploy inspect game.mega")
def inspect(
    path: Annotated[
        Path, typer.Argument(metavar="BUNDLE|ENGINE|CHECKPOINT", help="A bundle, an engine in one, or a checkpoint.")
    ],
    source: Annotated[
        SourceName, typer.Option(help="Whose format a checkpoint is; auto decides from the content.")
    ] = "auto",
    as_json: Json = False,
) -> None:
    """Tell what a path is, what it needs, and whether it can be used here; an engine is not loaded for it."""
    from mega_deploy import inspection

    _print(inspection.inspect(path, source), as_json, show.inspect_table)


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
    """Build an engine for GPUs from a bundle, and add it to the bundle."""
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
    with show.progress() as on_step:
        built = engine.build(bundle, target=target, options=chosen, refit_from=refit_from, on_step=on_step)
    _print(engine_report(bundle, built), as_json, show.built_engine_table)


@app.command(epilog="Example:  mega-deploy bench game.mega --batch 1,8 --quick")
def bench(
    bundles: Annotated[
        list[Path] | None, typer.Argument(metavar="[BUNDLE]...", help="Default: Edifice's default model, twice.")
    ] = None,
    backend: Annotated[str, typer.Option(metavar="B,...", help="onnxruntime, tensorrt, tensorrt-rtx.")] = "onnxruntime",
    batch: Annotated[str | None, typer.Option(metavar="N,...", help="Windows of one call (default 1).")] = None,
    seq_len: Annotated[str | None, typer.Option(metavar="N,...", help="Lengths, of bundles that take a range.")] = None,
    peers: Annotated[
        bool, typer.Option("--peers", help="Also PyTorch, plain ONNX exports, and what else is installed.")
    ] = False,
    quick: Annotated[bool, typer.Option("--quick", help="Fewer and shorter rounds.")] = False,
    threads: Annotated[int | None, typer.Option(help="That share a call; default: one a physical core.")] = None,
    rounds: Annotated[int | None, typer.Option(help="How often each contender's turn comes (default 10).")] = None,
    turn: Annotated[float | None, typer.Option(metavar="SECONDS", help="Length of a turn (default 0.4).")] = None,
    timeout: Annotated[
        float | None, typer.Option(metavar="SECONDS", help="For one step of a contender (default 600).")
    ] = None,
    limit: Annotated[bool, typer.Option(help="Measure what this machine could reach at best.")] = True,
    sweep: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Configurations with random weights, in TOML or YAML.")
    ] = None,
    embed_dim: SweepAxis = None,
    hidden_size: SweepAxis = None,
    ema_dim: SweepAxis = None,
    layers: SweepAxis = None,
    window: SweepAxis = None,
    attention: SweepAxis = None,
    precision: SweepAxis = None,
    form: SweepAxis = None,
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="Write a page with pictures.")] = None,
    json_file: Annotated[Path | None, typer.Option(metavar="FILE", help="Write all, raw samples included.")] = None,
    csv: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the rows.")] = None,
    against: Annotated[
        Path | None, typer.Option(metavar="OLD.json", help="Compare with an earlier --json-file of this machine.")
    ] = None,
    fail_if: Annotated[
        str, typer.Option(metavar="slower:FACTOR", help="With --against: exit code 3 from this factor on.")
    ] = "slower:1.05",
    other_machine: Annotated[
        bool, typer.Option("--other-machine", help="With --against: compare although the set-up differs.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Tell the latency of bundles, or of models with random weights, beside other ways and the machine's limit."""
    from mega_deploy.bench import against as gate
    from mega_deploy.bench import benchmark, command, terminal

    chosen = command.options(
        quick,
        backends=tuple(backend.split(",")),
        peers=peers,
        limit=limit,
        threads=threads,
        rounds=rounds,
        turn_seconds=turn,
        timeout=timeout,
    )
    factor, old = gate.parse_limit(fail_if), None if against is None else gate.read_report(against)
    axes = {"embed_dim": embed_dim, "hidden_size": hidden_size, "ema_dim": ema_dim, "layers": layers}
    axes |= {"window": window, "attention": attention, "precision": precision, "form": form}
    with show.progress() as on_step:
        report = command.bench(
            command.plan(bundles or [], batch=batch, seq_len=seq_len, sweep_file=sweep, axes=axes, on_step=on_step),
            chosen,
            outputs={"json": json_file, "csv": csv, "html": html},
            old=old,
            other_machine=other_machine,
            factor=factor,
            on_step=on_step,
            on_failure=show.warning,
        )
    _print(command.without_samples(report), as_json, terminal.table)
    benchmark.check_ours(report)
    if old is not None:
        gate.fail_on_regression(report["against"])


plugins = typer.Typer(help="Native kernels of our operators.", no_args_is_help=True)
app.add_typer(plugins, name="plugins")


@plugins.command("build", epilog="Example:  mega-deploy plugins build onnxruntime")
def plugins_build(
    target: Annotated[PluginTarget, typer.Argument(help="Whose plugin to build.")],
    as_json: Json = False,
) -> None:
    """Build native kernels into this user's cache; needs a C++ compiler, for tensorrt the extra `plugins` too."""
    from mega_deploy.plugins.listing import build

    with show.progress() as on_step:
        report = build(target, on_step)
    _print(report, as_json, show.built_line)


@plugins.command("list", epilog="Example:  mega-deploy plugins list")
def plugins_list(as_json: Json = False) -> None:
    """Tell which native kernels are built for this version."""
    from mega_deploy.plugins.listing import rows

    _print({"plugins": rows()}, as_json, show.plugins_table)


@app.command(epilog="Example:  mega-deploy doctor")
def doctor(as_json: Json = False) -> None:
    """Tell what works on this machine, what is missing, and the command that mends it."""
    from mega_deploy.doctor import examine

    _print({"components": [component.to_json() for component in examine()]}, as_json, show.doctor_table)


@app.command(epilog="Example:  mega-deploy demo -o speakers.mega")
def demo(
    out: Annotated[
        Path, typer.Option("-o", "--out", metavar="BUNDLE", help="The bundle to write; an earlier demo's is replaced.")
    ] = Path("speakers.mega"),
    as_json: Json = False,
) -> None:
    """Export the shipped trained checkpoint, verify it, score it on held-out data and time it."""
    from mega_deploy import demo as demonstration

    with show.progress() as on_step:
        report = demonstration.run(out, on_step)
    _print(report, as_json, show.demo_table)


def main() -> None:
    """Run the command line; errors raised on purpose become one line and their exit code."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _terminate)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a name that the locale cannot print is no reason to fail
    try:
        sys.exit(app(standalone_mode=False))
    except MegaDeployError as error:
        _fail(str(error), error.exit_code)
    except typer.TyperException as error:  # usage: an unknown option, a missing argument
        _fail(f"{' '.join(error.format_message().split())}; see --help", USAGE)
    except (typer.Abort, KeyboardInterrupt):
        _fail("interrupted", 128 + signal.SIGINT)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains at exit
        sys.exit(0)


def _fail(message: str, code: int) -> NoReturn:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(code)


def _terminate(number: int, _frame: FrameType | None) -> None:
    """Ends through SystemExit, so that whatever is half-written is taken back."""
    sys.exit(128 + number)


def _read_config(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(value, dict):
        raise InputError(f"{path} must hold one JSON object of hyperparameters by name")
    return value


def _print(report: dict[str, Any], as_json: bool, table: show.Table) -> None:
    if as_json:
        print(json.dumps(report))
    else:
        table(report)
