"""What the parity reference of a paper's model as a stream is of: sequences far beyond a chunk, and the trained form.

That is one that truncates no moving average, for a stream does not either. Padding may stand anywhere.
"""

from __future__ import annotations

import copy

import numpy as np

from mega_deploy.config.paper_signature import pads_to_chunks, signature
from mega_deploy.exporters.paper.cases import paper_kinds
from mega_deploy.exporters.paper.stream.stream_io import StreamModel, stack_of
from mega_deploy.exporters.paper.stream.tasks import reach
from mega_deploy.exporters.reference.cases import RANDOM, Inputs
from mega_deploy.exporters.reference.kept_steps import LARGEST_OUTPUT, output_width
from mega_deploy.exporters.reference.sequences import BEYOND, GIVEN, SHORT, Sequences
from mega_deploy.models.paper.ema import MultiHeadEMA
from mega_deploy.signature import LARGEST_SIZE, Range, Signature

LARGEST_SHORT, WITHIN = 256, 64
"""Where the cases that are about the inputs and not about the length would have more than LARGEST_SHORT steps in all,
they stay WITHIN the first chunk, and its end is left to the long case, which crosses it as ever. Reports do not call
that sampled: every kind of input is there."""
LARGEST_STATE = 1 << 27
"""Numbers of the state of streams that are run together: 512 MB, of which a prefill holds several copies."""
MOST_READ = 1 << 36
"""Numbers, weights and state, that the steps of the long sequence may read: a core takes some half a minute. Beyond it
the first chunk is taken at once, and what follows step by step."""
ONE = Range(1, 1, 1)


def stream_sequences(model: StreamModel, length: int, most: int, *, samples: int, seed: int) -> Sequences:
    """A sequence as long as a stream can be, BEYOND a chunk at most, and shorter ones.

    Args:
        model: trained.
        length: steps that a stream can have where nothing else ends it.
        most: streams that the bundle serves at once.
        samples: shorter random sequences, at least 1.
        seed: of the random ones.
    """
    wanted = _possible(model, length, BEYOND)
    longest = _possible(model, length, BEYOND, LARGEST_OUTPUT // output_width(_signature(model)))
    short = _possible(model, length, SHORT)
    short = short if short <= LARGEST_SHORT else _possible(model, length, SHORT, WITHIN)
    whole = _signature(model, Range(short, short, longest))
    kinds = paper_kinds(model.config, whole, np.random.default_rng(seed))
    pools: dict[str, Inputs] = {f"{RANDOM}, {longest} steps": kinds[RANDOM](1, longest)}
    pools[f"{RANDOM}, together"] = kinds[RANDOM](samples, short)
    pools |= {name: draw(min(samples, 2), short) for name, draw in kinds.items() if name != RANDOM}
    early = longest - SHORT - BEYOND
    read = sum(tensor.numel() for tensor in model.parameters()) + _state(model, length)
    early = early if early > 0 and longest * read >= MOST_READ else 0
    sampled = [f"a long sequence of {longest} steps instead of {wanted}"] if longest < wanted else []
    if early:
        sampled.append(f"the first {early} steps of the long sequence at once, not one by one")
    return Sequences(
        signature=whole,
        pools=pools,
        most=min(most, _streams_at_once(model, length)),
        sampled=tuple(sampled),
        early=early,
    )


def given_sequences(model: StreamModel, inputs: Inputs) -> Sequences:
    """Sequences of one's own, arrays by name [batch, steps, ...]."""
    return Sequences(signature=_signature(model), pools={GIVEN: inputs}, most=len(next(iter(inputs.values()))))


def untruncated(model: StreamModel) -> StreamModel:
    """The model with moving averages that forget nothing, as a stream's; the given one stays as it is."""
    whole = copy.deepcopy(model)
    for module in stack_of(whole)[1].modules():
        if isinstance(module, MultiHeadEMA):
            module.truncation = None
    return whole


def _signature(model: StreamModel, lengths: Range = ONE) -> Signature:
    """The signature of whole sequences; lengths matter to models alone that have a source."""
    return signature(model.config, lengths, ONE)


def _streams_at_once(model: StreamModel, length: int) -> int:
    """As many as LARGEST_STATE holds the state of."""
    return max(1, LARGEST_STATE // _state(model, length))


def _state(model: StreamModel, length: int) -> int:
    """Numbers of a stream's keys and values, which are nearly all that it carries."""
    config = stack_of(model)[1].config
    window, _ = reach(config, length)
    features = config.z_dim + config.hidden_dim
    if config.cross_positions is not None:
        features += config.z_dim + config.embed_dim
    return config.num_layers * window * features


def _possible(model: StreamModel, length: int, beyond: int, most: int = LARGEST_SIZE) -> int:
    """Steps of a sequence that ends so far behind the window, or as far as it can; with a source, half as far."""
    config = stack_of(model)[1].config
    (window, limit), chunk = reach(config, length), config.chunk_size
    if config.cross_positions is not None and beyond == SHORT:
        limit = -(-length // 2)  # so that a source ends before its room does
    steps = max(1, min(window + beyond if limit is None else limit, most))
    if chunk is None or steps <= chunk or pads_to_chunks(model.config):
        return steps
    return steps - steps % chunk
