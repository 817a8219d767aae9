"""Options in groups: a command takes frozen dataclasses, whose fields are its options on the command line."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, get_type_hints


def grouped(command: Callable[..., None]) -> Callable[..., None]:
    """The command as typer takes it: each field of a dataclass among its parameters becomes a parameter of its own.

    A field is annotated as a parameter of typer's would be: Annotated[type, typer.Option(...)]. Fields of all groups
    of one command have different names.

    Args:
        command: takes dataclasses, and whatever else typer knows.
    """
    groups: dict[str, tuple[type, list[str]]] = {}
    parameters: list[inspect.Parameter] = []
    hints = get_type_hints(command, include_extras=True)
    for name, parameter in inspect.signature(command).parameters.items():
        group = hints[name]
        if isinstance(group, type) and is_dataclass(group):
            options = _parameters(group)
            groups[name] = group, [option.name for option in options]
            parameters += options
        else:
            parameters.append(parameter.replace(annotation=group, kind=inspect.Parameter.KEYWORD_ONLY))

    def call(**given: Any) -> None:
        made = {name: group(**{one: given.pop(one) for one in names}) for name, (group, names) in groups.items()}
        command(**made, **given)

    call.__name__, call.__doc__ = command.__name__, command.__doc__
    call.__annotations__ = {one.name: one.annotation for one in parameters}
    vars(call)["__signature__"] = inspect.Signature(parameters)
    return call


def _parameters(group: type) -> list[inspect.Parameter]:
    hints = get_type_hints(group, include_extras=True)
    return [
        inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=inspect.Parameter.empty if field.default is MISSING else field.default,
            annotation=hints[field.name],
        )
        for field in fields(group)
    ]
