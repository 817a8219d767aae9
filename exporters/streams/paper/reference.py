"""The parity reference of a paper's model as a stream: the trained form over whole sequences, far beyond a chunk.

The trained form is one that truncates no moving average, for a stream does not either. Padding may stand anywhere.
"""

from __future__ import annotations

import copy

import numpy as np

from mega_deploy.config import Precision
from mega_deploy.exporters.cases import RANDOM, Cases, Inputs
from mega_deploy.exporters.paper.cases import paper_kinds
from mega_deploy.exporters.reference import Recorder
from mega_deploy.models.paper import MegaLanguageModel
from mega_deploy.models.paper.ema import MultiHeadEMA
from mega_deploy.paper.signatures import signature
from mega_deploy.parity import Reference
from mega_deploy.signature import Range, Signature

BEYOND = 1000
"""Steps behind the first chunk, over which an error would add up."""
SHORT, LARGEST_SHORT = 16, 256
"""As many, and steps at most, in the cases that are about the inputs and not about the length."""
LARGEST_OUTPUT = 1 << 24
"""Numbers that the outputs of a sequence may hold: 128 MB in float64. A large vocabulary has shorter sequences."""


def record(
    model: MegaLanguageModel, window: int, most: int, *, samples: int, seed: int, precision: Precision
) -> Reference:
    """The reference for a sequence as long as a stream can be, BEYOND a chunk at most, and for shorter ones.

    Args:
        model: in eval mode; it is left as it is.
        window: steps of a chunk; without chunks all that a stream can hold.
        most: streams that the bundle serves at once.
        samples: shorter random sequences, at least 1.
        seed: of the random ones.
        precision: in which the noise floor is taken.
    """
    told = _signature(model)
    kinds = paper_kinds(model.config, told, np.random.default_rng(seed))
    longest = _possible(model, window, BEYOND)
    short = min(_possible(model, window, SHORT), LARGEST_SHORT)
    pools: dict[str, Inputs] = {f"{RANDOM}, {longest} steps": kinds[RANDOM](1, longest)}
    pools[f"{RANDOM}, together"] = kinds[RANDOM](samples, short)
    pools |= {name: draw(min(samples, 2), short) for name, draw in kinds.items() if name != RANDOM}
    return _recorded(model, told, pools, most, precision)


def record_for(model: MegaLanguageModel, inputs: Inputs, precision: Precision) -> Reference:
    """The reference for sequences of one's own, arrays by name [batch, steps, ...], as a single case."""
    return _recorded(model, _signature(model), {"given inputs": inputs}, len(next(iter(inputs.values()))), precision)


def untruncated(model: MegaLanguageModel) -> MegaLanguageModel:
    """The model with moving averages that forget nothing, as a stream's; the given one stays as it is."""
    whole = copy.deepcopy(model)
    for module in whole.modules():
        if isinstance(module, MultiHeadEMA):
            module.truncation = None
    return whole


def _signature(model: MegaLanguageModel) -> Signature:
    """Of whole sequences; lengths matter to nobody here."""
    return signature(model.config, Range(1, 1, 1), Range(1, 1, 1))


def _possible(model: MegaLanguageModel, window: int, beyond: int) -> int:
    """Steps of a sequence that ends so far behind the window, or as far as it can."""
    words = model.config.embedding.vocab_size
    assert words is not None
    wanted = window if model.config.decoder.chunk_size is None else window + beyond
    return max(1, min(wanted, LARGEST_OUTPUT // words))


def _recorded(
    model: MegaLanguageModel, told: Signature, pools: dict[str, Inputs], most: int, precision: Precision
) -> Reference:
    cases: Cases = {}
    for name, inputs in pools.items():
        count = len(next(iter(inputs.values())))
        together = count if count <= most else 1
        cases[f"{name}, batch {together}"] = name, list(range(count)), together
    return Recorder(untruncated(model), told, precision, ()).record(pools, cases, ())
