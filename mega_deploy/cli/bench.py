"""The command that measures."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from mega_deploy.cli import tables
from mega_deploy.cli.shared import Json, print_report

app = typer.Typer()


def _axis(what: str) -> Any:
    return typer.Option(metavar="V,...", help=f"Time models with random weights, for each value: {what}.")


@app.command(epilog="Example:  mega-deploy bench game.mega --batch 1,8 --quick")
def bench(
    bundles: Annotated[
        list[Path] | None, typer.Argument(metavar="[BUNDLE]...", help="Default: Edifice's default model, twice.")
    ] = None,
    backend: Annotated[str, typer.Option(metavar="B,...", help="onnxruntime, tensorrt, tensorrt-rtx.")] = "onnxruntime",
    batch: Annotated[
        str | None, typer.Option(metavar="N,...", help="Windows of one call, or streams (default 1).")
    ] = None,
    seq_len: Annotated[str | None, typer.Option(metavar="N,...", help="Lengths, of bundles that take a range.")] = None,
    peers: Annotated[
        bool, typer.Option("--peers", help="Also PyTorch, plain ONNX exports, and what else is installed.")
    ] = False,
    quick: Annotated[bool, typer.Option("--quick", help="Fewer and shorter rounds.")] = False,
    threads: Annotated[int | None, typer.Option(help="That share a call; default: one a physical core.")] = None,
    rounds: Annotated[int | None, typer.Option(help="How often each contender's turn comes (default 10).")] = None,
    turn: Annotated[float | None, typer.Option(metavar="SECONDS", help="Length of a turn (default 0.4).")] = None,
    frames: Annotated[
        int | None, typer.Option(metavar="N", help="That our streams are timed for, at the least (default 10,000).")
    ] = None,
    timeout: Annotated[
        float | None, typer.Option(metavar="SECONDS", help="For one step of a contender (default 600).")
    ] = None,
    limit: Annotated[bool, typer.Option(help="Measure what this machine could reach at best.")] = True,
    suite: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="lra-text: Mega-chunk, Mega and a Transformer on 4096 bytes, memory too."),
    ] = None,
    sweep: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Configurations with random weights, in TOML or YAML.")
    ] = None,
    embed_dim: Annotated[str | None, _axis("features of a frame")] = None,
    hidden_size: Annotated[str | None, _axis("the width")] = None,
    ema_dim: Annotated[str | None, _axis("states of the moving average")] = None,
    layers: Annotated[str | None, _axis("blocks")] = None,
    window: Annotated[str | None, _axis("frames of a window")] = None,
    attention: Annotated[str | None, _axis("softmax or laplace")] = None,
    precision: Annotated[str | None, _axis("float32, float16, bfloat16 or int8")] = None,
    form: Annotated[
        str | None, typer.Option(metavar="F,...", help="Of bundles and models: window, stream (default: the first).")
    ] = None,
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
    """Time bundles, beside peers and the machine's limit.

    Models with random weights are timed as bundles are. Of a stream a call is one step; beside it stand the window, a
    prefill, what takes a source where the model reads one, and with --peers PyTorch with a cache.
    """
    from mega_deploy.bench import benchmark, command
    from mega_deploy.bench.report import against as gate
    from mega_deploy.bench.report import terminal
    from mega_deploy.bench.suites import lra_text as suites

    chosen = command.options(
        quick,
        backends=tuple(backend.split(",")),
        peers=peers,
        limit=limit,
        threads=threads,
        rounds=rounds,
        turn_seconds=turn,
        frames=frames,
        timeout=timeout,
    )
    factor, old = gate.parse_limit(fail_if), None if against is None else gate.read_report(against)
    axes = {"embed_dim": embed_dim, "hidden_size": hidden_size, "ema_dim": ema_dim, "layers": layers}
    axes |= {"window": window, "attention": attention, "precision": precision, "form": form}
    with tables.progress() as on_step:
        planned = command.plan(
            bundles or [],
            batch=batch,
            seq_len=seq_len,
            sweep_file=sweep,
            axes=axes,
            suite_name=suite,
            quick=quick,
            on_step=on_step,
        )
        report = command.bench(
            planned,
            chosen,
            outputs={"json": json_file, "csv": csv, "html": html},
            old=old,
            other_machine=other_machine,
            factor=factor,
            on_step=on_step,
            on_failure=tables.warning,
        )
    print_report(command.without_samples(report), as_json, terminal.table)
    suites.check(report) if suite else benchmark.check_ours(report)
    if old is not None:
        gate.fail_on_regression(report["against"])
