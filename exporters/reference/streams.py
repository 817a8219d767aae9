"""The parity reference of a stream: the trained form over whole sequences, far beyond the window of its attention.

At each step the trained form gives what it would if its attention saw the window and nothing else, and its moving
average all steps from the first; see Family.trained_stream.
"""

from __future__ import annotations

import dataclasses

from mega_deploy.config.common import Precision
from mega_deploy.exporters.family import Family
from mega_deploy.exporters.reference.cases import Cases, Inputs
from mega_deploy.exporters.reference.recorder import Recorder
from mega_deploy.exporters.reference.sequences import Sequences
from mega_deploy.parity import Reference, handover

STREAM_SAMPLES = 3
"""Shorter random sequences of a parity reference, where nobody says how many."""


def record_stream(
    family: Family,
    length: int,
    most: int,
    *,
    samples: int = STREAM_SAMPLES,
    seed: int = 0,
    precision: Precision = "float32",
) -> Reference:
    """The reference for a sequence far beyond the window, where a stream can have one, and for shorter ones.

    Args:
        family: the trained model's, which is left as it is.
        length: steps that the stream is exported for: see Family.
        most: streams that the bundle serves at once.
        samples: shorter random sequences, at least 1.
        seed: of the random ones.
        precision: in which the noise floor is taken.

    Raises:
        OptionError: the model has no stream.
        InputError: outputs are not finite.
        QualityGateError: the model is too ill-conditioned for a reference.
    """
    sequences = family.sequences(length, most, samples=samples, seed=seed, precision=precision)
    return _record(family, length, sequences, precision, seed)


def record_stream_for(family: Family, length: int, inputs: Inputs, *, precision: Precision = "float32") -> Reference:
    """The reference for sequences of one's own, arrays by name [batch, steps, ...], as a single case."""
    return _record(family, length, family.given_sequences(length, inputs, precision), precision, 0)


def _record(family: Family, length: int, sequences: Sequences, precision: Precision, seed: int) -> Reference:
    long_sequence = next(iter(sequences.pools))
    cases: Cases = {}
    handovers: dict[str, set[int]] = {}
    for name, inputs in sequences.pools.items():
        count, steps = next(iter(inputs.values())).shape[:2]
        together = next(size for size in range(min(count, sequences.most), 0, -1) if count % size == 0)
        cases[f"{name}, batch {together}"] = name, list(range(count)), together
        handovers[name] = {handover(steps), sequences.early if name == long_sequence else 0} - {0}
    steps = max(array.shape[1] for inputs in sequences.pools.values() for array in inputs.values() if array.ndim > 1)
    trained = family.trained_stream(length, steps)
    recorder = Recorder(family, sequences.signature, precision, trained=trained, nearby=sequences.nearby)
    reference = recorder.record(dict(sequences.pools), cases, sampled=sequences.sampled, seed=seed, handovers=handovers)
    long, *others = reference.cases
    return dataclasses.replace(reference, cases=(dataclasses.replace(long, prefilled=sequences.early), *others))
