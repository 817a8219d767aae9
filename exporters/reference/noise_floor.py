"""The noise floor of a case: how far the trained form, in its own precision, is off what it gives in float64."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from torch import nn

from mega_deploy.arrays import Array
from mega_deploy.config.common import Precision
from mega_deploy.exporters.family import Family
from mega_deploy.exporters.reference.cases import Cases, Inputs, rows_of, steps_of
from mega_deploy.exporters.reference.trained import AUTOCAST, a_last_place_away, rows_at_once, run
from mega_deploy.parity import Error, Pool, batches, measure, worst
from mega_deploy.signature import SEQUENCE_AXES, Signature, usual

NEARBY = 4
# Floating-point operations of one run over a case, beyond which a large model has fewer of them: two cores take some
# three seconds for so many in float32, and five in float64.
MOST_WORK = 1 << 38
# How many times longer a run takes under autocast to float16, for which most CPUs have no arithmetic: 12 on one thread
# of an AMD EPYC (Zen 4), two layers 512 wide over 256 steps.
FLOAT16_TIMES = 12
# A floor is taken of all rows, in the batches of the case, which changes float32's last places, while the activations
# hold no more numbers than this.
LARGEST_FLOOR = 1 << 22


class NoiseFloor:
    """Runs a trained model in its own precision, on the inputs of cases and on some a last place away.

    Args:
        model: in float32, with what stays so taken out of autocast.
        family: the model's.
        signature: whose outputs count.
        precision: for float16 and bfloat16 the model runs under autocast; otherwise in float32.
        nearby: runs on inputs a last place away for each floor; None for NEARBY, or fewer where they take long.
    """

    def __init__(
        self, model: nn.Module, family: Family, signature: Signature, precision: Precision, nearby: int | None
    ) -> None:
        self._model, self._family, self._precision, self._chosen = model, family, precision, nearby
        self._outputs = [spec.name for spec in signature.outputs]
        self._step_flops = family.flops(signature) / usual(signature.dim(*SEQUENCE_AXES))

    def measure(self, pools: Mapping[str, Pool], cases: Cases) -> dict[str, Error]:
        """The noise floor of each case."""
        floors: dict[tuple[str, tuple[int, ...], int], Error] = {}
        named = {}
        for name, (pool, all_rows, size) in cases.items():
            rows, batch = all_rows, size
            length = steps_of(pools[pool].inputs)
            large = len(rows) * length * self._family.width(length) > LARGEST_FLOOR
            if large or self._precision in AUTOCAST:
                # PyTorch takes long for much, and for half precision, where batches change nothing that shows.
                rows = sorted(set(rows))
                batch = min(len(rows), rows_at_once(self._family, length))
            key = pool, tuple(rows), batch
            if key not in floors:
                floors[key] = self._floor(pools[pool], rows, batch)
            named[name] = floors[key]
        return named

    def _floor(self, pool: Pool, rows: list[int], batch: int) -> Error:
        """The worst error of the trained form in its own precision, on a case and on inputs a last place away from it.

        One run alone may come near float64 by luck, and then no other implementation would be allowed what rounding
        costs.
        """
        random = np.random.default_rng(0)
        inputs = rows_of(pool.inputs, rows)
        part = Pool(inputs, rows_of(pool.outputs, rows), pool.steps)
        errors = [self._error(inputs, part, batch)]
        for _ in range(self._nearby(len(rows), steps_of(inputs))):
            with a_last_place_away(self._model, inputs, self._precision, random) as nearby:
                errors.append(self._error(nearby, part, batch))
        return worst(errors)

    def _nearby(self, rows: int, length: int) -> int:
        """Runs on inputs a last place away, besides the one on the inputs themselves.

        What takes long has many outputs, over which the error of a single run is no matter of luck.
        """
        if self._chosen is not None:
            return self._chosen
        work = rows * length * self._step_flops * (FLOAT16_TIMES if self._precision == "float16" else 1)
        return min(NEARBY, int(MOST_WORK // max(1, work)))

    def fewer_runs(self, pools: Mapping[str, Pool], cases: Cases) -> list[str]:
        """How many noise floors are of fewer runs than usual, in a phrase; none where their number was asked for."""
        if self._chosen is not None:
            return []
        nearby = [self._nearby(len(set(rows)), steps_of(pools[pool].inputs)) for pool, rows, _ in cases.values()]
        few = sum(count < NEARBY for count in nearby)
        if not few:
            return []
        runs = f"{1 + min(nearby)} runs" if min(nearby) else "a single run"
        return [f"noise floors of {few} of {len(cases)} cases from {runs} instead of {1 + NEARBY}"]

    def _error(self, inputs: Inputs, pool: Pool, batch: int) -> Error:
        """The error of the model in its own precision on inputs that are the pool's, or next to them."""
        parts = [
            self._run(rows_of(inputs, rows), pool.steps)
            for rows in batches(range(len(next(iter(inputs.values())))), batch)
        ]
        return worst(
            [measure(np.concatenate([part[name] for part in parts]), pool.outputs[name]) for name in self._outputs]
        )

    def _run(self, inputs: Inputs, steps: Mapping[str, Array]) -> dict[str, Array]:
        score_at = self._family.score_at
        return run(self._model, inputs, self._outputs, self._precision, steps=steps, score_at=score_at)[0]
