"""The command that measures."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mega_deploy.cli.grouped import grouped
from mega_deploy.cli.shared import Json, print_report
from mega_deploy.cli.tables import progress, warning

if TYPE_CHECKING:
    from mega_deploy.bench.suites.options import Options

app = typer.Typer()


def _axis(what: str) -> Any:
    return typer.Option(metavar="V,...", help=f"Time models with random weights, for each value: {what}.")


def _file(what: str, name: str = "FILE") -> Any:
    return typer.Option(metavar=name, help=what)


@dataclass(frozen=True, kw_only=True)
class What:
    """What is timed: bundles, a suite, or models with random weights."""

    bundles: Annotated[
        list[Path] | None, typer.Argument(metavar="[BUNDLE]...", help="Default: Edifice's default model, twice.")
    ] = None
    batch: Annotated[str | None, typer.Option(metavar="N,...", help="Windows of one call, or streams (default 1).")] = (
        None
    )
    seq_len: Annotated[str | None, typer.Option(metavar="N,...", help="Lengths, of bundles that take a range.")] = None
    suite: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="lra-text: Mega-chunk, Mega and a Transformer on 4096 bytes, memory too."),
    ] = None
    sweep: Annotated[Path | None, _file("Configurations with random weights, in TOML or YAML.")] = None


@dataclass(frozen=True, kw_only=True)
class Axes:
    """What models with random weights are like: the axes of a sweep; of bundles only the form is chosen."""

    embed_dim: Annotated[str | None, _axis("features of a frame")] = None
    hidden_size: Annotated[str | None, _axis("the width")] = None
    ema_dim: Annotated[str | None, _axis("states of the moving average")] = None
    layers: Annotated[str | None, _axis("blocks")] = None
    window: Annotated[str | None, _axis("frames of a window")] = None
    attention: Annotated[str | None, _axis("softmax or laplace")] = None
    precision: Annotated[str | None, _axis("float32, float16, bfloat16 or int8")] = None
    form: Annotated[
        str | None, typer.Option(metavar="F,...", help="Of bundles and models: window, stream (default: the first).")
    ] = None


@dataclass(frozen=True, kw_only=True)
class How:
    """How it is timed, and beside whom."""

    backend: Annotated[str, typer.Option(metavar="B,...", help="onnxruntime, tensorrt, tensorrt-rtx.")] = "onnxruntime"
    peers: Annotated[
        bool, typer.Option("--peers", help="Also PyTorch, plain ONNX exports, and what else is installed.")
    ] = False
    quick: Annotated[bool, typer.Option("--quick", help="Fewer and shorter rounds.")] = False
    threads: Annotated[int | None, typer.Option(help="That share a call; default: one a physical core.")] = None
    rounds: Annotated[int | None, typer.Option(help="How often each contender's turn comes (default 10).")] = None
    turn: Annotated[float | None, typer.Option(metavar="SECONDS", help="Length of a turn (default 0.4).")] = None
    frames: Annotated[
        int | None, typer.Option(metavar="N", help="That our streams are timed for, at the least (default 10,000).")
    ] = None
    timeout: Annotated[
        float | None, typer.Option(metavar="SECONDS", help="For one step of a contender (default 600).")
    ] = None
    limit: Annotated[bool, typer.Option(help="Measure what this machine could reach at best.")] = True

    def options(self) -> Options:
        """The same as the benchmark takes it: what was given, over what --quick means, over the defaults."""
        from mega_deploy.bench import command

        return command.options(
            self.quick,
            backends=tuple(self.backend.split(",")),
            peers=self.peers,
            limit=self.limit,
            threads=self.threads,
            rounds=self.rounds,
            turn_seconds=self.turn,
            frames=self.frames,
            timeout=self.timeout,
        )


@dataclass(frozen=True, kw_only=True)
class Files:
    """What is written."""

    html: Annotated[Path | None, _file("Write a page with pictures.")] = None
    json_file: Annotated[Path | None, _file("Write all, raw samples included.")] = None
    csv: Annotated[Path | None, _file("Write the rows.")] = None

    def by_kind(self) -> dict[str, Path | None]:
        """The paths as command.bench takes them."""
        return {"json": self.json_file, "csv": self.csv, "html": self.html}


@dataclass(frozen=True, kw_only=True)
class Gate:
    """What an earlier report is held against."""

    against: Annotated[Path | None, _file("Compare with an earlier --json-file of this machine.", name="OLD.json")] = (
        None
    )
    fail_if: Annotated[
        str, typer.Option(metavar="slower:FACTOR", help="With --against: exit code 3 from this factor on.")
    ] = "slower:1.05"
    other_machine: Annotated[
        bool, typer.Option("--other-machine", help="With --against: compare although the set-up differs.")
    ] = False


@app.command(epilog="Example:  mega-deploy bench game.mega --batch 1,8 --quick")
@grouped
def bench(what: What, axes: Axes, how: How, files: Files, gate: Gate, as_json: Json = False) -> None:
    """Time bundles, beside peers and the machine's limit.

    Models with random weights are timed as bundles are. Of a stream a call is one step; beside it stand the window, a
    prefill, what takes a source where the model reads one, and with --peers PyTorch with a cache.
    """
    from mega_deploy.bench import command
    from mega_deploy.bench.report import against, terminal

    chosen, factor = how.options(), against.parse_limit(gate.fail_if)
    old = None if gate.against is None else against.read_report(gate.against)
    with progress() as on_step:
        planned = command.plan(
            what.bundles or [],
            batch=what.batch,
            seq_len=what.seq_len,
            sweep_file=what.sweep,
            axes=asdict(axes),
            suite_name=what.suite,
            quick=how.quick,
            on_step=on_step,
        )
        report = command.bench(
            planned,
            chosen,
            outputs=files.by_kind(),
            old=old,
            other_machine=gate.other_machine,
            factor=factor,
            on_step=on_step,
            on_failure=warning,
        )
    print_report(command.without_samples(report), as_json, terminal.table)
    command.check(planned, report)
    if old is not None:
        against.fail_on_regression(report["against"])
