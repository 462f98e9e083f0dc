# This Source Code Form is subject to the terms of the Mozilla Public
# License, v. 2.0. If a copy of the MPL was not distributed with this
# file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""What notebooks show of an arena, a segment and a vector.

A piece of HTML that needs nothing else: no scripts, no styles of the page, nothing to be
loaded.  Lines and greys are in the notebook's own text colour, so that it fits light and
dark themes; the colours of the map are those of its other pictures.  Its size has a limit,
however large the arena.  Names are escaped.  What is closed or moved shows as `repr` says.
"""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Any

from pageframe import PageFrameError, Segment
from pageframe.observe.arena_map import (
    FREE,
    STYLES,
    ArenaMap,
    Style,
    runs_text,
    take_map,
    title_text,
)
from pageframe.observe.words import counted, shown, size_text

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pageframe import ArenaView, FrameVec

CELLS = 512
COLUMNS = 64
SIDE = 8  # pixels of a cell
LEVELS = 4  # heights to which a cell can be filled
ROWS = 5  # of metadata
FIELDS = 8
VALUE = 40  # letters of a value for which there is room


def paint(style: Style) -> str:
    """Return the colour of a category as an attribute of SVG."""
    if isinstance(style.colour, str):
        return f'fill="{style.colour}"'
    return f'fill="currentColor" fill-opacity="{style.colour}"'


def swatch(style: Style) -> str:
    """Return a little square in the colour of a category."""
    return f'<svg width="10" height="10"><rect width="10" height="10" {paint(style)}/></svg>'


def rows_html(rows: Iterable[Iterable[str]], head: Iterable[str] = ()) -> str:
    """Return a table of texts that are HTML already."""
    first = "".join(f"<th>{cell}</th>" for cell in head)
    lines = [f"<tr>{first}</tr>"] if first else []
    lines += ["<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows]
    return f"<table>{''.join(lines)}</table>"


def map_svg(arena: ArenaMap) -> str:
    """Return the cells of a map; cells in a row that look the same are one rectangle."""
    levels = -(-arena.used.astype("int64") * LEVELS // arena.cell_frames)
    looks = list(zip(arena.cells.tolist(), levels.tolist(), strict=True))
    height = -(-len(looks) // COLUMNS) * SIDE
    free = paint(STYLES[FREE][1])
    shapes = []
    for row, start in enumerate(range(0, len(looks), COLUMNS)):
        line = looks[start : start + COLUMNS]
        shapes.append(f'<rect y="{row * SIDE}" width="{len(line) * SIDE}" height="{SIDE - 1}" {free}/>')
        begin = 0
        for end in range(1, len(line) + 1):
            if end < len(line) and line[end] == line[begin]:
                continue
            category, level = line[begin]
            if level:
                high = (SIDE - 1) * level / LEVELS
                shapes.append(
                    f'<rect x="{begin * SIDE}" y="{(row + 1) * SIDE - 1 - high:g}" '
                    f'width="{(end - begin) * SIDE}" height="{high:g}" '
                    f"{paint(arena.categories[category].style)}/>"
                )
            begin = end
    width = COLUMNS * SIDE
    return (
        f'<svg width="{width}" height="{height}" viewBox="0 0 {width} {height}" role="img" '
        f'aria-label="map of the arena">{"".join(shapes)}</svg>'
    )


def arena_html(mem: ArenaView) -> str:
    """Return what a notebook shows of an arena."""
    try:
        arena = take_map(mem, cells=CELLS)
    except PageFrameError:
        return f"<pre>{escape(repr(mem))}</pre>"
    title, cell = title_text(arena)
    legend = rows_html(
        [
            swatch(category.style),
            escape(category.label),
            f"{category.frames:,}",
            f"{category.frames / arena.frames:.1%}",
        ]
        for category in arena.categories
    )
    return (
        f"<div><b>{escape(title)}</b><br>{escape(cell)}, a row {COLUMNS} cells.<br>"
        f"{map_svg(arena)}{legend}{escape(runs_text(arena))}</div>"
    )


def value_html(value: Any) -> str:
    """Return a value of metadata."""
    text = shown(str(value))
    return escape(text if len(text) <= VALUE else text[: VALUE - 1] + "…")


def frames_html(handle: Segment[Any] | FrameVec[Any]) -> str:
    """Return what a notebook shows of a segment or a vector."""
    try:
        count, size, name = len(handle), handle.size, handle.meta_type.__name__
        where = ""
        if isinstance(handle, Segment):
            where = f" at {handle.start_paddr:#x}..{handle.end_paddr:#x}"
        with handle[:ROWS] as few:
            paddrs = [frame.start_paddr for frame in few]
            meta = few.meta
    except PageFrameError:
        return f"<pre>{escape(repr(handle))}</pre>"
    head = f"{type(handle).__name__} of {counted(count, 'frame')}, {size_text(size)}{where}: {shown(name)}"
    fields = (meta.dtype.names or ())[:FIELDS]
    rows = [
        [f"{paddr:#x}", *(value_html(row[field]) for field in fields)]
        for paddr, row in zip(paddrs, meta, strict=True)
    ]
    if count > len(rows):
        rows.append([f"… {count - len(rows):,} more", *[""] * len(fields)])
    return f"<div><b>{escape(head)}</b>{rows_html(rows, ['paddr', *map(escape, fields)])}</div>"
