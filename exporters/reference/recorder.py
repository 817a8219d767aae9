"""The parity reference of a model: what the trained form gives in float64, and the noise floor of its own precision."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping, Sequence
from types import MappingProxyType

import numpy as np
from torch import nn

from mega_deploy.arrays import Array
from mega_deploy.config.common import Precision
from mega_deploy.errors import InputError, QualityGateError
from mega_deploy.exporters.family import Family
from mega_deploy.exporters.reference import noise_floor
from mega_deploy.exporters.reference.cases import RANDOM, Cases, Inputs, make_cases, rows_of, rows_that_fit, steps_of
from mega_deploy.exporters.reference.kept_steps import Handovers, describe, kept_steps
from mega_deploy.exporters.reference.noise_floor import NoiseFloor
from mega_deploy.exporters.reference.sequences import GIVEN
from mega_deploy.exporters.reference.trained import keep_in_float32, own_precision, rows_at_once, run
from mega_deploy.parity import (
    ILL_CONDITIONED,
    BlockFloor,
    Case,
    Pool,
    Reference,
    batches,
    measure,
    median,
    worst,
)
from mega_deploy.signature import Signature

SAMPLES = 8
# Of the residual streams the last frames are kept: enough to find the first bad block, and a bound on a bundle's size.
BLOCK_FRAMES = 256


def record(
    family: Family,
    signature: Signature,
    block_names: Sequence[str],
    *,
    samples: int | None = None,
    seed: int = 0,
    precision: Precision = "float32",
    keep_float32: Sequence[str] = (),
) -> Reference:
    """The reference for random and adversarial inputs and several batches; of a range of lengths several, too.

    Of a model whose rows take long, beyond noise_floor.MOST_WORK, there are fewer, of which the reference tells.

    Args:
        family: the trained model's, which is left as it is.
        signature: of its bundle.
        block_names: what the graph calls the residual stream behind each block: a module's name and ".output".
        samples: random rows, at least 1; None for SAMPLES, or as many as noise_floor.MOST_WORK allows.
        seed: of the random rows.
        precision: in which the noise floor is taken: for float16 and bfloat16 under autocast; for int8, which the
            trained form does not have, in float32.
        keep_float32: modules of the trained form, by name, that stay float32 for the floor.
    """
    kinds = family.kinds(signature, np.random.default_rng(seed))
    # Two at least, for a batch must hold rows that differ.
    most = max(2, min(noise_floor.MOST_WORK // max(1, family.flops(signature)), rows_that_fit(signature)))
    pools, cases = make_cases(kinds, signature, family.width, samples or min(SAMPLES, most), most)
    sampled = [f"{most} random rows instead of {SAMPLES}"] if samples is None and most < SAMPLES else []
    recorder = Recorder(family, signature, precision, keep_float32)
    return recorder.record(pools, cases, block_names, sampled=sampled, seed=seed)


def record_for(
    family: Family,
    signature: Signature,
    block_names: Sequence[str],
    inputs: Inputs,
    name: str = GIVEN,
    *,
    precision: Precision = "float32",
    keep_float32: Sequence[str] = (),
) -> Reference:
    """The reference for inputs of one's own as a single case.

    Args:
        family: the trained model's.
        signature: of its bundle.
        block_names: see `record`.
        inputs: all of them, as `signature.feeds` gives them.
        name: of the case.
        precision: see `record`.
        keep_float32: see `record`.
    """
    rows = len(next(iter(inputs.values())))
    cases = {name: (name, list(range(rows)), rows)}
    return Recorder(family, signature, precision, keep_float32).record({name: inputs}, cases, block_names)


class Recorder:
    """Runs a trained model in float64 and in its own precision.

    Args:
        family: the model's.
        signature: whose outputs count.
        precision: in which the noise floor is taken.
        keep_float32: see `record`.
        trained: the trained form that is run, which is left as it is; None for the model itself.
        nearby: runs on inputs a last place away for each noise floor; see NoiseFloor.
    """

    def __init__(
        self,
        family: Family,
        signature: Signature,
        precision: Precision,
        keep_float32: Sequence[str] = (),
        *,
        trained: nn.Module | None = None,
        nearby: int | None = None,
    ) -> None:
        self.family, self.precision = family, precision
        self.keep_float32 = tuple(keep_float32)
        trained = family.model if trained is None else trained
        self.exact = copy.deepcopy(trained).double().eval()
        self.single = copy.deepcopy(trained).float().eval()
        keep_in_float32(self.single, keep_float32)
        self.signature, self.outputs = signature, [spec.name for spec in signature.outputs]
        self._floor = NoiseFloor(self.single, family, signature, precision, nearby)

    def record(
        self,
        inputs: dict[str, Inputs],
        cases: Cases,
        block_names: Sequence[str] = (),
        *,
        sampled: Sequence[str] = (),
        seed: int = 0,
        handovers: Handovers = MappingProxyType({}),
    ) -> Reference:
        """The reference for pools of inputs.

        Args:
            inputs: of each pool.
            cases: made of them.
            block_names: see `record`.
            sampled: what the pools hold less of than those of a smaller model.
            seed: of the steps at which outputs are kept, where they are too large to be kept whole.
            handovers: see `kept_steps`.

        Raises:
            InputError: outputs are too large for any reference, or not finite.
            QualityGateError: the model is too ill-conditioned for one.
        """
        steps = kept_steps(inputs, self.signature, self.family.chunk, seed, handovers)
        pools = {name: self._exactly(Pool(pool, {}, steps.get(name, {}))) for name, pool in inputs.items()}
        if not all(np.isfinite(array).all() for pool in pools.values() for array in pool.outputs.values()):
            raise InputError(
                "the trained model gives NaN or infinite outputs for ordinary inputs; it cannot be deployed"
            )
        floors = self._floor.measure(pools, cases)
        limit = ILL_CONDITIONED[self.precision]
        usable = {name: floor for name, floor in floors.items() if floor.relative_l2 <= limit}
        if not all(name in usable for name in cases if name.startswith(RANDOM)) or not usable:
            name, floor = max(floors.items(), key=lambda item: item[1].relative_l2)
            raise QualityGateError(
                f"the trained model itself is off by {floor.relative_l2:.1e} in {own_precision(self.precision)} "
                f'in case "{name}": it is too ill-conditioned for any deployment to be proven equal to it'
            )
        usual = median(list(usable.values()))
        measured = tuple(
            Case(name, pool, tuple(rows), batch, worst([usable[name], usual]))
            for name, (pool, rows, batch) in cases.items()
            if name in usable
        )
        first = measured[0]
        some = rows_of(inputs[first.pool], list(first.rows)[: first.batch])
        got, want = self._streams(some, block_names, pools[first.pool].steps)
        return Reference(
            pools={name: pool for name, pool in pools.items() if name in {case.pool for case in measured}},
            cases=measured,
            blocks=tuple(BlockFloor(name, measure(got[name], want[name])) for name in got),
            block_outputs=want,
            precision=self.precision,
            kept=self.keep_float32,
            left_out=tuple(name for name in floors if name not in usable),
            sampled=(*sampled, *describe(steps, inputs, self.signature), *self._floor.fewer_runs(pools, cases)),
        )

    def _exactly(self, pool: Pool) -> Pool:
        """The pool with the outputs in float64."""
        count = len(next(iter(pool.inputs.values())))
        parts = [
            self._run(self.exact, rows_of(pool.inputs, rows), "float32", pool.steps)[0]
            for rows in batches(range(count), rows_at_once(self.family, steps_of(pool.inputs)))
        ]
        outputs = {name: np.concatenate([part[name] for part in parts]) for name in self.outputs}
        return dataclasses.replace(pool, outputs=outputs)

    def _run(
        self,
        model: nn.Module,
        inputs: Inputs,
        precision: Precision,
        steps: Mapping[str, Array],
        blocks: Sequence[str] = (),
    ) -> tuple[dict[str, Array], list[Array]]:
        """Outputs by name, and what modules gave: see `run`."""
        return run(model, inputs, self.outputs, precision, blocks, steps=steps, score_at=self.family.score_at)

    def _streams(self, inputs: Inputs, names: Sequence[str], steps: Mapping[str, Array]) -> tuple[Inputs, Inputs]:
        """The residual stream behind each block, in the model's precision and in float64."""
        if not names:
            return {}, {}
        modules = [name.removesuffix(".output") for name in names]
        runs: tuple[tuple[nn.Module, Precision], ...] = (self.single, self.precision), (self.exact, "float32")
        row, streams = self.family.computed_row, []
        for model, precision in runs:
            kept = self._run(model, inputs, precision, steps, modules)[1]
            if row is not None and kept:
                kept[-1] = kept[-1][:, [row]]  # the graph computes no more of the last block
            streams.append({name: stream[:, -BLOCK_FRAMES:] for name, stream in zip(names, kept, strict=True)})
        return streams[0], streams[1]
