"""What `mega-deploy bench` does, from the texts of its options to its files."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from mega_deploy.bench.report import against
from mega_deploy.bench.report.files import check_outputs, write
from mega_deploy.bench.suites import lra_text, sweep
from mega_deploy.bench.suites.bundles import Case, Report, cases, check_ours, run
from mega_deploy.bench.suites.options import QUICK, Options
from mega_deploy.config.common import Form
from mega_deploy.errors import OptionError


def numbers(name: str, text: str | None) -> tuple[int, ...]:
    """The whole numbers of an option such as "1,8".

    Raises:
        OptionError: one of them is none, or below 1.
    """
    if text is None:
        return ()
    parts = text.split(",")
    if not all(part.strip().isascii() and part.strip().isdigit() and 0 < int(part) < 1 << 31 for part in parts):
        raise OptionError(f"{name} is a list of whole numbers from 1 on, such as 1,8, got {text!r}")
    return tuple(dict.fromkeys(int(part) for part in parts))


def options(quick: bool, **given: Any) -> Options:
    """The benchmark's options: those that were given, over those of --quick, over the defaults."""
    chosen = {name: value for name, value in given.items() if value is not None}
    return Options(**{**(QUICK if quick else {}), **chosen})


def plan(
    bundles: Sequence[Path],
    *,
    batch: str | None,
    seq_len: str | None,
    sweep_file: Path | None,
    axes: Mapping[str, str | None],
    suite_name: str | None = None,
    quick: bool = False,
    on_step: Callable[[str], None],
) -> list[Case] | lra_text.Plan:
    """What is to be timed: bundles, or configurations with random weights; the default pair where nothing is named.

    Args:
        bundles: paths.
        batch: windows of a call, such as "1,8"; default 1.
        seq_len: lengths, for bundles that take a range.
        sweep_file: see mega_deploy.bench.suites.sweep.
        axes: sweep.AXES by name, as texts such as "128,256"; of bundles only the form is chosen.
        suite_name: of lra_text.NAMES.
        quick: whether a suite is to be a short one.
        on_step: called with the name of each step as it begins.

    Raises:
        InputError: an option is impossible or contradicts another.
        MissingComponentError: an export is needed, and torch is not installed.
    """
    batches = numbers("--batch", batch) or (1,)
    given = {name: _values(name, text) for name, text in axes.items() if text is not None}
    forms = given.pop("form", ()) if bundles else ()
    for form in forms:
        if form not in get_args(Form):
            raise OptionError(
                f"--form is {' or '.join(get_args(Form))}, or both as {','.join(get_args(Form))}, got {form!r}"
            )
    if sum((bool(bundles), sweep_file is not None, bool(given), suite_name is not None)) > 1:
        raise OptionError(
            "name bundles, a suite, a sweep file or options of a sweep such as --hidden-size; only one of the four"
        )
    if suite_name is not None:
        return lra_text.plan(suite_name, numbers("--seq-len", seq_len), batches, quick=quick)
    if bundles:
        return cases(bundles, batches, numbers("--seq-len", seq_len), forms)
    if seq_len is not None:
        raise OptionError(
            "--seq-len is for bundles that take a range of lengths; the length of a sweep is its --window"
        )
    if sweep_file is not None:
        sweeps = sweep.read(sweep_file, batches)
    elif given:
        sweeps = [sweep.expand(given, batches)]
    else:
        sweeps = [sweep.Sweep(sweep.DEFAULT_PAIR, batches)]
    return _cases_of_sweeps(sweeps, on_step)


def _cases_of_sweeps(sweeps: Sequence[sweep.Sweep], on_step: Callable[[str], None]) -> list[Case]:
    """Every configuration at its batches, exported where it has to be; those that sweeps share stand once."""
    found: dict[tuple[Path, int], Case] = {}
    for one in sweeps:
        for configuration in one.configurations:
            path = sweep.bundle_of(configuration, max(64, *one.batches), on_step)
            for case in cases([path], one.batches, forms=(configuration.form,)):
                found[path, case.batch] = case
    return list(found.values())


def _values(name: str, text: str) -> tuple[Any, ...]:
    if isinstance(getattr(sweep.Configuration(), name), int):
        return numbers(f"--{name.replace('_', '-')}", text)
    return tuple(part.strip() for part in text.split(","))


def bench(
    planned: Sequence[Case] | lra_text.Plan,
    chosen: Options,
    *,
    outputs: Mapping[str, Path | None],
    old: Mapping[str, Any] | None = None,
    other_machine: bool = False,
    factor: float = 0.0,
    on_step: Callable[[str], None],
    on_failure: Callable[[str], None],
) -> Report:
    """Run the benchmark, write its files, and compare it with an earlier report where there is one.

    Args:
        planned: of `plan`.
        chosen: of `options`.
        outputs: by kind, "json", "csv" or "html", the file to write.
        old: an earlier report, of against.read_report.
        other_machine: compare all the same where that is of another set-up.
        factor: from which on a row is a regression.
        on_step: called with the name of each step as it begins.
        on_failure: called with one line for each contender that could not be timed.

    Raises:
        InputError: a file cannot be written, or the earlier report does not compare.
    """
    check_outputs(outputs)
    if isinstance(planned, lra_text.Plan):
        if chosen.peers or old is not None or chosen.backends != ("onnxruntime",):
            raise OptionError(
                "a suite has contenders of its own, on onnxruntime: --peers, --backend and --against do not go with it"
            )
        report = lra_text.run(planned, chosen, on_step, on_failure)
    else:
        report = run(planned, chosen, on_step, on_failure)
    if old is not None:
        try:
            if not other_machine:
                against.check_alike(old, report)
            report["against"] = against.compare(old, report, factor)
        finally:
            write(report, outputs)  # what was measured is kept, whatever it is compared with
    else:
        write(report, outputs)
    return report


def without_samples(report: Report) -> Report:
    """The report as it is printed: the raw samples are for files."""
    return {
        **report,
        "results": [{key: row[key] for key in row if key != "samples_ms"} for row in report["results"]],
    }


def check(planned: Sequence[Case] | lra_text.Plan, report: Report) -> None:
    """Fail where what the benchmark is about could not be timed; what was timed stands in the report all the same.

    Raises:
        MegaDeployError: of the exit code that the contender's own error has.
    """
    (lra_text.check if isinstance(planned, lra_text.Plan) else check_ours)(report)
