"""Outputs of fairseq's Mega and of Hugging Face's: in tests/data/paper, and in MEGA_GOLDENS the rest."""

from __future__ import annotations

import functools
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import load_file

from mega_deploy.checkpoints.sources.paper_names import own_name, own_shape

DATA = Path(__file__).parents[2] / "data" / "paper"
ELSEWHERE = Path(os.environ["MEGA_GOLDENS"]) if os.environ.get("MEGA_GOLDENS") else None
TOLERANCE = 2e-5

Arrays = dict[str, np.ndarray]


@functools.cache
def _modules() -> tuple[dict[str, Any], Arrays]:
    folder = DATA / "fairseq"
    return json.loads((folder / "modules.json").read_text()), load_file(folder / "modules.safetensors")


def every_module() -> list[str]:
    """All cases but those of whole models."""
    names = set(_modules()[0])
    if ELSEWHERE is not None:
        names |= {folder.name for folder in (ELSEWHERE / "fairseq").glob("*") if not folder.name.startswith("model_")}
    return sorted(names)


def modules(*classes: str) -> list[str]:
    """Cases of these classes of the official code."""
    names = [name for name, about in _modules()[0].items() if about["class"] in classes]
    if ELSEWHERE is not None and (ELSEWHERE / "fairseq").is_dir():
        for folder in sorted((ELSEWHERE / "fairseq").iterdir()):
            about = json.loads((folder / "config.json").read_text())
            if folder.name not in names and about["class"].rsplit(".", 1)[-1] in classes:
                names.append(folder.name)
    return names


class Module:
    """One case: a module of the official code, with its weights under our names and its inputs and outputs."""

    def __init__(self, name: str) -> None:
        descriptions, tensors = _modules()
        if name in descriptions:
            case = descriptions[name]
            weights, self.inputs, self.outputs = (
                {k.split("/", 2)[2]: v for k, v in tensors.items() if k.startswith(f"{name}/{part}/")}
                for part in ("weights", "inputs", "outputs")
            )
        else:
            assert ELSEWHERE is not None
            folder = ELSEWHERE / "fairseq" / name
            case = json.loads((folder / "config.json").read_text())
            weights, self.inputs, self.outputs = (
                load_file(folder / f"{part}.safetensors") for part in ("weights", "inputs", "outputs")
            )
        self.config, self.flags, self._weights = case["config"], case["flags"], weights

    def weights(self, prefix: str = "") -> dict[str, torch.Tensor]:
        """Weights in float64, under our names; `prefix` stands before the official ones, to be taken away again."""
        found = {}
        for name, array in self._weights.items():
            full = own_name(prefix + name)
            if full is not None:
                tensor = torch.from_numpy(array).double().reshape(own_shape(full, array.shape))
                found[full.partition(".")[2] if prefix else full] = tensor
        return found

    def load(self, module: torch.nn.Module, prefix: str = "") -> torch.nn.Module:
        """The module in float64 with the case's weights."""
        module = module.double().eval()
        module.load_state_dict(self.weights(prefix))
        return module

    def tensor(self, name: str) -> torch.Tensor:
        """An input, in float64 where it is one of real numbers."""
        value = torch.from_numpy(self.inputs[name])
        return value.double() if value.is_floating_point() else value

    def attention_mask(self, name: str = "padding_mask") -> torch.Tensor | None:
        """True at the steps that are no padding, [batch, steps]; None where the case pads nothing."""
        return ~self.tensor(name) if name in self.inputs else None


def close(got: torch.Tensor | np.ndarray, want: np.ndarray) -> None:
    """Assert that a result is within the tolerance of the goldens' own float32."""
    array = got.detach().numpy() if isinstance(got, torch.Tensor) else got
    assert array.shape == want.shape
    assert np.abs(array - want).max() <= TOLERANCE * max(1.0, np.abs(want).max())


class Model:
    """One case of a whole model: its checkpoint, and arrays in and out by the source's names."""

    def __init__(self, folder: Path, source: str) -> None:
        self.source = source
        packed = folder / "golden.safetensors"
        if packed.is_file():
            golden = load_file(packed)
            self.inputs = {k.split("/", 1)[1]: v for k, v in golden.items() if k.startswith("inputs/")}
            self.outputs = {k.split("/", 1)[1]: v for k, v in golden.items() if k.startswith("outputs/")}
            self.checkpoint = folder / "checkpoint.pt" if source == "fairseq" else folder
        else:
            self.inputs, self.outputs = (load_file(folder / f"{part}.safetensors") for part in ("inputs", "outputs"))
            self.checkpoint = folder / ("checkpoint.pt" if source == "fairseq" else "pretrained")

    def tensors(self, *names: str) -> dict[str, torch.Tensor]:
        """These inputs, or all, real values in float64."""
        found = {name: torch.from_numpy(self.inputs[name]) for name in names or self.inputs}
        return {name: value.double() if value.is_floating_point() else value for name, value in found.items()}


def models(source: str, prefix: str = "") -> dict[str, Model]:
    """Cases of "fairseq" or "huggingface" whose names begin so, by name."""
    found = {}
    roots = [DATA / source]
    if ELSEWHERE is not None:
        roots.append(ELSEWHERE / {"huggingface": "hf"}.get(source, source))
    for root in filter(Path.is_dir, roots):
        for folder in sorted(root.glob(f"{prefix}*")):
            if source == "huggingface" or (folder / "checkpoint.pt").is_file():
                found.setdefault(folder.name, Model(folder, source))
    return found


CLASSIFIERS = {**models("fairseq", "model_lra"), **models("fairseq", "model_sc")}
LANGUAGE_MODELS = models("fairseq", "model_lm")
TRANSLATIONS = models("fairseq", "model_nmt")
HUGGING_FACE = models("huggingface")
MODELS = {**models("fairseq"), **HUGGING_FACE}
