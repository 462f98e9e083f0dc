# This Source Code Form is subject to the terms of the Mozilla Public
# License, v. 2.0. If a copy of the MPL was not distributed with this
# file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""The map of an arena: what a picture of it shows, however it is drawn.

The frames are sorted into categories, and lie in cells in the order of their addresses.
A cell covers the same number of frames everywhere (the last one may have fewer): one if
there are cells enough, otherwise a power of two.  It shows the category that most of its
used frames are in, and how many of its frames are used, so that a single used frame among
4096 free ones is seen: its cell has its category's colour, though it is all but empty.
Used is whatever is not free, the arena's own tables and regions included.

Three ways to sort frames that are used:

    state    shared, unique, in a list, busy (being built or torn down), orphan: as in
             `ArenaStats.frames_by_state`
    type     by the type of their metadata; busy frames and orphans apart, as in
             `ArenaStats.frames_by_type`
    holder   by the process that holds them; those of more than one process are "several
             processes", those of none (in a message, or an orphan) "no process"

Types and processes beyond the five with the most frames are counted together, as "other".

Frames are read in chunks, by the allocator's bitfield first: the slots of free frames are
not read.  What is held at a time is a chunk, and how many frames of each kind a cell has.
Others may go on meanwhile; a frame that changes shows either state.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple, cast, get_args

import numpy as np

from pageframe import (
    REF_COUNT_MAX,
    REF_COUNT_UNIQUE,
    REF_COUNT_UNUSED,
    MetaPageMeta,
    ReservedMemoryMeta,
    UnusableMemoryMeta,
)
from pageframe.observe.words import counted, shown, size_text

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from pageframe import ArenaStats, ArenaView, FrameMeta

By = Literal["state", "type", "holder"]

CELLS = 16384  # of a picture
CHUNK = 1 << 18  # frames that are read at a time
NAMED = 5  # types or processes with a colour of their own
NAME = 28  # letters of a name for which there is room

# Kinds of frames. What comes after the last is a type or a process.
FREE, BUSY, ORPHAN, SHARED, UNIQUE, LISTED, TABLES, RESERVED, BAD, FIRST = range(10)
OWN = {MetaPageMeta: TABLES, ReservedMemoryMeta: RESERVED, UnusableMemoryMeta: BAD}
NOBODY, SEVERAL = 0, 1  # holders; processes come after them


class Style(NamedTuple):
    """How a category looks.

    Attributes
    ----------
    colour
        One of Okabe and Ito's, which colour-blind people can tell apart, or of how
        much ink, 0 .. 1, a mix with paper is.
    full, part
        Glyphs for a cell at least half of whose frames are used, and for others.
    letters
        The same two where there is only ASCII.
    """

    colour: str | float
    full: str
    part: str
    letters: str


BLUE, GREEN, PURPLE, ORANGE = "#0072B2", "#009E73", "#CC79A7", "#E69F00"
SKY, YELLOW, VERMILLION = "#56B4E9", "#F0E442", "#D55E00"

STYLES: dict[int, tuple[str, Style]] = {
    SHARED: ("shared", Style(BLUE, "■", "□", "Ss")),
    UNIQUE: ("unique", Style(GREEN, "●", "○", "Uu")),
    LISTED: ("in a list", Style(PURPLE, "▲", "△", "Ll")),
    BUSY: ("busy", Style(YELLOW, "◆", "◇", "Bb")),
    ORPHAN: ("orphan", Style(VERMILLION, "★", "☆", "Oo")),
    TABLES: ("tables of the arena", Style(0.65, "▓", "▒", "##")),
    RESERVED: ("reserved region", Style(0.4, "═", "─", "=-")),
    BAD: ("bad region", Style(1.0, "☒", "☒", "Xx")),
    FREE: ("free", Style(0.1, "·", "·", "..")),
}
RANKED = (
    Style(BLUE, "■", "□", "Aa"),
    Style(GREEN, "●", "○", "Cc"),
    Style(PURPLE, "▲", "△", "Dd"),
    Style(ORANGE, "▼", "▽", "Ee"),
    Style(SKY, "►", "▻", "Ff"),
)
OTHER_STYLE = Style(0.85, "▮", "▯", "Zz")
SEVERAL_STYLE = Style(YELLOW, "◆", "◇", "Mm")
NOBODY_STYLE = Style(VERMILLION, "★", "☆", "Nn")


class Category(NamedTuple):
    """Frames of one colour: their name, how many there are, and what they look like."""

    name: str
    frames: int
    style: Style

    @property
    def label(self) -> str:
        """The name as it can be shown: printable, and not too long."""
        label = shown(self.name)
        return label if len(label) <= NAME else label[: NAME - 1] + "…"


@dataclass(frozen=True)
class ArenaMap:
    """A map of an arena as it was when it was taken.

    Attributes
    ----------
    by
        What the categories tell apart.
    size, page_size, frames
        Of the arena.
    frames_per_cell
        Frames that a cell covers.
    categories
        In the order of a legend: the most frequent first, then the arena's own, then "free".
    cells
        For each cell the index of its category.
    used
        For each cell how many of its frames are used.
    free_runs, longest_free_run, fragmentation
        As in `ArenaStats`.
    """

    by: By
    size: int
    page_size: int
    frames: int
    frames_per_cell: int
    categories: tuple[Category, ...]
    cells: NDArray[np.uint8]
    used: NDArray[np.uint32]
    free_runs: tuple[int, ...]
    longest_free_run: int
    fragmentation: float

    @property
    def free_frames(self) -> int:
        """Frames that the map shows as free."""
        return sum(category.frames for category in self.categories if category.style is STYLES[FREE][1])

    @property
    def cell_frames(self) -> NDArray[np.uint32]:
        """For each cell how many frames it covers."""
        sizes = np.full(len(self.cells), self.frames_per_cell, np.uint32)
        sizes[-1] = self.frames - (len(self.cells) - 1) * self.frames_per_cell
        return sizes


class Kinds(NamedTuple):
    """How many frames of each kind the cells have; an array of shape (cells, kinds)."""

    frames_per_cell: int
    frames: NDArray[np.uint32]


def frames_in_cell(frames: int, cells: int) -> int:
    """Return how many frames a cell covers if there may be so many cells."""
    return 1 << (-(-frames // cells) - 1).bit_length()


def own_kinds(types: Mapping[int, type[FrameMeta]]) -> dict[int, int]:
    """Return the kinds of the arena's own frames by the number of their type."""
    return {number: OWN[cls] for number, cls in types.items() if cls in OWN}


def count_kinds(
    slots: NDArray[np.void],
    types: Mapping[int, type[FrameMeta]],
    by: By,
    *,
    bitfield: NDArray[np.uint64] | None = None,
    owners: NDArray[np.uint16] | None = None,
    cells: int = CELLS,
) -> Kinds:
    """Count the kinds of frames in each cell.

    Parameters
    ----------
    slots, types, bitfield
        As `ArenaView` has them. Without a bitfield all slots are read.
    by
        What to tell apart.
    owners
        For every frame who holds it, if that is to be told.
    cells
        How many there may be.
    """
    total = len(slots)
    per_cell = frames_in_cell(total, cells)
    last_kind = max(types, default=0) if by == "type" else SEVERAL
    kinds = FIRST + 1 + max(last_kind, int(owners.max()) if owners is not None else 0)
    counted = np.zeros((-(-total // per_cell), kinds), np.uint32)
    # The kind that a frame has in a state 1 .. REF_COUNT_MAX, by its type: 0 is a type that isn't known.
    shared = np.full(max(types, default=0) + 1, SHARED, np.uint16)
    for number, kind in own_kinds(types).items():
        shared[number] = kind

    for start in range(0, total, CHUNK):
        stop = min(start + CHUNK, total)
        first = start // per_cell
        last = (stop - 1) // per_cell + 1
        place: slice | NDArray[np.intp] = slice(None)
        index = np.arange(stop - start)
        if bitfield is not None:
            words = bitfield[start // 64 : -(-stop // 64)]
            if not words.any():
                continue
            bits = np.unpackbits(words.view(np.uint8), count=stop - start, bitorder="little")
            place = index = np.flatnonzero(bits)
        chunk = slots[start:stop]
        count = chunk["count"][place]
        number = np.minimum(chunk["type"][place], np.uint32(len(shared))).astype(np.intp)
        number[number == len(shared)] = 0
        kind = shared[number]
        unique = count == REF_COUNT_UNIQUE
        kind[unique] = UNIQUE
        kind[unique & (chunk["list"][place] != 0)] = LISTED
        kind[count == 0] = BUSY
        kind[(count > REF_COUNT_MAX) & ~unique] = ORPHAN
        kind[count == REF_COUNT_UNUSED] = FREE
        if by == "type":
            typed = (kind >= SHARED) & (kind <= LISTED)
            kind[typed] = FIRST + number[typed]
        elif owners is not None:
            held = (kind != FREE) & (kind < TABLES)
            kind[held] = FIRST + owners[start:stop][place][held]
        cell = (start + index) // per_cell - first
        found = np.bincount(cell * kinds + kind, minlength=(last - first) * kinds)
        counted[first:last] += found.astype(np.uint32).reshape(-1, kinds)

    sizes = np.full(len(counted), per_cell, np.uint32)
    sizes[-1] = total - (len(counted) - 1) * per_cell
    counted[:, FREE] = sizes - counted[:, FREE + 1 :].sum(axis=1, dtype=np.uint32)
    return Kinds(per_cell, counted)


def find_owners(mem: ArenaView) -> tuple[NDArray[np.uint16], dict[int, str]]:
    """Find out who holds each frame of a shared arena.

    Returns
    -------
    owners
        For every frame `NOBODY`, `SEVERAL` or the number of a process.
    names
        Number of a process -> its name and pid.
    """
    owners = np.zeros(mem.total_frames, np.uint16)
    names: dict[int, str] = {}
    pids: dict[int, str] = {}
    for info in mem.clients:
        pids.setdefault(info.pid, info.name)
    for number, (pid, name) in enumerate(pids.items(), SEVERAL + 1):
        names[number] = f"{name}, pid {pid}"
        paddrs = mem.held_by(pid)["paddr"]
        for start in range(0, len(paddrs), CHUNK):
            index = paddrs[start : start + CHUNK] // np.uint64(mem.page_size)
            owners[index] = np.where(owners[index] == NOBODY, number, SEVERAL)
    return owners, names


def make_categories(
    kinds: Kinds, by: By, names: Mapping[int, str]
) -> tuple[tuple[Category, ...], NDArray[np.uint8], NDArray[np.uint32]]:
    """Name the kinds and find the category of each cell.

    Returns
    -------
    categories, cells, used
        As in `ArenaMap`.
    """
    totals = kinds.frames.sum(axis=0, dtype=np.int64).tolist()
    groups: list[tuple[Category, list[int]]] = []

    def group(name: str, style: Style, members: list[int]) -> None:
        if frames := sum(totals[kind] for kind in members):
            groups.append((Category(name, frames, style), members))

    first = FIRST + (SEVERAL + 1 if by == "holder" else 0)
    # The most frequent ones; among those equally frequent the order is that of their numbers.
    named = sorted((kind for kind in range(first, len(totals)) if totals[kind]), key=lambda k: -totals[k])
    for kind, style in zip(named, RANKED, strict=False):
        group(names.get(kind - FIRST, "none"), style, [kind])
    rest = named[NAMED:]
    if by == "state":
        for kind in (SHARED, UNIQUE, LISTED):
            group(*STYLES[kind], [kind])
    group(f"other ({len(rest)} {'types' if by == 'type' else 'processes'})", OTHER_STYLE, rest)
    if by == "holder":
        group("several processes", SEVERAL_STYLE, [FIRST + SEVERAL])
        group("no process", NOBODY_STYLE, [FIRST + NOBODY])
    groups.sort(key=lambda item: -item[0].frames)
    for kind in (BUSY, ORPHAN, TABLES, RESERVED, BAD, FREE):
        group(*STYLES[kind], [kind])

    merged = np.stack([kinds.frames[:, members].sum(axis=1) for _, members in groups], axis=1)
    categories = tuple(category for category, _ in groups)
    if totals[FREE]:
        used = merged[:, :-1]
        cells = (
            np.where(used.any(axis=1), used.argmax(axis=1), len(groups) - 1)
            if used.size
            else merged[:, 0] * 0
        )
    else:
        used, cells = merged, merged.argmax(axis=1)
    return categories, cells.astype(np.uint8), used.sum(axis=1, dtype=np.uint32)


def take_map(
    mem: ArenaView, by: str = "state", *, cells: int = CELLS, stats: ArenaStats | None = None
) -> ArenaMap:
    """Take a map of an arena, to draw it when there is time.

    Parameters
    ----------
    mem
        The arena. It can be in use; frames that change meanwhile show either state.
    by
        "state", "type" or "holder".
    cells
        How many there may be.
    stats
        The arena's, if they are known already.

    Raises
    ------
    ValueError
        If the frames can't be sorted so.
    TypeError
        If a private arena is to be sorted by holder.
    """
    if by not in get_args(By):
        raise ValueError(f"by is one of state, type and holder, not {by!r}")
    by = cast("By", by)
    if by == "holder" and not mem.shared:
        raise TypeError("a map by holder is for shared arenas: see PhysicalMemory.create")
    if stats is None:
        stats = mem.stats()
    owners, names = find_owners(mem) if by == "holder" else (None, {})
    types = mem.types
    if by == "type":
        short = Counter(cls.__name__ for cls in types.values())
        names = {
            number: cls.__name__ if short[cls.__name__] == 1 else cls.__layout__.name
            for number, cls in types.items()
        }
    # The views of the tables end with the call: the arena can't be closed while they live.
    kinds = count_kinds(mem.slots, types, by, bitfield=mem.bitfield, owners=owners, cells=cells)
    categories, shown, used = make_categories(kinds, by, names)
    return ArenaMap(
        by=by,
        size=mem.size,
        page_size=mem.page_size,
        frames=mem.total_frames,
        frames_per_cell=kinds.frames_per_cell,
        categories=categories,
        cells=shown,
        used=used,
        free_runs=stats.free_runs,
        longest_free_run=stats.longest_free_run,
        fragmentation=stats.fragmentation,
    )


def runs_text(arena: ArenaMap) -> str:
    """Return how the free frames lie, in words."""
    if not arena.free_frames:
        return "No frame is free."
    return (
        f"Fragmentation {arena.fragmentation:.1%}: the longest free run is "
        f"{arena.longest_free_run:,} of {counted(arena.free_frames, 'frame')}."
    )


def title_text(arena: ArenaMap) -> tuple[str, str]:
    """Return a title, and what a cell is."""
    cell = "A cell is a frame"
    if arena.frames_per_cell > 1:
        size = size_text(arena.frames_per_cell * arena.page_size)
        cell = f"A cell is {arena.frames_per_cell:,} frames, {size}"
    return (
        f"Arena of {size_text(arena.size)}: {counted(arena.frames, 'frame')} of "
        f"{size_text(arena.page_size)}, {arena.free_frames:,} free",
        cell,
    )
