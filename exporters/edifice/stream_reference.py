"""The parity reference of a stream: the trained form over whole sequences, far beyond the window of its attention.

At each position the trained form gives what it would if its attention saw the last `window` frames and no others, and
its moving average all frames from the first. The reference is that in float64, and the noise floor is that in the
bundle's precision; the cases of `mega_deploy.parity` are sequences [rows, frames, features] and every frame's output.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mega_deploy.arrays import Float64Array
from mega_deploy.config.common import Precision
from mega_deploy.errors import InputError, QualityGateError
from mega_deploy.exporters.reference.trained import AUTOCAST
from mega_deploy.models.edifice import GatedAttention, Mega, MegaBlock
from mega_deploy.parity import ILL_CONDITIONED, Case, Error, Pool, Reference, measure, median, worst

Array = npt.NDArray[np.float32]

BEYOND = 1000
"""Frames behind the first window, over which an error would add up."""
SHORT = 16
"""As many, in the cases that are about the inputs and not about the length."""
NEARBY = 2
"""Runs on inputs a last place apart, besides the one on the inputs themselves; see mega_deploy.parity."""
QUERIES = 256
"""Rows of the attention's matrix that are computed at once."""


def record_stream(
    model: Mega, most: int, *, samples: int, seed: int = 0, precision: Precision = "float32"
) -> Reference:
    """The reference for a sequence of the window and BEYOND frames more, and for shorter ones of many kinds.

    Args:
        model: in eval mode; it is left as it is.
        most: streams that the bundle serves at once.
        samples: shorter random sequences, at least 1.
        seed: of the random ones.
        precision: in which the noise floor is taken.
    """
    random = np.random.default_rng(seed)
    window, features = model.config.length, model.config.embed_dim
    short, longest = window + SHORT, window + BEYOND
    normal = random.standard_normal((short, features))
    impulse = np.zeros((short, features))
    impulse[0] = normal[0]
    long = random.standard_normal((1, longest, features))
    kinds = {
        "random, the first window": long[:, :window],
        f"random, {BEYOND} frames beyond the window": long,
        "random, together": random.standard_normal((samples, short, features)),
        "zeros": np.zeros((1, short, features)),
        "constant": np.broadcast_to(normal[:1], (1, short, features)),
        "huge (1e4)": 1e4 * normal[None],
        "tiny (1e-4)": 1e-4 * normal[None],
        "an impulse, then silence": impulse[None],
    }
    return _measure(model, {name: kind.astype(np.float32) for name, kind in kinds.items()}, most, precision)


def record_stream_for(model: Mega, frames: Array, *, precision: Precision = "float32") -> Reference:
    """The reference for sequences of one's own, [batch, frames, embed_dim], as a single case."""
    return _measure(model, {"given inputs": frames}, len(frames), precision)


def _measure(model: Mega, kinds: Mapping[str, Array], most: int, precision: Precision) -> Reference:
    exact, single = copy.deepcopy(model).double().eval(), copy.deepcopy(model).float().eval()
    pools: dict[str, Pool] = {}
    floors: dict[str, Error] = {}
    for name, frames in kinds.items():
        want = at_every_frame(exact, frames)
        if not np.isfinite(want).all():
            raise InputError("the trained model gives NaN or infinite features for ordinary inputs; it has no stream")
        pools[name] = Pool({"frames": frames}, {"features": want})
        floors[name] = _floor(single, frames, want, precision)
    usable = {name: floor for name, floor in floors.items() if floor.relative_l2 <= ILL_CONDITIONED[precision]}
    if not usable or any(name not in usable for name in kinds if name.startswith("random")):
        name, floor = max(floors.items(), key=lambda item: item[1].relative_l2)
        raise QualityGateError(
            f"the trained model itself is off by {floor.relative_l2:.1e} over a stream in case "
            f'"{name}": it is too ill-conditioned for any deployment to be proven equal to it'
        )
    usual = median(list(usable.values()))
    cases = []
    for name, floor in usable.items():
        count = len(kinds[name])
        together = count if count <= most else 1
        cases.append(Case(f"{name}, batch {together}", name, tuple(range(count)), together, worst([floor, usual])))
    return Reference(
        pools={name: pools[name] for name in usable},
        cases=tuple(cases),
        precision=precision,
        left_out=tuple(name for name in floors if name not in usable),
    )


def _floor(single: Mega, given: Array, want: Float64Array, precision: Precision) -> Error:
    random = np.random.default_rng(0)
    # PyTorch takes long for half precision on a CPU, and over a whole stream one run is no lucky one.
    nearby = 0 if precision in AUTOCAST else NEARBY
    inputs = [given, *(given * (1 + 2.0**-23 * random.integers(-1, 2, given.shape, np.int8)) for _ in range(nearby))]
    return worst([measure(at_every_frame(single, np.asarray(array, np.float32), precision), want) for array in inputs])


@torch.no_grad()
def at_every_frame(model: Mega, frames: Array, precision: Precision = "float32") -> Float64Array:
    """The trained form's features at every frame, with attention limited to the last `model.config.length` frames.

    Args:
        model: in float32 or float64.
        frames: [batch, frames, embed_dim], of any length.
        precision: float16 and bfloat16 are those of autocast; otherwise the model's own holds.

    Returns:
        [batch, frames, hidden_size].
    """
    lower = AUTOCAST.get(precision)
    with torch.autocast("cpu", lower) if lower else nullcontext():
        x = model.input_projection(torch.from_numpy(frames).to(next(model.parameters()).dtype))
        for block in cast(Sequence[MegaBlock], model.blocks):
            x = x + block.ema(block.ema_norm(x))
            x = x + _limited_attention(block.attention, block.attention_norm(x), model.config.length)
            x = x + block.ffn(block.ffn_norm(x))
        x = model.final_norm(x)
    return x.double().numpy()


def _limited_attention(attention: GatedAttention, n: Tensor, window: int) -> Tensor:
    """n: [batch, frames, H] -> the same: GatedAttention, where frame i sees those from i - window + 1 to i."""
    q, k, v = attention.q(n), attention.k(n), attention.v(n)
    rows = []
    for start in range(0, n.shape[1], QUERIES):
        end, first = min(start + QUERIES, n.shape[1]), max(0, start - window + 1)
        age = torch.arange(start, end)[:, None] - torch.arange(first, end)
        scores = q[:, start:end] @ k[:, first:end].transpose(1, 2) / q.shape[2] ** 0.5
        weights = scores.masked_fill((age < 0) | (age >= window), float("-inf")).softmax(-1)
        rows.append(weights.to(v.dtype) @ v[:, first:end])
    return attention.out(torch.sigmoid(attention.gate(n)) * torch.cat(rows, 1))
