# This Source Code Form is subject to the terms of the Mozilla Public
# License, v. 2.0. If a copy of the MPL was not distributed with this
# file, You can obtain one at https://mozilla.org/MPL/2.0/.
"""`pageframe map`: an arena as a picture, in the terminal or in a file."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.console import Console

from pageframe import ArenaDamagedError
from pageframe.commands.common import ArenaName, Json, fail, open_view, print_json, reason
from pageframe.observe.arena_map import CELLS, ArenaMap, take_map
from pageframe.observe.picture import SUFFIXES, draw_map, require_matplotlib
from pageframe.observe.terminal import ROWS, MapText, row_cells
from pageframe.observe.words import shown


class By(StrEnum):
    """What the colours tell apart."""

    STATE = "state"
    TYPE = "type"
    HOLDER = "holder"


def map_arena(
    arena: ArenaName,
    by: Annotated[By, typer.Option(help="What the colours tell apart.")] = By.STATE,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="Save a picture: FILE.png or FILE.svg."),
    ] = None,
    dark: Annotated[bool, typer.Option("--dark/--light", help="Background of the picture.")] = False,
    as_json: Json = False,
) -> None:
    """Show an arena as a map of its frames.

    Frames lie in rows, in the order of their addresses. Those of a large arena
    share cells: a cell shows what most of its used frames are, and that any
    are used at all.
    """
    if output is not None:
        if as_json:
            fail("--json and --output: one of them")
        if output.suffix.lower() not in SUFFIXES:
            fail(f"{shown(output)}: a picture is saved as {' or '.join(SUFFIXES)}")
        try:
            require_matplotlib()
        except ImportError as error:
            fail(f"--output: {error}")
    console = Console(highlight=False)
    with open_view(arena) as view:
        cells = CELLS if output is not None or as_json else ROWS * row_cells(view.size, console.width)
        try:
            taken = take_map(view, by.value, cells=cells)
        except ArenaDamagedError as error:
            fail(str(error))
    if as_json:
        print_json(for_programs(taken))
    elif output is None:
        console.print(MapText(taken))
    else:
        try:
            draw_map(taken, output, dark=dark)
        except OSError as error:
            fail(f"{shown(output)}: {reason(error)}")


def for_programs(arena: ArenaMap) -> dict[str, object]:
    """Return a map as plain values: runs of equal cells are [cells, category, used frames of each]."""
    change = (np.diff(arena.cells) != 0) | (np.diff(arena.used) != 0)
    starts = np.concatenate([[0], np.flatnonzero(change) + 1])
    lengths = np.diff(np.append(starts, len(arena.cells)))
    return {
        "by": arena.by,
        "size": arena.size,
        "page_size": arena.page_size,
        "frames": arena.frames,
        "frames_per_cell": arena.frames_per_cell,
        "cells": [
            [int(length), int(arena.cells[start]), int(arena.used[start])]
            for start, length in zip(starts, lengths, strict=True)
        ],
        "legend": [
            {"category": category.name, "frames": category.frames, "share": category.frames / arena.frames}
            for category in arena.categories
        ],
        "fragmentation": arena.fragmentation,
        "longest_free_run": arena.longest_free_run,
        "free_runs": list(arena.free_runs),
    }
