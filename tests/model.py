# This Source Code Form is subject to the terms of the Mozilla Public
# License, v. 2.0. If a copy of the MPL was not distributed with this
# file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""A plain model of the frame system, and the oracle that compares it with an arena.

The model knows who holds what, and nothing else: a `Holder` is a handle, a list, a view
or an array, with the frames it covers; the count of a frame is how often holders and
raw references name it.  It does not predict where an allocation lands; it says which
places are right.  When a holder is released the model says which lives end, and so which
calls of ``on_drop`` must have been made, in which order.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass, field
from typing import Any

import numpy as np

import pageframe as pf

UNUSED, SHARED, UNIQUE, RESERVED = "unused", "shared", "unique", "reserved"


@dataclass(eq=False)
class Holder:
    """Something that holds frames: one reference to each, or their ownership."""

    kind: str  # frame, unique, segment, vec, list, column, refview
    frames: list[int]
    real: Any
    views: list[View] = field(default_factory=list)
    dropped: bool = False  # dropped by its user, but views of its bytes live
    list_id: int = 0


@dataclass(eq=False)
class View:
    """A view of the bytes of frames; it rests on a holder."""

    holder: Holder
    frames: list[int]
    real: Any
    style: str
    of_ref: bool = False


@dataclass(eq=False)
class Ref:
    """A borrowed frame: no reference, valid for one life."""

    frame: int
    generation: int
    real: Any


@dataclass(eq=False)
class Frame:
    """What the model knows of one frame."""

    state: str = UNUSED
    type: type | None = None  # of the life that lasts, or of the last one
    meta: dict[str, Any] = field(default_factory=dict)
    generation: int = 0
    refs: int = 0  # holders; for a reserved frame besides the arena's own
    raw: int = 0  # of these, raw references
    touched: bool = False  # used since the kernel gave its memory


class Model:
    """Frames, their holders, and the `on_drop` calls that must have happened."""

    def __init__(self, mem: pf.PhysicalMemory) -> None:
        self.page = mem.page_size
        self.poisoned = "poison" in mem.debug
        self.frames = [Frame() for _ in range(mem.total_frames)]
        self.holders: list[Holder] = []
        self.refs: list[Ref] = []
        self.drops: list[tuple[Any, ...]] = []  # what on_drop must have seen
        self.bytes = np.zeros((mem.total_frames, mem.page_size), np.uint8)

    # -- asking --------------------------------------------------------------------------------

    def of_kind(self, *kinds: str) -> list[Holder]:
        """Holders that their user still has."""
        return [h for h in self.holders if h.kind in kinds and not h.dropped]

    def views(self) -> list[View]:
        return [v for h in self.holders for v in h.views]

    def in_state(self, *states: str) -> list[int]:
        return [i for i, f in enumerate(self.frames) if f.state in states]

    def free(self) -> int:
        return sum(f.state is UNUSED for f in self.frames)

    def has_run(self, count: int, align: int = 1) -> bool:
        """Whether a run of free frames exists that begins at a multiple of align."""
        run = 0
        for i in range(len(self.frames) - 1, -1, -1):
            run = run + 1 if self.frames[i].state is UNUSED else 0
            if run >= count and i % align == 0:
                return True
        return False

    def list_of(self, frame: int) -> Holder | None:
        for holder in self.holders:
            if holder.kind == "list" and frame in holder.frames:
                return holder
        return None

    def why_not_unused(self, frame: int) -> type[Exception] | None:
        """The error of taking a frame as unused, if it is not."""
        return {
            UNUSED: None,
            SHARED: pf.FrameInUseError,
            UNIQUE: pf.FrameUniqueError,
            RESERVED: pf.FrameReservedError,
        }[self.frames[frame].state]

    def why_no_reference(self, frame: int) -> type[Exception] | None:
        """The error of taking one more reference by paddr."""
        return {UNUSED: pf.FrameUnusedError, UNIQUE: pf.FrameUniqueError}.get(self.frames[frame].state)

    def valid(self, ref: Ref) -> bool:
        frame = self.frames[ref.frame]
        return frame.generation == ref.generation and frame.state in (SHARED, RESERVED)

    # -- lives ---------------------------------------------------------------------------------

    def begin(
        self, frames: list[int], cls: type, metas: list[dict[str, Any]], state: str, zeroed: bool
    ) -> None:
        """Frames that a call has just built; they are held once, by whoever adds the holder."""
        for i, meta in zip(frames, metas, strict=True):
            frame = self.frames[i]
            assert frame.state is UNUSED, f"frame {i} was given out while it is {frame.state}"
            assert frame.refs == 0
            frame.state, frame.type, frame.meta = state, cls, dict(meta)
            frame.touched = True
            if zeroed:
                self.bytes[i] = 0

    def hold(self, kind: str, frames: list[int], real: Any) -> Holder:
        """Add a holder, which has one more reference to each of its frames."""
        holder = Holder(kind, list(frames), real)
        for i in frames:
            self.frames[i].refs += 1
        self.holders.append(holder)
        return holder

    def become(self, holder: Holder, kind: str, real: Any) -> Holder:
        """Move a holder's references into another one."""
        assert not holder.views
        self.holders.remove(holder)
        moved = Holder(kind, holder.frames, real)
        self.holders.append(moved)
        return moved

    def release(self, holder: Holder) -> None:
        """The user drops a holder; its references go when no view rests on it."""
        holder.dropped = True
        if not holder.views:
            self.holders.remove(holder)
            for i in list(holder.frames):
                self.put(i)

    def end_view(self, view: View) -> None:
        view.holder.views.remove(view)
        if view.holder.dropped and not view.holder.views:
            self.release(view.holder)

    def put(self, i: int) -> None:
        """One reference less."""
        frame = self.frames[i]
        frame.refs -= 1
        assert frame.refs >= frame.raw
        if frame.refs == 0 and frame.state is not RESERVED:
            self.end_life(i)

    def end_life(self, i: int) -> None:
        frame = self.frames[i]
        self.tell_drop(i)
        frame.state = UNUSED
        frame.generation += 1
        if self.poisoned:
            self.bytes[i] = 0xAA

    def tell_drop(self, i: int) -> None:
        """The on_drop call that a frame's end makes, if its type has one."""
        frame = self.frames[i]
        if frame.type is not None and frame.type.on_drop is not pf.FrameMeta.on_drop:
            self.drops.append(
                (i * self.page, frame.meta["serial"], frame.meta["hits"], bytes(self.bytes[i, :8]))
            )


class Arena:
    """The arena's tables, read without the package's help."""

    def __init__(self, mem: pf.PhysicalMemory) -> None:
        slots = mem.slots
        tables = {name: (offset, size) for name, offset, size in mem.layout}
        base = slots.ctypes.data - tables["slots"][0]

        def table(offset: int, size: int) -> np.ndarray:
            return np.frombuffer((ctypes.c_uint8 * size).from_address(base + offset), np.uint8)

        self.bytes = table(0, mem.size).reshape(mem.total_frames, mem.page_size)
        self.bits = table(*tables["bits"])
        self.chunks = table(*tables["chunks"]).view(np.int32).reshape(-1, 2)
        self.slots = np.frombuffer(
            (ctypes.c_uint8 * tables["slots"][1]).from_address(base + tables["slots"][0]), slots.dtype
        )
        self.mem = mem

    def set_count(self, frame: int, count: int) -> None:
        """Write a frame's count, which no operation can."""
        self.slots["count"][frame] = count

    def taken(self) -> np.ndarray:
        """One bool a frame: whether its allocator bit is set."""
        return np.unpackbits(self.bits, bitorder="little").astype(bool)

    def kept(self) -> list[int]:
        """Frames that a lane keeps: their bit is set though nobody uses them."""
        n = self.mem.total_frames
        return np.flatnonzero(self.taken()[:n] & (self.slots["count"] == pf.REF_COUNT_UNUSED)).tolist()


def check(model: Model, mem: pf.PhysicalMemory, arena: Arena) -> None:
    """Compare every frame of an arena with the model: the design's invariants."""
    frames = model.frames
    # The model agrees with itself: a count is the sum of all holders.
    held = [0] * len(frames)
    owners: dict[int, list[Holder]] = {}
    for holder in model.holders:
        for i in holder.frames:
            held[i] += 1
            owners.setdefault(i, []).append(holder)
    slots = arena.slots
    counts = slots["count"].tolist()
    generations = slots["generation"].tolist()
    types = slots["type"].tolist()
    lists = slots["list"].tolist()
    ids = mem.types
    used = unique = 0
    for i, frame in enumerate(frames):
        assert frame.refs == held[i] + frame.raw, f"frame {i}: the model lost a holder"
        if frame.state is UNUSED:
            expected = pf.REF_COUNT_UNUSED
            assert frame.refs == 0
        elif frame.state is UNIQUE:
            expected = pf.REF_COUNT_UNIQUE
            assert frame.refs == 1, f"frame {i} is unique and held {frame.refs} times"
            unique += 1
        else:
            expected = frame.refs + (frame.state is RESERVED)
            assert expected > 0
        used += frame.state in (SHARED, UNIQUE)
        assert counts[i] == expected, f"frame {i} ({frame.state}): count {counts[i]}, held {expected} times"
        assert generations[i] == frame.generation, f"frame {i}: generation"
        if frame.state is not UNUSED or frame.touched:
            assert ids[types[i]] is frame.type, f"frame {i}: type {ids[types[i]]}, not {frame.type}"
        else:
            assert types[i] == 0, f"frame {i}: fresh, but of type {types[i]}"
        if frame.state is not UNUSED:
            in_list = next((h for h in owners.get(i, ()) if h.kind == "list"), None)
            assert lists[i] == (in_list.list_id if in_list else 0), f"frame {i}: list id {lists[i]}"
    # The allocator: a bit is set while somebody has the frame, or a lane keeps it.
    taken = arena.taken()
    assert taken[len(frames) :].all()
    kept = []
    for i, frame in enumerate(frames):
        if frame.state is not UNUSED:
            assert taken[i], f"frame {i} is {frame.state} and free to the allocator"
        elif taken[i]:
            kept.append(i)
    assert len(kept) <= 1, f"one thread keeps {kept}"
    reserved = sum(frame.state is RESERVED for frame in frames)
    free = len(frames) - used - reserved
    assert mem.free_frames == free
    assert mem.used_frames == used
    assert mem.reserved_frames == reserved
    assert mem.total_frames == free + used + reserved
    # Bytes: of all frames that are not the arena's own, free ones too (nobody wrote there since).
    usable = [i for i, frame in enumerate(frames) if frame.state is not RESERVED]
    assert np.array_equal(arena.bytes[usable], model.bytes[usable]), "bytes differ"
    # Lists: order both ways.
    for holder in model.of_kind("list"):
        check_list(model, holder)
    # Metadata.
    for cls in {frame.type for frame in frames if frame.state in (SHARED, UNIQUE)}:
        check_meta(model, mem, cls)


def check_list(model: Model, holder: Holder) -> None:
    real = holder.real
    paddrs = [i * model.page for i in holder.frames]
    assert len(real) == len(paddrs)
    assert list(real) == paddrs, "front to back"
    backwards = []
    cursor = real.cursor_back()
    while cursor.paddr is not None:
        backwards.append(cursor.paddr)
        cursor.move_prev()
    assert backwards == paddrs[::-1], "back to front"


def check_meta(model: Model, mem: pf.PhysicalMemory, cls: type) -> None:
    columns = mem.meta(cls)
    live = [i for i, f in enumerate(model.frames) if f.state in (SHARED, UNIQUE) and f.type is cls]
    mask = np.ma.getmaskarray(columns)
    mask = mask if mask.dtype.names is None else mask[mask.dtype.names[0]] if mask.dtype.names else None
    if mask is not None:
        assert np.flatnonzero(~mask).tolist() == live
    for name in columns.dtype.names or ():
        values = columns.data[name][live].tolist()
        expected = [model.frames[i].meta[name] for i in live]
        if expected and isinstance(expected[0], bytes):
            expected = [value.rstrip(b"\0") for value in expected]
        assert values == expected, f"{cls.__name__}.{name}"


def check_stats(model: Model, mem: pf.PhysicalMemory) -> None:
    stats = mem.stats()
    frames = model.frames
    assert stats.free_frames == model.free()
    assert stats.used_frames == len(model.in_state(SHARED, UNIQUE))
    assert stats.reserved_frames == len(model.in_state(RESERVED))
    assert stats.shared_frames == len(model.in_state(SHARED))
    assert stats.unique_frames == len(model.in_state(UNIQUE))
    assert stats.references == sum(f.refs for f in frames)
    assert stats.raw_references == sum(f.raw for f in frames)
    longest = run = 0
    for frame in frames:
        run = run + 1 if frame.state is UNUSED else 0
        longest = max(longest, run)
    assert stats.longest_free_run == longest
    by_type: dict[str, int] = {}
    for frame in frames:
        if frame.state is not UNUSED:
            name = frame.type.__layout__.name
            by_type[name] = by_type.get(name, 0) + 1
    assert stats.frames_by_type == by_type
