"""The command line: parse, call the API, print. Nothing is decided here."""

from __future__ import annotations

import io
import os
import signal
import sys
from types import FrameType
from typing import NoReturn

import typer

from mega_deploy.cli import bench, making, using
from mega_deploy.errors import MegaDeployError

app = typer.Typer(
    name="mega-deploy",
    help="Take trained Mega models to production: verified ONNX bundles, sessions and benchmarks.",
    no_args_is_help=True,
    rich_markup_mode=None,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for commands in (making, using, bench):
    app.add_typer(commands.app)

USAGE = 2


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
        message = " ".join(error.format_message().replace("Value error, ", "").split())
        _fail(f"{message.rstrip('.')}; see --help", USAGE)
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
