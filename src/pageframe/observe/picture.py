# This Source Code Form is subject to the terms of the Mozilla Public
# License, v. 2.0. If a copy of the MPL was not distributed with this
# file, You can obtain one at https://mozilla.org/MPL/2.0/.
"""The map of an arena as a picture, by matplotlib.

Cells lie in rows, paddr 0 at the top left, and are squares.  A cell is filled from below by
the part of its frames that is used, in the colour of its category; at least one line is.
So the colours are those of the legend, and never mix.  They are those of Okabe and Ito,
which colour-blind people can tell apart; what is free or belongs to the arena itself is
grey, between the colours of the background and of the text.

A picture in a file and one in the user's own figure are drawn by the same code, in whatever
style matplotlib has then.
"""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pageframe.observe.arena_map import FREE, STYLES, runs_text, take_map, title_text
from pageframe.observe.words import size_text

if TYPE_CHECKING:
    import os

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

    from pageframe import ArenaView
    from pageframe.observe.arena_map import ArenaMap, Style

Colour = tuple[float, float, float]

SUFFIXES = (".png", ".svg")
GRID = 768  # pixels that the cells should fill in each direction
DPI = 100
LEFT, RIGHT, TOP, BOTTOM, GAP, CHART = 112, 372, 84, 52, 60, 84  # pixels around the cells
LEAST = 330  # pixels that the legend needs beside them
AXES_SCALE = 4  # lines of a cell in axes of the user's, whose size may change

LIGHT = {"paper": "#FFFFFF", "ink": "#1C1E21"}
DARK = {"paper": "#16181C", "ink": "#E8E8E8"}


def require_matplotlib() -> None:
    """Raise ImportError with advice if matplotlib is not installed."""
    if importlib.util.find_spec("matplotlib") is None:
        raise ImportError("a picture needs matplotlib: pip install 'pageframe[plot]'")


def grid_shape(cells: int) -> tuple[int, int]:
    """Return rows and columns of a near-square grid; rows of large arenas begin at round addresses."""
    columns = math.isqrt(cells - 1) + 1
    step = 16 if columns >= 64 else 1
    columns = -(-columns // step) * step
    return -(-cells // columns), columns


def paint(style: Style, paper: Colour, ink: Colour) -> Colour:
    """Return the colour of a category on a background, as red, green and blue of 0 .. 1."""
    from matplotlib.colors import to_rgb

    if isinstance(style.colour, str):
        return to_rgb(style.colour)
    red, green, blue = (p + style.colour * (i - p) for p, i in zip(paper, ink, strict=True))
    return red, green, blue


def cell_pixels(arena: ArenaMap, scale: int, paper: Colour, ink: Colour) -> NDArray[np.uint8]:
    """Return the grid of cells as red, green and blue, each cell a square of so many pixels.

    There is a line between cells if they have room for it.
    """
    rows, columns = grid_shape(len(arena.cells))
    inner = scale - 1 if scale >= 6 else scale
    palette = np.array([paint(category.style, paper, ink) for category in arena.categories])
    palette = np.round(palette * 255).astype(np.uint8)
    free = np.round(np.array(paint(STYLES[FREE][1], paper, ink)) * 255).astype(np.uint8)
    room = rows * columns
    colours = np.zeros((room, 3), np.uint8)
    colours[: len(arena.cells)] = palette[arena.cells]
    level = np.zeros(room, np.int64)
    level[: len(arena.cells)] = -(-arena.used.astype(np.int64) * inner // arena.cell_frames)
    there = (np.arange(room) < len(arena.cells)).reshape(rows, columns)

    pixels = np.empty((rows, scale, columns, scale, 3), np.uint8)
    pixels[:] = np.round(np.array(paper) * 255).astype(np.uint8)
    for y in range(inner):
        line = np.where((level >= inner - y)[:, None], colours, free).reshape(rows, columns, 3)
        shown = pixels[:, y, :, :inner]
        shown[there] = line[there][:, None]
    return pixels.reshape(rows * scale, columns * scale, 3)


def draw_cells(axes: Axes, arena: ArenaMap, scale: int) -> None:
    """Draw the cells of a map with its addresses, its legend and its title."""
    from matplotlib import rcParams
    from matplotlib.colors import to_rgb, to_rgba
    from matplotlib.patches import Patch

    *face, alpha = to_rgba(axes.get_facecolor())
    red, green, blue = (alpha * part + (1 - alpha) for part in face)  # what is transparent may lie on white
    paper, ink = (red, green, blue), to_rgb(rcParams["text.color"])
    rows, columns = grid_shape(len(arena.cells))
    # "antialiased" shows cells that the axes have no whole pixels for, too.
    axes.imshow(
        cell_pixels(arena, scale, paper, ink), extent=(0, columns, rows, 0), interpolation="antialiased"
    )
    axes.set_xticks([])
    step = max(1, 2 ** math.ceil(math.log2(rows / 9)))
    row_size = columns * arena.frames_per_cell * arena.page_size
    ticks = range(0, rows, step)
    axes.set_yticks([row + 0.5 for row in ticks], [f"{row * row_size:#x}" for row in ticks], fontsize=8.5)
    axes.tick_params(length=3)
    axes.grid(False)
    axes.spines[:].set_visible(False)
    title, cell = title_text(arena)
    axes.set_title(f"{title}\n{cell}, a row {size_text(row_size)}", loc="left", fontsize=10, linespacing=1.5)
    patches = [
        Patch(facecolor=paint(category.style, paper, ink), edgecolor=ink, linewidth=0.4)
        for category in arena.categories
    ]
    labels = [
        f"{category.label}: {category.frames:,} ({category.frames / arena.frames:.1%})"
        for category in arena.categories
    ]
    axes.legend(
        patches,
        labels,
        title=f"Frames by {arena.by}",
        alignment="left",
        loc="upper left",
        bbox_to_anchor=(1.02, 1.0),
        borderaxespad=0,
        frameon=False,
        fontsize=9,
    )


def draw_free_runs(axes: Axes, arena: ArenaMap) -> None:
    """Draw how many of the free frames lie in aligned blocks of each size."""
    frames = [blocks << order for order, blocks in enumerate(arena.free_runs)]
    orders = range(len(frames))
    axes.bar(orders, frames, color=axes.xaxis.label.get_color(), alpha=0.6)
    shown = orders[:: max(1, math.ceil(len(frames) / 9))]
    axes.set_xticks(shown, [size_text(arena.page_size << order) for order in shown], fontsize=8.5)
    axes.set_xlim(-0.6, len(frames) - 0.4)
    axes.yaxis.set_major_locator(_few_whole_numbers())
    axes.yaxis.set_major_formatter("{x:,.0f}")
    axes.tick_params(labelsize=8.5, length=3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(runs_text(arena), loc="left", fontsize=9)
    axes.set_xlabel("free frames by the aligned blocks that they make", fontsize=8.5)


def _few_whole_numbers() -> Any:
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(3, integer=True)


def lay_out(figure: Figure, arena: ArenaMap) -> Axes:
    """Draw a map and its free runs into an empty figure; return the axes with the map."""
    rows, columns = grid_shape(len(arena.cells))
    scale = max(AXES_SCALE, GRID // max(rows, columns))
    height, width = rows * scale, columns * scale
    full_width = LEFT + max(width, LEAST) + RIGHT
    full_height = TOP + max(height, LEAST) + GAP + CHART + BOTTOM
    figure.set_size_inches(full_width / DPI, full_height / DPI)

    def place(top: int, wide: int, high: int) -> Axes:
        return figure.add_axes(
            (LEFT / full_width, 1 - (top + high) / full_height, wide / full_width, high / full_height)
        )

    axes = place(TOP, width, height)
    draw_cells(axes, arena, scale)
    draw_free_runs(place(full_height - BOTTOM - CHART, max(width, LEAST), CHART), arena)
    return axes


def draw_map(arena: ArenaMap, path: str | os.PathLike[str], *, dark: bool = False, dpi: int = DPI) -> None:
    """Save a map as a picture: as SVG if the path ends so, otherwise as PNG.

    Raises
    ------
    ImportError
        If matplotlib is not installed.
    OSError
        If the file can't be written.
    """
    require_matplotlib()
    import matplotlib as mpl
    from matplotlib.figure import Figure

    theme = DARK if dark else LIGHT
    ink, paper = theme["ink"], theme["paper"]
    kind = "svg" if Path(path).suffix.lower() == ".svg" else "png"
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(
            {
                "figure.facecolor": paper,
                "axes.facecolor": paper,
                "text.color": ink,
                "axes.labelcolor": ink,
                "axes.edgecolor": ink,
                "xtick.color": ink,
                "ytick.color": ink,
                "svg.fonttype": "none",  # text stays text
                "svg.hashsalt": "pageframe",
            }
        )
        figure = Figure()
        lay_out(figure, arena)
        metadata = {"Date": None} if kind == "svg" else {"Software": "pageframe"}
        figure.savefig(path, format=kind, dpi=dpi, metadata=metadata)


def plot(mem: ArenaView, axes: Axes | None, by: str) -> Axes:
    """Draw a map into axes, or into a new figure of pyplot's; see `ArenaView.plot`."""
    require_matplotlib()
    taken = take_map(mem, by)
    if axes is None:
        import matplotlib.pyplot as plt

        return lay_out(plt.figure(dpi=DPI), taken)
    draw_cells(axes, taken, AXES_SCALE)
    axes.set_xlabel(runs_text(taken), fontsize=9, loc="left")
    return axes
