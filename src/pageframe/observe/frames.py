# This Source Code Form is subject to the terms of the Mozilla Public
# License, v. 2.0. If a copy of the MPL was not distributed with this
# file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Choosing frames of an arena: by state, type, holder and count, sorted, as rows of an array.

The slots are read in chunks, column by column, while others go on: a row shows what its frame's
slot said when its chunk was read.  No Python object is made for a frame, and no more rows are kept
than were asked for, so that an arena of millions of frames takes no more memory than a small one.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import numpy as np

from pageframe import (
    REF_COUNT_MAX,
    REF_COUNT_UNIQUE,
    REF_COUNT_UNUSED,
    MetaPageMeta,
    ReservedMemoryMeta,
    UnusableMemoryMeta,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pageframe import ArenaView

STATES = ("shared", "unique", "in a list", "busy", "orphan", "reserved", "free")
"""What a frame can be, as `ArenaStats` has it, and "reserved": the arena's own."""

SHARED, UNIQUE, LISTED, BUSY, ORPHAN, RESERVED, FREE = range(len(STATES))
USED = (SHARED, UNIQUE, LISTED, BUSY, ORPHAN)
OWN = (MetaPageMeta, ReservedMemoryMeta, UnusableMemoryMeta)

ROW = np.dtype(
    [
        ("paddr", "u8"),
        ("state", "u1"),  # index into STATES
        ("type", "u4"),  # see type_names()
        ("count", "u8"),  # references; of a unique frame its owner's
        ("generation", "u8"),
        ("list", "u4"),
        ("references", "u4"),  # of the process that was asked for; otherwise 0
    ]
)
SORTS = ("paddr", "count", "generation", "type")
CHUNK = 1 << 17


def type_names(view: ArenaView) -> dict[int, str]:
    """Return the names of the metadata types of an arena by their numbers."""
    return {number: f"{cls.__module__}.{cls.__qualname__}" for number, cls in view.types.items()}


def find_frames(
    view: ArenaView,
    *,
    type: str | None = None,
    state: str | None = None,
    held_by: int | None = None,
    min_count: int = 0,
    sort: str = "paddr",
    reverse: bool = False,
    limit: int | None = None,
) -> tuple[NDArray[np.void], dict[str, int]]:
    """Choose frames of an arena.

    Parameters
    ----------
    view
        The arena.
    type
        Name of a metadata type, or the last part of it.
    state
        One of `STATES`.  Without it: frames in use; with a type also the arena's own; with a
        holder whatever it holds.
    held_by
        Pid of a process that is attached, or was when it died.
    min_count
        References that a frame must have.
    sort
        One of `SORTS`; frames that are equal in it follow by paddr.
    reverse
        The largest first.
    limit
        How many rows are wanted; all by default.

    Returns
    -------
    rows
        The frames, as an array of `ROW`.
    by_type
        How many there are, those beyond the limit included: name of a type -> frames, the most
        first.

    Raises
    ------
    ValueError
        If there is no such type, state, holder or order; says which there are.
    """
    names = type_names(view)
    states = states_wanted(state, type is not None, held_by is not None)
    ids = None if type is None else types_wanted(names, type)
    own = [number for number, cls in view.types.items() if cls in OWN]
    if sort not in SORTS:
        raise ValueError(f"no frames are sorted by {sort!r}: there are {', '.join(SORTS)}")
    held = None if held_by is None else held_frames(view, held_by)
    ranks = name_ranks(names)

    def known(rows: NDArray[np.void]) -> NDArray[np.uint32]:
        """Return the types of rows; the last place is for numbers that are none."""
        types: NDArray[np.uint32] = np.minimum(rows["type"], len(ranks) - 1)
        return types

    def order(rows: NDArray[np.void]) -> NDArray[np.intp]:
        key = ranks[known(rows)] if sort == "type" else rows[sort]
        return np.lexsort((rows["paddr"], ~key if reverse else key))

    slots = view.slots
    kept = 0
    totals = np.zeros(len(ranks), np.int64)
    parts: list[NDArray[np.void]] = []
    for first in range(0, len(slots) if held is None else len(held), CHUNK):
        if held is None:
            frames = np.arange(first, min(first + CHUNK, len(slots)), dtype=np.uint64)
            rows = read_rows(slots[first : first + CHUNK], frames * view.page_size, own)
        else:
            some = held[first : first + CHUNK]
            rows = read_rows(slots[some["paddr"] // view.page_size], some["paddr"], own)
            rows["references"] = some["references"]
        chosen = states[rows["state"]] & (rows["count"] >= min_count)
        if ids is not None:
            chosen &= np.isin(rows["type"], ids)
        rows = rows[chosen]
        totals += np.bincount(known(rows), minlength=len(totals))
        if sort == "paddr" and not reverse and limit is not None:
            rows = rows[: limit - kept]  # the rest is only counted
        parts.append(rows)
        kept += len(rows)
        if limit is not None and kept > limit:
            rows = np.concatenate(parts)
            parts = [rows[order(rows)][:limit]]
            kept = limit
    found = np.concatenate([np.empty(0, ROW), *parts])
    by_type: Counter[str] = Counter()
    for number in np.flatnonzero(totals).tolist():
        by_type[names.get(number, "none")] += int(totals[number])
    return found[order(found)], dict(by_type.most_common())


def read_rows(slots: NDArray[np.void], paddrs: NDArray[np.uint64], own: list[int]) -> NDArray[np.void]:
    """Return what some slots say."""
    rows = np.zeros(len(slots), ROW)
    rows["paddr"] = paddrs
    for name in ("count", "generation", "type", "list"):
        rows[name] = slots[name]
    count = rows["count"].copy()
    rows["state"] = np.select(
        [
            count == REF_COUNT_UNUSED,
            (count == REF_COUNT_UNIQUE) & (rows["list"] == 0),
            count == REF_COUNT_UNIQUE,
            count == 0,
            count > REF_COUNT_MAX,
            np.isin(rows["type"], own),
        ],
        [FREE, UNIQUE, LISTED, BUSY, ORPHAN, RESERVED],
        SHARED,
    )
    rows["count"][count > REF_COUNT_MAX] = 0
    rows["count"][count == REF_COUNT_UNIQUE] = 1
    return rows


def frame_row(view: ArenaView, paddr: int) -> NDArray[np.void]:
    """Return the row of one frame, of which the paddr must be one."""
    own = [number for number, cls in view.types.items() if cls in OWN]
    frame = paddr // view.page_size
    return read_rows(view.slots[frame : frame + 1], np.array([paddr], np.uint64), own)


def states_wanted(state: str | None, typed: bool, held: bool) -> NDArray[np.bool_]:
    """Return for each state whether its frames are wanted."""
    wanted = np.zeros(len(STATES), np.bool_)
    if state is not None:
        if state not in STATES:
            raise ValueError(f"no frame has the state {state!r}: there are {', '.join(STATES)}")
        wanted[STATES.index(state)] = True
    else:
        wanted[list(USED)] = True
        wanted[RESERVED] = typed or held
        wanted[FREE] = held
    return wanted


def types_wanted(names: dict[int, str], type: str) -> list[int]:
    """Return the numbers of the types that a user means: more, if classes of one name differ."""
    found = [number for number, name in names.items() if name == type]
    found = found or [number for number, name in names.items() if name.rpartition(".")[2] == type]
    if not found:
        raise ValueError(
            f"no frame has the type {type!r}: there are {', '.join(sorted(set(names.values())))}"
        )
    return found


def name_ranks(names: dict[int, str]) -> NDArray[np.uint64]:
    """Return the places of all types in the order of their names; numbers that are none come last."""
    ordered = sorted(set(names.values()))
    places = [
        ordered.index(names[number]) if number in names else len(ordered) for number in range(max(names) + 2)
    ]
    return np.array(places, np.uint64)


def held_frames(view: ArenaView, pid: int) -> NDArray[np.void]:
    """Return what a process holds."""
    held = view.held_by(pid)
    if not len(held):
        pids = sorted({client.pid for client in view.clients})
        if pid not in pids:
            raise ValueError(f"no process {pid} is attached: there are {', '.join(map(str, pids)) or 'none'}")
    return held
