# This Source Code Form is subject to the terms of the Mozilla Public
# License, v. 2.0. If a copy of the MPL was not distributed with this
# file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""A picture of an arena: each frame a pixel, coloured by its state and type.

Frames follow each other in rows, paddr 0 at the top left.  The frames of a small
arena are enlarged by a whole number, so that each is a square of its own; those
of a large one are single pixels, and the picture grows with the arena.

The colours are those of Okabe and Ito, which colour-blind people can tell apart,
and greys for frames that are free or belong to the arena itself.
"""

from __future__ import annotations

import importlib.util
import math
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from pageframe import (
    REF_COUNT_UNIQUE,
    REF_COUNT_UNUSED,
    MetaPageMeta,
    PhysicalMemory,
    ReservedMemoryMeta,
    UnusableMemoryMeta,
)

if TYPE_CHECKING:
    import os

    from numpy.typing import NDArray

COLOURS = ("#0072B2", "#E69F00", "#009E73", "#56B4E9", "#D55E00", "#CC79A7", "#F0E442")
"""Colours of used frames, given to the most frequent states and types first."""

OTHER = "#7F3C8D"
FREE = "#E3E6E8"
BUSY = "#FFFFFF"
ARENA = {MetaPageMeta: "#3B4046", ReservedMemoryMeta: "#A3A8AD", UnusableMemoryMeta: "#000000"}
ARENA_LABELS = {
    MetaPageMeta: "tables of the arena",
    ReservedMemoryMeta: "reserved region",
    UnusableMemoryMeta: "bad region",
}

GREY = "#555555"  # of text beside the main text
GRID = 768  # pixels that the grid of frames should fill in each direction
DPI = 100
NAME = 24  # letters of a type's name for which there is room


class Category(NamedTuple):
    """Frames of one colour."""

    label: str
    colour: str
    frames: int


class Snapshot(NamedTuple):
    """What a picture of an arena shows, as it was at one moment.

    Attributes
    ----------
    frames, categories
        As `classify` gives them.
    free_frames
        Those that the categories show as free.
    size, page_size, layout
        As of the arena.
    """

    frames: NDArray[np.uint8]
    categories: list[Category]
    size: int
    page_size: int
    free_frames: int
    layout: tuple[tuple[str, int, int], ...]


def require_matplotlib() -> None:
    """Raise ImportError with advice if matplotlib is not installed."""
    if importlib.util.find_spec("matplotlib") is None:
        raise ImportError("a picture needs matplotlib: pip install 'pageframe[plot]'")


def classify(mem: PhysicalMemory) -> tuple[NDArray[np.uint8], list[Category]]:
    """Sort the frames of an arena into categories.

    Returns
    -------
    frames
        For every frame the index of its category.
    categories
        The categories in the order of a legend: used frames, the most frequent
        first, then those of the arena itself, then free ones.
    """
    slots = mem.slots
    count, type_id, list_id = (slots[name].copy() for name in ("count", "type", "list"))
    del slots  # the arena can't be closed while the view lives
    types = mem.types
    arena_ids = [number for number, cls in types.items() if cls in ARENA]

    unused = count == REF_COUNT_UNUSED
    busy = count == 0
    unique = count == REF_COUNT_UNIQUE
    states = {
        "in a list": unique & (list_id != 0),
        "unique": unique & (list_id == 0),
        "shared": ~(unused | busy | unique | np.isin(type_id, arena_ids)),
    }
    masks: list[tuple[str, NDArray[np.bool_]]] = []
    for state, mask in states.items():
        for number in np.unique(type_id[mask]).tolist():
            cls = types.get(number)
            name = cls.__name__ if cls is not None else f"type {number}"
            if len(name) > NAME:
                name = name[: NAME - 1] + "…"
            masks.append((f"{name}, {state}", mask & (type_id == number)))
    masks.sort(key=lambda item: -np.count_nonzero(item[1]))

    coloured = [(label, colour, mask) for (label, mask), colour in zip(masks, COLOURS, strict=False)]
    if rest := masks[len(COLOURS) :]:
        label = rest[0][0] if len(rest) == 1 else f"other ({len(rest)} kinds)"
        coloured.append((label, OTHER, np.logical_or.reduce([mask for _, mask in rest])))
    coloured.append(("being torn down", BUSY, busy))
    for number in arena_ids:
        cls = types[number]
        coloured.append((ARENA_LABELS[cls], ARENA[cls], ~unused & (type_id == number)))
    coloured.append(("free", FREE, unused))

    frames = np.zeros(len(count), np.uint8)
    categories: list[Category] = []
    for label, colour, mask in coloured:
        if n := int(np.count_nonzero(mask)):
            frames[mask] = len(categories)
            categories.append(Category(label, colour, n))
    return frames, categories


def grid_shape(frames: int) -> tuple[int, int]:
    """Return rows and columns of a near-square grid; rows of large arenas begin at round addresses."""
    columns = math.isqrt(frames - 1) + 1
    step = 16 if columns >= 128 else 1
    columns = -(-columns // step) * step
    return -(-frames // columns), columns


def size_text(size: int) -> str:
    """Return a number of bytes in the largest unit in which it takes few digits."""
    value, unit = float(size), "bytes"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if value < 1024:
            break
        value, unit = value / 1024, larger
    return f"{value:.4g} {unit}"


def frame_pixels(frames: NDArray[np.uint8], categories: list[Category]) -> NDArray[np.uint8]:
    """Return the grid of frames as red, green and blue, enlarged by a whole number."""
    rows, columns = grid_shape(len(frames))
    palette = np.frombuffer(b"".join(bytes.fromhex(category.colour[1:]) for category in categories), np.uint8)
    cells = np.full((rows * columns, 3), 255, np.uint8)
    cells[: len(frames)] = palette.reshape(-1, 3)[frames]
    scale = max(1, GRID // max(rows, columns))
    pixels = cells.reshape(rows, columns, 3).repeat(scale, axis=0).repeat(scale, axis=1)
    if scale >= 6:  # room for a line between frames
        pixels[scale - 1 :: scale] = 255
        pixels[:, scale - 1 :: scale] = 255
    return pixels


def take_snapshot(mem: PhysicalMemory) -> Snapshot:
    """Take down what a picture of an arena shows, to draw it when there is time.

    The arena can be in use; frames that change meanwhile show either state.
    """
    frames, categories = classify(mem)
    # Not mem.free_frames: others may have released some since.
    free = sum(category.frames for category in categories if category.label == "free")
    return Snapshot(frames, categories, mem.size, mem.page_size, free, mem.layout)


def arena_picture(mem: PhysicalMemory, path: str | os.PathLike[str]) -> None:
    """Save a picture of an arena as a PNG file.

    Parameters
    ----------
    mem
        The arena.  It can be in use; frames that change meanwhile show either state.
    path
        The file to write.

    Raises
    ------
    ImportError
        If matplotlib is not installed.
    OSError
        If the file can't be written.
    """
    draw_snapshot(take_snapshot(mem), path)


def draw_snapshot(snapshot: Snapshot, path: str | os.PathLike[str]) -> None:
    """Save a picture of an arena that was taken down before; raises as `arena_picture` does."""
    require_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    frames, categories, size, page_size, free, layout = snapshot
    pixels = frame_pixels(frames, categories)
    rows, columns = grid_shape(len(frames))
    height, width = pixels.shape[:2]

    left, right, top, bottom, gap, least = 104, 400, 96, 32, 32, 420
    full_width = left + width + gap + right
    full_height = top + max(height, least) + bottom
    figure = Figure(figsize=(full_width / DPI, full_height / DPI), dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)
    floor = full_height - top - height
    figure.figimage(pixels, left, floor, origin="upper")

    def place(x: float, y: float, text: str, size: float = 9.5, **style: Any) -> None:
        """Write text at a distance in pixels from the left and the top."""
        figure.text(x / full_width, 1 - y / full_height, text, fontsize=size, **style)

    place(left, 38, f"Arena of {size_text(size)}", 15, weight="bold")
    place(
        left,
        62,
        f"{len(frames):,} frames of {size_text(page_size)}, {free:,} free; "
        f"a row is {columns:,} frames, {size_text(columns * page_size)}",
        10,
        color=GREY,
    )

    # Axes without content: they carry the addresses of the rows.
    axes = figure.add_axes((left / full_width, floor / full_height, width / full_width, height / full_height))
    axes.patch.set_alpha(0)
    axes.set_xlim(0, columns)
    axes.set_ylim(rows, 0)
    axes.set_xticks([])
    step = max(1, 2 ** math.ceil(math.log2(rows / 9)))
    ticks = range(0, rows, step)
    axes.set_yticks([row + 0.5 for row in ticks], [f"{row * columns * page_size:#x}" for row in ticks])
    axes.tick_params(labelsize=8.5, length=3, color="#888888", labelcolor=GREY)
    axes.spines[:].set_visible(False)
    place(left - 10, top - 8, "paddr", 9, color=GREY, ha="right")

    x, y = left + width + gap, top + 12
    place(x, y, "Frames", 11, weight="bold")
    for category in categories:
        y += 24
        corner = x / full_width, 1 - (y + 1) / full_height
        figure.add_artist(
            Rectangle(
                corner,
                13 / full_width,
                13 / full_height,
                facecolor=category.colour,
                edgecolor="#888888",
                linewidth=0.5,
                transform=figure.transFigure,
            )
        )
        place(x + 22, y, category.label)
        share = 100 * category.frames / len(frames)
        place(x + right - 80, y, f"{category.frames:,}", ha="right")
        place(x + right - 20, y, f"{share:.1f} %", ha="right")
    y += 44
    place(x, y, "Tables", 11, weight="bold")
    for name, paddr, length in layout:
        if length:
            y += 22
            place(x, y, name)
            place(x + right - 140, y, f"at {paddr:#x}", ha="right", color=GREY)
            place(x + right - 20, y, size_text(length), ha="right")
    figure.savefig(path, format="png", dpi=DPI, metadata={"Software": "pageframe"})
