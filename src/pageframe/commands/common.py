# This Source Code Form is subject to the terms of the Mozilla Public
# License, v. 2.0. If a copy of the MPL was not distributed with this
# file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""What the commands share: finding the arena that is meant, errors on one line, output for programs."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, TypeVar

import typer

from pageframe import (
    ArenaDamagedError,
    ArenaNotFoundError,
    ArenaView,
    BadArenaError,
    ClientsFullError,
    PhysicalMemory,
)
from pageframe.observe.words import shown

if TYPE_CHECKING:
    from collections.abc import Callable

A = TypeVar("A", bound=ArenaView)

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
    """Return what an arena is called: its name or path, or the first digits of its id."""
    return shown(view.name or view.path or (view.id or "")[:8])


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
