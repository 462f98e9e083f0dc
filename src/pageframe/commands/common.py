# This Source Code Form is subject to the terms of the Mozilla Public
# License, v. 2.0. If a copy of the MPL was not distributed with this
# file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""What the commands share: finding the arena that is meant, errors on one line, output for programs."""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, TypeVar

import typer
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from pageframe import (
    ArenaDamagedError,
    ArenaNotFoundError,
    ArenaView,
    BadArenaError,
    ClientsFullError,
    PhysicalMemory,
)

if TYPE_CHECKING:
    from collections.abc import Callable

A = TypeVar("A", bound=ArenaView)
WIDE = 200  # columns that a table may take where there is no terminal to say how many there are

ArenaName = Annotated[
    str,
    typer.Argument(
        metavar="ARENA",
        help="Name of an arena, path of its file (with a slash), or the first digits of its id.",
        show_default=False,
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]


def fail(message: str, code: int = 2) -> NoReturn:
    """Print a one-line error and exit."""
    typer.echo(f"pageframe: error: {message}", err=True)
    raise typer.Exit(code)


def shown(path: Path | str) -> str:
    """Return a path or a name as it can be printed on one line."""
    text = str(path)
    return text if text.isprintable() else ascii(text)


def reason(error: OSError) -> str:
    """Return what went wrong without the error number."""
    return error.strerror or str(error)


def open_view(arena: str) -> ArenaView:
    """Return a view of the arena that a user means; exit if there is none that can be shown."""
    return find_arena(ArenaView, arena)


def attach(arena: str) -> PhysicalMemory:
    """Attach to the arena that a user means, and reap nothing yet; exit if that can't be done."""

    def make(name: str | None = None, **place: str) -> PhysicalMemory:
        return PhysicalMemory.attach(name, reap=False, **place)

    return find_arena(make, arena)


def find_arena(make: Callable[..., A], arena: str) -> A:
    """Make what shows or uses the arena that a user means: by its path, its name or its id."""
    try:
        if "/" in arena:
            return make(path=arena)
        try:
            return make(arena)
        except ArenaNotFoundError:
            if not arena or set(arena.lower()) - set("0123456789abcdef"):
                raise
            return make(id=arena)
    except OSError as error:
        fail(f"{shown(arena)}: {reason(error)}")
    except (BadArenaError, ClientsFullError, ValueError) as error:
        fail(str(error))


def damaged(arena: str, error: ArenaDamagedError) -> NoReturn:
    """Say that an arena turned out to be damaged when it was read; exit."""
    fail(f"{shown(arena)}: {error}")


def arena_label(view: ArenaView) -> str:
    """Return what an arena is called: its name, or the first digits of its id."""
    return shown(view.name) if view.name is not None else (view.id or "")[:8]


# -- output for people -------------------------------------------------------------------------


def new_console() -> Console:
    """Return a console that cuts nothing off in a pipe, where lines have no end."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = max(console.width, WIDE)
    return console


def new_table(*columns: str, title: str | None = None) -> Table:
    """Return a table; columns whose names begin with ">" are of figures."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title=title, title_justify="left", title_style="bold")
    for name in columns:
        if name.startswith(">"):
            table.add_column(name[1:], justify="right", no_wrap=True)
        else:
            table.add_column(name, overflow="fold")
    return table


def add_row(table: Table, *cells: object) -> None:
    """Add a row to a table: whole numbers with commas, all else as it is, nothing taken for markup."""
    table.add_row(*[Text(f"{cell:,}" if type(cell) is int else str(cell)) for cell in cells])


def say(console: Console, text: str = "") -> None:
    """Print a line, however long, and take nothing for markup."""
    console.print(Text(text), soft_wrap=True)


def number(things: int, one: str) -> str:
    """Return a number of things in words."""
    return f"1 {one}" if things == 1 else f"{things:,} {one}s"


def percent(part: float, whole: float) -> str:
    """Return a part of a whole in words."""
    return f"{part / whole:.1%}" if whole else "0.0%"


def age_text(seconds: float) -> str:
    """Return a length of time in the largest unit that is not more than it."""
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if abs(seconds) >= length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"


def since(moment: float) -> float:
    """Return how long ago a moment was."""
    return max(0.0, time.time() - moment)


# -- output for programs -----------------------------------------------------------------------


def print_json(value: Any) -> None:
    """Print facts for programs: data classes as objects, paths as strings."""

    def plain(item: Any) -> Any:
        if dataclasses.is_dataclass(item) and not isinstance(item, type):
            return dataclasses.asdict(item)
        if isinstance(item, Path):
            return str(item)
        raise TypeError(f"{type(item).__name__} is not for programs")

    json.dump(value, sys.stdout, default=plain, indent=2)
    sys.stdout.write("\n")
