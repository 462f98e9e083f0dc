# This Source Code Form is subject to the terms of the Mozilla Public
# License, v. 2.0. If a copy of the MPL was not distributed with this
# file, You can obtain one at https://mozilla.org/MPL/2.0/.
"""The map of an arena as text, by rich.

A cell is a glyph: its shape tells the category, a filled one that at least half of the
cell's frames are used and a hollow one that fewer are.  So the map can be read without
colours, through a pipe and by anybody; where there is only ASCII the glyphs are letters,
capital and small.

Nobody can know whether the background is light or dark.  So the colours have a contrast of
at least 3 to 1 to white and to black (WCAG 2.2, 1.4.11).  Four of Okabe and Ito's have it
as they are, and are taken first; three are darkened, after which the shapes must help to
tell them apart.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from rich.table import Table
from rich.text import Text

from pageframe.observe.arena_map import (
    BLUE,
    GREEN,
    ORANGE,
    OTHER_STYLE,
    PURPLE,
    SKY,
    VERMILLION,
    YELLOW,
    runs_text,
    title_text,
)

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult

    from pageframe.observe.arena_map import ArenaMap, Style

COLOURS = {
    BLUE: BLUE,
    GREEN: GREEN,
    PURPLE: PURPLE,
    VERMILLION: VERMILLION,
    ORANGE: "#C68900",
    SKY: "#4B9DCB",
    YELLOW: "#9E962C",
}
GREY = "#808080"
ROWS = 24  # that the map takes at most
STEP = 16  # a row is a multiple of that many cells
BARS = " ▁▂▃▄▅▆▇█"
ASCII_BARS = " .:-=+*#@"


def row_cells(size: int, width: int) -> int:
    """Return how many cells of an arena of so many bytes a row has beside its address."""
    room = width - len(f"{size:#x}") - 1
    return max(room // STEP * STEP, STEP // 2)


def glyph_style(style: Style) -> str:
    """Return what rich is to do with the glyphs of a category."""
    if isinstance(style.colour, str):
        return COLOURS[style.colour]
    return "" if style is OTHER_STYLE else GREY


class MapText:
    """A map that rich can print; `row_cells` and `ROWS` say how many cells it should have."""

    def __init__(self, arena: ArenaMap) -> None:
        self.arena = arena

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Give the title, the rows, the legend and the free runs."""
        arena = self.arena
        title, cell = title_text(arena)
        yield Text(title, style="bold")
        columns = row_cells(arena.size, options.max_width)
        row_size = columns * arena.frames_per_cell * arena.page_size
        yield Text(f"{cell}; a row is {columns} cells. Hollow: less than half used.\n")
        yield from self.rows(columns, row_size, options.ascii_only)
        yield Text()
        yield self.legend(options.ascii_only)
        yield Text()
        yield Text(runs_text(arena))
        if arena.free_frames:
            yield from self.free_runs(options.ascii_only)

    def glyphs(self, ascii_only: bool) -> list[tuple[str, str, str]]:
        """Return for each category its glyphs for a full and for a partial cell, and their style."""
        found = []
        for _, _, style in self.arena.categories:
            full, part = tuple(style.letters) if ascii_only else (style.full, style.part)
            found.append((full, part, glyph_style(style)))
        return found

    def rows(self, columns: int, row_size: int, ascii_only: bool) -> RenderResult:
        """Give the rows of cells, each after the address of its first frame."""
        arena = self.arena
        glyphs = self.glyphs(ascii_only)
        part = arena.used * np.uint64(2) < arena.cell_frames
        look = arena.cells * 2 + part
        gutter = len(f"{arena.size:#x}")
        for row, start in enumerate(range(0, len(look), columns)):
            line = Text(f"{row * row_size:#x}".rjust(gutter) + " ", no_wrap=True, overflow="crop")
            cells = look[start : start + columns]
            ends = [*(np.flatnonzero(np.diff(cells)) + 1).tolist(), len(cells)]
            begin = 0
            for end in ends:
                full, partial, style = glyphs[cells[begin] // 2]
                line.append((partial if cells[begin] % 2 else full) * (end - begin), style)
                begin = end
            yield line

    def legend(self, ascii_only: bool) -> Table:
        """Return the categories with their frames."""
        table = Table(box=None, show_header=False, pad_edge=False)
        table.add_column(no_wrap=True)
        table.add_column(no_wrap=True)
        table.add_column(justify="right", no_wrap=True)
        table.add_column(justify="right", no_wrap=True)
        for category, (full, part, style) in zip(self.arena.categories, self.glyphs(ascii_only), strict=True):
            table.add_row(
                Text(full if full == part or self.arena.frames_per_cell == 1 else f"{full} {part}", style),
                Text(category.label),
                f"{category.frames:,}",
                f"{category.frames / self.arena.frames:.1%}",
            )
        return table

    def free_runs(self, ascii_only: bool) -> RenderResult:
        """Give a bar for each order: how many of the free frames lie in blocks of that size."""
        bars = ASCII_BARS if ascii_only else BARS
        frames = [blocks << order for order, blocks in enumerate(self.arena.free_runs)]
        most = max(frames, default=0) or 1
        line = " ".join(bars[math.ceil(n * (len(bars) - 1) / most)] for n in frames)
        labels = "".join(f"{order:<10}" for order in range(0, len(frames), 5)).rstrip()
        yield Text("Free frames by the aligned blocks of 2**order frames that they make:")
        yield Text(f"  {line.rstrip()}", no_wrap=True, overflow="crop")
        yield Text(f"  {labels}", no_wrap=True, overflow="crop")
