# This Source Code Form is subject to the terms of the Mozilla Public
# License, v. 2.0. If a copy of the MPL was not distributed with this
# file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Physical memory: the arena as a Python object, and how it is booted.

The boot follows that of a kernel: the early allocator places the tables, the
frames that hold them and those of reserved and bad regions get metadata of
their own, and what is left is handed to the frame allocator.
"""

from dataclasses import dataclass

import numpy as np

cimport cython
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.string cimport memset

from pageframe._core.allocator cimport (
    claim_one, free_frames, longest_free_run, next_bit, reserve_frames, setup_bits, trim)
from pageframe._core.arena cimport (
    PF_ARENA, Arena, as_int, pf_arena, pf_slot_at, pf_type_flags, table_array)
from pageframe._core.early import EarlyAllocator, cover, parse_size
from pageframe._core.errors import (
    ArenaInUseError, NotAlignedError, OutOfFramesError)
from pageframe._core.frame cimport UFrame, make_frame
from pageframe._core.handle cimport (
    MetaSource, begin_life, get, meta_source, obtain_one, put, raw_add, zero_used)
from pageframe._core.meta cimport (
    TYPE_META_PAGE, TYPE_RESERVED, TYPE_UNTYPED, TYPE_UNUSABLE, register_builtin, slot_dtype,
    type_id_of)
from pageframe._core.segment cimport alloc_segment
from pageframe._core.slot cimport (
    PF_BUSY, PF_MAX, PF_UNIQUE, PF_UNUSED, pf_load_relaxed_u32, pf_slot, pf_slot_count)
from pageframe._core.user_allocator import FrameAllocator
from pageframe._core.vector cimport alloc_frames

REF_COUNT_UNUSED = PF_UNUSED
REF_COUNT_UNIQUE = PF_UNIQUE
REF_COUNT_MAX = PF_MAX

cdef enum:
    TYPE_CAPACITY = 64
cdef object MAX_FRAMES = 2 ** 32    # links hold frame numbers of 32 bits


@dataclass(frozen=True)
class ArenaStats:
    """Figures of an arena at one moment.

    Attributes
    ----------
    size, page_size, slot_size
        Bytes.
    total_frames, free_frames, used_frames, reserved_frames
        Frames; the first is the sum of the others.
    shared_frames, unique_frames
        Used frames by state; a frame that is busy counts as neither.
    references
        References to used frames, and those to the arena's own frames beside
        the arena's.
    raw_references
        Of these, the raw ones.
    longest_free_run
        Frames of the longest run that `PhysicalMemory.alloc_segment` could give.
    overhead
        Bytes of the arena's own tables.
    frames_by_type
        Name of a metadata type -> frames that carry it.
    """

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


cdef struct census:
    uint64_t by_type[TYPE_CAPACITY + 1]
    uint64_t references
    uint64_t raw
    uint64_t shared
    uint64_t unique


cdef void count_frames(const pf_arena *a, census *c) noexcept nogil:
    cdef uint64_t frame, count
    cdef const pf_slot *slot
    memset(c, 0, sizeof(census))
    for frame in range(a.frames):
        slot = pf_slot_at(a, frame)
        count = pf_slot_count(slot)
        if count == PF_UNUSED or count == PF_BUSY:
            continue
        c.by_type[slot.type_id] += 1
        c.raw += pf_load_relaxed_u32(&a.raw[frame])
        if count == PF_UNIQUE:
            c.unique += 1
            c.references += 1
        elif pf_type_flags(a, slot) & PF_ARENA:
            c.references += count - 1      # all but the arena's own
        else:
            c.shared += 1
            c.references += count


cdef class PhysicalMemory(Arena):
    """An arena of page frames, private to this process.

    Frames that nobody has used cost nothing. The arena holds its own tables,
    so a few of its frames are never free (see `layout`, `reserved_frames`).

    Parameters
    ----------
    size : int or str
        Bytes, or a string like ``"256 MiB"``; a multiple of the page size.
    page_size : int or str
        Bytes of a frame: a power of two from 4096 to 1 GiB.
    slot_size : int or str
        Bytes of a frame's metadata slot: 64, 128 or 256, of which the arena
        takes 24 and the rest is for the fields of a metadata type.
    regions : iterable of MemoryRegion, optional
        Ranges that are reserved or bad. What no region covers is usable.
    populate : bool
        Have the kernel give all the memory now, not at the first touch.
    allocator : FrameAllocator, optional
        An allocator of the user's own that says where frames are placed.

    Raises
    ------
    ValueError
        If a size makes no sense, regions overlap, or the arena is too small
        for its own tables.
    MemoryError
        If the system has not that much memory.

    Examples
    --------
    >>> with PhysicalMemory("1 MiB") as mem:
    ...     with mem.alloc_frame() as frame:
    ...         memoryview(frame)[:5] = b"hello"
    ...         bytes(memoryview(frame)[:5]), frame.reference_count
    (b'hello', 1)
    """

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
            self.given = bytearray(self.a.frames)
            self.user_allocator = allocator
            try:
                add_free_memory(self, allocator)
            except BaseException:
                self.a.open = False
                raise

    # -- figures -------------------------------------------------------------------------------

    @property
    def size(self):
        """Bytes of the arena, its own tables included."""
        return self.a.size

    @property
    def max_paddr(self):
        """First physical address past the arena; the same as `size`."""
        return self.a.size

    @property
    def page_size(self):
        """Bytes of a frame."""
        return 1 << self.a.page_shift

    @property
    def slot_size(self):
        """Bytes of a frame's metadata slot."""
        return 1 << self.a.slot_shift

    @property
    def total_frames(self):
        """Frames of the arena: free, used and reserved."""
        return self.a.frames

    @property
    def free_frames(self):
        """Frames that can be allocated. Exact while no thread allocates or releases."""
        self.check_open()
        return free_frames(&self.a)

    @property
    def used_frames(self):
        """Frames that somebody holds."""
        self.check_open()
        return self.a.frames - self.own_frames - free_frames(&self.a)

    @property
    def reserved_frames(self):
        """Frames of the arena's own tables and of reserved and bad regions."""
        return self.own_frames

    @property
    def layout(self):
        """Tables of the arena in the order of their placement, as (name, paddr, bytes)."""
        return self.tables

    @property
    def closed(self):
        """Whether the arena has been closed."""
        return not self.a.open

    def stats(self):
        """Count all frames.

        Returns
        -------
        ArenaStats
            Taken frame by frame while other threads go on; exact at rest.
        """
        cdef census c
        self.check_open()
        with nogil:
            count_frames(&self.a, &c)
        free = free_frames(&self.a)
        frames_by_type = {}
        for type_id, meta_type in self.types.items():
            if c.by_type[type_id]:
                name = meta_type.__layout__.name
                frames_by_type[name] = frames_by_type.get(name, 0) + c.by_type[type_id]
        return ArenaStats(
            size=self.a.size,
            page_size=1 << self.a.page_shift,
            slot_size=1 << self.a.slot_shift,
            total_frames=self.a.frames,
            free_frames=free,
            used_frames=self.a.frames - self.own_frames - free,
            reserved_frames=self.own_frames,
            shared_frames=c.shared,
            unique_frames=c.unique,
            references=c.references,
            raw_references=c.raw,
            longest_free_run=longest_free_run(&self.a),
            overhead=sum(size for _, _, size in self.tables),
            frames_by_type=frames_by_type,
        )

    # -- views of the whole arena --------------------------------------------------------------

    @property
    def slots(self):
        """All metadata slots as a live, read-only structured array.

        Shape ``(total_frames,)``, indexed by ``paddr // page_size``, with the fields
        ``count`` (see `REF_COUNT_UNUSED`, `REF_COUNT_UNIQUE`; 0 is busy),
        ``generation``, ``type`` (see `types`; of a frame that is not used the type
        it had last, 0 if it had none) and ``list`` (0: in none). Keeps the arena
        from being closed.
        """
        return table_array(
            self, self.a.slots, self.a.frames << self.a.slot_shift,
            {"names": ["count", "generation", "type", "list"],
             "formats": ["u8", "u8", "u4", "u4"],
             "offsets": [0, 8, 16, 20],
             "itemsize": 1 << self.a.slot_shift}, None)

    def meta(self, meta_type):
        """The metadata of all frames of a type, as a masked structured array.

        Parameters
        ----------
        meta_type : type
            A metadata type.

        Returns
        -------
        numpy.ma.MaskedArray
            Shape ``(total_frames,)``. Take a column, ``mem.meta(T)["field"]``, before
        asking for more: NumPy compresses and counts plain columns only. The
            data are a live, read-only view; the mask, taken when this is called,
            hides frames that are not in use with this type. Keeps the arena from
            being closed.
        """
        type_id = type_id_of(self, meta_type)
        slots = self.slots
        columns = table_array(
            self, self.a.slots, self.a.frames << self.a.slot_shift, slot_dtype(self, meta_type), None)
        dead = (slots["type"] != type_id) | (slots["count"] == PF_UNUSED) | (slots["count"] == PF_BUSY)
        return np.ma.MaskedArray(columns, mask=dead)

    @property
    def types(self):
        """Metadata types known to the arena: number -> class, the numbers that `slots` shows."""
        return dict(enumerate(self.classes[1:], 1))

    # -- allocation ----------------------------------------------------------------------------

    def alloc_frame(self, meta=None, bint zeroed=True):
        """Allocate one frame.

        Parameters
        ----------
        meta : FrameMeta or type, optional
            Metadata, copied into the slot; a class stands for its defaults.
            None makes an untyped frame without fields.
        zeroed : bool
            Fill the frame with zeros. Otherwise it shows what its last user left.

        Returns
        -------
        UFrame or Frame
            A `UFrame` if the metadata type is untyped.

        Raises
        ------
        OutOfFramesError
            If no frame is free.
        FrameTypeError
            If meta is no metadata, or too large for the slots of this arena.
        """
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
        handle = UFrame.__new__(UFrame)     # before there is anything to lose
        frame = claim_one(&self.a) if self.user_allocator is None else -1
        if frame < 0:
            frame = obtain_one(self)
        slot = pf_slot_at(&self.a, frame)
        if zeroed:
            zero_used(&self.a, frame, slot)
        begin_life(slot, TYPE_UNTYPED, NULL, 0, 1)
        handle.mem = self
        handle.slot = slot
        return handle

    def alloc_frames(self, n, meta=None, bint zeroed=True):
        """Allocate many frames, wherever they are.

        Parameters
        ----------
        n : int
            How many; at least one.
        meta : FrameMeta, type or callable, optional
            As in `alloc_frame`, the same for all; or called with each paddr to
            give the frame's metadata, all of one type.
        zeroed : bool
            As in `alloc_frame`.

        Returns
        -------
        FrameVec

        Raises
        ------
        OutOfFramesError
            If fewer frames are free; none is taken then.
        FrameTypeError
            As in `alloc_frame`, or if meta gives more than one type. What meta
            raises is passed on; the frames go back.
        """
        return alloc_frames(self, self.wanted(n, 0), meta, zeroed)

    def alloc_segment(self, n, meta_fn=None, bint zeroed=True, align=None):
        """Allocate contiguous frames.

        Parameters
        ----------
        n : int
            How many; at least one. No more are taken.
        meta_fn : callable, FrameMeta or type, optional
            Called with each paddr to give the frame's metadata, all of one type;
            or metadata that is the same for all.
        zeroed : bool
            As in `alloc_frame`.
        align : int or str, optional
            Bytes of which the first paddr must be a multiple: a power of two, at
            least the page size.

        Returns
        -------
        USegment or Segment

        Raises
        ------
        OutOfFramesError
            If no run is long enough; the message says how long the longest is.
        FrameTypeError
            As in `alloc_frames`. What meta_fn raises is passed on; the frames go back.
        NotAlignedError, ValueError
            If align is less than the page size, or no power of two.
        """
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
        n = as_int(n)
        self.check_open()
        if n < 1:
            raise ValueError(f"at least one frame must be asked for, not {n}")
        if align > self.a.size:
            raise OutOfFramesError(
                f"a run aligned to {align} bytes wanted, the arena has {self.a.size}")
        if n > self.a.frames:
            raise OutOfFramesError(
                f"{n} frames wanted, the arena has {self.a.frames}, of which "
                f"{free_frames(&self.a)} are free")
        return n

    def inc_frame_ref_count(self, paddr):
        """Take one more reference to a frame that the caller holds, as a raw one.

        `Frame.from_raw` takes it back.

        Raises
        ------
        GetFrameError
            If the paddr is not that of a frame in use.
        """
        cdef uint64_t frame = self.frame_at(paddr)
        get(self, frame)
        try:
            raw_add(self, frame)
        except BaseException:
            put(self, pf_slot_at(&self.a, frame))
            raise

    def trim(self):
        """Give the memory of free frames back to the system.

        Returns
        -------
        int
            Frames whose memory went back. They read as zero when next used.
        """
        cdef uint64_t frames
        self.check_open()
        # The interpreter lock stays held: the frames being trimmed are away meanwhile,
        # and another thread would find fewer free than there are.
        frames = trim(&self.a)
        return frames

    # -- closing -------------------------------------------------------------------------------

    @cython.critical_section
    def close(self):
        """Give the arena's memory back. Does nothing if it is closed already.

        Raises
        ------
        ArenaInUseError
            If handles, views or raw references still hold frames; says how many.
        """
        cdef census c
        cdef uint64_t used
        cdef uint32_t views
        if not self.a.open:
            return
        # From the count to the decision no other code may run, the collector's included.
        count_frames(&self.a, &c)
        used = self.a.frames - self.own_frames - free_frames(&self.a)
        views = pf_load_relaxed_u32(&self.a.views)
        if used == 0 and c.references == 0 and views == 0:
            self.release_memory()
            return
        raise ArenaInUseError(
            f"the arena can't be closed: {used} frames are held by {c.references} references, "
            f"{c.raw} of them raw, and {views} arrays over its tables live")

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
    if not start < stop <= a.size:
        raise ValueError(f"the range {start:#x} .. {stop:#x} is not within the arena")
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
