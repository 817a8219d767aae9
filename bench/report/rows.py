"""The rows of a report, from the samples of the rounds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mega_deploy.bench.contenders.task import GEMM_FLOOR, MEMORY_READ, NO_STEPS, OURS, WINDOW
from mega_deploy.bench.measure.contender import Schedule
from mega_deploy.bench.measure.latency import Latency
from mega_deploy.bench.measure.rounds import Samples, Timed
from mega_deploy.bench.measure.statistics import jitter, mean, noise, over_rounds, quantile, ratio
from mega_deploy.bench.measure.worker import RETURN_CALLS

Row = dict[str, Any]
# NVML's reasons for lower clocks: power cap, slowdown by hardware, heat by software and by hardware, power brake.
HELD_BACK = 0x4 | 0x8 | 0x20 | 0x40 | 0x80
QUANTILES = {"p50_ms": 0.5, "p90_ms": 0.9, "p99_ms": 0.99, "p999_ms": 0.999}


def result_row(one: Timed, about: Row, limit: Mapping[str, float] | None, limits: Mapping[str, Samples]) -> Row:
    """One contender on one case."""
    seconds = [second for turn in one.rounds for second in turn]
    latency = Latency.of(seconds)
    batch, details = about["batch"], one.details
    others = float(np.median(one.others)) if one.others else 0.0
    of_bundle = one.task.contender in (OURS, WINDOW, *NO_STEPS)
    row = {
        "contender": one.task.contender,
        "backend": one.task.backend,
        **about,
        "precision": about["config"]["precision"] if of_bundle else "float32",
        **vars(latency),
        "jitter_ms": jitter(one.rounds) * 1e3,
        "throughput_per_s": batch / latency.mean_ms * 1e3,
        "rounds": len(one.rounds),
        "intervals": _intervals(one.rounds),
        "processor_ms": float(np.median(one.processor)) * 1e3,
        "peak_rss_mb": details["peak_rss_mb"],
        "load_ms": details["load_ms"],
        "cold_start_ms": details["cold_start_ms"],
        "relative_error": details["relative_error"],
        "settings": details["settings"],
        "warm_up": details["warm_up"],
        "others_share": others,
        "noise": noise(one.rounds, others=others, converged=details["warm_up"]["converged"]),
        "limit_share": None if one.task.contender in NO_STEPS else limit_share(one.rounds, latency, limit, limits),
        "samples_ms": [[round(second * 1e3, 5) for second in turn] for turn in one.rounds],
    }
    if one.device:
        row["noise"] += throttling(one.device)
        graph = details.get("cuda_graph", False)
        row |= {"gpu": details["gpu"], "cuda_graph": graph, "device": _device(one.device)}
    return row


def _intervals(rounds: Samples) -> dict[str, dict[str, float]]:
    """Milliseconds of every quantile and of the mean, with their intervals."""
    statistics = {name: quantile(q) for name, q in QUANTILES.items()} | {"mean_ms": mean}
    found = {name: over_rounds(rounds, statistic).to_json() for name, statistic in statistics.items()}
    return {name: {key: value * 1e3 for key, value in estimate.items()} for name, estimate in found.items()}


def limit_share(
    rounds: Samples, latency: Latency, limit: Mapping[str, float] | None, limits: Mapping[str, Samples]
) -> Row | None:
    """The share of each limit that is reached; 1 is all that the machine can do."""
    if limit is None:
        return None
    return {
        "gemm_floor": ratio(limits[GEMM_FLOOR], rounds).to_json(),
        "compute": limit["compute_floor_ms"] / latency.p50_ms,
        "memory": limit["memory_floor_ms"] / latency.p50_ms,
    }


def ratio_rows(contenders: Sequence[Timed], about: Row) -> list[Row]:
    """How many times faster each of our sessions is than each alternative on its kind of device."""
    ours = [one for one in contenders if one.task.contender == OURS]
    rows = []
    for one in ours:
        for peer in contenders:
            if peer.task.contender in (OURS, *NO_STEPS) or bool(peer.details.get("gpu")) != bool(
                one.details.get("gpu")
            ):
                continue
            found = ratio(peer.rounds, one.rounds)
            row = {"contender": OURS, "backend": one.task.backend, "baseline": peer.task.contender, **about}
            rows.append({**row, "ratio": found.value, "low": found.low, "high": found.high})
    return rows


def limit_row(
    about: Row,
    limit: Mapping[str, float],
    counted: Mapping[str, Any],
    contenders: Sequence[Timed],
    limits: Mapping[str, Samples],
) -> Row:
    """The limit of the machine on a case, how much of it ours reaches, and where our time goes."""
    ours = next((one for one in contenders if one.task.contender == OURS), None)
    return {
        **about,
        "precision": about["config"]["precision"],
        **limit,
        "p50_ms": Latency.of([second for turn in ours.rounds for second in turn]).p50_ms if ours else None,
        "times_gemm_floor": ratio(ours.rounds, limits[GEMM_FLOOR]).to_json() if ours else None,
        "times_memory_floor": ratio(ours.rounds, limits[MEMORY_READ]).to_json() if ours else None,
        "profile": {name: counted[name] for name in ("nodes", "products", "nodes_ms", "by_op", "by_block")},
    }


def throttling(turns: Sequence[Row]) -> list[str]:
    """A label where the GPU held its clocks back in a round, by the sensors read behind it."""
    held = sum(bool((turn["sensors"]["throttled_by"] or 0) & HELD_BACK) for turn in turns)
    return [f"throttled: the GPU held its clocks back in {held} of {len(turns)} rounds"] if held else []


def _device(turns: Sequence[Row]) -> Row:
    """Medians over the rounds of what events gave, and every round's sensors."""
    names = turns[0]["device_ms"]
    return {
        **{f"{name}_ms": float(np.median([turn["device_ms"][name] for turn in turns])) for name in names},
        "sensors": [turn["sensors"] for turn in turns],
    }


def method(schedule: Schedule, cores: Sequence[int]) -> Row:
    """How it was measured, for the reader."""
    return {
        "isolation": "a process for each contender, pinned to the cores; those whose turn it is not are stopped",
        "cores": list(cores),
        "threads": len(cores),
        "rounds": schedule.rounds,
        "turn_seconds": schedule.turn_seconds,
        "frames": schedule.frames,
        "order": "there and back",
        "calls_before_a_turn": RETURN_CALLS,
        "warm_up": "until four stretches in a row of 50 ms or more are no faster, to within 1 %, than the best before",
        "clock": "time.perf_counter around a whole call, input and output arrays included",
        "intervals": "95 %; quantiles: percentile bootstrap over whole rounds; ratios: p50 by p50 within a round, "
        "the rounds' median, and its interval from the binomial distribution (all rounds where there are fewer than 6)",
        "noise": "a row is labelled where p50 drifts (Kendall's tau, p < 0.05, 3 % or more), the middle half of the "
        "rounds spreads over 5 %, p99 exceeds 2 x p50, or others used more than 5 % of the cores",
        "checked": "every output against the trained model in float64 before it is timed",
    }
