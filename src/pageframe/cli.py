# This Source Code Form is subject to the terms of the Mozilla Public
# License, v. 2.0. If a copy of the MPL was not distributed with this
# file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""The `pageframe` command: a command's module is imported when it is asked for."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

COMMANDS = {
    # name: module and function
    "demo": "demo.demo",
    "ls": "look.ls",
    "stat": "look.stat",
    "frames": "look.frames",
    "holders": "look.holders",
    "events": "look.events",
    "map": "map.map_arena",
    "top": "top.top",
    "reap": "care.reap",
    "audit": "care.audit",
    "trim": "care.trim",
    "rm": "care.rm",
}


class Commands(TyperGroup):
    """The commands, of which only the one that runs is made, or all to show the help."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Return the names of the commands, in the order of the help."""
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Return a command; None if there is none of that name."""
        if cmd_name not in COMMANDS:
            return None
        module, function = COMMANDS[cmd_name].split(".")
        one = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
        one.command(cmd_name)(getattr(import_module(f"pageframe.commands.{module}"), function))
        return typer.main.get_command(one)


app = typer.Typer(cls=Commands, no_args_is_help=True, pretty_exceptions_enable=False)


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


def main() -> None:
    """Run the command."""
    app(prog_name="pageframe")


if __name__ == "__main__":
    main()
