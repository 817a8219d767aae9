"""manifest.json, which names every other file of a bundle and says what they are."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import resources
from typing import Any

import fastjsonschema

from mega_deploy.config.common import Precision
from mega_deploy.errors import BundleError, InputError
from mega_deploy.signature import Signature
from mega_deploy.signature.stream_form import StreamForm

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
MODEL = "model.onnx"
STEP = "step.onnx"
PREFILL = "prefill.onnx"
ENCODE = "encode.onnx"
PARITY = "parity.json"
REFERENCE = "reference.npz"
STREAM_PARITY = "stream_parity.json"
STREAM_REFERENCE = "stream_reference.npz"
TRAINED = "trained.safetensors"


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What manifest.json says; the schema beside this module describes each entry."""

    config: Mapping[str, Any]
    source: Mapping[str, str]
    signature: Signature
    """What model.onnx takes and gives, or step.onnx in a bundle that is only a stream; with the state wherever there is
    a stream."""
    precision: Precision
    ema: Mapping[str, Any]
    flops: Mapping[str, int]
    parity: Mapping[str, Any]
    tools: Mapping[str, str]
    files: Mapping[str, Mapping[str, Any]]
    plugins: tuple[Mapping[str, Any], ...] = ()
    engines: tuple[Mapping[str, Any], ...] = ()
    float32_islands: tuple[str, ...] = ()
    advice: tuple[str, ...] = ()
    stream: StreamForm | None = None
    format_version: int = field(default=FORMAT_VERSION)

    def to_json(self) -> dict[str, Any]:
        """As the file has it."""
        return {
            "format_version": self.format_version,
            "config": dict(self.config),
            "source": dict(self.source),
            "signature": self.signature.to_json(),
            "precision": self.precision,
            "float32_islands": list(self.float32_islands),
            "advice": list(self.advice),
            "ema": dict(self.ema),
            "flops": dict(self.flops),
            "parity": dict(self.parity),
            "plugins": [dict(plugin) for plugin in self.plugins],
            "engines": [dict(engine) for engine in self.engines],
            "tools": dict(self.tools),
            "files": {name: dict(entry) for name, entry in self.files.items()},
            **({"stream": self.stream.to_json()} if self.stream else {}),
        }

    @classmethod
    def from_json(cls, value: Any) -> Manifest:
        """From a parsed manifest.json.

        Raises:
            BundleError: it is of another format version, or the schema refuses it.
        """
        version = value.get("format_version") if isinstance(value, dict) else None
        if version != FORMAT_VERSION:
            newer = type(version) is int and version > FORMAT_VERSION
            remedy = "upgrade mega-deploy, or export the model anew" if newer else "export the model anew"
            raise BundleError(f"format_version is {version!r}, this mega-deploy reads {FORMAT_VERSION}; {remedy}")
        try:
            _schema()(value)
            signature = Signature.from_json(value["signature"])
            stream = StreamForm.from_json(value["stream"], signature.state) if "stream" in value else None
        except (fastjsonschema.JsonSchemaValueException, InputError) as error:
            raise BundleError(str(error)) from error
        _check_graphs(value["files"], stream)
        entries = {name: value[name] for name in cls.__dataclass_fields__ if name in value}
        for name in ("plugins", "engines", "float32_islands", "advice"):
            entries[name] = tuple(value.get(name, ()))
        return cls(**{**entries, "signature": signature, "stream": stream})


def _check_graphs(names: Mapping[str, Any], stream: StreamForm | None) -> None:
    """Refuse a stream without its graphs, and a bundle that has neither a window nor a stream."""
    needed = [MODEL] if stream is None else [STEP] if stream.encode is None else [STEP, ENCODE]
    if missing := [name for name in needed if name not in names]:
        raise BundleError(f"it describes {missing[0]}, which is none of its files")


@functools.cache
def _schema() -> Callable[[Any], Any]:
    text = resources.files("mega_deploy").joinpath("manifest.schema.json").read_text("utf-8")
    validate: Callable[[Any], Any] = fastjsonschema.compile(json.loads(text))
    return validate
