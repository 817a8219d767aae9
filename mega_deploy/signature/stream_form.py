"""The description of a bundle's stream: a step, many of them at once, and a source where there is one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import Any

from mega_deploy.errors import InputError
from mega_deploy.signature import Range, Signature, StateSpec, TensorSpec


@dataclass(frozen=True)
class Encoding:
    """How streams get what their steps read and never change: the source of a translation."""

    signature: Signature
    """Inputs: sources, [batch, source_len, ...]; outputs: the state that no step changes, by its names."""
    seen: str
    """The bool state [batch, source_len] that tells which steps a source has; none where a stream has no source."""

    def to_json(self) -> dict[str, Any]:
        """JSON values as the manifest has them; the outputs stand in its `signature.state`."""
        return {"inputs": self.signature.to_json()["inputs"], "seen": self.seen}

    @classmethod
    def from_json(cls, value: Mapping[str, Any], state: tuple[StateSpec, ...]) -> Encoding:
        """The object from what `to_json` gave, and the state."""
        inputs = Signature.from_json({**value, "outputs": ()}).inputs
        outputs = tuple(spec.tensor for spec in state if spec.output is None)
        seen = next((spec for spec in outputs if spec.name == value["seen"]), None)
        if seen is None or seen.dtype != "bool" or len(seen.dims) != 2:
            raise InputError(f'there is no state "{value["seen"]}" of bool that no step changes')
        for spec in inputs:
            if not spec.dims or not isinstance(spec.dims[0], Range):
                raise InputError(f'the source "{spec.name}" must have a range for its batch')
        return cls(Signature(inputs, outputs), value["seen"])


@dataclass(frozen=True, kw_only=True)
class StreamForm:
    """A bundle's stream as the manifest describes it."""

    step: Signature
    """Inputs and outputs of one step, with the state."""
    prefill: Signature
    """Inputs and outputs of many frames in one call: the step's, with an axis of frames behind each input's batch."""
    window: int
    """Frames that attention reaches back, the present one included."""
    moving_average: str
    """How far back the moving average reaches, in words."""
    flops: int
    """Floating-point operations of one step of one stream."""
    parity: Mapping[str, Any]
    """Summary of stream_parity.json."""
    encode: Encoding | None = None
    """How the source is encoded, for a model that reads one; None for others."""

    @property
    def length(self) -> int:
        """Steps that a stream, and its source, can have; of one without an end those of its window."""
        return next((spec.limit for spec in self.step.state if spec.limit is not None), self.window)

    def to_json(self) -> dict[str, Any]:
        """JSON values as the manifest has them; the state stands in its `signature`."""
        return {
            "inputs": self.step.to_json()["inputs"],
            "outputs": self.step.to_json()["outputs"],
            "prefill": {"inputs": self.prefill.to_json()["inputs"]},
            "window": self.window,
            "moving_average": self.moving_average,
            "flops": self.flops,
            "parity": dict(self.parity),
        } | ({} if self.encode is None else {"encode": self.encode.to_json()})

    @classmethod
    def from_json(cls, value: Mapping[str, Any], state: tuple[StateSpec, ...]) -> StreamForm:
        """The object from what `to_json` gave, and the state."""
        step = replace(Signature.from_json(value), state=state)
        prefill = replace(step, inputs=tuple(map(TensorSpec.from_json, value["prefill"]["inputs"])))
        _check_alike(step, prefill)
        names = ("window", "moving_average", "flops", "parity")
        encode = Encoding.from_json(value["encode"], state) if "encode" in value else None
        if encode is None and any(spec.output is None for spec in state):
            raise InputError("no step changes a part of the state, and nothing tells where it comes from")
        return cls(step=step, prefill=prefill, encode=encode, **{name: value[name] for name in names})


def _check_alike(step: Signature, prefill: Signature) -> None:
    """Refuse a step that is no batch of single frames, and many steps whose frames are not the step's.

    Raises:
        InputError: naming the tensor.
    """
    for spec in (*step.inputs, *step.outputs):
        if not spec.dims or not isinstance(spec.dims[0], Range) or any(isinstance(d, Range) for d in spec.dims[1:]):
            raise InputError(f'"{spec.name}" of a step must have a range for its batch, and fixed sizes behind it')
    for one, many in zip_longest(step.inputs, prefill.inputs):
        if one is None or many is None or (one.name, one.dtype) != (many.name, many.dtype):
            raise InputError("many steps at once must take what a step takes")
        if many.dims[2:] != one.dims[1:] or not all(isinstance(dim, Range) for dim in many.dims[:2]):
            raise InputError(f'"{many.name}" of many steps must be a step\'s, with an axis of steps behind the batch')
