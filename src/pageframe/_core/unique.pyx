# This Source Code Form is subject to the terms of the Mozilla Public
# License, v. 2.0. If a copy of the MPL was not distributed with this
# file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Unique frames: sole ownership, and with it mutable metadata.

The count of such a frame is UNIQUE: nobody can take a reference by paddr, so
nobody else reaches the slot.  To share the frame is to store 1 there.

In a shared arena it has one owner among all processes, too: after a fork it stays with
the parent, and the child's copy of the handle is as good as moved.
"""

cimport cython
from libc.stdint cimport uint64_t

from pageframe._core.arena cimport PF_ON_DROP, pf_frame_of, pf_slot_at, pf_type_flags
from pageframe._core.frame cimport Frame, empty_frame
from pageframe._core.handle cimport (
    MetaSource, Owner, begin_life, claim_exactly, end_life, export_bytes, meta_source, movable,
    put_unique, raise_get, raise_stayed, raw_add, raw_take, unexport_bytes)
from pageframe._core.ledger cimport (
    PF_EVENT_REPURPOSE, PF_EVENT_SHARE, PF_S_repurpose_generation, pf_note, pf_step)
from pageframe._core.meta cimport run_on_drop
from pageframe._core.slot cimport (
    PF_UNIQUE, pf_slot_count, pf_slot_make_busy, pf_slot_publish, pf_slot_taken, pf_store_relaxed_u64)
from pageframe._core.traces cimport track


cdef UniqueFrame make_unique(Arena mem, pf_slot *slot):
    """A handle that takes over the ownership of a frame; without memory for it the frame goes."""
    cdef UniqueFrame frame
    try:
        frame = empty_unique(mem)
    except MemoryError:
        put_unique(mem, slot)
        raise
    frame.slot = slot
    return frame


cdef UniqueFrame empty_unique(Arena mem):
    """A handle that still has no frame."""
    cdef UniqueFrame frame = UniqueFrame.__new__(UniqueFrame)
    frame.mem = mem
    frame.sole = True
    frame.epoch = mem.a.epoch
    return frame


@cython.final
@cython.no_gc
cdef class UniqueFrame(Owner):
    """The only handle to a frame, with metadata that can be written.

    Nobody else can reach the frame. With untyped metadata it exports its bytes,
    writable. Had from `Frame.try_unique`, from a `LinkedList`, or by `from_unused`.
    """

    @classmethod
    def from_unused(cls, Arena mem not None, paddr, meta=None):
        """Claim an unused frame at an address; as `Frame.from_unused`."""
        cdef uint64_t frame = mem.frame_at(paddr)
        cdef MetaSource source = meta_source(mem, meta)
        cdef pf_slot *slot = pf_slot_at(&mem.a, frame)
        claim_exactly(mem, frame, 1)
        begin_life(slot, source.type_id, source.storage, source.size, PF_UNIQUE)
        track(mem, frame, 1)
        return make_unique(mem, slot)

    @classmethod
    def from_raw(cls, Arena mem not None, paddr):
        """Take back the frame that `into_raw` gave up.

        Raises
        ------
        NotRawError
            If no raw reference to the frame is out.
        FrameInUseError
            If the raw reference is a shared frame's.
        """
        cdef uint64_t frame = mem.frame_at(paddr)
        cdef pf_slot *slot = pf_slot_at(&mem.a, frame)
        raw_take(mem, frame)
        if pf_slot_count(slot) != PF_UNIQUE:
            raw_add(mem, frame)
            raise_get(mem, frame, pf_slot_taken(slot))
        return make_unique(mem, slot)

    @cython.always_allow_keywords(False)
    @cython.critical_section
    def share(self):
        """Move the frame into a `Frame`, the first of its references.

        Raises
        ------
        BufferError
            If views of the bytes live.
        """
        cdef pf_slot *slot = movable(self)
        cdef Frame frame = empty_frame(self.mem, slot)
        slot = movable(self)    # making the handle may have let other threads in
        self.slot = NULL
        frame.slot = slot
        pf_note(&self.mem.a, PF_EVENT_SHARE, pf_frame_of(&self.mem.a, slot))
        pf_slot_publish(slot, 1)
        return frame

    @cython.critical_section
    def repurpose(self, meta=None):
        """Begin a new life of the frame with other metadata.

        ``on_drop`` of the old metadata runs. The bytes stay.

        Returns
        -------
        UniqueFrame
            The new handle; this one is moved.

        Raises
        ------
        FrameTypeError
            If meta is no metadata, or too large. The frame stays as it was.
        BufferError
            If views of the bytes live.
        """
        cdef pf_slot *slot = movable(self)
        cdef MetaSource source = meta_source(self.mem, meta)
        slot = movable(self)    # making the metadata may have moved the frame
        self.slot = NULL
        pf_slot_make_busy(slot)
        if pf_type_flags(&self.mem.a, slot) & PF_ON_DROP:
            run_on_drop(self.mem, slot)
            if self.epoch != self.mem.a.epoch:
                raise_stayed(self)      # it has forked, and this is the child
        pf_note(&self.mem.a, PF_EVENT_REPURPOSE, pf_frame_of(&self.mem.a, slot))
        pf_step(PF_S_repurpose_generation)
        pf_store_relaxed_u64(&slot.generation, slot.generation + 1)    # a borrower may read it
        begin_life(slot, source.type_id, source.storage, source.size, PF_UNIQUE)
        return make_unique(self.mem, slot)

    @cython.always_allow_keywords(False)
    @cython.critical_section
    def reset_as_unused(self):
        """Release the frame without telling the user's own allocator.

        For such allocators themselves; otherwise the same as `drop`.

        Raises
        ------
        BufferError
            If views of the bytes live.
        """
        cdef pf_slot *slot = movable(self)
        self.slot = NULL
        pf_slot_make_busy(slot)
        end_life(self.mem, slot, False)

    @cython.critical_section
    def __getbuffer__(self, Py_buffer *buffer, int flags):
        export_bytes(self, buffer, flags)

    @cython.critical_section
    def __releasebuffer__(self, Py_buffer *buffer):
        cdef pf_slot *slot = unexport_bytes(self)
        if slot != NULL and self.epoch == self.mem.a.epoch:
            put_unique(self.mem, slot)
