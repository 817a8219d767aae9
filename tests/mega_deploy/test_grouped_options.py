"""Dataclasses among a command's parameters are its options on the command line."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import pytest
import typer
from typer.testing import CliRunner

from mega_deploy.cli.grouped import grouped


@dataclass(frozen=True, kw_only=True)
class What:
    paths: Annotated[list[Path] | None, typer.Argument(metavar="[PATH]...")] = None
    batch: Annotated[int, typer.Option(min=1, help="Windows.")] = 1


@dataclass(frozen=True, kw_only=True)
class How:
    backend: Annotated[str, typer.Option()]
    quick: Annotated[bool, typer.Option("--quick")] = False


@pytest.fixture
def run():
    seen = []
    app = typer.Typer(rich_markup_mode=None)

    @app.command()
    @grouped
    def measure(what: What, how: How, as_json: Annotated[bool, typer.Option("--json")] = False) -> None:
        """Measure it."""
        seen.append((what, how, as_json))

    def invoke(*args):
        return CliRunner().invoke(app, args), seen

    return invoke


def test_a_command_gets_its_groups(run):
    done, seen = run("a", "b", "--batch", "3", "--backend", "x", "--quick", "--json")
    assert done.exit_code == 0, done.output
    assert seen == [(What(paths=[Path("a"), Path("b")], batch=3), How(backend="x", quick=True), True)]


def test_defaults_are_those_of_the_fields_and_a_field_without_one_is_required(run):
    done, seen = run("--backend", "x")
    assert done.exit_code == 0 and seen == [(What(), How(backend="x"), False)]
    done, seen = run()
    assert done.exit_code == 2 and "--backend" in done.output and len(seen) == 1


def test_its_help_is_the_commands_own(run):
    text = run("--help")[0].output
    assert "Measure it." in text and "Windows." in text and "[PATH]..." in text


def test_types_and_ranges_hold(run):
    assert run("--backend", "x", "--batch", "0")[0].exit_code == 2
    assert run("--backend", "x", "--batch", "three")[0].exit_code == 2
