# This Source Code Form is subject to the terms of the Mozilla Public
# License, v. 2.0. If a copy of the MPL was not distributed with this
# file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Physical memory: the arena as a Python object, and how it is booted.

The boot follows that of a kernel: the early allocator places the tables, the
frames that hold them and those of reserved and bad regions get metadata of
their own, and what is left is handed to the frame allocator.
"""

from collections import Counter
from dataclasses import dataclass

import numpy as np

cimport cython
from cpython.number cimport PyNumber_Index
from libc.stdint cimport int64_t, uint32_t, uint64_t

from pageframe._core.allocator cimport (
    claim_one, free_frames, longest_free_run, next_bit, reserve_frames, setup_bits, trim)
from pageframe._core.arena cimport (
    PF_ARENA, PF_UNTYPED, Arena, pf_arena, pf_frame_of, pf_slot_at, table_array)
from pageframe._core.early import EarlyAllocator, cover, parse_size
from pageframe._core.errors import (
    ArenaInUseError, FrameTypeError, NotAlignedError, OutOfFramesError)
from pageframe._core.frame cimport UFrame, make_frame
from pageframe._core.handle cimport (
    MetaSource, begin_life, get, meta_source, obtain_one, put, raw_add, zero_used)
from pageframe._core.meta cimport (
    TYPE_META_PAGE, TYPE_RESERVED, TYPE_UNTYPED, TYPE_UNUSABLE, register_builtin, slot_dtype,
    type_id_of)
from pageframe._core.meta import FrameMetaType
from pageframe._core.segment cimport alloc_segment
from pageframe._core.slot cimport (
    PF_BUSY, PF_MAX, PF_UNIQUE, PF_UNUSED, pf_load_relaxed_u32, pf_slot, pf_slot_count)
from pageframe._core.user_allocator import FrameAllocator
from pageframe._core.vector cimport alloc_frames

REF_COUNT_UNUSED = PF_UNUSED
REF_COUNT_UNIQUE = PF_UNIQUE
REF_COUNT_MAX = PF_MAX

TYPE_CAPACITY = 64
MAX_FRAMES = 2 ** 32    # links hold frame numbers of 32 bits


@dataclass(frozen=True)
class ArenaStats:
    """Figures of an arena at one moment; see memory.pyi."""

    size: int
    page_size: int
    slot_size: int
    total_frames: int
    free_frames: int
    used_frames: int
    reserved_frames: int
    shared_frames: int
    unique_frames: int
    references: int
    raw_references: int
    longest_free_run: int
    overhead: int
    frames_by_type: dict


cdef uint64_t power_of_two(str name, object value, uint64_t low, uint64_t high) except 0:
    value = parse_size(value)
    if value & (value - 1) or not low <= value <= high:
        raise ValueError(f"{name} must be a power of two in {low} .. {high}, not {value}")
    return value


cdef class PhysicalMemory(Arena):
    def __init__(self, size, *, page_size=4096, slot_size=64, regions=None, populate=False,
                 allocator=None):
        cdef uint64_t page = power_of_two("page_size", page_size, 4096, 1 << 30)
        cdef uint64_t slot = power_of_two("slot_size", slot_size, 64, 256)
        if self.mapping != NULL:
            raise TypeError("this arena is initialised already")
        if allocator is not None and not isinstance(allocator, FrameAllocator):
            raise TypeError(
                f"{type(allocator).__name__} is no FrameAllocator: it needs alloc, dealloc and "
                "add_free_memory")
        size = parse_size(size)
        if size <= 0 or size % page:
            raise ValueError(f"size must be a positive multiple of the page size {page}, not {size}")
        if size // page >= MAX_FRAMES:
            raise ValueError(f"{size // page} frames are too many: an arena has fewer than {MAX_FRAMES}")
        covered = cover(regions, size, page)
        early = EarlyAllocator(covered)
        self.map(size, page, slot, populate)
        try:
            self.place_tables(early, TYPE_CAPACITY)
        except MemoryError as error:
            raise ValueError(f"the arena of {size} bytes can't hold its own tables: {error}") from None
        register_builtin(self)
        setup_bits(&self.a)
        for start, stop in early.allocated(page):
            reserve(&self.a, start, stop, TYPE_META_PAGE)
        for region in covered:
            if region.kind != "usable":
                reserve(&self.a, region.start, region.stop,
                        TYPE_RESERVED if region.kind == "reserved" else TYPE_UNUSABLE)
        self.own_frames = self.a.frames - free_frames(&self.a)
        if self.own_frames == self.a.frames:
            raise ValueError(f"the arena of {size} bytes has no usable frame besides its own tables")
        self.a.open = True
        if allocator is not None:
            self.user_allocator = allocator
            add_free_memory(self, allocator)

    # -- figures -------------------------------------------------------------------------------

    @property
    def size(self):
        return self.a.size

    @property
    def max_paddr(self):
        return self.a.size

    @property
    def page_size(self):
        return 1 << self.a.page_shift

    @property
    def slot_size(self):
        return 1 << self.a.slot_shift

    @property
    def total_frames(self):
        return self.a.frames

    @property
    def free_frames(self):
        self.check_open()
        return free_frames(&self.a)

    @property
    def used_frames(self):
        self.check_open()
        return self.a.frames - self.own_frames - free_frames(&self.a)

    @property
    def reserved_frames(self):
        return self.own_frames

    @property
    def layout(self):
        return self.tables

    @property
    def closed(self):
        return not self.a.open

    def stats(self):
        cdef uint64_t count
        cdef uint64_t references = 0
        cdef uint64_t raw = 0
        cdef uint64_t shared = 0
        cdef uint64_t unique = 0
        cdef uint64_t frame
        cdef pf_slot *slot
        cdef uint32_t type_id
        self.check_open()
        used_by_type = Counter()
        for frame in range(self.a.frames):
            slot = pf_slot_at(&self.a, frame)
            count = pf_slot_count(slot)
            if count == PF_UNUSED or count == PF_BUSY:
                continue
            type_id = slot.type_id
            used_by_type[type_id] += 1
            raw += pf_load_relaxed_u32(&self.a.raw[frame])
            if count == PF_UNIQUE:
                unique += 1
                references += 1
            elif self.a.type_info[type_id].flags & PF_ARENA:
                references += count - 1
            else:
                shared += 1
                references += count
        tables = sum(size for _, _, size in self.tables)
        free = free_frames(&self.a)
        return ArenaStats(
            size=self.a.size,
            page_size=1 << self.a.page_shift,
            slot_size=1 << self.a.slot_shift,
            total_frames=self.a.frames,
            free_frames=free,
            used_frames=self.a.frames - self.own_frames - free,
            reserved_frames=self.own_frames,
            shared_frames=shared,
            unique_frames=unique,
            references=references,
            raw_references=raw,
            longest_free_run=longest_free_run(&self.a),
            overhead=tables,
            frames_by_type={
                self.classes[type_id].__layout__.name: n for type_id, n in sorted(used_by_type.items())},
        )

    # -- views of the whole arena --------------------------------------------------------------

    @property
    def slots(self):
        return table_array(
            self, self.a.slots, self.a.frames << self.a.slot_shift,
            {"names": ["count", "generation", "type", "list"],
             "formats": ["u8", "u8", "u4", "u4"],
             "offsets": [0, 8, 16, 20],
             "itemsize": 1 << self.a.slot_shift}, None)

    def meta(self, meta_type):
        type_id = type_id_of(self, meta_type)
        slots = self.slots
        columns = table_array(
            self, self.a.slots, self.a.frames << self.a.slot_shift, slot_dtype(self, meta_type), None)
        dead = (slots["type"] != type_id) | (slots["count"] == PF_UNUSED) | (slots["count"] == PF_BUSY)
        return np.ma.MaskedArray(columns, mask=dead)

    @property
    def types(self):
        return dict(enumerate(self.classes[1:], 1))

    # -- allocation ----------------------------------------------------------------------------

    def alloc_frame(self, meta=None, bint zeroed=True):
        cdef int64_t frame
        cdef pf_slot *slot
        cdef UFrame handle
        cdef MetaSource source
        if not self.a.open:
            self.check_open()
        if meta is not None:
            source = meta_source(self, meta)
            frame = obtain_one(self)
            slot = pf_slot_at(&self.a, frame)
            if zeroed:
                zero_used(&self.a, frame, slot)
            begin_life(slot, source.type_id, source.storage, source.size, 1)
            return make_frame(self, slot)
        frame = claim_one(&self.a) if self.user_allocator is None else -1
        if frame < 0:
            frame = obtain_one(self)
        slot = pf_slot_at(&self.a, frame)
        if zeroed:
            zero_used(&self.a, frame, slot)
        begin_life(slot, TYPE_UNTYPED, NULL, 0, 1)
        handle = UFrame.__new__(UFrame)
        handle.mem = self
        handle.slot = slot
        return handle

    def alloc_frames(self, n, meta=None, bint zeroed=True):
        return alloc_frames(self, self.wanted(n, 0), meta, zeroed)

    def alloc_segment(self, n, meta_fn=None, bint zeroed=True, align=None):
        if align is not None:
            align = parse_size(align)
            if align <= 0 or align & (align - 1):
                raise ValueError(f"align must be a power of two, not {align}")
            if align & ((1 << self.a.page_shift) - 1):
                raise NotAlignedError(
                    f"align {align} is not a multiple of the page size {1 << self.a.page_shift}")
        return alloc_segment(self, self.wanted(n, align or 1), meta_fn, zeroed, align)

    cdef uint64_t wanted(self, object n, object align) except 0:
        """A number of frames that could be had if the arena were empty."""
        self.check_open()
        n = PyNumber_Index(n)
        if n < 1:
            raise ValueError(f"at least one frame must be asked for, not {n}")
        if n > self.a.frames or align > self.a.size:
            raise OutOfFramesError(
                f"{n} frames wanted, the arena has {self.a.frames}, of which "
                f"{free_frames(&self.a)} are free")
        return n

    def inc_frame_ref_count(self, paddr):
        cdef uint64_t frame = self.frame_at(paddr)
        get(self, frame)
        try:
            raw_add(self, frame)
        except:
            put(self, pf_slot_at(&self.a, frame))
            raise

    def trim(self):
        cdef uint64_t frames
        self.check_open()
        with nogil:
            frames = trim(&self.a)
        return frames

    # -- closing -------------------------------------------------------------------------------

    @cython.critical_section
    def close(self):
        if not self.a.open:
            return
        stats = self.stats()
        views = pf_load_relaxed_u32(&self.a.views)
        if stats.used_frames or stats.references or views:
            raise ArenaInUseError(
                f"the arena can't be closed: {stats.used_frames} frames are held by "
                f"{stats.references} references, {stats.raw_references} of them raw, and "
                f"{views} arrays over its tables live")
        self.release_memory()

    def __enter__(self):
        self.check_open()
        return self

    def __exit__(self, exc_type, exc, traceback):
        try:
            self.close()
        except ArenaInUseError:
            # What raised may still hold frames; the arena goes with the last of them.
            if exc_type is None:
                raise

    def __reduce__(self):
        raise TypeError("a private arena can't be pickled")

    def __repr__(self):
        if not self.a.open:
            return f"<{type(self).__name__} closed>"
        return (f"<{type(self).__name__} of {self.a.size} bytes: {self.a.frames} frames of "
                f"{1 << self.a.page_shift}, {free_frames(&self.a)} free>")


cdef int reserve(pf_arena *a, uint64_t start, uint64_t stop, uint32_t type_id) except -1:
    """Give a range of frames to the arena itself."""
    cdef uint64_t frame
    cdef uint64_t first = start >> a.page_shift
    cdef uint64_t count = (stop - start) >> a.page_shift
    reserve_frames(a, first, count)
    for frame in range(first, first + count):
        begin_life(pf_slot_at(a, frame), type_id, NULL, 0, 1)
    return 0


cdef int add_free_memory(Arena mem, object allocator) except -1:
    """Tell the user's allocator of every run of free frames."""
    cdef uint64_t start = next_bit(&mem.a, 0, mem.a.frames, False)
    cdef uint64_t stop
    while start < mem.a.frames:
        stop = next_bit(&mem.a, start, mem.a.frames, True)
        allocator.add_free_memory(start << mem.a.page_shift, (stop - start) << mem.a.page_shift)
        start = next_bit(&mem.a, stop, mem.a.frames, False)
    return 0
