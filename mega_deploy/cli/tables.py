"""What a person sees: tables on stdout, progress on stderr. Each table shows the very values that --json prints."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from mega_deploy.cli import report_text as facts
from mega_deploy.cli.report_text import Report

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
    """Of `export`."""
    ema = report["ema"]
    _facts(
        f"{report['bundle']}",
        {
            "source": facts.source(report),
            **facts.tensors(report),
            "work of a step" if ema["taps"] is None else "work of a window": facts.work(report["flops"]),
            "moving average": ema["reason"]
            if ema["taps"] is None
            else f"{ema['lowering']}, {ema['taps']} taps, {ema['bound']:.1e} of the kernel cut",
            **facts.precision(report),
            "parity": facts.verdict(report["parity"]),
            **facts.stream(report["stream"], report["state"]),
            "took": f"{report['seconds']:.1f} s",
        },
    )


def parity_table(report: Report) -> None:
    """Of `validate`."""
    console, table = Console(), RichTable(title=facts.plain(f"parity on {report['backend']}, {report['precision']}"))
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
            table.add_row(facts.plain(case["name"]), *numbers, facts.passed(case["passed"]))
        table.add_section()
    console.print(table)
    if left_out := report["left_out"]:
        console.print(
            facts.plain(f"left out, for PyTorch's own {report['precision']} fails there: {', '.join(left_out)}")
        )
    if sampled := report["sampled"]:
        console.print(facts.plain(f"sampled, for this is a large model: {', '.join(sampled)}"))
    console.print(facts.verdict(report))


def bisection_table(report: Report) -> None:
    """Of `validate --bisect`: the blocks, and of the bad one what leads to the first bad node."""
    heading = facts.plain(f"{report['case']} on {report['backend']}, {report['precision']}")
    console, table = Console(), RichTable(title=heading)
    for column, right in (("", False), ("made by", False), ("error", True), ("limit", True), ("", False)):
        table.add_column(column, justify="right" if right else "left", overflow="fold")
    bad = next((index for index, value in enumerate(report["values"]) if not value["passed"]), 0)
    for title, part in (("behind", report["blocks"]), ("in it", report["values"][max(0, bad - 3) : bad + 1])):
        for value in part:
            error = "not finite" if value["relative_l2"] is None else f"{value['relative_l2']:.1e}"
            told = (value["name"] if title == "behind" else value["op"], value["node"])
            table.add_row(*map(facts.plain, told), error, f"{value['limit']:.1e}", facts.passed(value["passed"]))
        table.add_section()
    console.print(table)
    console.print(facts.passed(report["passed"]) + f": {report['advice']}")


def polygraphy_table(report: Report) -> None:
    """Show the cases that `debug polygraphy` wrote, and the commands that use them."""
    console, table = Console(), RichTable(title=facts.plain(report["folder"]), title_justify="left")
    for column, right in (("case", False), ("of", False), ("batch", True), ("iterations", True)):
        table.add_column(column, justify="right" if right else "left", overflow="fold")
    for case in report["cases"]:
        table.add_row(case["folder"], facts.plain(case["name"]), str(case["batch"]), str(case["iterations"]))
    console.print(table)
    for form in report["left_out"]:
        console.print(facts.plain(f"left out: {form}"), soft_wrap=True)
    for command in report["commands"]:
        console.print(facts.plain(f"in {report['folder']}: {command}"), soft_wrap=True)


def run_line(report: Report) -> None:
    """Of `run`."""
    outputs = ", ".join(f"{name} {value['dtype']} {value['shape']}" for name, value in report["outputs"].items())
    native = f", {', '.join(report['native_ops'])} native" if report["native_ops"] else ""
    took = f"{report['seconds'] * 1e3:.2f} ms on {report['backend']}{native}"
    Console().print(facts.plain(f"{report['output']}: {outputs} in {took}"))


def inspect_table(report: Report) -> None:
    """Of `inspect`."""
    of_kind = {"bundle": facts.bundle, "engine": facts.engine, "checkpoint": facts.checkpoint}
    told = of_kind[report["kind"]](report)
    if "task" not in report:
        options = report["config"] if "config" in report else report.get("options", {})
        told["options"] = ", ".join(f"{name}={value}" for name, value in options.items()) or "unknown"
    missing = Text.assemble(("no", "red"), ": ", facts.plain("; ".join(report["missing"])))
    told |= {"size": facts.megabytes(report), "can be used here": "yes" if report["runs_here"] else missing}
    _facts(f"{report['path']}: {report['kind']}", told)


def built_engine_table(report: Report) -> None:
    """Of `build`."""
    told = {**facts.engine(report), "size": facts.megabytes(report), "took": f"{report['seconds']:.1f} s"}
    for other in report["engines"]:
        size, seconds = facts.megabytes(other), f"{other['seconds']:.1f} s"
        told[f"of {other['graph']}"] = f"{other['layers']} layers, {size}, {seconds}: {other['file']}"
    _facts(f"{report['bundle']}/{report['file']}", told)


def plugins_table(report: Report) -> None:
    """Of `plugins list`."""
    table = RichTable()
    for column in ("target", "library", "architectures", "kernels"):
        table.add_column(column, overflow="fold")
    for row in report["plugins"]:
        kernels = row["kernels"]
        compiled = [kernel["registers"] for kernel in kernels if kernel["registers"]]
        told = ""
        if compiled:
            spilled = sum(kernel["spill_bytes"] for kernel in kernels)
            told = f"{len(kernels)}, of {min(compiled)} to {max(compiled)} registers, {spilled or 'no'} bytes spilled"
        library = row["library"] or f"not built: mega-deploy plugins build {row['target']}"
        table.add_row(row["target"], *map(facts.plain, (library, ", ".join(row["architectures"]), told)))
    Console().print(table)


def built_line(report: Report) -> None:
    """Of `plugins build`."""
    Console().print(
        facts.plain(f"{report['plugin']['name']} for {report['target']}: {report['library']}"), soft_wrap=True
    )


def doctor_table(report: Report) -> None:
    """Of `doctor`."""
    table = RichTable()
    for column in ("component", "version", "", "for", "remedy"):
        table.add_column(column)
    for part in report["components"]:
        state = Text("works", "green") if part["works"] else Text("missing", "red")
        version, remedy = facts.plain(part["version"] or ""), facts.plain(part["remedy"] or "")
        table.add_row(part["name"], version, state, part["purpose"], remedy)
    Console().print(table)


def demo_table(report: Report) -> None:
    """Of `demo`."""
    accuracy, latency = report["accuracy"], report["latency"]
    _facts(
        "demo: who is speaking?",
        {
            "data": report["data"],
            "bundle": report["bundle"],
            "work of a window": facts.work(report["flops"]),
            "parity": facts.verdict(report["parity"]),
            "accuracy, trained model": f"{accuracy['trained']:.2%}",
            "accuracy, deployed model": f"{accuracy['deployed']:.2%} of {report['samples']} held-out utterances",
            "same decision as trained": f"{accuracy['agreement']:.2%}",
            "one window": "p50 {p50_ms:.3f} ms, p99 {p99_ms:.3f} ms, of {samples} calls".format(**latency),
            "next": f"mega-deploy inspect {report['bundle']}",
        },
    )


def warning(line: str) -> None:
    """Something that went wrong and did not end the command."""
    Console(stderr=True).print(facts.plain(f"warning: {line}"), soft_wrap=True)


def _facts(title: str, told: dict[str, object]) -> None:
    table = RichTable(title=facts.plain(title), show_header=False, title_justify="left")
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, value in told.items():
        table.add_row(facts.plain(name), value if isinstance(value, Text) else facts.plain(value))
    Console().print(table)
