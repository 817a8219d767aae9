"""The commands that hand a bundle to other people's tools for debugging."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mega_deploy.cli import tables
from mega_deploy.cli.shared import BundlePath, Json, print_report

app = typer.Typer()
debug = typer.Typer(
    help="Hand a bundle to other tools for debugging.",
    epilog="Example:  mega-deploy debug polygraphy game.mega -o game.polygraphy",
)
app.add_typer(debug, name="debug")


@debug.callback()
def _debug() -> None:
    """Let typer keep `polygraphy` as a command of its own while it is the only one."""


@debug.command(epilog="Example:  mega-deploy debug polygraphy game.mega -o game.polygraphy")
def polygraphy(
    bundle: BundlePath,
    out: Annotated[Path, typer.Option("-o", "--out", metavar="FOLDER", help="The folder to write.")],
    force: Annotated[bool, typer.Option("--force", help="Replace a folder that an earlier call wrote.")] = False,
    as_json: Json = False,
) -> None:
    """Write a bundle's parity cases as Polygraphy's own files, with the commands that use them."""
    from mega_deploy.debugging.polygraphy import write_polygraphy_folder

    with tables.progress() as on_step:
        written = write_polygraphy_folder(bundle, out, force=force, on_step=on_step)
    print_report(written.to_json(), as_json, tables.polygraphy_table)
