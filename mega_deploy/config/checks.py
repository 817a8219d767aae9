"""Checks of a configuration's options; each refusal names the option, its value and what is allowed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import Any, get_args

from mega_deploy.errors import OptionError

# A bound on every size, so that a hostile checkpoint cannot ask for more memory than a machine has.
MAX_DIMENSION = 1 << 20


def check_known(cls: type[Any], options: Mapping[str, Any]) -> None:
    """Refuse, with OptionError, a name that is no field of the dataclass."""
    known = [field.name for field in fields(cls)]
    for name in options:
        if name not in known:
            raise OptionError(f"unknown option {name!r}; the options are {', '.join(known)}")


def check_names(cls: type[Any], options: object) -> None:
    """Refuse, with OptionError, options that are no mapping, unknown to a dataclass, or lack one without a default."""
    if not isinstance(options, Mapping):
        raise OptionError(f"the options must be a mapping of names to values, got a {type(options).__name__}")
    check_known(cls, options)
    for field in fields(cls):
        if field.name not in options and field.default is MISSING:
            raise OptionError(f"the option {field.name} is required")


def check_size(name: str, value: object) -> None:
    """Refuse, with OptionError, what is no whole number from 1 to MAX_DIMENSION."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise OptionError(f"{name} must be a whole number, got {value!r:.100}")
    if not 1 <= value <= MAX_DIMENSION:
        raise OptionError(f"{name} must be between 1 and {MAX_DIMENSION}, got {number_text(value)}")


def check_choice(name: str, value: object, choices: Any) -> None:
    """Refuse, with OptionError, what is none of a Literal's values."""
    if value not in get_args(choices):
        raise OptionError(f"{name} must be one of {', '.join(get_args(choices))}, got {value!r:.100}")


def check_flag(name: str, value: object) -> None:
    """Refuse, with OptionError, what is neither True nor False."""
    if not isinstance(value, bool):
        raise OptionError(f"{name} must be True or False, got {value!r:.100}")


def check_rate(name: str, value: object) -> None:
    """Refuse, with OptionError, what is no rate of dropout: at least 0 and below 1."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0.0 <= value < 1.0:
        raise OptionError(f"{name} must be a number of at least 0 and below 1, got {type(value).__name__}")


def number_text(value: float) -> str:
    """A number for a message; Python refuses to print integers of thousands of digits."""
    return f"one of {value.bit_length()} bits" if isinstance(value, int) and value.bit_length() > 64 else repr(value)
