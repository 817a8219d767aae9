"""Every error that mega-deploy raises on purpose, and the exit code that each one means on the command line.

A message names what is wrong, where, what was expected and what to do. Anything else that escapes is a defect
of ours: it keeps its traceback and exits with 1.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from types import ModuleType
from typing import Any

from mega_deploy.text import printable


class MegaDeployError(Exception):
    """Base of all errors raised on purpose; `exit_code` is what the command line returns for it."""

    exit_code = 1

    def __str__(self) -> str:
        """The message in one line: names from files, which it may quote, are made printable and long ones cut."""
        return printable(super().__str__())


class InputError(MegaDeployError, ValueError):
    """Bad usage or bad input: an option, a file or an array that cannot be used as it is."""

    exit_code = 2


class OptionError(InputError):
    """An option is impossible, missing, or contradicts another one or the file."""


class CheckpointError(InputError):
    """A checkpoint is truncated, hostile, of an unknown format, or lacks what the model needs."""


class BundleError(InputError):
    """A bundle is damaged, of another format version, in the way, or lacks what was asked of it."""


class QualityGateError(MegaDeployError):
    """The numbers are not good enough: parity with the trained form failed, or a regression was found."""

    exit_code = 3


class NonFiniteError(QualityGateError):
    """An output is NaN or infinite: the model overflowed on these inputs, or had done so before."""

    def __init__(self, message: str, rows: tuple[int, ...], outputs: Mapping[str, Any]) -> None:
        super().__init__(message)
        self.rows = rows
        """Rows of the outputs that are not finite; of streams their numbers."""
        self.outputs = outputs
        """All outputs of the call by name, as they would have been returned."""


class MissingComponentError(MegaDeployError):
    """This machine lacks a component; the message names it and the command that installs it."""

    exit_code = 4


def require(module: str, extra: str, purpose: str) -> ModuleType:
    """Import `module`, or raise MissingComponentError that names the extra which installs it.

    Args:
        module: name to import, such as "torch".
        extra: the extra of mega-deploy that brings it, such as "export".
        purpose: what it is needed for, to complete "... needs torch".
    """
    try:
        return importlib.import_module(module)
    except (ImportError, OSError) as error:  # OSError: a shared library that it needs is not there
        package = module.partition(".")[0]
        absent = isinstance(error, ModuleNotFoundError) and error.name == package
        state = "is not installed" if absent else f"does not import ({error})"
        raise MissingComponentError(
            f"{purpose} needs {package}, which {state}; run: pip install 'mega-deploy[{extra}]'"
        ) from error
