# This Source Code Form is subject to the terms of the Mozilla Public
# License, v. 2.0. If a copy of the MPL was not distributed with this
# file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""What the commands share: finding the arena that is meant, errors on one line, output for programs."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from pageframe import ArenaNotFoundError, ArenaView, BadArenaError

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
    try:
        if "/" in arena:
            return ArenaView(path=arena)
        try:
            return ArenaView(arena)
        except ArenaNotFoundError:
            if not arena or set(arena.lower()) - set("0123456789abcdef"):
                raise
            return ArenaView(id=arena)
    except OSError as error:
        fail(f"{shown(arena)}: {reason(error)}")
    except BadArenaError as error:
        fail(str(error))


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
