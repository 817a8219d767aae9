"""The commands that use what is there: run it, hold it against the trained model, look at it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from mega_deploy.cli import tables
from mega_deploy.cli.shared import Backend, BundlePath, Json, print_report
from mega_deploy.config.common import Form, SourceName
from mega_deploy.errors import InputError, QualityGateError

app = typer.Typer()


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
    check_outputs: Annotated[
        bool,
        typer.Option("--check-outputs/--no-check-outputs", help="Whether NaN or infinite outputs are an error (3)."),
    ] = True,
    as_json: Json = False,
) -> None:
    """Run a bundle on arrays in a file.

    Exit code 3 where an output is NaN or infinite; nothing is written then.
    """
    from mega_deploy.bundle import refuse_within_bundle
    from mega_deploy.files.npy import check_target, load_arrays, save_arrays
    from mega_deploy.runtime import OpenBundle
    from mega_deploy.runtime.streams.replay import ReplaySession

    check_target(out)
    refuse_within_bundle(out)
    session = OpenBundle.open(bundle).runner(form, backend, threads=threads, check_outputs=check_outputs)
    inputs = load_arrays(file, check=session.look if isinstance(session, ReplaySession) else session.signature.look)
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
    print_report(report, as_json, tables.run_line)


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
    """Hold a bundle on this machine against the trained model.

    Exit code 3 where it fails.
    """
    if bisect:
        _bisect(bundle, backend, native_ops, [inputs, samples, seed], as_json)
        return
    from mega_deploy import validation

    with tables.progress() as on_step:
        report = validation.validate(
            bundle,
            backend=backend,
            native_ops=native_ops,
            inputs=inputs,
            samples=samples,
            seed=seed,
            on_step=on_step,
        )
    print_report(report.to_json(), as_json, tables.parity_table)
    if not report.passed:
        raise QualityGateError(
            f'parity failed in case "{report.worst.name}": the error is {report.worst.share:.2g} times its limit'
        )


def _bisect(bundle: Path, backend: str, native_ops: bool, of_cases: list[object], as_json: bool) -> None:
    from mega_deploy.bisection import search as bisection

    if any(value is not None for value in of_cases):
        raise InputError("--bisect looks at the cases of the bundle; leave --inputs, --samples and --seed out")
    with tables.progress() as on_step:
        report = bisection.bisect(bundle, backend=backend, native_ops=native_ops, on_step=on_step)
    print_report(report.to_json(), as_json, tables.bisection_table)
    if not report.passed:
        node = f", in {report.node.node} ({report.node.op})" if report.node else ""
        where = f"first bad block: {report.block}{node}" if report.block else "no block is bad by itself"
        raise QualityGateError(f"{where}; {report.advice}")


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
    """Tell what a path is, what it needs, and whether it works here.

    Nothing is run or loaded for that, not even an engine.
    """
    from mega_deploy import inspection

    print_report(inspection.inspect(path, source), as_json, tables.inspect_table)


@app.command(epilog="Example:  mega-deploy doctor")
def doctor(as_json: Json = False) -> None:
    """Tell what works on this machine, and what mends the rest."""
    from mega_deploy.doctor import examine

    print_report({"components": [component.to_json() for component in examine()]}, as_json, tables.doctor_table)
