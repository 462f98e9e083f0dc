# This Source Code Form is subject to the terms of the Mozilla Public
# License, v. 2.0. If a copy of the MPL was not distributed with this
# file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Frame vectors: many scattered frames of one type in one handle.

Like a segment without the contiguity.  Frame numbers are kept in the order of
allocation, which runs through the words of the allocator's bitfield, so giving
the frames back needs one atomic operation a word, not one a frame.
"""

import numpy as np

cimport cython
from cpython.bytearray cimport PyByteArray_AS_STRING
from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport calloc, free

from pageframe._core.allocator cimport claim_many, give_back_mask, give_back_range
from pageframe._core.arena cimport (
    PF_ON_DROP, PF_POISON, Arena, as_int, gives_back, pf_arena, pf_frame_of, pf_slot_at, pf_type_flags,
    table_array)
from pageframe._core.errors import FrameTypeError, MovedError
from pageframe._core.frame cimport Frame, clone_frame
from pageframe._core.handle cimport (
    MetaSource, ask_each, begin_life, held, hold_again, index_within, meta_sources, obtain_one, put,
    raise_get, raise_moved, raise_out_of_frames, zero_used)
from pageframe._core.ledger cimport pf_end_life, pf_ref_inc, pf_ref_put
from pageframe._core.meta cimport class_of, slot_dtype
from pageframe._core.poison cimport check_poison
from pageframe._core.slot cimport (
    PF_E_OVERFLOW, PF_OK, pf_add_relaxed_u32, pf_slot, pf_slot_count, pf_sub_release_u32)
from pageframe._core.traces cimport track_many
from pageframe._core.user_allocator cimport user_dealloc

cdef enum:
    # Frames from which on an operation lets other Python threads run.
    MANY = 2048


cdef void begin_all(
        pf_arena *a, const uint64_t *frames, Py_ssize_t count, uint32_t type_id,
        const unsigned char *storage, uint32_t size, bint zeroed) noexcept nogil:
    cdef Py_ssize_t i
    cdef pf_slot *slot
    for i in range(count):
        slot = pf_slot_at(a, frames[i])
        if zeroed:
            zero_used(a, frames[i], slot)
        begin_life(slot, type_id, storage, size, 1)


cdef void put_all(pf_arena *a, const uint64_t *frames, Py_ssize_t count) noexcept nogil:
    """Give up a reference to each; frames of one word that end one after another go together."""
    cdef Py_ssize_t i
    cdef uint64_t word = 0
    cdef uint64_t ended = 0
    cdef pf_slot *slot
    for i in range(count):
        if ended and frames[i] >> 6 != word:
            give_back_mask(a, word, ended)
            ended = 0
        slot = pf_slot_at(a, frames[i])
        if pf_ref_put(a, slot):
            pf_end_life(a, slot)
            word = frames[i] >> 6
            ended |= 1ull << (frames[i] & 63)
    if ended:
        give_back_mask(a, word, ended)


cdef Py_ssize_t inc_all(pf_arena *a, const uint64_t *frames, Py_ssize_t count) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(count):
        if pf_ref_inc(a, pf_slot_at(a, frames[i])) != PF_OK:
            return i
    return count


cdef void give_up(Arena mem, const uint64_t *frames, Py_ssize_t count) noexcept:
    """Give up a reference to each frame."""
    cdef Py_ssize_t i
    if count == 0 or not gives_back(&mem.a):
        return
    if (mem.user_allocator is not None
            or pf_type_flags(&mem.a, pf_slot_at(&mem.a, frames[0])) & PF_ON_DROP):
        for i in range(count):
            put(mem, pf_slot_at(&mem.a, frames[i]))
    elif count < MANY:
        put_all(&mem.a, frames, count)
    else:
        pf_add_relaxed_u32(&mem.working, 1)
        with nogil:
            put_all(&mem.a, frames, count)
        pf_sub_release_u32(&mem.working, 1)


cdef int hold_all(Arena mem, const uint64_t *frames, Py_ssize_t count) except -1:
    """Take one more reference to each frame, all of which are held already."""
    cdef Py_ssize_t done
    mem.check_open()
    # No other thread is let in: who holds the frames must not drop them meanwhile.
    done = inc_all(&mem.a, frames, count)
    if done < count:
        give_up(mem, frames, done)
        raise_get(mem, frames[done], PF_E_OVERFLOW)
    return 0


cdef FrameVec empty_vec(Arena mem, Py_ssize_t count):
    """A vector with room for frame numbers, which still holds nothing."""
    cdef FrameVec vec = FrameVec.__new__(FrameVec)
    vec.mem = mem
    vec.frames = <uint64_t *>calloc(max(count, 1), sizeof(uint64_t))
    if vec.frames == NULL:
        raise MemoryError(f"no memory for {count} frame numbers")
    return vec


cdef void forget_frames(FrameVec vec) noexcept:
    """Take the references out of a vector."""
    free(vec.frames)
    vec.frames = NULL


cdef int claim_for(FrameVec vec, Py_ssize_t wanted) except -1:
    """Claim frames for a vector, all or none."""
    cdef Arena mem = vec.mem
    cdef Py_ssize_t got = 0
    cdef uint32_t epoch = mem.a.epoch
    if mem.user_allocator is None:
        got = claim_many(&mem.a, wanted, vec.frames)
        try:
            if got < wanted and mem.make_room():
                if mem.a.epoch != epoch:
                    raise MovedError("this process was forked by an on_drop: the frames stay with its parent")
                got += claim_many(&mem.a, wanted - got, vec.frames + got)
        except BaseException:       # what reaping raises, or the handler of a signal
            if mem.a.epoch == epoch:
                give_all_back(vec, got)
            raise
        if got < wanted:
            give_all_back(vec, got)
            raise_out_of_frames(mem, wanted, 0)
        if mem.a.debug & PF_POISON:
            check_poison(mem, vec.frames, 0, wanted)
        return 0
    try:
        while got < wanted:
            vec.frames[got] = obtain_one(mem)
            got += 1
    except BaseException:
        give_all_back(vec, got)
        raise
    return 0


cdef void give_all_back(FrameVec vec, Py_ssize_t count) noexcept:
    """Give back claimed frames that were never built."""
    cdef Py_ssize_t i
    for i in range(count):
        give_back_range(&vec.mem.a, vec.frames[i], 1)
        if vec.mem.user_allocator is not None:
            user_dealloc(vec.mem, vec.frames[i], 1, True)


cdef FrameVec alloc_frames(Arena mem, Py_ssize_t count, object meta_fn, bint zeroed):
    """PhysicalMemory.alloc_frames, once its arguments are known to make sense."""
    cdef MetaSource source = meta_sources(mem, meta_fn)
    cdef FrameVec vec = empty_vec(mem, count)
    cdef uint32_t epoch
    cdef Py_ssize_t i
    cdef pf_slot *slot
    claim_for(vec, count)
    epoch = mem.a.epoch
    if source.type_id == 0:
        try:
            ask_each(source, mem, meta_fn, (vec.frames[i] << mem.a.page_shift for i in range(count)))
        except BaseException:
            if mem.a.epoch == epoch:
                give_all_back(vec, count)
            raise
        for i in range(count):
            slot = pf_slot_at(&mem.a, vec.frames[i])
            if zeroed:
                zero_used(&mem.a, vec.frames[i], slot)
            begin_life(slot, source.type_id, source.at(i), source.size, 1)
    elif count < MANY:
        begin_all(&mem.a, vec.frames, count, source.type_id, source.storage, source.size, zeroed)
    else:
        pf_add_relaxed_u32(&mem.working, 1)
        with nogil:
            begin_all(
                &mem.a, vec.frames, count, source.type_id, source.storage, source.size, zeroed)
        pf_sub_release_u32(&mem.working, 1)
    track_many(mem, vec.frames, count)
    vec.count = count
    return vec


@cython.final
@cython.no_gc
cdef class FrameVec(Holder):
    """A handle to many scattered frames of one type.

    ``vec[i]`` and iteration give frames, ``vec[i:j:k]`` a vector; all hold
    references of their own. ``len`` counts frames.
    """

    def __dealloc__(self):
        if self.frames != NULL:
            give_up(self.mem, self.frames, self.count)
            free(self.frames)

    cdef int check(self) except -1:
        if self.frames == NULL:
            raise_moved(self)
        return 0

    cdef FrameVec pick(self, Py_ssize_t start, Py_ssize_t step, Py_ssize_t count):
        """A vector of its own over some of the frames."""
        cdef FrameVec vec = empty_vec(self.mem, count)
        cdef Py_ssize_t i
        self.check()        # making the handle may have let other threads in
        for i in range(count):
            vec.frames[i] = self.frames[start + i * step]
        hold_all(self.mem, vec.frames, count)
        vec.count = count
        return vec

    cdef object numbers(self):
        """A copy of the frame numbers as a read-only array."""
        self.check()
        return np.frombuffer(
            (<const unsigned char *>self.frames)[:self.count * sizeof(uint64_t)], np.uint64)

    @classmethod
    def from_frames(cls, frames):
        """Make a vector with references of its own to frames.

        Parameters
        ----------
        frames : iterable of Frame
            Frames of one arena and one type; they stay as they are.

        Raises
        ------
        ValueError
            If there is none.
        FrameTypeError
            If they are not of one arena and type.
        """
        cdef FrameVec vec
        cdef Frame frame
        cdef pf_slot *slot
        handles = list(frames)
        if not handles:
            raise ValueError("a frame vector takes at least one frame")
        for handle in handles:
            if not isinstance(handle, Frame):
                raise FrameTypeError(f"a frame vector takes frames, not {type(handle).__name__}")
        vec = empty_vec((<Frame>handles[0]).mem, len(handles))
        for frame in handles:
            with cython.critical_section(frame):
                slot = held(frame)
                if frame.mem is not vec.mem:
                    raise FrameTypeError(f"{frame!r} belongs to another arena than {handles[0]!r}")
                if vec.count and slot.type_id != pf_slot_at(&vec.mem.a, vec.frames[0]).type_id:
                    raise FrameTypeError(f"the frames must be of one type: {handles[0]!r}, {frame!r}")
                hold_again(vec.mem, slot)
            # What raises leaves those so far to the vector, which gives them up.
            vec.frames[vec.count] = pf_frame_of(&vec.mem.a, slot)
            vec.count += 1
        return vec

    @property
    @cython.critical_section
    def meta_type(self):
        """Class of the metadata."""
        self.check()
        return class_of(self.mem, pf_slot_at(&self.mem.a, self.frames[0]))

    @property
    @cython.critical_section
    def size(self):
        """Bytes of all frames."""
        self.check()
        return self.count << self.mem.a.page_shift

    @property
    @cython.critical_section
    def paddrs(self):
        """Physical addresses, as an array of unsigned 64-bit integers, shape ``(len(vec),)``."""
        return self.numbers() << np.uint64(self.mem.a.page_shift)

    @property
    @cython.critical_section
    def reference_counts(self):
        """Reference counts, as an array of unsigned 64-bit integers, shape ``(len(vec),)``."""
        cdef Py_ssize_t i
        cdef bytearray data
        cdef uint64_t *counts
        self.check()
        data = bytearray(self.count * sizeof(uint64_t))
        self.check()        # making room may have let other threads in
        counts = <uint64_t *>PyByteArray_AS_STRING(data)
        for i in range(self.count):
            counts[i] = pf_slot_count(pf_slot_at(&self.mem.a, self.frames[i]))
        return np.frombuffer(data, np.uint64)

    @property
    def meta(self):
        """The metadata of the frames as a read-only structured array.

        Shape ``(len(vec),)``; ``vec.meta["field"]`` is one column. A live view, which
        holds references of its own, if the frames lie evenly spaced, as freshly
        allocated ones mostly do; otherwise gathered into a copy.
        """
        cdef Py_ssize_t i
        cdef uint64_t step
        cdef FrameVec keep = self.clone()
        slots = table_array(
            keep.mem, keep.mem.a.slots, keep.mem.a.frames << keep.mem.a.slot_shift,
            slot_dtype(keep.mem, keep.meta_type), keep)
        step = keep.frames[1] - keep.frames[0] if keep.count > 1 else 1
        for i in range(1, keep.count):
            if keep.frames[i] - keep.frames[i - 1] != step or not 0 < step <= keep.mem.a.frames:
                slots = slots[keep.numbers()]
                slots.flags.writeable = False
                return slots
        return slots[keep.frames[0]:keep.frames[keep.count - 1] + 1:step]

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
        return self.pick(0, 1, self.count)

    @cython.always_allow_keywords(False)
    @cython.critical_section
    def drop(self):
        """Give up the references."""
        cdef uint64_t *frames = self.frames
        self.check()
        self.frames = NULL
        give_up(self.mem, frames, self.count)
        free(frames)

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
            count = len(range(start, stop, step))
            if count == 0:
                raise IndexError(f"a frame vector has at least one frame, not {index}")
            return self.pick(start, step, count)
        index = as_int(index)
        self.check()
        return clone_frame(self.mem, self.frames[index_within(index, self.count)])

    def __iter__(self):
        cdef Py_ssize_t i
        self.check()
        for i in range(self.count):
            yield self[i]

    @cython.critical_section
    def __enter__(self):
        self.check()
        return self

    @cython.critical_section
    def __exit__(self, *exc_info):
        if self.frames != NULL:
            self.drop()

    @cython.critical_section
    def __repr__(self):
        if self.frames == NULL:
            return "<FrameVec moved>"
        return f"<FrameVec of {self.count} frames {self.meta_type.__name__}>"

    def _repr_html_(self):
        from pageframe.observe.html import frames_html
        return frames_html(self)
