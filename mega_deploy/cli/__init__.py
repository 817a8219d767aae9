"""The command line: parse, call the API, print. Nothing is decided here."""

from __future__ import annotations

import signal
import sys
from importlib import metadata
from types import FrameType
from typing import Annotated

import typer
from typer.core import TyperGroup

from mega_deploy.cli import bench, debug, export, run
from mega_deploy.cli.standard_streams import USAGE, ReaderLeftError, fail, open_standard_streams, silence
from mega_deploy.errors import MegaDeployError

# As one meets them, from a checkpoint on.
ORDER = ("export", "validate", "run", "inspect", "build", "bench", "plugins", "debug", "doctor", "demo")


class _InOrder(TyperGroup):
    def list_commands(self, ctx: typer.Context) -> list[str]:  # type: ignore[override]
        return sorted(self.commands, key=ORDER.index)


app = typer.Typer(
    name="mega-deploy",
    cls=_InOrder,
    rich_markup_mode=None,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for commands in (export, run, bench, debug):
    app.add_typer(commands.app)


def _print_version(asked: bool) -> None:
    if asked:
        print(f"mega-deploy {metadata.version('mega-deploy')}")
        raise typer.Exit


@app.callback(invoke_without_command=True, epilog="Example:  mega-deploy demo")
def mega_deploy(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Take trained Mega models to production: verified ONNX bundles, sessions and benchmarks."""
    if context.invoked_subcommand is None:
        print(context.get_help(), file=sys.stderr)
        raise typer.Exit(USAGE)


def main() -> None:
    """Run the command line; errors raised on purpose become one line and their exit code."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _terminate)
    open_standard_streams()
    try:
        code = app(standalone_mode=False)
        sys.stdout.flush()
        sys.exit(code)
    except MegaDeployError as error:
        fail(str(error), error.exit_code)
    except typer.TyperException as error:  # usage: an unknown option, a missing argument
        message = " ".join(error.format_message().replace("Value error, ", "").split())
        fail(f"{message.rstrip('.')}; see --help", USAGE)
    except (typer.Abort, KeyboardInterrupt):
        fail("interrupted", 128 + signal.SIGINT)
    except ReaderLeftError:
        silence(sys.stdout)
        sys.exit(0)
    except MemoryError as error:
        fail(f"this machine has not enough memory for that: {error}; give less at once", USAGE)


def _terminate(number: int, _frame: FrameType | None) -> None:
    """End through SystemExit, so that whatever is half-written is taken back."""
    sys.exit(128 + number)
