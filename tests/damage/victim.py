# This Source Code Form is subject to the terms of the Mozilla Public
# License, v. 2.0. If a copy of the MPL was not distributed with this
# file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""A client of an arena that somebody damages: what it holds, and all that it may do.

Each use either raises one of `EXPECTED` or gives a result that is sound: one that makes sense by
itself, whatever the arena says.
"""

from __future__ import annotations

import io
import pickle
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import numpy as np

import pageframe
from pageframe import (
    ArenaView,
    Frame,
    FrameMeta,
    FrameVec,
    LinkedList,
    PageFrameError,
    PageProperty,
    PhysicalMemory,
    Segment,
    UniqueFrame,
    UntypedFrameMeta,
    USegment,
    VmSpace,
    u32,
)
from pageframe.observe.arena_map import take_map
from pageframe.observe.frames import find_frames, frame_row
from types_for_tests import Dropped, Node, Page, Raw

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Iterator
    from pathlib import Path

EXPECTED = (PageFrameError, OSError, MemoryError, BufferError)
PAGES = 24  # of an address space


class Victim:
    """A client with some handles, made as they are needed."""

    def __init__(self, mem: PhysicalMemory, path: Path) -> None:
        self.mem = mem
        self.path = path
        self.more: list[Any] = []  # what uses have come by

    def __getattr__(self, name: str) -> Any:
        if name not in MADE:
            raise AttributeError(name)
        made = MADE[name](self)
        setattr(self, name, made)
        return made

    def keep(self, handle: Any) -> None:
        self.more.append(handle)

    def let_go(self) -> None:
        """Give up everything, which may raise nothing."""
        self.more.clear()
        for name in MADE:
            self.__dict__.pop(name, None)

    def paddr(self, paddr: int) -> None:
        assert 0 <= paddr < self.mem.size, paddr
        assert paddr % self.mem.page_size == 0, paddr


def make_list(v: Victim) -> LinkedList[Page]:
    pages = LinkedList(v.mem, Page)
    for i in range(3):
        pages.push_back(v.mem.alloc_frame(Page(inode=i)).try_unique())
    return pages


def make_space(v: Victim) -> VmSpace:
    space = VmSpace(v.mem, PAGES * v.mem.page_size)
    with space.cursor(0, 8 * v.mem.page_size) as cursor:
        cursor.map(v.mem.alloc_segment(3))
        cursor.map(v.mem.alloc_frames(2))
        cursor.map(v.mem.alloc_segment(1), PageProperty(write=False))
    return space


MADE: dict[str, Callable[[Victim], Any]] = {
    "frame": lambda v: v.mem.alloc_frame(Page(inode=1)),
    "plain": lambda v: v.mem.alloc_frame(),
    "typed": lambda v: v.mem.alloc_frame(Node(delta=-2)),
    "dropping": lambda v: v.mem.alloc_frame(Dropped(number=3)),
    "ref": lambda v: v.frame.borrow(),
    "unique": lambda v: v.mem.alloc_frame(Page).try_unique(),
    "segment": lambda v: v.mem.alloc_segment(3),
    "vec": lambda v: v.mem.alloc_frames(4),
    "pages": make_list,
    "space": make_space,
    "mapping": lambda v: v.mem.map(v.mem.alloc_frames(3)),
    "array": lambda v: v.mem.asarray([1.0, 2.0, 3.0]),
    "raw": lambda v: v.mem.alloc_frame().into_raw(),
    "message": lambda v: pickle.dumps(v.mem.alloc_frame(Page)),
    "message_run": lambda v: pickle.dumps(v.mem.alloc_segment(2)),
    "message_vec": lambda v: pickle.dumps(v.mem.alloc_frames(3)),
    "message_array": lambda v: pickle.dumps(v.mem.asarray([1, 2])),
    "held_view": lambda v: data(v.plain),
}


def data(holder: Any) -> memoryview:
    """Return the bytes of frames; they may have become typed, which is no longer a buffer."""
    holder.readonly().release()
    return memoryview(holder)


# -- uses --------------------------------------------------------------------------------------


def alloc(v: Victim) -> None:
    frame = v.mem.alloc_frame()
    v.paddr(frame.start_paddr)
    assert len(bytes(data(frame))) == v.mem.page_size
    v.keep(frame)


def alloc_typed(v: Victim) -> None:
    frame = v.mem.alloc_frame(Node(level=3))
    v.paddr(frame.start_paddr)
    v.keep(frame)


def alloc_many(v: Victim) -> None:
    for _ in range(8):
        v.keep(v.mem.alloc_frame(Raw(number=1), zeroed=False))


def alloc_segment(v: Victim) -> None:
    segment = v.mem.alloc_segment(5, align=2 * v.mem.page_size)
    v.paddr(segment.start_paddr)
    assert segment.end_paddr <= v.mem.size
    data(segment)[::512] = bytes(segment.size // 512)
    v.keep(segment)


def alloc_vec(v: Victim) -> None:
    vec = v.mem.alloc_frames(9, Page)
    assert len(vec) == 9
    assert int(vec.paddrs.max()) < v.mem.size
    v.keep(vec)


def alloc_too_many(v: Victim) -> None:
    v.keep(v.mem.alloc_frames(v.mem.total_frames - 1))


def alloc_each(v: Victim) -> None:
    v.keep(v.mem.alloc_segment(2, lambda paddr: Page(inode=paddr)))


def from_unused(v: Victim) -> None:
    unused = (v.mem.slots["count"] == pageframe.REF_COUNT_UNUSED).nonzero()[0][:2]
    for cls, frame in zip((Frame, UniqueFrame), unused.tolist(), strict=False):
        v.keep(cls.from_unused(v.mem, frame * v.mem.page_size, Page))


def from_in_use(v: Victim) -> None:
    for paddr in range(0, v.mem.size, 5 * v.mem.page_size):
        try:
            frame = Frame.from_in_use(v.mem, paddr)
        except PageFrameError:
            continue
        v.paddr(frame.start_paddr)
        v.keep(frame)


def from_raw(v: Victim) -> None:
    v.keep(Frame.from_raw(v.mem, v.raw))


def segment_raw(v: Victim) -> None:
    start, stop = v.segment.into_raw()
    v.keep(USegment.from_raw(v.mem, start, stop))


def read(v: Victim) -> None:
    for holder in (v.plain, v.segment, v.frame):
        assert len(bytes(data(holder))) == holder.size
    assert np.frombuffer(data(v.plain), np.uint8).sum() >= 0
    assert len(v.plain.reader().read_bytes(100)) == 100


def write(v: Victim) -> None:
    data(v.plain)[:] = b"x" * v.mem.page_size
    v.segment.writer().write(b"yz" * 3000)


def held_view(v: Victim) -> None:
    v.plain.drop()
    assert len(bytes(v.held_view)) == v.mem.page_size
    v.held_view.release()


def meta(v: Victim) -> None:
    view = v.frame.meta
    if type(view) is Page:
        assert 0 <= view.inode < 2**64
        view.hits.fetch_add(1)
        assert len(view.tag) == 16
    assert repr(view)
    assert issubclass(v.frame.meta_type, FrameMeta)


def meta_unique(v: Victim) -> None:
    view = v.unique.meta
    if type(view) is Page:
        view.inode = 7
        assert 0 <= view.inode < 2**64


def meta_arrays(v: Victim) -> None:
    assert len(v.segment.meta) == 3
    assert len(v.vec.meta) == 4
    assert len(v.mem.meta(Page)["inode"]) == v.mem.total_frames
    assert v.mem.meta(Raw)["number"].filled(0).sum() >= 0


def handles(v: Victim) -> None:
    for handle in (v.frame, v.typed, v.ref, v.unique):
        repr(handle), hash(handle)
        v.paddr(handle.start_paddr)
        assert handle.generation >= 0
    assert v.frame != v.typed
    assert v.frame.reference_count >= 0
    repr(v.segment), repr(v.vec)
    v.vec.reference_counts


def casts(v: Victim) -> None:
    for handle in (v.frame, v.segment, v.vec, v.unique, v.typed):
        try:
            handle.cast(UntypedFrameMeta)
        except PageFrameError:
            v.frame.cast(Page)


def clones(v: Victim) -> None:
    for handle in (v.frame, v.typed, v.segment, v.vec, v.ref):
        v.keep(handle.clone())


def parts(v: Victim) -> None:
    v.keep(v.segment.slice(0, v.mem.page_size))
    v.keep(v.segment[1])
    v.keep(v.vec[1:3])
    v.keep(list(v.vec))
    v.keep(FrameVec.from_frames([v.plain, v.plain]))
    v.keep(v.segment.split(v.mem.page_size))


def segment_of_frame(v: Victim) -> None:
    v.keep(USegment.from_frame(v.plain))
    v.keep(Segment.from_frame(v.typed))


def uniques(v: Victim) -> None:
    v.keep(v.unique.repurpose(Raw(number=2)))
    v.keep(v.plain.try_unique().share())
    data(v.more[-2])[:5] = b"bytes"


def borrowed(v: Victim) -> None:
    data(v.ref)[:3] = b"abc"


def drops(v: Victim) -> None:
    for handle in (v.frame, v.typed, v.segment, v.vec, v.unique, v.dropping):
        handle.drop()


def raw_counts(v: Victim) -> None:
    v.mem.inc_frame_ref_count(v.plain.start_paddr)
    v.keep(Frame.from_raw(v.mem, v.plain.start_paddr))


def list_walk(v: Victim) -> None:
    for paddr in v.pages:
        v.paddr(paddr)
    cursor = v.pages.cursor_front()
    for _ in range(6):
        repr(cursor.current_meta)
        cursor.move_next()
    cursor.move_prev()
    cursor.move_to_front()
    cursor.move_to_back()


def list_change(v: Victim) -> None:
    v.keep(v.pages.pop_front())
    v.pages.push_front(v.unique)
    v.keep(v.pages.pop_back())
    cursor = v.pages.cursor_back()
    v.keep(cursor.take_current())
    if v.more[-1] is not None:
        cursor.insert_before(v.more[-1])
    len(v.pages), repr(v.pages), 0 in v.pages


def list_drop(v: Victim) -> None:
    v.pages.drop()


def space_look(v: Victim) -> None:
    with v.space.cursor(0, PAGES * v.mem.page_size) as cursor:
        for _ in range(PAGES):
            item = cursor.query()
            if item is not None:
                assert 0 <= item.va < PAGES * v.mem.page_size
                v.keep(item.frame)
            if cursor.find_next() is None:
                break
            cursor.jump(cursor.virt_addr)
    v.keep(v.space.frames(0, 2 * v.mem.page_size))
    repr(v.space), v.space.table_frames


def space_read(v: Victim) -> None:
    for page in range(12):
        start = page * v.mem.page_size
        try:
            view = v.space.view(start, start + 2 * v.mem.page_size)
        except PageFrameError:
            continue
        assert len(bytes(view)) == 2 * v.mem.page_size
        if not view.readonly:
            view[:] = bytes(len(view))
        view.release()
    v.space.array(0, 512).sum()


def space_change(v: Victim) -> None:
    with v.space.cursor(0, PAGES * v.mem.page_size) as cursor:
        cursor.jump(v.mem.page_size)
        cursor.protect(v.mem.page_size, PageProperty(write=False))
        cursor.jump(2 * v.mem.page_size)
        cursor.unmap(3 * v.mem.page_size)
        cursor.jump(10 * v.mem.page_size)
        cursor.map(v.mem.alloc_frames(2))
        cursor.map(v.plain)


def space_fork(v: Victim) -> None:
    with v.space.fork() as other:
        v.space.make_writable(0, v.mem.page_size)
        memoryview(other.view(0, v.mem.page_size))[:1].tobytes()
        view = v.space.view(0, v.mem.page_size)
        if not view.readonly:  # as a page stays that the table says could not be written before
            view[:1] = b"z"


def space_close(v: Victim) -> None:
    v.space.close()


def mappings(v: Victim) -> None:
    memoryview(v.mapping)[5:7] = b"ab"
    v.mapping.append(v.vec)
    assert len(bytes(v.mapping)) == v.mapping.size
    v.keep(v.mapping.frames)
    v.mapping.drop()


def arrays(v: Victim) -> None:
    v.array.sum()
    v.keep(pickle.dumps(v.array))


def sends(v: Victim) -> None:
    for handle in (v.frame, v.segment, v.vec):
        v.keep(pickle.dumps(handle))


def loads(v: Victim) -> None:
    handle = pickle.loads(v.message)
    v.paddr(handle.start_paddr)
    v.keep(handle)


def loads_more(v: Victim) -> None:
    for message in (v.message_run, v.message_vec, v.message_array):
        try:
            v.keep(pickle.loads(message))
        except PageFrameError:
            v.keep(message)


def loads_again(v: Victim) -> None:
    for message in (v.message, v.message_run, v.message_vec):
        for _ in range(2):
            try:
                v.keep(pickle.loads(message))
            except PageFrameError:
                break


def damaged_message(v: Victim) -> None:
    message = bytearray(v.message_run)
    message[len(message) // 2] ^= 0xFF
    try:
        pickle.loads(bytes(message))
    except (AttributeError, ImportError, TypeError, UnicodeDecodeError, ValueError, EOFError, IndexError,
            KeyError, pickle.UnpicklingError, OverflowError):  # fmt: skip
        v.keep(None)  # pickle's own


def stats(v: Victim) -> None:
    sound_stats(v.mem)


def sound_stats(mem: ArenaView) -> None:
    found = mem.stats()
    assert 0 <= found.free_frames <= found.total_frames, found
    assert 0 <= found.used_frames <= found.total_frames, found
    assert 0 <= found.reserved_frames <= found.total_frames, found
    assert 0 <= found.longest_free_run <= found.total_frames, found
    assert all(0 <= ticket.paddr < mem.size for ticket in found.tickets), found
    assert 0 <= found.fragmentation <= 1, found
    assert 0 <= found.unusable(3) <= 1, found


def figures(v: Victim) -> None:
    assert 0 <= v.mem.free_frames <= v.mem.total_frames
    assert 0 <= v.mem.used_frames <= v.mem.total_frames
    repr(v.mem), v.mem.clients, v.mem.types, v.mem.ticket_ttl, v.mem.id, v.mem.debug


def holders(v: Victim) -> None:
    for paddr in (v.frame.start_paddr, 0, v.mem.size // 2):
        for holder in v.mem.holders(paddr):
            assert holder.mappings >= 0


def held_by(v: Victim) -> None:
    for client in v.mem.clients[:3]:
        found = v.mem.held_by(client.pid)
        assert len(found) == 0 or int(found["paddr"].max()) < v.mem.size


def events(v: Victim) -> None:
    try:
        found = v.mem.events()
    except TypeError:
        return  # it keeps none
    assert len(found) == 0 or int(found["paddr"].max()) < v.mem.size


def look(v: Victim) -> None:
    with ArenaView(path=v.path) as view:
        look_at(view)


def look_at(view: ArenaView) -> None:
    """Look at an arena in all ways that are no client's."""
    sound_stats(view)
    view.audit()
    view.holders(view.size - view.page_size)
    for _ in view.types.items():
        pass
    rows, _ = find_frames(view, limit=20)
    assert len(rows) <= 20
    assert frame_row(view, 0) is not None
    int(view.slots["count"].sum()), int(view.bitfield.sum())
    if view.debug:
        try:
            view.events()
        except TypeError:
            assert "trace" not in view.debug


def report(v: Victim) -> None:
    text = io.StringIO()
    v.mem.report(text)
    assert len(text.getvalue()) > 100


def maps(v: Victim) -> None:
    for by in ("state", "type", "holder"):
        assert take_map(v.mem, by, cells=16).cell_frames.sum() >= 0


def html(v: Victim) -> None:
    assert v.mem._repr_html_().startswith("<")


def frames(v: Victim) -> None:
    for state in ("shared", "unique", "busy", None):
        rows, _ = find_frames(v.mem, state=state, sort="count", limit=5)
        assert len(rows) <= 5


def reap(v: Victim) -> None:
    found = v.mem.reap()
    assert found.frames <= 2 * v.mem.total_frames + 4


def audit(v: Victim) -> None:
    found = v.mem.audit()
    for paddr in (*found.leaked, *found.miscounted, *found.damaged):
        v.paddr(paddr)


def repair(v: Victim) -> None:
    v.mem.audit(repair=True)


def trim(v: Victim) -> None:
    assert 0 <= v.mem.trim() <= v.mem.total_frames


def register(v: Victim) -> None:
    class Late(UntypedFrameMeta):
        number: u32

    v.keep(v.mem.alloc_frame(Late(number=4)))


def attach(v: Victim) -> None:
    with PhysicalMemory.attach(path=v.path, reap=False) as other:
        other.alloc_frame().drop()


def close(v: Victim) -> None:
    v.let_go()
    v.mem.close()


USES: dict[str, tuple[int, Callable[[Victim], None], str]] = {
    use.__name__: (weight, use, needs)
    for weight, use, needs in (
        (12, alloc, ""), (4, alloc_typed, ""), (6, alloc_many, ""), (8, alloc_segment, ""),
        (8, alloc_vec, ""), (4, alloc_too_many, ""), (3, alloc_each, ""), (4, from_unused, ""),
        (5, from_in_use, "plain"), (4, from_raw, "raw"), (3, segment_raw, "segment"),
        (6, read, "plain segment frame"), (5, write, "plain segment"), (3, held_view, "plain held_view"),
        (8, meta, "frame"), (6, meta_unique, "unique"), (4, meta_arrays, "segment vec"),
        (8, handles, "frame typed ref unique segment vec"), (4, casts, "frame segment vec unique typed"),
        (8, clones, "frame typed segment vec ref"), (6, parts, "segment vec plain"),
        (6, segment_of_frame, "plain typed"), (5, uniques, "unique plain"), (3, borrowed, "ref"),
        (10, drops, "frame typed segment vec unique dropping"), (4, raw_counts, "plain"),
        (8, list_walk, "pages"), (8, list_change, "pages unique"), (5, list_drop, "pages"),
        (6, space_look, "space"), (8, space_read, "space"), (8, space_change, "space plain"),
        (4, space_fork, "space"), (4, space_close, "space"), (4, mappings, "mapping vec"),
        (2, arrays, "array"), (6, sends, "frame segment vec"), (6, loads, "message"),
        (6, loads_more, "message_run message_vec message_array"),
        (4, loads_again, "message message_run message_vec"), (1, damaged_message, "message_run"),
        (4, stats, ""), (5, figures, ""), (4, holders, "frame"), (2, held_by, ""), (2, events, ""),
        (1.5, look, ""), (0.1, report, ""), (0.5, maps, ""), (0.05, html, ""), (1, frames, ""), (6, reap, ""),
        (5, audit, ""), (4, repair, ""), (3, trim, ""), (2, register, ""), (1, attach, ""),
        (0.5, close, ""),
    )
}  # fmt: skip


NAMES = list(USES)
WEIGHTS = list(accumulate(use[0] for use in USES.values()))


def draw(rng: random.Random, count: int) -> list[str]:
    """Choose what a victim does."""
    return rng.choices(NAMES, cum_weights=WEIGHTS, k=count)


def needs_of(names: list[str]) -> Iterator[str]:
    """Yield what the victim must have for that."""
    for name in names:
        yield from USES[name][2].split()
