# This Source Code Form is subject to the terms of the Mozilla Public
# License, v. 2.0. If a copy of the MPL was not distributed with this
# file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Frames: shared, reference-counted handles, and borrowed ones.

A `Frame` holds one reference.  At run time an untyped frame is a `UFrame`,
which exports the frame's bytes; a typed frame never does.

A `FrameRef` holds none.  It works as long as the life of the frame that it was
borrowed from, which the generation in the slot tells, and no longer.
"""

cimport cython
from cpython.object cimport PyTypeObject

from pageframe._core.arena cimport PF_UNTYPED, pf_frame_of, pf_slot_at, pf_type_flags
from pageframe._core.errors import FrameGoneError, FrameTypeError
from pageframe._core.handle cimport (
    Handle, Holder, MetaSource, Owner, begin_life, claim_exactly, export_bytes, get, held,
    hold_again, meta_source, movable, put, raise_get, raise_moved, raw_add, raw_take, unexport_bytes)
from pageframe._core.ledger cimport PF_EVENT_UNIQUE, pf_note
from pageframe._core.meta cimport class_of
from pageframe._core.slot cimport (
    PF_E_IN_USE, PF_E_UNIQUE, pf_slot_count, pf_slot_in_use, pf_slot_try_unique)
from pageframe._core.traces cimport track
from pageframe._core.unique cimport UniqueFrame, empty_unique


cdef Frame make_frame(Arena mem, pf_slot *slot):
    """A handle that takes over a reference; without memory for it the reference goes."""
    cdef Frame frame
    try:
        frame = empty_frame(mem, slot)
    except MemoryError:
        put(mem, slot)
        raise
    frame.slot = slot
    return frame


cdef Frame empty_frame(Arena mem, const pf_slot *like):
    """A handle for a frame of some type, which still has none."""
    cdef Frame frame
    if pf_type_flags(&mem.a, like) & PF_UNTYPED:
        frame = UFrame.__new__(UFrame)
    else:
        frame = Frame.__new__(Frame)
    frame.mem = mem
    return frame


cdef Frame clone_frame(Arena mem, uint64_t frame):
    """A handle to a frame that is held already."""
    cdef pf_slot *slot = pf_slot_at(&mem.a, frame)
    hold_again(mem, slot)
    return make_frame(mem, slot)


cdef int check_kind(object cls, Arena mem, uint64_t frame) except -1:
    """UFrame's class methods give untyped frames only."""
    cdef pf_slot *slot = pf_slot_at(&mem.a, frame)
    if cls is UFrame and not pf_type_flags(&mem.a, slot) & PF_UNTYPED:
        raise FrameTypeError(
            f"frame {frame << mem.a.page_shift:#x} is typed: {class_of(mem, slot).__name__}")
    return 0


@cython.no_gc
cdef class Frame(Owner):
    """A reference-counted handle to a frame.

    ``Frame[PageMeta]`` is a frame with metadata of that type, for type checkers.
    Two handles are equal if they are of the same frame of the same arena. A
    handle that was dropped or moved raises `MovedError` on any further use.
    Use it in a ``with`` block, or call `drop`, to release the frame at a known
    place; otherwise it goes with the handle.
    """

    @classmethod
    def from_unused(cls, Arena mem not None, paddr, meta=None):
        """Claim an unused frame at an address.

        Parameters
        ----------
        mem : PhysicalMemory
        paddr : int
            Address of the frame.
        meta : FrameMeta or type, optional
            Metadata; a class stands for its defaults.

        Returns
        -------
        Frame
            With the bytes as the frame's last user left them.

        Raises
        ------
        NotAlignedError, OutOfBoundError
            If paddr is no frame's address.
        FrameInUseError, FrameReservedError, FrameBusyError, FrameUniqueError
            If the frame is not free; it stays as it is.
        FrameTypeError
            If meta is no metadata, too large, or typed where `UFrame` is asked for.
        """
        cdef uint64_t frame = mem.frame_at(paddr)
        cdef MetaSource source = meta_source(mem, meta)
        cdef pf_slot *slot = pf_slot_at(&mem.a, frame)
        if cls is UFrame and not mem.a.type_info[source.type_id].flags & PF_UNTYPED:
            raise FrameTypeError(f"{type(meta).__name__} is the metadata of typed frames")
        claim_exactly(mem, frame, 1)
        begin_life(slot, source.type_id, source.storage, source.size, 1)
        track(mem, frame, 1)
        return make_frame(mem, slot)

    @classmethod
    def from_in_use(cls, Arena mem not None, paddr):
        """Take one more reference to a frame in use.

        Raises
        ------
        NotAlignedError, OutOfBoundError
            If paddr is no frame's address.
        FrameUnusedError, FrameBusyError, FrameUniqueError
            If the frame can't be shared.
        RefCountOverflowError
            If its count is at the maximum.
        FrameTypeError
            If `UFrame` is asked for and the frame is typed.
        """
        cdef uint64_t number = mem.frame_at(paddr)
        cdef Frame frame
        get(mem, number)
        frame = make_frame(mem, pf_slot_at(&mem.a, number))
        check_kind(cls, mem, number)
        return frame

    @classmethod
    def from_raw(cls, Arena mem not None, paddr):
        """Take back a reference that `into_raw` or `inc_frame_ref_count` gave.

        Raises
        ------
        NotRawError
            If no raw reference to the frame is out.
        FrameUniqueError
            If the raw reference is a unique frame's.
        """
        cdef uint64_t number = mem.frame_at(paddr)
        cdef pf_slot *slot = pf_slot_at(&mem.a, number)
        raw_take(mem, number)
        try:
            if not pf_slot_in_use(slot):
                raise_get(mem, number, PF_E_UNIQUE)
            check_kind(cls, mem, number)
        except BaseException:
            raw_add(mem, number)
            raise
        return make_frame(mem, slot)

    @property
    @cython.critical_section
    def reference_count(self):
        """References to the frame: handles, segments, vectors and raw references."""
        return pf_slot_count(held(self))

    @cython.always_allow_keywords(False)
    @cython.critical_section
    def clone(self):
        """Return one more handle to the frame.

        Raises
        ------
        RefCountOverflowError
            If the count is at the maximum; it stays there.
        """
        if self.slot == NULL:
            raise_moved(self)
        hold_again(self.mem, self.slot)
        return make_frame(self.mem, self.slot)

    @cython.always_allow_keywords(False)
    @cython.critical_section
    def borrow(self):
        """Return a `FrameRef`: usable like this handle, without a reference."""
        cdef FrameRef ref = FrameRef.__new__(FrameRef)
        ref.slot = held(self)
        ref.mem = self.mem
        ref.generation = ref.slot.generation
        ref.borrowed = True
        return ref

    @cython.always_allow_keywords(False)
    @cython.critical_section
    def try_unique(self):
        """Move the only reference into a `UniqueFrame`.

        Raises
        ------
        FrameInUseError
            If there are other references. The handle stays as it was.
        BufferError
            If views of the bytes live.
        """
        cdef pf_slot *slot = movable(self)
        cdef UniqueFrame unique = empty_unique(self.mem)
        slot = movable(self)    # making the handle may have let other threads in
        if not pf_slot_try_unique(slot):
            raise_get(self.mem, pf_frame_of(&self.mem.a, slot), PF_E_IN_USE)
        pf_note(&self.mem.a, PF_EVENT_UNIQUE, pf_frame_of(&self.mem.a, slot))
        self.slot = NULL
        unique.slot = slot
        return unique


@cython.final
@cython.no_gc
cdef class UFrame(Frame):
    """A reference-counted handle to an untyped frame, which exports its bytes.

    It has the buffer protocol, writable: ``memoryview(frame)``,
    ``numpy.frombuffer(frame)``. A view rests on the handle's reference; the
    handle can be dropped while the view lives, and not moved.
    """

    @cython.critical_section
    def __getbuffer__(self, Py_buffer *buffer, int flags):
        export_bytes(self, buffer, flags)

    @cython.critical_section
    def __releasebuffer__(self, Py_buffer *buffer):
        cdef pf_slot *slot = unexport_bytes(self)
        if slot != NULL:
            put(self.mem, slot)


@cython.final
@cython.no_gc
cdef class FrameRef(Handle):
    """A frame borrowed from a handle, without a reference of its own.

    Once the frame has been released, any use raises `FrameGoneError`. A view of
    the bytes holds a reference while it lives.
    """

    @property
    def reference_count(self):
        """References to the frame."""
        return pf_slot_count(held(self))

    @cython.always_allow_keywords(False)
    @cython.critical_section
    def clone(self):
        """Return a handle with a reference of its own.

        Raises
        ------
        FrameGoneError
            If the frame has been released.
        """
        cdef pf_slot *slot = held(self)
        hold_borrowed(self, slot)
        return make_frame(self.mem, slot)

    @cython.always_allow_keywords(False)
    def borrow(self):
        """Return this same borrowed frame."""
        held(self)
        return self

    @cython.critical_section
    def __getbuffer__(self, Py_buffer *buffer, int flags):
        cdef pf_slot *slot = held(self)
        hold_borrowed(self, slot)       # of the view alone: this handle has none to rest on
        try:
            export_bytes(self, buffer, flags)
        except BaseException:
            put(self.mem, slot)
            raise
        buffer.internal = slot

    @cython.critical_section
    def __releasebuffer__(self, Py_buffer *buffer):
        unexport_bytes(self)
        put(self.mem, <pf_slot *>buffer.internal)


cdef int hold_borrowed(FrameRef self, pf_slot *slot) except -1:
    """Take a reference to a borrowed frame, if its life still lasts.

    Between the check of the life and the increment the frame may have been
    released and used again; then the reference is the other life's, and is
    given back.
    """
    get(self.mem, pf_frame_of(&self.mem.a, slot))
    if slot.generation != self.generation:
        put(self.mem, slot)
        held(self)
        raise FrameGoneError("the frame was released while it was being taken")
    return 0


# These classes add nothing to Holder that would have to be torn down or set up,
# so its own functions serve them without going through those of the classes between.
(<PyTypeObject *>Frame).tp_dealloc = (<PyTypeObject *>UFrame).tp_dealloc = (<PyTypeObject *>Holder).tp_dealloc
(<PyTypeObject *>Frame).tp_new = (<PyTypeObject *>UFrame).tp_new = (<PyTypeObject *>Holder).tp_new
