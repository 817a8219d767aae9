"""Configurations to be timed: bundles of models with random weights, for every combination of the values given.

A file holds one value or a list for each axis; tables [[sweep]] add products of their own to the values above them:

    batch = [1, 8]

    [[sweep]]
    attention = ["softmax", "laplace"]
    window = [60, 256]

    [[sweep]]
    hidden_size = [128, 512]
"""

from __future__ import annotations

import itertools
import math
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, get_args

from mega_deploy import deploy
from mega_deploy.bench.suites import cache
from mega_deploy.config.common import Form
from mega_deploy.config.edifice import USES_LAPLACE
from mega_deploy.errors import InputError, OptionError, require
from mega_deploy.files.reading import read_text

MOST = 1000
MAX_SWEEP_BYTES = 1 << 20
SEED = 0


@dataclass(frozen=True, kw_only=True)
class Configuration:
    """A model with random weights, and how it is exported; the defaults are Edifice's, for 287 features a frame."""

    embed_dim: int = 287
    hidden_size: int = 256
    ema_dim: int = 16
    layers: int = 4
    window: int = 60
    attention: str = "softmax"
    precision: str = "float32"
    form: Form = "window"
    """A stream is exported together with its window, beside which it is timed."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if type(value) is not type(field.default):
                kind = "a whole number" if isinstance(field.default, int) else "a text"
                raise OptionError(f"{field.name} must be {kind} in a sweep, got {value!r}")
        if self.attention not in USES_LAPLACE:
            raise OptionError(f'attention must be "softmax" or "laplace" in a sweep, got {self.attention!r}')
        if self.form not in get_args(Form):
            raise OptionError(f'form must be "window" or "stream" in a sweep, got {self.form!r}')
        if self.form == "stream" and USES_LAPLACE[self.attention]:
            raise OptionError("Laplace attention is not causal, so it has no stream; sweep form = stream with softmax")


AXES = tuple(field.name for field in fields(Configuration))
DEFAULT_PAIR = (Configuration(), Configuration(attention="laplace"))


@dataclass(frozen=True)
class Sweep:
    """Configurations, each at the same batches."""

    configurations: tuple[Configuration, ...]
    batches: tuple[int, ...]


def expand(axes: Mapping[str, Any], default_batches: Sequence[int] = (1,)) -> Sweep:
    """The product of the values of each axis.

    Args:
        axes: by name (Configuration's, and `batch`) one value or a list.
        default_batches: where `axes` has none.

    Raises:
        OptionError: an axis or a value is not one, or there are too many combinations.
    """
    values = {name: tuple(value) if isinstance(value, list | tuple) else (value,) for name, value in axes.items()}
    for name, several in values.items():
        if name not in (*AXES, "batch"):
            raise OptionError(f"a sweep has no axis {name!r}; its axes are {', '.join((*AXES, 'batch'))}")
        if not several:
            raise OptionError(f"{name} is an empty list in a sweep; give it a value, or leave it out")
    batches = values.pop("batch", tuple(default_batches))
    for batch in batches:
        if type(batch) is not int or batch < 1:
            raise OptionError(f"batch must be a whole number from 1 on, got {batch!r}")
    combinations = math.prod(map(len, values.values())) * len(batches)
    if combinations > MOST:
        raise OptionError(f"a sweep of {combinations} combinations is too large; {MOST} are allowed")
    product = [dict(zip(values, combination, strict=True)) for combination in itertools.product(*values.values())]
    return Sweep(tuple(Configuration(**options) for options in product), batches)


def read(path: Path, default_batches: Sequence[int] = (1,)) -> list[Sweep]:
    """The sweeps of a TOML or YAML file.

    Raises:
        InputError: it cannot be read, or a value in it is impossible.
    """
    try:
        text = read_text(path, MAX_SWEEP_BYTES)
        value = _parse(path, text)
    except (ValueError, RecursionError) as error:  # ValueError: InputError, too
        raise InputError(f"{path} cannot be read as a sweep: {' '.join(str(error).split())}") from error
    if not isinstance(value, dict):
        raise InputError(f"{path} must hold axes by name, and tables [[sweep]]")
    tables = value.pop("sweep", [{}])
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise InputError(f"{path}: sweep must be a list of tables, [[sweep]]")
    try:
        return [expand({**value, **table}, default_batches) for table in tables]
    except OptionError as error:
        raise InputError(f"{path}: {error}") from error


def _parse(path: Path, text: str) -> Any:
    if path.suffix not in (".yaml", ".yml"):
        return tomllib.loads(text)
    yaml = require("yaml", "bench", "a sweep in YAML (TOML needs nothing)")
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error


def bundle_of(configuration: Configuration, largest_batch: int, on_step: Callable[[str], None]) -> Path:
    """The bundle of a configuration, from a folder for temporary files where an earlier benchmark left it there.

    Raises:
        MissingComponentError: torch or another package of the extra `export` is not installed.
        QualityGateError: the export fails its parity.
    """
    range_ = f"1:1:{largest_batch}"

    def export(path: Path) -> None:
        on_step(f"export {configuration.attention}, {configuration.hidden_size} wide, {configuration.window} frames")
        torch = require("torch", "export", "a model with random weights")
        from mega_deploy.models.edifice import Mega

        torch.manual_seed(SEED)
        model = Mega.build(
            embed_dim=configuration.embed_dim,
            hidden_size=configuration.hidden_size,
            ema_dim=configuration.ema_dim,
            num_layers=configuration.layers,
            window_size=configuration.window,
            laplace_attention=USES_LAPLACE[configuration.attention],
        )
        precision: Any = configuration.precision
        form: Any = "both" if configuration.form == "stream" else configuration.form
        deploy.export(model.eval(), path, form=form, batch_range=range_, precision=precision, force=path.exists())

    return cache.bundle(configuration.attention, [asdict(configuration), range_], export)
