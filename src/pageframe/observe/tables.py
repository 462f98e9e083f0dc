# This Source Code Form is subject to the terms of the Mozilla Public
# License, v. 2.0. If a copy of the MPL was not distributed with this
# file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Tables for people: alike wherever they are printed, and whole in a pipe."""

from __future__ import annotations

from typing import IO

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

WIDE = 200  # columns that a table may take where there is no terminal to say how many there are


def new_console(file: IO[str] | None = None) -> Console:
    """Return a console that cuts nothing off in a pipe, where lines have no end."""
    console = Console(file=file, highlight=False)
    if not console.is_terminal:
        console.width = max(console.width, WIDE)
    return console


def new_table(*columns: str) -> Table:
    """Return a table; columns whose names begin with ">" are of figures, with "=" of words.

    Both are never cut; all others are names, which are folded where there is too little room.
    """
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for name in columns:
        if name.startswith(">"):
            table.add_column(name[1:], justify="right", no_wrap=True)
        elif name.startswith("="):
            table.add_column(name[1:], no_wrap=True)
        else:
            table.add_column(name, overflow="fold")
    return table


def add_row(table: Table, *cells: object) -> None:
    """Add a row to a table: whole numbers with commas, all else as it is, nothing taken for markup."""
    table.add_row(*[Text(f"{cell:,}" if type(cell) is int else str(cell)) for cell in cells])


def say(console: Console, text: str = "") -> None:
    """Print a line, however long, and take nothing for markup."""
    console.print(Text(text), soft_wrap=True)
