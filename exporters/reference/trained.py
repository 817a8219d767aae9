"""Running a trained model as parity needs it: by names, in a precision, with a look at its residual stream."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from mega_deploy.arrays import Array
from mega_deploy.config.common import Precision
from mega_deploy.exporters.family import Family
from mega_deploy.exporters.reference.cases import Inputs
from mega_deploy.parity import UNIT_ROUNDOFF

ScoreAt = Callable[[nn.Module, Tensor], RemovableHandle | None]
AUTOCAST = {"float16": torch.float16, "bfloat16": torch.bfloat16}
ROWS_AT_ONCE = 16
# Numbers of an activation, or of attention's scores, in one run: 128 MB in float64, of which a run holds several.
LARGEST_RUN = 1 << 24


def own_precision(precision: Precision) -> str:
    """The precision that the trained form has for it."""
    return precision if precision in AUTOCAST else "float32"


def rows_at_once(family: Family, length: int) -> int:
    """Rows of so many steps that one run takes: as many as memory is meant for."""
    return max(1, min(ROWS_AT_ONCE, LARGEST_RUN // (length * family.width(length))))


@torch.no_grad()
def run(
    model: nn.Module,
    inputs: Inputs,
    outputs: Sequence[str],
    precision: Precision = "float32",
    blocks: Sequence[str] = (),
    *,
    steps: Mapping[str, Array] | None = None,
    score_at: ScoreAt = lambda model, steps: None,
) -> tuple[dict[str, Array], list[Array]]:
    """The model's outputs by name, and what its modules `blocks` gave when they were first called.

    Args:
        model: in float32 or float64; it takes tensors by keyword, and gives one or several by name.
        inputs: by name.
        outputs: names of what the model gives.
        precision: float16 and bfloat16 are those of autocast; otherwise the model's own holds.
        blocks: modules by name.
        steps: of outputs by name: the only ones that are asked for, int64.
        score_at: see Family: has the vocabulary of a model that has one scored at no others.
    """
    streams: dict[str, Array] = {}

    def watch(name: str) -> Callable[..., None]:
        def keep(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
            streams.setdefault(name, at_least_float32(output))

        return keep

    dtype = next(model.parameters()).dtype
    lower = AUTOCAST.get(precision)
    context: AbstractContextManager[Any] = torch.autocast("cpu", lower) if lower else nullcontext()
    tensors = {name: _as_tensor(array, dtype) for name, array in inputs.items()}
    with ExitStack() as stack:
        stack.enter_context(context)
        for name in blocks:
            stack.callback(model.get_submodule(name).register_forward_hook(watch(name)).remove)
        left = steps or {}
        if left and (hook := score_at(model, torch.from_numpy(next(iter(left.values()))))):
            stack.callback(hook.remove)
            left = {}
        result = model(**tensors)
    named = {outputs[0]: result} if isinstance(result, Tensor) else result
    arrays = {name: at_least_float32(named[name]) for name in outputs}
    kept = {name: array[:, left[name]] if name in left else array for name, array in arrays.items()}
    return kept, [streams[name] for name in blocks]


def keep_in_float32(model: nn.Module, names: Sequence[str]) -> None:
    """Take modules, with all in them, out of autocast; the name of a folded layer, which none has, does nothing.

    Args:
        model: one's own copy, whose modules get hooks.
        names: of modules.
    """
    for name, module in model.named_modules():
        if any(f"{name}.".startswith(f"{kept}.") for kept in names):
            _without_autocast(module)


def _without_autocast(module: nn.Module) -> None:
    """Have a module computed in float32, whatever the precision around it."""
    running: list[ExitStack] = []  # a module may be called from within itself

    def enter(_module: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, Any]:
        raised = tuple(map(_raised, given)), {name: _raised(value) for name, value in named.items()}
        stack = ExitStack()
        stack.enter_context(torch.autocast("cpu", enabled=False))
        running.append(stack)
        return raised

    def leave(_module: nn.Module, _given: Any, _output: Any) -> None:
        running.pop().close()

    module.register_forward_pre_hook(enter, with_kwargs=True)
    module.register_forward_hook(leave, always_call=True)


def _raised(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.is_floating_point() else value


@contextmanager
def a_last_place_away(
    model: nn.Module, inputs: Inputs, precision: Precision, random: np.random.Generator
) -> Iterator[Inputs]:
    """Inputs that differ by rounding; those of tokens are the rows that the model's tables have for them, meanwhile."""
    # Of a lower precision half a last place: what the trained form itself rounds its inputs by.
    last_place = np.float32(max(2.0**-23, UNIT_ROUNDOFF[own_precision(precision)]))

    def factor(shape: Sequence[int]) -> Array:
        return 1 + last_place * random.integers(-1, 2, shape, np.int8)

    def shake(_module: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
        return output * torch.from_numpy(factor(output.shape)).to(output.dtype)

    with ExitStack() as stack:
        for table in model.modules():
            if isinstance(table, nn.Embedding):
                stack.callback(table.register_forward_hook(shake).remove)
        yield {
            name: array * factor(array.shape) if array.dtype.kind == "f" else array for name, array in inputs.items()
        }


def _as_tensor(array: Array, dtype: torch.dtype) -> Tensor:
    tensor = torch.from_numpy(array)
    return tensor.to(dtype) if tensor.is_floating_point() else tensor


def at_least_float32(tensor: Tensor) -> Array:
    """An array of at least float32: numpy has no bfloat16."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32)).numpy()
