"""Tables on stdout and progress on stderr, for people. Each table shows the very values that --json prints."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from mega_deploy.cli import report_text
from mega_deploy.cli.report_text import Report, passed, plain

Table = Callable[[Report], None]


@contextmanager
def progress() -> Iterator[Callable[[str], None]]:
    """A function that shows the name of the step under way on stderr, where that is a terminal."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda step: None
        return
    with console.status("") as status:
        yield lambda step: status.update(f"{step} ...")


def export_table(report: Report) -> None:
    """Print what `export` wrote: the bundle's source, tensors, moving average, precision and parity."""
    ema = report["ema"]
    _print_rows(
        f"{report['bundle']}",
        {
            "source": report_text.source(report),
            **report_text.tensors(report),
            "work of a step" if ema["taps"] is None else "work of a window": report_text.work(report["flops"]),
            "moving average": ema["reason"]
            if ema["taps"] is None
            else f"{ema['lowering']}, {ema['taps']} taps, {ema['bound']:.1e} of the kernel cut",
            **report_text.precision(report),
            "parity": report_text.verdict(report["parity"]),
            **report_text.stream(report["stream"], report["state"]),
            "took": f"{report['seconds']:.1f} s",
        },
    )


def parity_table(report: Report) -> None:
    """Print the verdict of `validate`: each case and block with its error, PyTorch's own and the limit."""
    console, table = Console(), RichTable(title=plain(f"parity on {report['backend']}, {report['precision']}"))
    for column, right in (
        ("case", False),
        ("batch", True),
        ("relative error", True),
        ("PyTorch's own", True),
        ("limit", True),
        ("", False),
    ):
        table.add_column(column, justify="right" if right else "left")
    for part in ("cases", "blocks"):
        for case in report[part]:
            error = "not finite" if case["relative_l2"] is None else f"{case['relative_l2']:.1e}"
            numbers = (str(case["batch"]), error, f"{case['floor']:.1e}", f"{case['limit']:.1e}")
            table.add_row(plain(case["name"]), *numbers, passed(case["passed"]))
        table.add_section()
    console.print(table)
    if left_out := report["left_out"]:
        console.print(plain(f"left out, for PyTorch's own {report['precision']} fails there: {', '.join(left_out)}"))
    if sampled := report["sampled"]:
        console.print(plain(f"sampled, for this is a large model: {', '.join(sampled)}"))
    console.print(report_text.verdict(report))


def bisection_table(report: Report) -> None:
    """Print what `validate --bisect` found: the blocks, and in the bad one what leads to the first bad node."""
    heading = plain(f"{report['case']} on {report['backend']}, {report['precision']}")
    console, table = Console(), RichTable(title=heading)
    for column, right in (("", False), ("made by", False), ("error", True), ("limit", True), ("", False)):
        table.add_column(column, justify="right" if right else "left", overflow="fold")
    bad = next((index for index, value in enumerate(report["values"]) if not value["passed"]), 0)
    for title, part in (("behind", report["blocks"]), ("in it", report["values"][max(0, bad - 3) : bad + 1])):
        for value in part:
            error = "not finite" if value["relative_l2"] is None else f"{value['relative_l2']:.1e}"
            names = (value["name"] if title == "behind" else value["op"], value["node"])
            table.add_row(*map(plain, names), error, f"{value['limit']:.1e}", passed(value["passed"]))
        table.add_section()
    console.print(table)
    console.print(passed(report["passed"]) + f": {report['advice']}")


def polygraphy_table(report: Report) -> None:
    """Show the cases that `debug polygraphy` wrote, and the commands that use them."""
    console, table = Console(), RichTable(title=plain(report["folder"]), title_justify="left")
    for column, right in (("case", False), ("of", False), ("batch", True), ("iterations", True)):
        table.add_column(column, justify="right" if right else "left", overflow="fold")
    for case in report["cases"]:
        table.add_row(case["folder"], plain(case["name"]), str(case["batch"]), str(case["iterations"]))
    console.print(table)
    for form in report["left_out"]:
        console.print(plain(f"left out: {form}"), soft_wrap=True)
    for command in report["commands"]:
        console.print(plain(f"in {report['folder']}: {command}"), soft_wrap=True)


def run_line(report: Report) -> None:
    """Print what `run` wrote: the outputs, how long it took and which native kernels served."""
    outputs = ", ".join(f"{name} {value['dtype']} {value['shape']}" for name, value in report["outputs"].items())
    native = f", {', '.join(report['native_ops'])} native" if report["native_ops"] else ""
    took = f"{report['seconds'] * 1e3:.2f} ms on {report['backend']}{native}"
    Console().print(plain(f"{report['output']}: {outputs} in {took}"))


def inspect_table(report: Report) -> None:
    """Print what `inspect` found out about a bundle, an engine or a checkpoint."""
    of_kind = {"bundle": report_text.bundle, "engine": report_text.engine, "checkpoint": report_text.checkpoint}
    rows = of_kind[report["kind"]](report)
    if "task" not in report:
        options = report["config"] if "config" in report else report.get("options", {})
        rows["options"] = ", ".join(f"{name}={value}" for name, value in options.items()) or "unknown"
    missing = Text.assemble(("no", "red"), ": ", plain("; ".join(report["missing"])))
    rows |= {"size": report_text.megabytes(report), "can be used here": "yes" if report["runs_here"] else missing}
    _print_rows(f"{report['path']}: {report['kind']}", rows)


def built_engine_table(report: Report) -> None:
    """Print the engine that `build` added, and the engines of the bundle's other graphs."""
    rows = {**report_text.engine(report), "size": report_text.megabytes(report), "took": f"{report['seconds']:.1f} s"}
    for other in report["engines"]:
        size, seconds = report_text.megabytes(other), f"{other['seconds']:.1f} s"
        rows[f"of {other['graph']}"] = f"{other['layers']} layers, {size}, {seconds}: {other['file']}"
    _print_rows(f"{report['bundle']}/{report['file']}", rows)


def plugins_table(report: Report) -> None:
    """Print a row for each target of `plugins list`: its library, architectures and kernels."""
    table = RichTable()
    for column in ("target", "library", "architectures", "kernels"):
        table.add_column(column, overflow="fold")
    for row in report["plugins"]:
        kernels = row["kernels"]
        compiled = [kernel["registers"] for kernel in kernels if kernel["registers"]]
        resources = ""
        if compiled:
            spilled = sum(kernel["spill_bytes"] for kernel in kernels)
            resources = (
                f"{len(kernels)}, of {min(compiled)} to {max(compiled)} registers, {spilled or 'no'} bytes spilled"
            )
        library = row["library"] or f"not built: mega-deploy plugins build {row['target']}"
        table.add_row(row["target"], *map(plain, (library, ", ".join(row["architectures"]), resources)))
    Console().print(table)


def built_line(report: Report) -> None:
    """Print the library that `plugins build` made."""
    Console().print(plain(f"{report['plugin']['name']} for {report['target']}: {report['library']}"), soft_wrap=True)


def doctor_table(report: Report) -> None:
    """Print the components that `doctor` looked for, what each is for and how to get those that are missing."""
    table = RichTable()
    for column in ("component", "version", "", "for", "remedy"):
        table.add_column(column)
    for part in report["components"]:
        state = Text("works", "green") if part["works"] else Text("missing", "red")
        version, remedy = plain(part["version"] or ""), plain(part["remedy"] or "")
        table.add_row(part["name"], version, state, part["purpose"], remedy)
    Console().print(table)


def demo_table(report: Report) -> None:
    """Print the result of `demo`: accuracy before and after deployment, parity and the latency of one window."""
    accuracy, latency = report["accuracy"], report["latency"]
    _print_rows(
        "demo: who is speaking?",
        {
            "data": report["data"],
            "bundle": report["bundle"],
            "work of a window": report_text.work(report["flops"]),
            "parity": report_text.verdict(report["parity"]),
            "accuracy, trained model": f"{accuracy['trained']:.2%}",
            "accuracy, deployed model": f"{accuracy['deployed']:.2%} of {report['samples']} held-out utterances",
            "same decision as trained": f"{accuracy['agreement']:.2%}",
            "one window": "p50 {p50_ms:.3f} ms, p99 {p99_ms:.3f} ms, of {samples} calls".format(**latency),
            "next": f"mega-deploy inspect {report['bundle']}",
        },
    )


def warning(line: str) -> None:
    """Print, on stderr, something that went wrong and did not end the command."""
    Console(stderr=True).print(plain(f"warning: {line}"), soft_wrap=True)


def _print_rows(title: str, rows: dict[str, object]) -> None:
    table = RichTable(title=plain(title), show_header=False, title_justify="left")
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, value in rows.items():
        table.add_row(plain(name), value if isinstance(value, Text) else plain(value))
    Console().print(table)
