"""What a pickle of torch.save says, told without unpickling it.

The operations are followed one by one, and every class, function and call in them stays a name or becomes a plain
description: nothing is imported, called or allocated on the pickle's word. Only what a file of weights needs is let in.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable
from typing import Any

from mega_deploy.checkpoints.containers.pickle_names import CALLS, OPAQUE, named, size
from mega_deploy.checkpoints.containers.pickle_types import Named, Opaque, Record, Storage, View
from mega_deploy.errors import CheckpointError

MAX_OPERATIONS = 1_000_000


def read_pickle(content: bytes) -> Any:
    """The one value of a pickle: plain ones, dicts and lists of them, Record, View, Named and Opaque.

    Keys of a dict that are neither text nor small integers become Opaque.

    Raises:
        CheckpointError: the pickle is damaged, larger than any checkpoint's, or holds a class or a call of others.
    """
    machine = _Machine()
    try:
        for count, (operation, argument, _) in enumerate(pickletools.genops(content)):
            if count > MAX_OPERATIONS:
                raise CheckpointError(f"its pickle has more than {MAX_OPERATIONS} operations, far more than a Mega")
            step = _STEPS.get(operation.name)
            if step is None:
                raise CheckpointError(
                    f"its pickle holds the operation {operation.name}, which no file of weights needs"
                )
            step(machine, argument)
        (value,) = machine.stack
    except CheckpointError:
        raise
    except Exception as error:  # on corrupt bytes a step raises whatever fails in it first
        raise CheckpointError(f"its pickle is damaged ({error}); copy it again") from None
    return value


class _Machine:
    """The stack and the memo of the pickle language."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def above_mark(self) -> list[Any]:
        """Take the values above the last mark."""
        start = self.marks.pop()
        values = self.stack[start:]
        del self.stack[start:]
        return values

    def take(self, count: int) -> tuple[Any, ...]:
        """Take values from the top, in the order in which they were put."""
        if count > len(self.stack) - (self.marks[-1] if self.marks else 0):
            raise ValueError("it takes more values than there are")
        values = tuple(self.stack[len(self.stack) - count :])
        del self.stack[len(self.stack) - count :]
        return values


def _push(machine: _Machine, value: Any) -> None:
    machine.stack.append(value)


def _constant(make: Callable[[], Any]) -> Callable[[_Machine, Any], None]:
    return lambda machine, _: machine.stack.append(make())


def _tuple_of(count: int) -> Callable[[_Machine, Any], None]:
    return lambda machine, _: machine.stack.append(machine.take(count))


def _skip(machine: _Machine, argument: Any) -> None:
    """Frames and versions say nothing of the value."""


def _mark(machine: _Machine, _: Any) -> None:
    machine.marks.append(len(machine.stack))


def _pop(machine: _Machine, _: Any) -> None:
    machine.take(1)


def _pop_mark(machine: _Machine, _: Any) -> None:
    machine.above_mark()


def _memoize(machine: _Machine, place: int | None) -> None:
    machine.memo[len(machine.memo) if place is None else place] = machine.stack[-1]


def _recall(machine: _Machine, place: int) -> None:
    machine.stack.append(machine.memo[place])


def _tuple(machine: _Machine, _: Any) -> None:
    machine.stack.append(tuple(machine.above_mark()))


def _list(machine: _Machine, _: Any) -> None:
    machine.stack.append(machine.above_mark())


def _dict(machine: _Machine, _: Any) -> None:
    values = machine.above_mark()
    machine.stack.append({})
    _set(machine.stack[-1], values)


def _frozen_set(machine: _Machine, _: Any) -> None:
    machine.above_mark()
    machine.stack.append(Opaque("frozenset"))


def _append(machine: _Machine, _: Any) -> None:
    _extend(machine.stack[-2], machine.take(1))


def _appends(machine: _Machine, _: Any) -> None:
    values = machine.above_mark()
    _extend(machine.stack[-1], values)


def _extend(target: Any, values: Any) -> None:
    if isinstance(target, list):
        target.extend(values)
    elif not isinstance(target, Opaque):
        raise TypeError(f"it appends to a {type(target).__name__}")


def _set_item(machine: _Machine, _: Any) -> None:
    pair = machine.take(2)
    _set(machine.stack[-1], pair)


def _set_items(machine: _Machine, _: Any) -> None:
    values = machine.above_mark()
    _set(machine.stack[-1], values)


def _set(target: Any, values: Any) -> None:
    if isinstance(target, dict):
        for key, value in zip(values[::2], values[1::2], strict=True):
            target[_key(key)] = value
    elif not isinstance(target, Opaque):
        raise TypeError(f"it sets items of a {type(target).__name__}")


def _key(value: Any) -> Any:
    """A key that is hashed in no time: text, or a small integer; any other is one of a kind."""
    if isinstance(value, str) or (type(value) is int and abs(value) < 1 << 31):
        return value
    return Opaque(f"a {type(value).__name__} as a key")


def _global(machine: _Machine, names: str) -> None:
    machine.stack.append(named(*names.split(" ", 1)))


def _stack_global(machine: _Machine, _: Any) -> None:
    machine.stack.append(named(*machine.take(2)))


def _reduce(machine: _Machine, _: Any) -> None:
    function, arguments = machine.take(2)
    if not isinstance(function, Named) or not isinstance(arguments, tuple):
        raise TypeError("it calls something that is no function")
    if function.name in OPAQUE:
        machine.stack.append(Opaque(function.name))
    elif function.name in CALLS:
        machine.stack.append(CALLS[function.name](*arguments))
    else:
        raise TypeError(f"it calls {function.name}")


def _new_object(machine: _Machine, _: Any) -> None:
    kind, arguments = machine.take(2)
    if kind == Named("argparse.Namespace") and arguments == ():
        machine.stack.append(Record())
    elif kind == Named("collections.OrderedDict") and arguments == ():
        machine.stack.append({})
    else:
        raise TypeError("it makes an object of something that is no class")


def _build(machine: _Machine, _: Any) -> None:
    """Fields of a Namespace; what hangs on a dict or a tensor, such as its versions, is left out."""
    (state,) = machine.take(1)
    if isinstance(target := machine.stack[-1], Record):
        if not isinstance(state, dict):
            raise TypeError("it fills a Namespace with something that is no dict")
        target.fields = state
    elif not isinstance(target, dict | View | Opaque):
        raise TypeError(f"it fills a {type(target).__name__}")


def _storage(machine: _Machine, _: Any) -> None:
    (place,) = machine.take(1)
    tag, kind, key, _location, count = place
    if tag != "storage" or not isinstance(kind, Named) or not isinstance(key, str) or not kind.name.endswith("Storage"):
        raise TypeError("it refers to something that is no storage")
    machine.stack.append(Storage(kind.name.rpartition(".")[2], key, size(count)))


_VALUES = (
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT",
    "STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8",
    "UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8",
)  # fmt: skip
_STEPS: dict[str, Callable[[_Machine, Any], None]] = {
    **dict.fromkeys(_VALUES, _push),
    **dict.fromkeys(("PROTO", "FRAME", "STOP"), _skip),
    "NONE": _constant(lambda: None),
    "NEWTRUE": _constant(lambda: True),
    "NEWFALSE": _constant(lambda: False),
    "EMPTY_TUPLE": _constant(tuple),
    "EMPTY_LIST": _constant(list),
    "EMPTY_DICT": _constant(dict),
    "EMPTY_SET": _constant(lambda: Opaque("set")),
    "TUPLE1": _tuple_of(1),
    "TUPLE2": _tuple_of(2),
    "TUPLE3": _tuple_of(3),
    "MARK": _mark,
    "POP": _pop,
    "POP_MARK": _pop_mark,
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"), _memoize),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), _recall),
    "TUPLE": _tuple,
    "LIST": _list,
    "DICT": _dict,
    "FROZENSET": _frozen_set,
    "APPEND": _append,
    "APPENDS": _appends,
    "ADDITEMS": _appends,
    "SETITEM": _set_item,
    "SETITEMS": _set_items,
    "GLOBAL": _global,
    "STACK_GLOBAL": _stack_global,
    "REDUCE": _reduce,
    "NEWOBJ": _new_object,
    "BUILD": _build,
    "BINPERSID": _storage,
}
