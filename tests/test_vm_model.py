# This Source Code Form is subject to the terms of the Mozilla Public
# License, v. 2.0. If a copy of the MPL was not distributed with this
# file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Address spaces and mappings beside a plain-Python model.

The model of a space is a dictionary: page -> frame, what may be done with it, whether a
snapshot may share it, and the level of the entry.  From these and from the handles
follow the count of every frame, the frames of the page tables, and how many mappings the
kernel keeps; all are compared with the real ones after every step, the last with
``/proc/self/maps``.  Of each frame the model knows a few words, which must be the same
through every address and every view that shows the frame.

A frame's generation and metadata are not looked at here: test_model.py does that.
"""

import ctypes
import gc
import os
import random
import re
from bisect import bisect_left, bisect_right
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

import pageframe as pf
from amount import LONG, chosen_seed
from processes import unique_name
from types_for_tests import Node, Raw

PAGE = 4096
FRAMES = 2048
WORDS = np.array([0, 170, 341, 511])  # of the 512 of a page: those that are written and compared
SPAN = 512  # pages of an entry of level 2
SIZES = (1, 3, 40, SPAN, SPAN + 40, 3 * SPAN, 3 * SPAN, (1 << 18) + SPAN)
RW, RO, NONE, EXEC = (True, True, False), (True, False, False), (False, False, False), (True, False, True)
REACHED: Counter[str] = Counter()
STATES = {
    "address in use",
    "alias written through a handle",
    "alias written through a view",
    "alias written through an address",
    "append refused",
    "appended",
    "appended while a view lives",
    "array over scattered frames",
    "budget reached",
    "budget reached by a fork",
    "budget reached by an unmap",
    "closed",
    "closed with live views",
    "copied on write",
    "copy on write refused",
    "read-only pages left alone",
    "cursor locked out",
    "cursor of a closed space",
    "entries merged",
    "fork locked out",
    "fork of a fork",
    "fork refused for a view",
    "forked",
    "frame mapped twice in a space",
    "frame mapped in two spaces",
    "frames run out when a node is needed",
    "frames run out when pages are copied",
    "handle with a view",
    "hole skipped",
    "kept on write",
    "last view of a closed space",
    "level 2 mapped",
    "level 2 protected in part",
    "level 2 queried in part",
    "level 2 unmapped in part",
    "mapped again where it was unmapped",
    "mapping dropped with live views",
    "no room at the end",
    "nothing found",
    "protect refused for a view",
    "read-only view",
    "ring",
    "ring over scattered frames",
    "typed refused",
    "unmap refused for a view",
    "unreadable view refused",
    "view across a hole refused",
}

number = st.integers(0, 2**16)
flag = st.booleans()
mostly = st.integers(0, 5).map(lambda n: n > 0)
rarely = st.integers(0, 5).map(lambda n: n == 5)
props = st.sampled_from((RW, RW, RW, RO, RO, NONE, EXEC))

ACTIONS = (
    *("allocate", "allocate", "append", "array", "ask for nonsense", "audit", "clone", "close"),
    *("close cursors", "drop", "drop a mapping", "end a view", "fill", "fill", "fill", "find", "fork"),
    *("fork", "jump", "make a space", "make writable", "make writable", "map", "map", "map"),
    *(
        "map scattered",
        "open a cursor",
        "part",
        "press",
        "protect",
        "protect",
        "protect everything",
        "query",
        "query a part",
    ),
    *("ring", "unmap", "unmap", "use up the budget", "view", "view", "view a handle", "view a mapping"),
    *("walk", "write", "write", "write"),
)


class Handle:
    """A handle of the user's, and the views of its bytes."""

    def __init__(self, kind, real, frames):
        self.kind, self.real, self.frames = kind, real, frames
        self.view = None


SHARED, WANTED = 1, 2  # with a snapshot; and could be written before it


class Entry:
    """What a page shows; copy: 0, SHARED or WANTED."""

    __slots__ = ("access", "copy", "frame", "level")

    def __init__(self, frame, access, copy=0, level=1):
        self.frame, self.access, self.copy, self.level = frame, access, copy, level


class Space:
    """A space, or that of a mapping, a ring or an array: page -> Entry."""

    def __init__(self, kind, real, pages, base, generation=0):
        self.kind, self.real, self.pages, self.base = kind, real, pages, base
        self.entries: dict[int, Entry] = {}
        self.views: list[View] = []
        self.cursors: list[Cursor] = []
        self.closed = False
        self.generation = generation  # forks that led to it
        self.unmapped: set[int] = set()


class View:
    """A memoryview or an array that the user keeps."""

    def __init__(self, space, real, first, count):
        self.space, self.real, self.first, self.count = space, real, first, count
        self.writable = not memoryview(real).readonly


class Cursor:
    def __init__(self, space, real, first, stop):
        self.space, self.real, self.first, self.stop = space, real, first, stop
        self.at = first


# -- the page table of the model -------------------------------------------------------------------


def span(level):
    return 1 << 9 * (level - 1)


def nodes_of(entries):
    """The nodes that a table of these entries has, as (level, number)."""
    nodes = {(level, page >> 9 * level) for page, e in entries.items() for level in range(e.level, 4)}
    return nodes | ({(4, 0)} if entries else set())


def is_cut(entries, page):
    """Whether the entry of a page begins before it."""
    return page in entries and page % span(entries[page].level) != 0


def rewritten(entries, first, stop, new, kinds):
    """The table when a range shows new pages, in the order of their addresses, and nothing else.

    Kinds: the type of each frame.
    """
    after = dict(entries)
    for page in (first, stop) if first < stop else ():
        while is_cut(after, page):
            level = after[page].level
            base = page - page % span(level)
            for i in range(base, base + span(level)):
                e = after[i]
                after[i] = Entry(e.frame, e.access, e.copy, level - 1)
    for page in [page for page in after if first <= page < stop]:
        del after[page]
    i = 0
    while i < len(new):
        page, head = new[i]
        end = i + 1
        while end < len(new) and continues(new[i], new[end], end - i, kinds):
            end += 1
        while i < end:
            page, head = new[i]
            level = 3
            while level > 1 and (end - i < span(level) or (page | head.frame) % span(level)):
                level -= 1
            for page, e in new[i : i + span(level)]:
                after[page] = Entry(e.frame, e.access, e.copy, level)
            i += span(level)
    return after


def continues(one, other, distance, kinds):
    """Whether a page that lies at a distance from another belongs to the same run."""
    (page, a), (later, b) = one, other
    return (
        later - page == b.frame - a.frame == distance
        and a.access == b.access
        and a.copy == b.copy
        and kinds[b.frame - 1] == kinds[b.frame]
    )


def mappings_of(entries, pages):
    """How many mappings the kernel keeps for a range."""
    found, end, last = 0, 0, None
    for page in sorted(entries):
        e = entries[page]
        found += page != end  # a hole
        found += not (
            page == end and last is not None and e.frame == last.frame + 1 and e.access == last.access
        )
        end, last = page + 1, e
    return found + (end != pages)


# -- the machine -----------------------------------------------------------------------------------


def pick(items, n):
    return items[n % len(items)]


def prop_of(access):
    return pf.PageProperty(*access)


def words_at(address, pages):
    """The words of pages that lie at an address."""
    data = np.frombuffer((ctypes.c_uint8 * (pages * PAGE)).from_address(address), np.uint64)
    return data.reshape(pages, SPAN)[:, WORDS]


class Machine(RuleBasedStateMachine):
    """An arena, handles, spaces and mappings, and the model of them."""

    shared = False

    def __init__(self):
        super().__init__()
        self.before, self.limit = pf.map_budget()
        if self.shared:
            self.name = unique_name()
            self.mem = pf.PhysicalMemory.create(FRAMES * PAGE, self.name)
        else:
            self.mem = pf.PhysicalMemory(FRAMES * PAGE)
        slots = self.mem.slots
        offset = {name: offset for name, offset, _ in self.mem.layout}["slots"]
        self.address = slots.ctypes.data - offset  # of the arena
        types = {cls: number for number, cls in self.mem.types.items()}
        counts = slots["count"]
        self.reserved = np.flatnonzero(counts != pf.REF_COUNT_UNUSED)
        del slots, counts
        self.table_type = types[pf.PageTableMeta]
        self.words = words_at(self.address, FRAMES).copy()
        self.other = pf.PhysicalMemory("64 KiB")
        self.handles: list[Handle] = []
        self.spaces: list[Space] = []
        self.ballast = None
        self.tight = False  # whether the budget was used up once: that takes a while
        self.stamp = 1
        self.can_execute = self.try_execute()

    def try_execute(self):
        """Whether the file system of the arena lets pages be executed."""
        try:
            self.mem.map(self.mem.alloc_frame(), prop_of(EXEC)).drop()
        except OSError:
            return False
        return True

    # -- the model -----------------------------------------------------------------------------

    def free(self):
        return FRAMES - len(self.reserved) - int((self.references() > 0).sum()) - self.table_frames()

    def table_frames(self):
        return sum(len(nodes_of(s.entries)) for s in self.spaces)

    def references(self):
        """How often each frame is held."""
        lists = [h.frames for h in self.handles]
        lists += [[e.frame for e in s.entries.values()] for s in self.spaces]
        return np.bincount([frame for frames in lists for frame in frames], minlength=FRAMES)

    def budget_used(self):
        return self.before + self.ballast_size() + sum(mappings_of(s.entries, s.pages) for s in self.spaces)

    def ballast_size(self):
        return 0 if self.ballast is None else self.ballast.kernel_mappings

    def room(self):
        """Kernel mappings that the process may still have."""
        return self.limit - self.budget_used()

    def has_run(self, count, align):
        """Whether a run of free frames exists."""
        used = self.references() > 0
        used[self.reserved] = True
        used[self.nodes()] = True
        ends = np.flatnonzero(np.append(used, True))
        begin = 0
        for end in ends.tolist():
            begin = -(-begin // align) * align
            if end - begin >= count:
                return True
            begin = end + 1
        return False

    def nodes(self):
        """Frames of page tables."""
        slots = self.mem.slots
        return np.flatnonzero((slots["count"] == pf.REF_COUNT_UNIQUE) & (slots["type"] == self.table_type))

    def open_spaces(self):
        return [s for s in self.spaces if s.kind == "space" and not s.closed]

    def mapped(self, *kinds):
        return [s for s in self.spaces if s.kind in kinds and not s.closed]

    def with_copies(self):
        """Spaces that show something copy-on-write."""
        return [s for s in self.open_spaces() if any(e.copy for e in s.entries.values())]

    def cursors(self):
        return [c for s in self.spaces for c in s.cursors]

    def views(self):
        return [v for s in self.spaces for v in s.views]

    def frames_of(self, real):
        if isinstance(real, pf.FrameVec):
            return [int(paddr) // PAGE for paddr in real.paddrs]
        return list(range(real.start_paddr // PAGE, (real.start_paddr + real.size) // PAGE))

    def take(self, kind, real):
        frames = self.frames_of(real)
        self.handles.append(Handle(kind, real, frames))
        self.words[frames] = words_at(self.address, FRAMES)[frames]
        return self.handles[-1]

    def may_fail(self, call, frames=0, nodes=0, mappings=0):
        """Call something that needs frames, nodes and kernel mappings; None if there are too few."""
        free, room = self.free(), self.room()
        try:
            result = call()
        except pf.OutOfFramesError:
            assert free < frames + nodes
            key = "pages are copied" if free < frames else "a node is needed"
            REACHED[f"frames run out when {key}"] += nodes > 0
            return None
        except pf.MapBudgetError:
            assert free >= frames + nodes
            assert mappings > max(room, 0)
            REACHED["budget reached"] += 1
            return None
        assert free >= frames + nodes, "there were too few frames for it"
        assert mappings <= max(room, 0), "there were too few kernel mappings for it"
        return True if result is None else result

    @property
    def kinds(self):
        """The number of each frame's type."""
        return self.mem.slots["type"]

    def change(self, space, first, stop, new, call, copies=0):
        """Have pages of a space show something else; None if that is refused for want of anything."""
        before = nodes_of(space.entries)
        after = rewritten(space.entries, first, stop, new, self.kinds)
        done = self.may_fail(
            call,
            frames=copies,
            nodes=len(nodes_of(after) - before),
            mappings=mappings_of(after, space.pages) - mappings_of(space.entries, space.pages),
        )
        if done is not None:
            gained = {p for p, e in after.items() if e.level == 2} - {
                p for p, e in space.entries.items() if e.level == 2
            }
            REACHED["level 2 mapped"] += bool(gained)
            REACHED["entries merged"] += bool(gained & space.entries.keys())
            space.entries = after
        return done

    def overlapping(self, space, first, stop, writable_only=False):
        return [
            v
            for v in space.views
            if v.first < stop and first < v.first + v.count and (v.writable or not writable_only)
        ]

    def within(self, space, first, stop):
        """What a range shows, by page."""
        return [(page, space.entries[page]) for page in sorted(space.entries) if first <= page < stop]

    def place(self, space, n, how):
        """A page of a space, mostly one where something happens."""
        if how == 0:
            return 0
        if how == 1:
            return space.pages
        if how == 2 and space.entries:
            return pick(sorted(space.entries), n)
        if how == 3 and space.entries:
            return pick(sorted(space.entries), n) + 1
        if how == 4:
            return min(space.pages, SPAN * (n % 4))
        if how == 5:
            return min(space.pages, SPAN * (n % 3) + n // 3 % 20)
        return n % (min(space.pages, 24) + 1)

    def interval(self, space, a, b, how):
        """A range of a space; the whole of it often."""
        if how < 3:
            return 0, space.pages
        first, stop = sorted((self.place(space, a, a % 7), self.place(space, b, b % 7)))
        if first == stop:
            return (first - 1, stop) if first else (0, 1)
        return first, stop

    # -- after every step ----------------------------------------------------------------------

    @invariant()
    def counts_are_handles_and_entries(self):
        refs = self.references()
        slots = self.mem.slots
        counts = slots["count"].copy()
        del slots
        nodes = self.nodes()
        assert len(nodes) == self.table_frames()
        assert not refs[nodes].any()
        assert not refs[self.reserved].any()
        expected = np.where(refs > 0, refs.astype(np.uint64), np.uint64(pf.REF_COUNT_UNUSED))
        expected[nodes] = pf.REF_COUNT_UNIQUE
        expected[self.reserved] = counts[self.reserved]
        wrong = np.flatnonzero(counts != expected)
        assert not len(wrong), [(int(i), int(counts[i]), int(expected[i])) for i in wrong[:8]]
        assert self.mem.used_frames == int((refs > 0).sum()) + len(nodes)
        assert sum(s.real.table_frames for s in self.open_spaces()) == sum(
            len(nodes_of(s.entries)) for s in self.open_spaces()
        )

    @invariant()
    def kernel_mappings_are_the_kernels(self):
        assert pf.map_budget() == (self.budget_used(), self.limit)
        lines = re.findall(rb"^([0-9a-f]+)-([0-9a-f]+) ", Path("/proc/self/maps").read_bytes(), re.MULTILINE)
        starts = [int(start, 16) for start, _ in lines]
        stops = [int(stop, 16) for _, stop in lines]
        for space in self.spaces:
            start, stop = space.base, space.base + space.pages * PAGE
            expected = mappings_of(space.entries, space.pages)
            # Those that begin before its end and end behind its beginning.
            assert bisect_left(starts, stop) - bisect_right(stops, start) == expected
            if not space.closed and space.kind != "array":
                assert space.real.kernel_mappings == expected

    @invariant()
    def bytes_are_the_same_through_every_address(self):
        held = np.flatnonzero(self.references())
        assert np.array_equal(words_at(self.address, FRAMES)[held], self.words[held])
        for space in self.spaces:
            readable = [page for page in sorted(space.entries) if space.entries[page].access[0]]
            pages = np.array(readable, np.int64)
            frames = np.array([space.entries[page].frame for page in readable], np.int64)
            breaks = (np.flatnonzero(np.diff(pages) != 1) + 1).tolist()
            for i, j in zip([0, *breaks], [*breaks, len(pages)], strict=True):
                if i < j:
                    shown = words_at(space.base + int(pages[i]) * PAGE, j - i)
                    assert np.array_equal(shown, self.words[frames[i:j]])
            for view in space.views:
                self.check_view(view)
        for handle in self.handles:
            if handle.view is not None:
                data = np.frombuffer(handle.view, np.uint64).reshape(-1, SPAN)
                assert np.array_equal(data[:, WORDS], self.words[handle.frames])

    def check_view(self, view):
        frames = [view.space.entries[page].frame for page in range(view.first, view.first + view.count)]
        data = np.frombuffer(view.real, np.uint64)
        expected = np.zeros((view.count, SPAN), np.uint64)
        expected[:, WORDS] = self.words[frames]
        at = (np.arange(view.count)[:, None] * SPAN + WORDS).ravel()
        at = at[at < len(data)]
        assert np.array_equal(data[at], expected.ravel()[at])
        assert memoryview(view.real).readonly == (not view.writable)
        assert data.ctypes.data == view.space.base + view.first * PAGE

    @invariant()
    def cursors_are_where_they_were_left(self):
        for cursor in self.cursors():
            if not cursor.space.closed:
                assert cursor.real.virt_addr == cursor.at * PAGE
                assert cursor.real.range == range(cursor.first * PAGE, cursor.stop * PAGE)

    # -- what is done --------------------------------------------------------------------------

    @rule(
        action=st.sampled_from(ACTIONS),
        n=number,
        a=number,
        b=number,
        how=st.integers(0, 6),
        access=props,
        yes=flag,
        alone=mostly,
    )
    def act(self, action, n, a, b, how, access, yes, alone):
        """One rule for all, as hypothesis would leave some rules out and so not come to rare states."""
        kind = ("frame", "segment", "vec")[a % 3]
        size = (0, -PAGE, 5000, PAGE + 1, 2**64, "1 B")[b % 6]
        fresh = (1, 2, 5, 20, SPAN, SPAN + 20)[b % 6]
        {
            "allocate": lambda: self.allocate(n % 15 + 1, kind, yes, alone),
            "append": lambda: self.append(n, a, b % 3 + 1),
            "array": lambda: self.array(n % 30 + 1),
            "ask for nonsense": lambda: (
                self.make_bad_space(size),
                self.open_bad_cursor(n, a % 7),
                self.map_what_can_not_be_mapped(n, a, how),
            ),
            "audit": lambda: self.audit(n),
            "clone": lambda: self.clone(n),
            "close": lambda: self.close(n),
            "close cursors": lambda: self.close_cursors(True) if yes else self.close_cursor(n),
            "drop": lambda: self.drop(n),
            "drop a mapping": lambda: self.drop_mapping(n),
            "end a view": lambda: self.end_view(n),
            "fill": lambda: self.fill(n, a, how, fresh, yes, access, alone),
            "find": lambda: self.find_next(n, a, b, how, yes),
            "fork": lambda: self.fork(n, alone),
            "jump": lambda: self.jump(n, a, how, b % (PAGE - 1) + 1),
            "make a space": lambda: self.make_space(SIZES[n % len(SIZES)]),
            "make writable": lambda: self.make_writable(n, a, b, how, yes, alone),
            "map": lambda: self.map(n, a, b, how, access, yes),
            "map scattered": lambda: self.map_scattered(
                n, a % 4 + 1, access if access[0] else RW, (None, 0, 3, 20)[b % 4]
            ),
            "open a cursor": lambda: self.open_cursor(n, a, b, how, a % 3),
            "part": lambda: self.part(n, a, b),
            "press": lambda: self.press(how, b % 8, a % 3 + 2, n % 4),
            "protect": lambda: self.protect(n, a, b, how, access, yes),
            "protect everything": lambda: self.protect_everything(n, access),
            "query": lambda: self.query(n, a, how),
            "query a part": lambda: self.query_part(n, a),
            "ring": lambda: self.ring(SPAN if n % 6 == 5 else n % 5 + 1),
            "unmap": lambda: self.unmap(n, a, b, how, n % 6 == 5),
            "use up the budget": lambda: self.use_up_budget(b % 5, a, n, a, b, how, access, alone),
            "view": lambda: self.view(n, a, b, a % 3, how),
            "view a handle": lambda: self.view_handle(n),
            "view a mapping": lambda: self.view_mapping(n, a % 3, b),
            "walk": lambda: self.walk(n),
            "write": lambda: self.write(n, a, b % 4, how % 3),
        }[action]()

    # -- handles -------------------------------------------------------------------------------

    def allocate(self, n, kind, raw, zeroed):
        if n > 12:
            self.allocate_large((SPAN, SPAN + 3, 2 * SPAN)[n % 3])
            return
        meta = Raw if raw else None
        if kind == "segment":
            possible = self.has_run(n, 1)
            call = lambda: self.mem.alloc_segment(n, meta, zeroed)  # noqa: E731
        elif kind == "vec":
            possible = self.free() >= n
            call = lambda: self.mem.alloc_frames(n, meta, zeroed)  # noqa: E731
        else:
            possible = self.free() >= 1
            call = lambda: self.mem.alloc_frame(meta, zeroed)  # noqa: E731
        if possible:
            self.take(kind, call())
        else:
            with pytest.raises(pf.OutOfFramesError):
                call()

    def allocate_large(self, n):
        """A segment that entries of level 2 can map."""
        if self.has_run(n, SPAN):
            self.take("segment", self.mem.alloc_segment(n, align=SPAN * PAGE, zeroed=False))

    def clone(self, n):
        if self.handles and len(self.handles) < 12:
            handle = pick(self.handles, n)
            self.take(handle.kind, handle.real.clone())

    def part(self, n, a, b):
        """A part of a handle, with references of its own."""
        many = [h for h in self.handles if h.kind in ("segment", "vec")]
        if many and len(self.handles) < 12:
            handle = pick(many, n)
            first, last = sorted((a % len(handle.frames), b % len(handle.frames)))
            self.take(handle.kind, handle.real[first : last + 1])

    def drop(self, n):
        if self.handles:
            self.forget(pick(self.handles, n)).real.drop()

    def forget(self, handle):
        """A handle is dropped or moved."""
        self.handles.remove(handle)
        if handle.view is not None:
            handle.view.release()
        return handle

    def view_handle(self, n):
        plain = [h for h in self.handles if h.kind in ("frame", "segment")]
        if plain:
            handle = pick(plain, n)
            if handle.view is None:
                handle.view = memoryview(handle.real)
            else:
                handle.view.release()
                handle.view = None

    def press(self, which, left, every, at):
        """Have frames be few, or scattered; or many again."""
        if which == 0:
            self.use_up_frames(left)
        elif which == 1:
            self.fragment(every, at)
            self.array(left + 2)
            self.ring(left + 2)
        elif which < 6:
            self.relax()

    def use_up_frames(self, left):
        """Hold all but a few frames."""
        if self.free() > left:
            self.take("hog", self.mem.alloc_frames(self.free() - left, zeroed=False))

    def fragment(self, every, at):
        """Have no run of free frames."""
        if self.free() >= 2 * every:
            everything = self.mem.alloc_frames(self.free(), zeroed=False)
            kept = pf.FrameVec.from_frames(
                frame for i, frame in enumerate(everything) if i % every != at % every
            )
            everything.drop()
            self.take("hog", kept)

    def relax(self):
        for handle in [h for h in self.handles if h.kind == "hog"]:
            self.forget(handle).real.drop()

    # -- spaces --------------------------------------------------------------------------------

    @initialize(
        pages=st.sampled_from(SIZES),
        n=number,
        count=st.integers(1, 20),
        access=props,
        large=flag,
        fork=flag,
        view=flag,
    )
    def begin(self, pages, n, count, access, large, fork, view):
        """Two spaces, where there is something already."""
        self.make_space(pages)
        self.make_space(3 * SPAN)
        self.fill(1, 0, 6, min(count, pages), n % 2, access, n % 4 < 2)
        if large:
            self.fill(3, 0, 4, SPAN, False, RW, n % 8 < 4)
        if fork:
            self.fork(n, True)
        if view:
            self.view(n, n, count, n % 3, 3)
        if n % 5:
            self.close_cursors(True)
        self.take("vec", self.mem.alloc_frames(n % 3 + 1))
        if n % 2:
            self.map_scattered(n, 1, RW, 20)
            self.take("frame", self.mem.alloc_frame())
            self.view_mapping(n, n % 3, n)

    def make_space(self, pages):
        if len(self.open_spaces()) < 4:
            real = self.may_fail(lambda: pf.VmSpace(self.mem, pages * PAGE), mappings=1)
            if real is not None:
                assert real.size == pages * PAGE
                assert real.page_size == PAGE
                self.spaces.append(Space("space", real, pages, real.base))

    def make_bad_space(self, size):
        with pytest.raises(ValueError, match=r"size|at the most"):
            pf.VmSpace(self.mem, size)

    def close(self, n):
        if not self.open_spaces():
            return
        viewed = [s for s in self.open_spaces() if s.views]
        space = pick(viewed if viewed and n % 3 == 0 else self.open_spaces(), n // 3)
        space.real.close()
        self.end(space)
        assert space.real.closed
        space.real.close()
        for call in (space.real.cursor, space.real.view, space.real.fork, space.real.make_writable):
            with pytest.raises(pf.SpaceClosedError):
                call()
        with pytest.raises(pf.SpaceClosedError):
            _ = space.real.base
        for cursor in space.cursors:
            with pytest.raises(pf.SpaceClosedError):
                cursor.real.query()
            cursor.real.close()
            REACHED["cursor of a closed space"] += 1
        space.cursors.clear()

    def end(self, space):
        """The user gives a space or mapping up; it goes with its last view."""
        space.closed = True
        if not space.views:
            self.spaces.remove(space)
            REACHED["closed"] += bool(space.entries)
        else:
            REACHED["closed with live views"] += space.kind == "space"
            REACHED["mapping dropped with live views"] += space.kind != "space"

    # -- cursors -------------------------------------------------------------------------------

    def open_cursor(self, n, a, b, how, style):
        if self.open_spaces():
            space = pick(self.open_spaces(), n)
            self.cursor_over(space, *self.interval(space, a, b, how), style)

    def cursor_over(self, space, first, stop, style=0):
        if style == 0:
            call = lambda: space.real.cursor(first * PAGE, stop * PAGE)  # noqa: E731
        elif style == 1:
            call = lambda: space.real.cursor(range(first * PAGE, stop * PAGE), timeout=0)  # noqa: E731
        else:
            stop = space.pages
            call = lambda: space.real.cursor(first * PAGE)  # noqa: E731
        if any(c.first < stop and first < c.stop for c in space.cursors):
            with pytest.raises(pf.RangeLockedError):
                call()
            REACHED["cursor locked out"] += 1
            return None
        cursor = Cursor(space, call(), first, stop)
        space.cursors.append(cursor)
        return cursor

    def open_bad_cursor(self, n, bad):
        if not self.open_spaces():
            return
        space = pick(self.open_spaces(), n)
        size = space.pages * PAGE
        start, stop, error = (
            (1, size, pf.NotAlignedError),
            (0, size - 5, pf.NotAlignedError),
            (-PAGE, size, pf.OutOfBoundError),
            (0, size + PAGE, pf.OutOfBoundError),
            (size, size, pf.OutOfBoundError),
            (0, 0, pf.OutOfBoundError),
            (2**70, None, pf.OutOfBoundError),
        )[bad]
        for call in (space.real.cursor, space.real.view, space.real.make_writable):
            with pytest.raises(error):
                call(start, stop)
        with pytest.raises(ValueError, match="step"):
            space.real.cursor(range(0, size, PAGE) if space.pages > 1 else range(0, PAGE, 2))

    def close_cursor(self, n):
        if self.cursors():
            self.end_cursor(pick(self.cursors(), n))

    def end_cursor(self, cursor):
        cursor.real.close()
        cursor.space.cursors.remove(cursor)
        with pytest.raises(pf.SpaceClosedError):
            _ = cursor.real.virt_addr

    def close_cursors(self, alone):
        for cursor in self.cursors() if alone else ():
            self.end_cursor(cursor)

    def some_cursor(self, n, a, how):
        """A cursor that goes to some page; one that is opened, if there is none."""
        if not self.open_spaces():
            return None
        used = [s for s in self.open_spaces() if s.entries]
        space = pick(used if used and n % 3 else self.open_spaces(), n // 3)
        if not space.cursors:
            self.cursor_over(space, 0, space.pages)
        cursor = pick(space.cursors, a)
        self.go(cursor, self.place(space, a, how))
        return cursor

    def go(self, cursor, page):
        if cursor.first <= page < cursor.stop:
            cursor.real.jump(page * PAGE)
            cursor.at = page
        else:
            with pytest.raises(pf.OutOfBoundError):
                cursor.real.jump(page * PAGE)

    def jump(self, n, a, how, odd):
        cursor = self.some_cursor(n, a, how)
        if cursor is not None:
            for va in (cursor.at * PAGE + odd, -odd, cursor.stop * PAGE + odd):
                with pytest.raises(pf.NotAlignedError):
                    cursor.real.jump(va)
            for va in (cursor.first * PAGE - PAGE, cursor.stop * PAGE, -PAGE, 2**64):
                with pytest.raises(pf.OutOfBoundError):
                    cursor.real.jump(va)

    def query(self, n, a, how):
        cursor = self.some_cursor(n, a, how)
        if cursor is not None:
            self.check_query(cursor)

    def query_part(self, n, a):
        """What a cursor is told of an entry that reaches beyond its range."""
        large = [(s, page) for s in self.open_spaces() for page, e in s.entries.items() if e.level > 1]
        if large:
            self.close_cursors(True)
            space, page = pick(large, n)
            cursor = self.cursor_over(space, page, min(space.pages, page + a % SPAN + 1))
            self.check_query(cursor)

    def check_query(self, cursor):
        if cursor.at == cursor.stop:
            with pytest.raises(pf.OutOfBoundError):
                cursor.real.query()
            return None
        item = cursor.real.query()
        entries = cursor.space.entries
        if cursor.at not in entries:
            assert item is None
            return None
        e = entries[cursor.at]
        base = cursor.at - cursor.at % span(e.level)
        first, stop = max(base, cursor.first), min(base + span(e.level), cursor.stop)
        REACHED["level 2 queried in part"] += stop - first < span(e.level)
        assert (item.va, item.size) == (first * PAGE, (stop - first) * PAGE)
        assert item.level == e.level
        assert item.prop == prop_of(e.access)
        assert item.copy_on_write == bool(e.copy)
        assert type(item.frame) is (pf.UFrame if e.level == 1 else pf.USegment)
        assert self.frames_of(item.frame) == [entries[page].frame for page in range(first, stop)]
        item.frame.drop()
        return stop

    def find_next(self, n, a, b, how, far):
        cursor = self.some_cursor(n, a, how)
        if cursor is None:
            return
        left = cursor.stop - cursor.at
        count = left if far else b % (left + 1)
        expected = min(
            (page for page in cursor.space.entries if cursor.at <= page < cursor.at + count), default=None
        )
        found = cursor.real.find_next(*([] if far else [count * PAGE]))
        if expected is None:
            assert found is None
            REACHED["nothing found"] += 1
        else:
            assert found == expected * PAGE
            cursor.at = expected
        self.bad_lengths(cursor, cursor.real.find_next)

    def bad_lengths(self, cursor, call):
        left = (cursor.stop - cursor.at) * PAGE
        for nbytes in (1, left + 1, -1):
            with pytest.raises(pf.NotAlignedError):
                call(nbytes)
        for nbytes in (left + PAGE, -PAGE, 2**64):
            with pytest.raises(pf.OutOfBoundError):
                call(nbytes)

    def walk(self, n):
        """Go over all that a space shows."""
        spaces = [s for s in self.open_spaces() if not s.cursors]
        if not spaces:
            return
        space = pick(spaces, n)
        cursor = self.cursor_over(space, 0, space.pages)
        seen = 0
        while (va := cursor.real.find_next()) is not None:
            cursor.at = va // PAGE
            stop = self.check_query(cursor)
            seen += stop - cursor.at
            if stop == cursor.stop:
                break
            self.go(cursor, stop)
        assert seen == len(space.entries)
        self.end_cursor(cursor)

    # -- changes -------------------------------------------------------------------------------

    def map(self, n, a, b, how, access, default):
        handles = [h for h in self.handles if h.kind != "hog"]
        cursor = self.some_cursor(n, a, how) if handles else None
        if cursor is None:
            return
        handle = pick(handles, b)
        if len(handle.frames) >= SPAN and a % 4:
            self.align(cursor, handle)
        self.map_handle(cursor, handle, None if default else access)

    def fill(self, n, a, how, count, scattered, access, hold):
        """Map fresh frames, which a handle may hold, too."""
        cursor = self.some_cursor(n, a, how)
        scattered = scattered and count < SPAN
        align = SPAN if count >= SPAN else 1
        if cursor is None or not (self.free() >= count if scattered else self.has_run(count, align)):
            return
        real = (
            self.mem.alloc_frames(count) if scattered else self.mem.alloc_segment(count, align=align * PAGE)
        )
        handle = self.take("vec" if scattered else "segment", real)
        if hold and len(self.handles) < 12:
            self.take(handle.kind, real.clone())
        self.align(cursor, handle)
        self.map_handle(cursor, handle, access)
        if handle in self.handles and len(self.handles) > 12:
            self.forget(handle).real.drop()

    def align(self, cursor, handle):
        """Go where an entry of level 2 can begin, if the handle has so many frames."""
        if len(handle.frames) >= SPAN:
            self.go(cursor, cursor.at // SPAN * SPAN + handle.frames[0] % SPAN)

    def map_handle(self, cursor, handle, access):
        space, at = cursor.space, cursor.at
        prop = [] if access is None else [prop_of(access)]
        call = lambda: cursor.real.map(handle.real, *prop)  # noqa: E731
        access = RW if access is None else access
        stop = at + len(handle.frames)
        if handle.view is not None:
            with pytest.raises(BufferError):
                call()
            REACHED["handle with a view"] += 1
        elif stop > cursor.stop:
            with pytest.raises(pf.OutOfBoundError):
                call()
            REACHED["no room at the end"] += 1
        elif any(page in space.entries for page in range(at, stop)):
            with pytest.raises(pf.AddressInUseError):
                call()
            REACHED["address in use"] += 1
        elif access == EXEC and not self.can_execute:
            with pytest.raises((OSError, pf.OutOfFramesError, pf.MapBudgetError)):
                call()
        else:
            new = [(at + i, Entry(frame, access)) for i, frame in enumerate(handle.frames)]
            if self.change(space, at, stop, new, call) is not None:
                cursor.at = stop
                self.forget(handle)
                REACHED["mapped again where it was unmapped"] += not space.unmapped.isdisjoint(
                    range(at, stop)
                )
                with pytest.raises(pf.MovedError):
                    cursor.real.map(handle.real)
        held = Counter(e.frame for e in space.entries.values())
        REACHED["frame mapped twice in a space"] += max(held.values(), default=0) > 1
        REACHED["frame mapped in two spaces"] += any(
            e.frame in held for s in self.spaces if s is not space for e in s.entries.values()
        )

    def map_what_can_not_be_mapped(self, n, a, how):
        cursor = self.some_cursor(n, a, how)
        if cursor is None:
            return
        with self.other.alloc_frame() as foreign, pytest.raises(pf.FrameTypeError):
            cursor.real.map(foreign)
        for wrong in (b"bytes", None, [], self.mem):
            with pytest.raises(pf.FrameTypeError):
                cursor.real.map(wrong)
        if self.free():
            with self.mem.alloc_frame(Node) as typed:
                with pytest.raises(pf.FrameTypeError):
                    cursor.real.map(typed)
                with pytest.raises(TypeError):
                    cursor.real.map(typed, "rw")
                with pytest.raises((pf.FrameTypeError, pf.MapBudgetError)):
                    self.mem.map(typed)
                REACHED["typed refused"] += 1

    def unmap(self, n, a, b, how, all_):
        cursor = self.some_cursor(n, a, how)
        if cursor is None:
            return
        self.bad_lengths(cursor, cursor.real.unmap)
        self.unmap_stretch(cursor, *self.stretch(cursor, b, all_))

    def unmap_stretch(self, cursor, space, first, stop):
        old = self.within(space, first, stop)
        call = lambda: cursor.real.unmap((stop - first) * PAGE)  # noqa: E731
        if self.overlapping(space, first, stop):
            with pytest.raises(pf.RangeInUseError):
                call()
            REACHED["unmap refused for a view"] += 1
            return
        cut = is_cut(space.entries, first) or is_cut(space.entries, stop)
        done = []
        self.change(space, first, stop, [], lambda: done.append(call()))
        if done:
            assert done == [len(old)]
            cursor.at = stop
            space.unmapped.update(page for page, _ in old)
            REACHED["level 2 unmapped in part"] += cut
            REACHED["hole skipped"] += 0 < len(old) < stop - first
        else:
            REACHED["budget reached by an unmap"] += self.room() < 2

    def make_hole(self, n):
        """Unmap a page in the midst of a run, so that there are two runs and a hole."""
        places = [
            (s, page)
            for s in self.open_spaces()
            for page, e in s.entries.items()
            for other in (page - 1, page + 1)
            if other in s.entries and other - page == s.entries[other].frame - e.frame
        ]
        inner = [place for place, times in Counter(places).items() if times == 2]
        if inner:
            self.close_cursors(True)
            space, page = pick(inner, n)
            cursor = self.cursor_over(space, 0, space.pages)
            self.go(cursor, page)
            self.unmap_stretch(cursor, space, page, page + 1)

    def stretch(self, cursor, b, all_):
        left = cursor.stop - cursor.at
        count = left if all_ else b % (min(left, (8, 600)[b % 2]) + 1)
        return cursor.space, cursor.at, cursor.at + count

    def protect(self, n, a, b, how, access, all_):
        cursor = self.some_cursor(n, a, how)
        if cursor is None:
            return
        self.bad_lengths(cursor, lambda nbytes: cursor.real.protect(nbytes, prop_of(access)))
        with pytest.raises(TypeError):
            cursor.real.protect(0, None)
        self.protect_stretch(cursor, access, *self.stretch(cursor, b, all_))

    def protect_everything(self, n, access):
        """Give a whole space one property, so that what was cut may be one entry again."""
        spaces = [s for s in self.open_spaces() if len(s.entries) >= SPAN]
        if spaces:
            space = pick(spaces, n)
            self.close_cursors(True)
            cursor = self.cursor_over(space, 0, space.pages)
            self.protect_stretch(cursor, access, space, 0, space.pages)

    def protect_stretch(self, cursor, access, space, first, stop):
        old = self.within(space, first, stop)
        call = lambda: cursor.real.protect((stop - first) * PAGE, prop_of(access))  # noqa: E731
        if not access[1] and old and self.overlapping(space, first, stop, writable_only=access[0]):
            with pytest.raises(pf.RangeInUseError):
                call()
            REACHED["protect refused for a view"] += 1
        elif access[1] and any(e.copy for _, e in old):
            with pytest.raises(pf.CopyOnWriteError):
                call()
            REACHED["copy on write refused"] += 1
        elif access == EXEC and not self.can_execute and old:
            with pytest.raises((OSError, pf.OutOfFramesError, pf.MapBudgetError)):
                call()
        else:
            cut = is_cut(space.entries, first) or is_cut(space.entries, stop)
            done = []
            new = [(page, Entry(e.frame, access, e.copy and SHARED)) for page, e in old]
            if self.change(space, first, stop, new, lambda: done.append(call())) is not None:
                assert done == [len(old)]
                cursor.at = stop
                REACHED["level 2 protected in part"] += cut

    def fork(self, n, alone):
        if not self.open_spaces() or len(self.open_spaces()) >= 4:
            return
        space = pick(self.open_spaces(), n)
        self.close_cursors(alone)
        if space.cursors:
            with pytest.raises(pf.RangeLockedError):
                space.real.fork()
            REACHED["fork locked out"] += 1
            return
        if any(v.writable for v in space.views) and self.room() > 0:
            with pytest.raises(pf.RangeInUseError):
                space.real.fork()
            REACHED["fork refused for a view"] += 1
            return
        new = [
            (
                page,
                Entry(
                    e.frame,
                    (e.access[0], False, e.access[2]),
                    WANTED if e.access[1] or e.copy == WANTED else SHARED,
                ),
            )
            for page, e in self.within(space, 0, space.pages)
        ]
        after = rewritten(space.entries, 0, space.pages, new, self.kinds)
        assert len(nodes_of(after) - nodes_of(space.entries)) == 0
        copy = self.may_fail(
            space.real.fork, nodes=len(nodes_of(after)), mappings=mappings_of(after, space.pages)
        )
        if copy is None:
            REACHED["budget reached by a fork"] += self.room() < mappings_of(after, space.pages)
            return
        assert copy.size == space.real.size
        space.entries = after
        self.spaces.append(Space("space", copy, space.pages, copy.base, space.generation + 1))
        self.spaces[-1].entries = dict(after)
        REACHED["forked"] += bool(after)
        REACHED["fork of a fork"] += bool(after) and space.generation > 0

    def make_writable(self, n, a, b, how, raw, alone):
        if not self.open_spaces():
            return
        space = pick(self.with_copies() or self.open_spaces(), n)
        self.close_cursors(alone)
        first, stop = self.interval(space, a, b, how)
        meta = Raw if raw else None
        force = (n + a) % 3 == 0
        call = lambda: space.real.make_writable(  # noqa: E731
            first * PAGE, stop * PAGE, force=force, meta=meta
        )
        if any(c.first < stop and first < c.stop for c in space.cursors):
            with pytest.raises(pf.RangeLockedError):
                call()
            return
        refs = self.references()
        old = self.within(space, first, stop)
        chosen = {page for page, e in old if force or e.copy == WANTED}
        copied = [page for page, e in old if page in chosen and not e.access[1] and refs[e.frame] > 1]
        REACHED["read-only pages left alone"] += any(
            e.copy == SHARED and page not in chosen for page, e in old
        )
        # Which frames the copies get is not known before: none that joins another.
        new = [
            (page, Entry(-2 * page - 9 if page in copied else e.frame, (True, True, e.access[2])))
            if page in chosen
            else (page, Entry(e.frame, e.access, e.copy))
            for page, e in old
        ]
        after = rewritten(space.entries, first, stop, new, self.kinds)
        free, room = self.free(), self.room()
        # In a copy, neighbours may join or not.
        mappings = mappings_of(after, space.pages) - mappings_of(space.entries, space.pages)
        nodes = len(nodes_of(after) - nodes_of(space.entries))
        try:
            done = call()
        except pf.OutOfFramesError:
            assert free < len(copied) + nodes
            REACHED["frames run out when pages are copied"] += free < len(copied)
            return
        except pf.MapBudgetError:
            assert mappings > max(room, 0)
            REACHED["budget reached"] += 1
            return
        assert done == len(copied)
        assert free >= len(copied)
        shown = self.frames_at(space, copied)
        assert len(set(shown)) == len(copied)
        assert not refs[shown].any()
        for page, frame in zip(copied, shown, strict=True):
            self.words[frame] = self.words[space.entries[page].frame]
        frames = dict(zip(copied, shown, strict=True))
        new = [(page, Entry(frames.get(page, e.frame), e.access, e.copy)) for page, e in new]
        space.entries = rewritten(space.entries, first, stop, new, self.kinds)
        REACHED["copied on write"] += bool(copied)
        REACHED["kept on write"] += any(e.copy and page not in frames and page in chosen for page, e in old)

    def frames_at(self, space, pages):
        """Which frames a space really shows."""
        frames = []
        others = [c for c in space.cursors if any(c.first <= page < c.stop for page in pages)]
        assert not others
        for page in pages:
            with space.real.cursor(page * PAGE, (page + 1) * PAGE) as cursor:
                item = cursor.query()
                frames.append(item.frame.start_paddr // PAGE)
                item.frame.drop()
        return frames

    # -- views ---------------------------------------------------------------------------------

    def view(self, n, a, b, style, how):
        if not self.open_spaces() or len(self.views()) >= 8:
            return
        space = pick(self.open_spaces(), n)
        if how < 2 or not space.entries:
            first, stop = self.interval(space, a, b, how)
        else:
            first = pick(sorted(space.entries), a)
            stop = first
            while stop < space.pages and stop in space.entries and stop - first <= b % 20:
                stop += 1
        words = (stop - first) * SPAN - (b % SPAN if style == 2 else 0)
        if style == 0:
            call = lambda: space.real.view(first * PAGE, stop * PAGE)  # noqa: E731
        else:
            call = lambda: space.real.array(first * PAGE, words, np.uint64)  # noqa: E731
        shown = [space.entries.get(page) for page in range(first, min(stop, first + FRAMES + 1))]
        if None in shown or not all(e.access[0] for e in shown):
            with pytest.raises(pf.NotMappedError):
                call()
            REACHED["view across a hole refused"] += None in shown and bool(space.entries)
            REACHED["unreadable view refused"] += None not in shown
            return
        real = call()
        space.views.append(View(space, real, first, stop - first))
        writable = all(e.access[1] for e in shown)
        assert space.views[-1].writable == writable
        if not writable:
            REACHED["read-only view"] += 1
            with pytest.raises((TypeError, ValueError)):
                real[0] = 1
            with pytest.raises(ValueError, match="WRITEABLE"):
                np.frombuffer(real, np.uint8).flags.writeable = True

    def end_view(self, n):
        if self.views():
            view = pick(self.views(), n)
            self.release(view)

    def release(self, view):
        space = view.space
        space.views.remove(view)
        view.real = None
        if space.closed and not space.views:
            self.spaces.remove(space)
            REACHED["last view of a closed space"] += 1

    # -- mappings ------------------------------------------------------------------------------

    def map_scattered(self, n, count, access, reserve):
        handles = self.several(n, count)
        if not handles or len(self.mapped("mapping")) >= 4:
            return
        total = sum(len(h.frames) for h in handles)
        pages = FRAMES if reserve is None else total + reserve
        options = {} if reserve is None else {"reserve": pages * PAGE}
        reals = [h.real for h in handles]
        given = reals[0] if len(reals) == 1 and n % 2 else iter(reals)
        call = lambda: self.mem.map(given, prop_of(access), **options)  # noqa: E731
        if any(h.view is not None for h in handles) or (access == EXEC and not self.can_execute):
            with pytest.raises((BufferError, OSError, pf.MapBudgetError, pf.OutOfFramesError)):
                call()
            return
        frames = [frame for h in handles for frame in h.frames]
        entries = rewritten({}, 0, total, [(i, Entry(f, access)) for i, f in enumerate(frames)], self.kinds)
        real = self.may_fail(call, nodes=len(nodes_of(entries)), mappings=max(1, mappings_of(entries, pages)))
        if real is not None:
            space = Space("mapping", real, pages, real.base)
            space.entries = entries
            self.spaces.append(space)
            for handle in handles:
                self.forget(handle)
            assert (real.size, real.capacity) == (total * PAGE, pages * PAGE)
            assert real.prop == prop_of(access)
            assert memoryview(real).readonly == (not access[1])
            self.check_frames(space)

    def several(self, n, count):
        handles = [h for h in self.handles if h.kind != "hog"]
        return random.Random(n).sample(handles, min(count, len(handles)))

    def check_frames(self, space):
        """The vector that a mapping gives of its frames."""
        frames = [space.entries[page].frame for page in range(len(space.entries))]
        types = self.mem.slots["type"][frames]
        if (types == types[0]).all():
            with space.real.frames as vec:
                assert self.frames_of(vec) == frames
        else:
            with pytest.raises(pf.FrameTypeError):
                _ = space.real.frames

    def append(self, n, b, count):
        handles = self.several(b, count)
        if not handles or not self.mapped("mapping"):
            return
        space = pick(self.mapped("mapping"), n)
        at = len(space.entries)
        stop = at + sum(len(h.frames) for h in handles)
        reals = [h.real for h in handles]
        call = lambda: space.real.append(reals)  # noqa: E731
        if any(h.view is not None for h in handles):
            with pytest.raises(BufferError):
                call()
        elif stop > space.pages:
            with pytest.raises(pf.OutOfBoundError):
                call()
            REACHED["append refused"] += 1
        else:
            access = space.entries[0].access
            frames = [frame for h in handles for frame in h.frames]
            new = [(at + i, Entry(frame, access)) for i, frame in enumerate(frames)]
            if self.change(space, at, stop, new, call) is not None:
                REACHED["appended"] += 1
                REACHED["appended while a view lives"] += bool(space.views)
                for handle in handles:
                    self.forget(handle)
                self.check_frames(space)
        assert space.real.size == len(space.entries) * PAGE

    def view_mapping(self, n, kind, b):
        if not self.mapped("mapping", "ring") or len(self.views()) >= 8:
            return
        space = pick(self.mapped("mapping", "ring"), n)
        pages = len(space.entries)
        if kind == 0:
            space.views.append(View(space, memoryview(space.real), 0, pages))
        elif kind == 1:
            space.views.append(View(space, space.real.array(dtype=np.uint64), 0, pages))
        elif space.kind == "ring":
            first = b % (pages // 2)
            real = space.real.window(b * pages // 2 * PAGE + first * PAGE)
            space.views.append(View(space, real, first, pages // 2))
        else:
            count = b % pages + 1
            real = space.real.array((count, SPAN), np.uint64)
            space.views.append(View(space, real, 0, count))

    def drop_mapping(self, n):
        if self.mapped("mapping", "ring"):
            space = pick(self.mapped("mapping", "ring"), n)
            space.real.drop()
            self.end(space)
            for call in (space.real.drop, space.real.array, lambda: memoryview(space.real)):
                with pytest.raises(pf.MovedError):
                    call()

    def ring(self, count):
        if len(self.mapped("ring")) >= 3:
            return
        run = self.has_run(count, 1)
        nodes = len(nodes_of({page: Entry(0, RW) for page in range(2 * count)}))
        free, room = self.free(), self.room()
        try:
            real = self.mem.ring(count * PAGE)
        except pf.OutOfFramesError:
            assert free < count + nodes
            return
        except pf.MapBudgetError:
            assert (2 if run else 2 * count) > room
            REACHED["budget reached"] += 1
            return
        space = Space("ring", real, 2 * count, real.base)
        frames = self.newly_used(np.frombuffer(real, np.uint64), count)
        once = [(i, Entry(frames[i % count], RW)) for i in range(2 * count)]
        space.entries = rewritten({}, 0, 2 * count, once, self.kinds)
        self.spaces.append(space)
        assert real.size == count * PAGE
        assert run == (frames == list(range(frames[0], frames[0] + count)))
        self.check_frames(space)
        REACHED["ring"] += 1
        REACHED["ring over scattered frames"] += not run
        with pytest.raises(TypeError):
            real.append(real)

    def array(self, count):
        if len([s for s in self.spaces if s.kind == "array"]) >= 3 or len(self.views()) >= 8:
            return
        run = self.has_run(count, 1)
        nodes = 0 if run else len(nodes_of({page: Entry(0, RW) for page in range(count)}))
        free, room = self.free(), self.room()
        try:
            real = self.mem.array(count * SPAN, np.uint64)
        except pf.OutOfFramesError:
            assert free < count + nodes
            return
        except pf.MapBudgetError:
            assert not run
            assert count > room
            REACHED["budget reached"] += 1
            return
        frames = self.newly_used(real, count)
        address = real.ctypes.data
        if run:
            assert address == self.address + frames[0] * PAGE
            return
        space = Space("array", None, count, address)
        new = [(i, Entry(frame, RW)) for i, frame in enumerate(frames)]
        space.entries = rewritten({}, 0, count, new, self.kinds)
        space.views.append(View(space, real, 0, count))
        space.closed = True
        self.spaces.append(space)
        REACHED["array over scattered frames"] += 1

    def newly_used(self, data, count):
        """The frames that data lies in, page by page: each is found by what is written there."""
        assert not data.any()
        stamps = self.stamp + np.arange(count, dtype=np.uint64)
        self.stamp += count
        data[: count * SPAN].reshape(count, SPAN)[:, 0] = stamps
        shown = words_at(self.address, FRAMES)
        refs = self.references()
        found = {int(stamp): [] for stamp in stamps}
        slots = self.mem.slots
        used = (slots["count"] < pf.REF_COUNT_UNIQUE) & (refs == 0)
        used[self.reserved] = False
        del slots
        for frame in np.flatnonzero(used).tolist():
            found[int(shown[frame, 0])].append(frame)
        assert all(len(frames) == 1 for frames in found.values())
        frames = [frames[0] for frames in found.values()]
        self.words[frames] = 0
        self.words[frames, 0] = stamps
        return frames

    # -- bytes ---------------------------------------------------------------------------------

    def write(self, n, a, word, how):
        """Write somewhere; every other address must show it."""
        self.stamp += 1
        value = self.stamp
        refs = self.references()
        if how == 0:
            handles = [h for h in self.handles if h.kind in ("frame", "segment") and h.view is None]
            if not handles:
                return
            handle = pick(handles, n)
            i = a % len(handle.frames)
            with memoryview(handle.real) as data:
                data.cast("Q")[i * SPAN + int(WORDS[word])] = value
            frame = handle.frames[i]
            REACHED["alias written through a handle"] += bool(refs[frame] > 1)
        elif how == 1:
            views = [v for v in self.views() if v.writable]
            if not views:
                return
            view = pick(views, n)
            i = a % view.count
            data = np.frombuffer(view.real, np.uint64)
            if i * SPAN + int(WORDS[word]) >= len(data):
                return
            data[i * SPAN + int(WORDS[word])] = value
            frame = view.space.entries[view.first + i].frame
            REACHED["alias written through a view"] += bool(refs[frame] > 1)
        else:
            places = [(s, page) for s in self.spaces for page, e in s.entries.items() if e.access[1]]
            if not places:
                return
            space, page = pick(places, n * a)
            words_at_word = ctypes.c_uint64.from_address(space.base + page * PAGE + int(WORDS[word]) * 8)
            words_at_word.value = value
            frame = space.entries[page].frame
            REACHED["alias written through an address"] += bool(refs[frame] > 1)
        self.words[frame, word] = value

    # -- limits --------------------------------------------------------------------------------

    def use_up_budget(self, left, which, n, a, b, how, access, alone):
        """Do something while there is room for a few kernel mappings only."""
        if self.tight or not any(s.entries for s in self.open_spaces()):
            return
        self.tight = True
        count = self.room() - left
        mem = ballast_arena()
        with mem.alloc_frame() as frame:
            # Clones of one frame: none continues another.
            vec = pf.FrameVec.from_frames(frame.clone() for _ in range(count))
        self.ballast = mem.map(vec, reserve=count * PAGE)
        assert self.room() == left
        calls = [
            lambda: self.make_space(3),
            lambda: self.fill(n, a, how, b % 20 + 1, n % 2, access, True),
            lambda: self.map_scattered(n, b % 4 + 1, RW, None),
            lambda: self.append(n, a, 2),
            lambda: self.protect(n, a, b, how, access, False),
            lambda: self.make_writable(n, a, b, how, False, alone),
            lambda: self.ring(b % 6 + 1),
            lambda: self.array(b % 6 + 1),
            lambda: self.unmap(n, a, b, how, False),
            lambda: self.make_hole(n),
            lambda: self.fork(n, alone),
        ]
        for call in random.Random(which).sample(calls, 5):
            call()
            self.counts_are_handles_and_entries()
        self.ballast.drop()
        self.ballast = None

    # -- who holds what ------------------------------------------------------------------------

    def audit(self, n):
        self.check_holders(n, 20)

    def check_holders(self, n, count):
        """Compare the arena's own books with the model."""
        if not self.shared:
            for call in (self.mem.audit, lambda: self.mem.holders(0)):
                with pytest.raises(TypeError):
                    call()
            return
        report = self.mem.audit()
        assert report.clean, report
        refs = self.references()
        entries = Counter(e.frame for s in self.spaces for e in s.entries.values())
        held = np.flatnonzero(refs).tolist()
        for frame in random.Random(n).sample(held, min(count, len(held))):
            (holder,) = self.mem.holders(frame * PAGE)
            assert holder.pid == os.getpid()
            assert holder.mappings == entries[frame]
            assert holder.handles + holder.mappings == refs[frame]

    def teardown(self):
        if self.ballast is not None:
            self.ballast.drop()
            self.ballast = None
        self.check_holders(1, 50)
        for handle in list(self.handles):
            self.forget(handle).real.drop()
        for view in self.views():
            view.real = None
            view.space.views.remove(view)
        for space in self.spaces:
            if not space.closed:
                space.real.close() if space.kind == "space" else space.real.drop()
        self.spaces.clear()
        assert self.mem.used_frames == 0, self.mem.stats()
        assert self.mem.free_frames == FRAMES - len(self.reserved)
        assert pf.map_budget() == (self.before, self.limit)
        if self.shared:
            report = self.mem.audit()
            assert report.clean, report
            assert report.quiet
        self.mem.close()
        self.other.close()


class SharedMachine(Machine):
    shared = True


BALLAST: list[pf.PhysicalMemory] = []


def ballast_arena():
    """An arena for what only takes kernel mappings."""
    if not BALLAST:
        BALLAST.append(pf.PhysicalMemory("1 MiB"))
    return BALLAST[0]


def test_a_cursor_that_only_the_collector_finds_ends_quietly_with_its_space(mem):
    gc.collect()
    before = pf.map_budget()
    space = pf.VmSpace(mem, 16 * PAGE)
    kept = pf.VmSpace(mem, 16 * PAGE)
    cycle = [space, space.cursor(0, PAGE), kept.cursor(0, PAGE)]
    cycle.append(cycle)
    del space, cycle
    gc.collect()  # an exception here would fail the test
    kept.cursor(0, PAGE).close()
    kept.close()
    assert pf.map_budget() == before


def test_spaces_and_mappings_agree_with_the_model_and_rare_states_are_reached():
    number = chosen_seed()
    gc.collect()
    REACHED.clear()
    # Private and shared arenas take turns.  What is drawn depends on which modules are there, too;
    # so there are more rounds if need be.
    for more in range(40):
        run_state_machine_as_test(
            seed(number + more)((Machine, SharedMachine)[more % 2]),
            settings=settings(
                max_examples=10 * LONG,
                stateful_step_count=50,
                deadline=None,
                database=None,
                report_multiple_bugs=False,
                phases=(Phase.generate, Phase.shrink),
                suppress_health_check=list(HealthCheck),
            ),
        )
        missing = STATES - {name for name in STATES if REACHED[name]}
        if more > 0 and not missing:
            break
    assert not missing, f"never reached: {sorted(missing)}"
