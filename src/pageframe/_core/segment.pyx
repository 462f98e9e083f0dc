# This Source Code Form is subject to the terms of the Mozilla Public
# License, v. 2.0. If a copy of the MPL was not distributed with this
# file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Segments: contiguous frames of one type in one handle.

A segment holds one reference to each of its frames; the frames live and die one
by one like any others.  Building one claims the bits a word at a time and then
writes slots that nobody else can reach; giving one up clears the bits of each
word at once.  Views of the bytes rest on the segment's references, as with a
frame (handle.pyx).
"""

cimport cython

from libc.stdint cimport uint32_t, uint64_t

from pageframe._core.allocator cimport give_back_mask, give_back_range
from pageframe._core.arena cimport (
    PF_ON_DROP, PF_TYPE_LIMIT, PF_UNTYPED, Arena, as_int, fill_buffer, gives_back, pf_arena, pf_bytes_at,
    pf_frame_of, pf_slot_at, pf_type_flags, table_array)
from pageframe._core.errors import FrameTypeError, NotAlignedError, OutOfBoundError
from pageframe._core.frame cimport Frame, clone_frame
from pageframe._core.handle cimport (
    Handle, MetaSource, ask_each, begin_life, claim_exactly, index_within, meta_sources, movable,
    obtain_run, put, raise_get, raise_moved, raw_add, raw_take, zero_used)
from pageframe._core.ledger cimport pf_end_life, pf_ref_inc, pf_ref_put
from pageframe._core.meta cimport class_numbered, class_of, slot_dtype
from pageframe._core.slot cimport (
    PF_E_OVERFLOW, PF_E_UNIQUE, PF_OK, pf_add_relaxed_u32, pf_load_relaxed_u64, pf_slot, pf_slot_in_use,
    pf_sub_release_u32)
from pageframe._core.traces cimport track
from pageframe._core.user_allocator cimport user_dealloc

cdef enum:
    # Frames from which on an operation lets other Python threads run.
    MANY = 2048


cdef void begin_range(
        pf_arena *a, uint64_t first, uint64_t count, uint32_t type_id,
        const unsigned char *storage, uint32_t size, bint zeroed) noexcept nogil:
    """Build and publish frames whose bits are ours, all with the same metadata."""
    cdef uint64_t frame
    cdef pf_slot *slot
    for frame in range(first, first + count):
        slot = pf_slot_at(a, frame)
        if zeroed:
            zero_used(a, frame, slot)
        begin_life(slot, type_id, storage, size, 1)


cdef void begin_each(Arena mem, uint64_t first, MetaSource source, bint zeroed) noexcept:
    cdef Py_ssize_t i
    cdef pf_slot *slot
    for i in range(len(source.each)):
        slot = pf_slot_at(&mem.a, first + i)
        if zeroed:
            zero_used(&mem.a, first + i, slot)
        begin_life(slot, source.type_id, source.at(i), source.size, 1)


cdef void put_range(pf_arena *a, uint64_t first, uint64_t count) noexcept nogil:
    """Give up a reference to each frame; those that end go back a word at a time."""
    cdef uint64_t frame
    cdef uint64_t ended = 0
    cdef pf_slot *slot
    for frame in range(first, first + count):
        slot = pf_slot_at(a, frame)
        if pf_ref_put(a, slot):
            pf_end_life(a, slot)
            ended |= 1ull << (frame & 63)
        if ended and (frame & 63 == 63 or frame == first + count - 1):
            give_back_mask(a, frame >> 6, ended)
            ended = 0


cdef uint64_t inc_range(pf_arena *a, uint64_t first, uint64_t count) noexcept nogil:
    """Take a reference to each frame; returns how many could be had."""
    cdef uint64_t frame
    for frame in range(first, first + count):
        if pf_ref_inc(a, pf_slot_at(a, frame)) != PF_OK:
            return frame - first
    return count


cdef void give_up(Arena mem, uint64_t first, uint64_t count) noexcept:
    """Give up a reference to each frame of a run."""
    cdef uint64_t frame
    if not gives_back(&mem.a):
        return
    if (mem.user_allocator is not None
            or pf_type_flags(&mem.a, pf_slot_at(&mem.a, first)) & PF_ON_DROP):
        for frame in range(first, first + count):
            put(mem, pf_slot_at(&mem.a, frame))
    elif count < MANY:
        put_range(&mem.a, first, count)
    else:
        pf_add_relaxed_u32(&mem.working, 1)
        with nogil:
            put_range(&mem.a, first, count)
        pf_sub_release_u32(&mem.working, 1)


cdef int hold_range(Arena mem, uint64_t first, uint64_t count) except -1:
    """Take one more reference to each frame of a run that is held already."""
    cdef uint64_t done
    mem.check_open()
    # No other thread is let in: who holds the run must not drop it meanwhile.
    done = inc_range(&mem.a, first, count)
    if done < count:
        if done:
            give_up(mem, first, done)
        raise_get(mem, first + done, PF_E_OVERFLOW)
    return 0


cdef Segment empty_segment(Arena mem, uint64_t like):
    """A handle for frames of the type of one of them, which still holds nothing."""
    cdef Segment segment
    if pf_type_flags(&mem.a, pf_slot_at(&mem.a, like)) & PF_UNTYPED:
        segment = USegment.__new__(USegment)
    else:
        segment = Segment.__new__(Segment)
    segment.mem = mem
    return segment


cdef Segment make_segment(Arena mem, uint64_t first, uint64_t count):
    """A handle that takes over a reference to each frame; without memory for it they go."""
    cdef Segment segment
    try:
        segment = empty_segment(mem, first)
    except MemoryError:
        give_up(mem, first, count)
        raise
    segment.first = first
    segment.count = count
    return segment


cdef Segment clone_range(Arena mem, uint64_t first, uint64_t count):
    """A handle with references of its own to frames that are held already."""
    hold_range(mem, first, count)
    return make_segment(mem, first, count)


cdef int check_kind(object cls, Arena mem, uint32_t type_id) except -1:
    """USegment's class methods give untyped segments only."""
    if cls is USegment and type_id and not mem.a.type_info[type_id & (PF_TYPE_LIMIT - 1)].flags & PF_UNTYPED:
        raise FrameTypeError(f"{class_numbered(mem, type_id).__name__} is the metadata of typed frames")
    return 0


cdef int build(object cls, Arena mem, uint64_t first, uint64_t count, MetaSource source,
               object meta_fn, bint zeroed) except -1:
    """Build claimed frames; if meta_fn fails they are given back as they were."""
    cdef uint32_t epoch = mem.a.epoch
    if source.type_id == 0:
        try:
            ask_each(source, mem, meta_fn, range(
                first << mem.a.page_shift, (first + count) << mem.a.page_shift,
                1 << mem.a.page_shift))
            check_kind(cls, mem, source.type_id)
        except BaseException:
            if mem.a.epoch == epoch:
                give_back_range(&mem.a, first, count)
            raise
        begin_each(mem, first, source, zeroed)
    elif count < MANY:
        begin_range(&mem.a, first, count, source.type_id, source.storage, source.size, zeroed)
    else:
        pf_add_relaxed_u32(&mem.working, 1)
        with nogil:
            begin_range(&mem.a, first, count, source.type_id, source.storage, source.size, zeroed)
        pf_sub_release_u32(&mem.working, 1)
    track(mem, first, count)
    return 0


cdef Segment alloc_segment(Arena mem, uint64_t count, object meta_fn, bint zeroed, object align):
    """PhysicalMemory.alloc_segment, once its arguments are known to make sense."""
    cdef MetaSource source = meta_sources(mem, meta_fn)
    cdef uint64_t alignment = 1 if align is None else align >> mem.a.page_shift
    cdef uint64_t first
    first = obtain_run(mem, count, alignment)
    try:
        build(Segment, mem, first, count, source, meta_fn, zeroed)
    except BaseException:
        if mem.user_allocator is not None:
            user_dealloc(mem, first, count, True)
        raise
    return make_segment(mem, first, count)


@cython.no_gc
cdef class Segment(Holder):
    """A handle to contiguous frames of one type.

    ``segment[i]`` and iteration give frames, ``segment[i:j]`` a segment over
    frames; all hold references of their own. ``len`` counts frames.
    """

    def __dealloc__(self):
        if self.count:
            give_up(self.mem, self.first, self.count)

    cdef int check(self) except -1:
        if self.count == 0:
            raise_moved(self)
        return 0

    cdef int check_movable(self) except -1:
        self.check()
        if self.exports:
            raise BufferError(f"{self!r} can't be moved: {self.exports} views of its bytes live")
        return 0

    cdef uint64_t frames_in(self, object nbytes) except? 0:
        """An integer offset within the segment, or its size, in frames; alignment is checked first."""
        if nbytes & ((1 << self.mem.a.page_shift) - 1):
            raise NotAlignedError(
                f"offset {nbytes:#x} is not a multiple of the page size {1 << self.mem.a.page_shift}")
        if not 0 <= nbytes <= self.count << self.mem.a.page_shift:
            raise OutOfBoundError(
                f"offset {nbytes:#x} is not within 0 .. {self.count << self.mem.a.page_shift:#x}")
        return nbytes >> self.mem.a.page_shift

    cdef Segment part(self, uint64_t start, uint64_t stop):
        """A segment of its own over frames start .. stop - 1 of this one."""
        if start >= stop:
            raise OutOfBoundError(f"a segment has at least one frame, not {start} .. {stop}")
        return clone_range(self.mem, self.first + start, stop - start)

    @classmethod
    def from_unused(cls, Arena mem not None, start, stop, meta_fn=None):
        """Claim the unused frames of a range, all or none.

        Parameters
        ----------
        mem : PhysicalMemory
        start, stop : int
            Paddr of the first frame, and past the last.
        meta_fn : callable, FrameMeta or type, optional
            As in `PhysicalMemory.alloc_segment`.

        Raises
        ------
        NotAlignedError, OutOfBoundError
            If the range is not one of frames of the arena, or is empty.
        FrameInUseError, FrameReservedError, FrameBusyError, FrameUniqueError
            For the first frame that is not free; all stay as they are.
        FrameTypeError
            As in `PhysicalMemory.alloc_segment`. What meta_fn raises is passed on.
        """
        cdef uint64_t first = mem.frame_at(start)
        cdef uint64_t end = mem.frame_stop(stop)
        cdef MetaSource source = meta_sources(mem, meta_fn)
        check_kind(cls, mem, source.type_id)
        if first >= end:
            raise OutOfBoundError(f"the range {start:#x} .. {stop:#x} is empty")
        claim_exactly(mem, first, end - first)
        build(cls, mem, first, end - first, source, meta_fn, False)
        return make_segment(mem, first, end - first)

    @classmethod
    def from_frame(cls, Frame frame not None):
        """Move a frame into a segment of one.

        Raises
        ------
        BufferError
            If views of the frame's bytes live.
        """
        cdef pf_slot *slot
        cdef Segment segment
        with cython.critical_section(frame):
            slot = movable(frame)
            check_kind(cls, frame.mem, slot.type_id)
            segment = empty_segment(frame.mem, pf_frame_of(&frame.mem.a, slot))
            slot = movable(frame)   # making the handle may have let other threads in
            segment.first = pf_frame_of(&frame.mem.a, slot)
            segment.count = 1
            frame.slot = NULL
        return segment

    @classmethod
    def from_raw(cls, Arena mem not None, start, stop):
        """Take back the references that `into_raw` gave for a range.

        Raises
        ------
        NotRawError
            If a frame of the range has no raw reference out; none is taken back.
        FrameUniqueError, FrameTypeError
            If the frames are not shared frames of one type; none is taken back.
        """
        cdef uint64_t first = mem.frame_at(start)
        cdef uint64_t end = mem.frame_stop(stop)
        cdef uint64_t frame
        cdef uint64_t taken = first
        cdef uint32_t type_id
        if first >= end:
            raise OutOfBoundError(f"the range {start:#x} .. {stop:#x} is empty")
        type_id = pf_slot_at(&mem.a, first).type_id
        try:
            for frame in range(first, end):
                raw_take(mem, frame)
                taken += 1
                if not pf_slot_in_use(pf_slot_at(&mem.a, frame)):
                    raise_get(mem, frame, PF_E_UNIQUE)
                if pf_slot_at(&mem.a, frame).type_id != type_id:
                    raise FrameTypeError(f"the frames {start:#x} .. {stop:#x} are not of one type")
            check_kind(cls, mem, type_id)
        except BaseException:
            for frame in range(first, taken):
                raw_add(mem, frame)
            raise
        return make_segment(mem, first, end - first)

    @property
    @cython.critical_section
    def start_paddr(self):
        """Physical address of the first frame."""
        self.check()
        return self.first << self.mem.a.page_shift

    @property
    @cython.critical_section
    def end_paddr(self):
        """Physical address past the last frame."""
        self.check()
        return (self.first + self.count) << self.mem.a.page_shift

    @property
    @cython.critical_section
    def size(self):
        """Bytes."""
        self.check()
        return self.count << self.mem.a.page_shift

    @property
    @cython.critical_section
    def meta_type(self):
        """Class of the metadata."""
        self.check()
        return class_of(self.mem, pf_slot_at(&self.mem.a, self.first))

    @property
    def meta(self):
        """The metadata of the frames as a live, read-only structured array.

        Shape ``(len(segment),)``; ``segment.meta["field"]`` is one column. Holds
        references of its own.
        """
        cdef Segment keep = self.clone()
        return table_array(
            keep.mem, <unsigned char *>pf_slot_at(&keep.mem.a, keep.first),
            keep.count << keep.mem.a.slot_shift, slot_dtype(keep.mem, keep.meta_type), keep)

    @cython.always_allow_keywords(False)
    @cython.critical_section
    def clone(self):
        """Return one more handle to all the frames.

        Raises
        ------
        RefCountOverflowError
            If a count is at the maximum; all stay as they were.
        """
        self.check()
        return clone_range(self.mem, self.first, self.count)

    @cython.always_allow_keywords(False)
    @cython.critical_section
    def drop(self):
        """Give up the references, now; with live views of the bytes, when the last of them goes."""
        cdef uint64_t count = self.count
        self.check()
        self.count = 0
        if self.exports:
            self.pending_count = count
        else:
            give_up(self.mem, self.first, count)

    @cython.critical_section
    def slice(self, start, stop):
        """Return a segment of its own over part of this one.

        Parameters
        ----------
        start, stop : int
            Byte offsets from the start of this segment; multiples of the page size.

        Raises
        ------
        NotAlignedError, OutOfBoundError
            If the part is not within this segment, or is empty.
        """
        start = as_int(start)
        stop = as_int(stop)
        self.check()
        return self.part(self.frames_in(start), self.frames_in(stop))

    @cython.critical_section
    def split(self, offset):
        """Move the frames into two segments.

        Parameters
        ----------
        offset : int
            Bytes of the first part; a multiple of the page size, strictly inside.

        Returns
        -------
        tuple of Segment

        Raises
        ------
        NotAlignedError, OutOfBoundError
            If the offset is not strictly inside. The segment stays as it was.
        BufferError
            If views of the bytes live.
        """
        cdef uint64_t at
        cdef Segment left, right
        offset = as_int(offset)
        self.check_movable()
        at = self.frames_in(offset)
        if at == 0 or at == self.count:
            raise OutOfBoundError(
                f"a split must lie within the segment, not at its end: offset {offset:#x}")
        left, right = empty_segment(self.mem, self.first), empty_segment(self.mem, self.first)
        parts = left, right
        self.check_movable()    # to make a tuple may run the collector, and that anything
        left.first = self.first
        left.count = at
        right.first = self.first + at
        right.count = self.count - at
        self.count = 0
        return parts

    @cython.always_allow_keywords(False)
    @cython.critical_section
    def into_raw(self):
        """Give up the handle but not its references; return (start, stop) paddrs.

        Raises
        ------
        BufferError
            If views of the bytes live.
        """
        cdef uint64_t frame
        cdef uint64_t added = self.first
        self.check_movable()
        paddrs = self.start_paddr, self.end_paddr
        self.check_movable()    # to make a tuple may run the collector, and that anything
        try:
            for frame in range(self.first, self.first + self.count):
                raw_add(self.mem, frame)
                added += 1
        except BaseException:
            for frame in range(self.first, added):
                raw_take(self.mem, frame)
            raise
        self.count = 0
        return paddrs

    @cython.critical_section
    def __len__(self):
        self.check()
        return self.count

    @cython.critical_section
    def __getitem__(self, index):
        self.check()
        if isinstance(index, slice):
            start, stop, step = index.indices(self.count)
            self.check()        # indices may run the user's code
            if step != 1:
                raise ValueError(f"a segment is contiguous: step must be 1, not {step}")
            return self.part(start, stop)
        index = as_int(index)
        self.check()
        return clone_frame(self.mem, self.first + index_within(index, self.count))

    def __iter__(self):
        cdef uint64_t i
        self.check()
        for i in range(self.count):
            yield self[i]

    def __contains__(self, item):
        cdef pf_slot *slot
        self.check()
        if not isinstance(item, Handle) or (<Handle>item).mem is not self.mem:
            return False
        with cython.critical_section(self, item):
            slot = (<Handle>item).slot
            if slot == NULL or (
                    (<Handle>item).borrowed
                    and (<Handle>item).generation != pf_load_relaxed_u64(&slot.generation)):
                return False
            return self.first <= pf_frame_of(&self.mem.a, slot) < self.first + self.count

    def __eq__(self, other):
        cdef Segment segment
        if self is other:
            return True
        if not isinstance(other, Segment):
            return NotImplemented
        segment = other
        with cython.critical_section(self, other):
            return (self.count != 0 and self.mem is segment.mem
                    and self.first == segment.first and self.count == segment.count)

    @cython.critical_section
    def __hash__(self):
        self.check()
        return hash((<size_t>pf_slot_at(&self.mem.a, self.first), self.count))

    @cython.critical_section
    def __enter__(self):
        self.check()
        return self

    @cython.critical_section
    def __exit__(self, *exc_info):
        if self.count:
            self.drop()

    @cython.critical_section
    def __repr__(self):
        if self.count == 0:
            return f"<{type(self).__name__} moved>"
        return (f"<{type(self).__name__} {self.start_paddr:#x}..{self.end_paddr:#x} "
                f"{self.meta_type.__name__}>")

    def _repr_html_(self):
        from pageframe.observe.html import frames_html
        return frames_html(self)


@cython.final
@cython.no_gc
cdef class USegment(Segment):
    """A handle to contiguous untyped frames, which exports their bytes as one buffer."""

    @cython.critical_section
    def __getbuffer__(self, Py_buffer *buffer, int flags):
        self.check()
        self.mem.check_open()
        fill_buffer(
            buffer, self, pf_bytes_at(&self.mem.a, self.first),
            self.count << self.mem.a.page_shift, False, flags)
        self.exports += 1

    @cython.critical_section
    def __releasebuffer__(self, Py_buffer *buffer):
        self.unexport()

    cdef void unexport(self) noexcept:
        """A view has gone."""
        cdef uint64_t count = self.pending_count
        self.exports -= 1
        if count and self.exports == 0:
            self.pending_count = 0
            give_up(self.mem, self.first, count)
