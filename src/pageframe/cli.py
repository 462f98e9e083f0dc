# This Source Code Form is subject to the terms of the Mozilla Public
# License, v. 2.0. If a copy of the MPL was not distributed with this
# file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""The `pageframe` command."""

from __future__ import annotations

from importlib.metadata import version
from typing import Annotated

import typer

from pageframe.commands.demo import demo
from pageframe.commands.map import map_arena

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False)


def print_version(wanted: bool) -> None:
    """Print the version and exit."""
    if wanted:
        typer.echo(f"pageframe {version('pageframe')}")
        raise typer.Exit


@app.callback()
def pageframe(
    _version: Annotated[
        bool,
        typer.Option("--version", callback=print_version, is_eager=True, help="Print the version and exit."),
    ] = False,
) -> None:
    """Manage physical memory: page frames with counts and typed metadata."""


app.command()(demo)
app.command("map")(map_arena)


def main() -> None:
    """Run the command."""
    app(prog_name="pageframe")


if __name__ == "__main__":
    main()
