# This Source Code Form is subject to the terms of the Mozilla Public
# License, v. 2.0. If a copy of the MPL was not distributed with this
# file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""What all handles share: how the life of a frame begins and ends, and errors.

A handle holds one reference, and nobody counts a reference twice: to move it
(``into_raw``, ``share``, pushing on a list, …) takes it out of the handle,
which from then on raises `MovedError`.  A view of the bytes rests on the
reference of the handle that it came from: while one lives the reference can't
be moved (`BufferError`), and dropping the handle takes effect with the last.

A frame's life begins with its allocator bit (allocator.pyx), then the slot is
filled, then its count is published.  It ends in the opposite order: the last
reference makes the slot busy, ``on_drop`` runs, the slot becomes UNUSED, and
the bit is cleared.

Raw references are references that no handle holds.  This process counts those
that it has given out, so that ``from_raw`` can take back only those.
"""

import types

cimport cython
from cpython.buffer cimport PyObject_CheckBuffer

import numpy as np

from pageframe._core.allocator cimport (
    claim_one, claim_range, claim_run, free_frames, give_back,
    give_back_range, longest_free_run, my_lane, next_bit)
from pageframe._core.arena cimport (
    PF_ARENA, PF_ON_DROP, PF_OPAQUE, PF_POISON, PF_UNTYPED, fill_buffer, gives_back, pf_bytes_at, pf_frame_of,
    pf_let_go, pf_slot_at, pf_type_flags)
from pageframe._core.errors import (
    ArenaClosedError, FrameBusyError, FrameGoneError, FrameInUseError, FrameReservedError, FrameTypeError,
    FrameUniqueError, FrameUnusedError, GetFrameError, MovedError, NotRawError, OutOfFramesError,
    RefCountOverflowError)
from pageframe._core.io cimport VmReader, VmWriter
from pageframe._core.ledger cimport (
    PF_OP_LESS, PF_S_orphan_count, PF_S_orphan_ledger, PF_S_orphan_total, pf_end_life, pf_op_begin, pf_op_end,
    pf_ref_get, pf_ref_inc, pf_ref_put, pf_step)
from pageframe._core.meta cimport (
    TYPE_UNTYPED, MetaView, class_of, is_meta_type, know_types, meta_value, own_copy, run_on_drop, view_slot)
from pageframe._core.poison cimport check_poison
from pageframe._core.slot cimport (
    PF_E_BUSY, PF_E_IN_USE, PF_E_OVERFLOW, PF_E_UNIQUE, PF_E_UNUSED, PF_OK, PF_ORPHAN,
    pf_add_relaxed_u32, pf_store_release_u32, pf_store_release_u64,
    pf_cas_acquire_u32, pf_cas_release_u32, pf_load_relaxed_u32, pf_load_relaxed_u64, pf_slot_count,
    pf_slot_in_use, pf_slot_make_busy, pf_slot_taken)
from pageframe._core.traces cimport track
from pageframe._core.user_allocator cimport user_alloc, user_dealloc, user_given


cdef Py_ssize_t index_within(object index, Py_ssize_t count) except -1:
    """A place in a sequence, which a negative index counts from the end."""
    if not -count <= index < count:
        raise IndexError(f"index {index} is not within {count} frames")
    return index + count if index < 0 else index


cdef int raise_moved(Holder self) except -1:
    raise MovedError(f"this {type(self).__name__} was dropped or moved")


cdef int raise_stayed(Holder self) except -1:
    raise MovedError(f"this {type(self).__name__} stayed with the process that forked this one")


cdef int raise_get(Arena mem, uint64_t frame, int error) except -1:
    cdef uint64_t paddr = frame << mem.a.page_shift
    cdef pf_slot *slot = pf_slot_at(&mem.a, frame)
    if error == PF_E_IN_USE:
        if pf_type_flags(&mem.a, slot) & PF_ARENA:
            raise FrameReservedError(
                f"frame {paddr:#x} belongs to the arena: {class_of(mem, slot).__name__}")
        raise FrameInUseError(f"frame {paddr:#x} is in use: its count is {pf_slot_count(slot)}")
    if error == PF_E_UNUSED:
        raise FrameUnusedError(f"frame {paddr:#x} is not in use")
    if error == PF_E_UNIQUE:
        raise FrameUniqueError(f"frame {paddr:#x} belongs to one owner")
    if error == PF_E_BUSY:
        raise FrameBusyError(f"frame {paddr:#x} is being built or torn down")
    raise RefCountOverflowError(f"the reference count of frame {paddr:#x} is at its maximum")


cdef int raise_out_of_frames(Arena mem, uint64_t count, uint64_t align) except -1:
    wanted = "1 frame" if count == 1 else f"{count} frames"
    if align:
        wanted = f"a run of {wanted}" + (f" aligned to {align}" if align > 1 else "")
    found = f"{free_frames(&mem.a)} of {mem.a.frames} are free"
    if align:
        found += f", the longest run has {longest_free_run(&mem.a)}"
    raise OutOfFramesError(f"{wanted} wanted, {found}")


cdef pf_slot *held(Handle self) except NULL:
    """The slot of the frame that a handle has; to be called within its critical section."""
    if self.slot == NULL:
        raise_moved(self)
    if not self.mem.a.open:
        self.mem.check_open()
    if self.sole and self.epoch != self.mem.a.epoch:
        raise_stayed(self)
    if self.borrowed:
        if (pf_load_relaxed_u64(&self.slot.generation) != self.generation
                or not pf_slot_in_use(self.slot)):
            raise FrameGoneError(
                f"frame {pf_frame_of(&self.mem.a, self.slot) << self.mem.a.page_shift:#x} "
                f"has been released since it was borrowed")
    return self.slot


cdef pf_slot *movable(Handle self) except NULL:
    """The slot of a frame whose reference can be moved: no view rests on it."""
    cdef pf_slot *slot = held(self)
    if self.exports:
        raise BufferError(f"{self!r} can't be moved: {self.exports} views of its bytes live")
    return slot


cdef int export_bytes(Handle self, Py_buffer *buffer, int flags) except -1:
    """Fill in a writable buffer over the frame, which rests on the handle's reference."""
    cdef pf_slot *slot = held(self)
    if not pf_type_flags(&self.mem.a, slot) & PF_UNTYPED:
        raise FrameTypeError(f"{self!r} is typed: its bytes are not exported")
    fill_buffer(
        buffer, self, pf_bytes_at(&self.mem.a, pf_frame_of(&self.mem.a, slot)),
        1 << self.mem.a.page_shift, False, flags)
    self.exports += 1
    return 0


cdef pf_slot *unexport_bytes(Handle self) noexcept:
    """A view has gone; returns the slot to give up if its handle was dropped before."""
    cdef pf_slot *slot = self.pending
    self.exports -= 1
    if self.exports:
        return NULL
    self.pending = NULL
    return slot


# -- frames to build on ------------------------------------------------------------------------

cdef int64_t obtain_one(Arena mem) except -1:
    """Claim any frame."""
    cdef int64_t frame
    if mem.user_allocator is not None:
        return obtain_run(mem, 1, 1)
    frame = claim_one(&mem.a)
    if frame < 0 and mem.make_room():
        frame = claim_one(&mem.a)
    if frame < 0:
        raise_out_of_frames(mem, 1, 0)
    if mem.a.debug & PF_POISON:
        check_poison(mem, NULL, frame, 1)
    return frame


cdef int64_t obtain_run(Arena mem, uint64_t count, uint64_t align) except -1:
    """Claim any run of frames."""
    cdef int64_t first
    if mem.user_allocator is None:
        first = claim_run(&mem.a, count, align)
        if first < 0 and mem.make_room():
            first = claim_run(&mem.a, count, align)
        if first < 0:
            raise_out_of_frames(mem, count, align)
        if mem.a.debug & PF_POISON:
            check_poison(mem, NULL, first, count)
    else:
        first = user_alloc(mem, count, align)
        try:
            claim_exactly(mem, first, count)
        except GetFrameError as error:
            name = type(mem.user_allocator).__name__
            raise type(error)(f"{name}.alloc() gave what is not free: {error}") from None
        except BaseException:       # a warning of a write after release
            user_given(mem, first, count)
            user_dealloc(mem, first, count, True)
            raise
        user_given(mem, first, count)
    return first


cdef int claim_exactly(Arena mem, uint64_t first, uint64_t count) except -1:
    """Claim these frames, all or none; the first that is taken says why not."""
    cdef uint64_t done = claim_range(&mem.a, first, count)
    if done < count:
        done = min(next_bit(&mem.a, first + done, first + count, True), first + count - 1)
        raise_get(mem, done, pf_slot_taken(pf_slot_at(&mem.a, done)))
    if mem.a.debug & PF_POISON:
        check_poison(mem, NULL, first, count)
    return 0


# -- lives -------------------------------------------------------------------------------------

cdef void end_life(Arena mem, pf_slot *slot, bint tell) noexcept:
    """Tear down a frame whose slot is busy and ours; tell the user's allocator of it."""
    cdef uint64_t frame = pf_frame_of(&mem.a, slot)
    cdef uint32_t epoch = mem.a.epoch
    if pf_type_flags(&mem.a, slot) & PF_ON_DROP:
        if not knows_on_drop(mem, slot):
            orphan(&mem.a, &mem.a.ledger[frame], slot)
            return
        run_on_drop(mem, slot)
        if mem.a.epoch != epoch:
            return      # it has forked, and this is the child: the parent ends the frame
    pf_end_life(&mem.a, slot)
    if mem.user_allocator is None:
        give_back(&mem.a, frame)
    else:
        # No lane keeps the frame: the user's allocator says who gets it next.
        give_back_range(&mem.a, frame, 1)
        user_dealloc(mem, frame, 1, tell)


cdef bint knows_on_drop(Arena mem, const pf_slot *slot) noexcept:
    """Whether this process has the class whose on_drop is to run."""
    try:
        class_of(mem, slot)
    except Exception:   # a damaged slot, or no memory to find out
        return False
    return not pf_type_flags(&mem.a, slot) & PF_OPAQUE


cdef void orphan(pf_arena *a, uint32_t *entry, pf_slot *slot) noexcept nogil:
    """Leave a busy frame to a process that can run its on_drop; entry is the owner's."""
    cdef uint64_t frame = pf_frame_of(a, slot)
    pf_op_begin(a, my_lane(a), PF_OP_LESS, frame)
    pf_step(PF_S_orphan_ledger)
    pf_store_release_u32(entry, 0)
    if entry == &a.ledger[frame]:
        pf_let_go(a, frame)
    pf_step(PF_S_orphan_total)
    pf_add_relaxed_u32(&a.header.orphans, 1)
    pf_step(PF_S_orphan_count)
    pf_store_release_u64(&slot.count, PF_ORPHAN)
    pf_op_end(a, my_lane(a))


cdef void put(Arena mem, pf_slot *slot) noexcept:
    """Give up one reference."""
    if gives_back(&mem.a) and pf_ref_put(&mem.a, slot):
        end_life(mem, slot, True)


cdef void put_unique(Arena mem, pf_slot *slot) noexcept:
    """Give up the ownership of a frame: its life ends."""
    if gives_back(&mem.a):
        pf_slot_make_busy(slot)
        end_life(mem, slot, True)


cdef inline void put_held(Holder self, pf_slot *slot) noexcept:
    """Give up what a handle had: the ownership, or one reference."""
    if not self.sole:
        put(self.mem, slot)
    elif self.epoch == self.mem.a.epoch:    # else it is the parent's
        put_unique(self.mem, slot)


cdef int get(Arena mem, uint64_t frame) except -1:
    """Take one more reference to a frame known by its number."""
    cdef pf_slot *slot = pf_slot_at(&mem.a, frame)
    cdef bint had = mem.a.ledger == NULL or pf_load_relaxed_u32(&mem.a.ledger[frame]) != 0
    cdef int error = pf_ref_get(&mem.a, slot)
    if error != PF_OK:
        raise_get(mem, frame, error)
    if not had:
        track(mem, frame, 1)
    if slot.type_id >= mem.a.types_known:
        know_types(mem)     # another process has registered it since
    return 0


cdef int hold_again(Arena mem, pf_slot *slot) except -1:
    """Take one more reference to a frame that is held already."""
    if not mem.a.open:
        mem.check_open()
    if pf_ref_inc(&mem.a, slot) != PF_OK:
        raise_get(mem, pf_frame_of(&mem.a, slot), PF_E_OVERFLOW)
    return 0


@cython.final
@cython.no_gc       # refers to metadata values alone
@cython.freelist(8)
cdef class MetaSource:
    cdef const unsigned char *at(self, Py_ssize_t i) noexcept:
        return self.storage if self.each is None else (<MetaView>self.each[i]).data


cdef MetaSource meta_sources(Arena mem, object meta_fn):
    """Metadata for all frames alike; or, given a callable, to be had from ask_each()."""
    if callable(meta_fn) and not is_meta_type(meta_fn):
        mem.check_open()
        return MetaSource.__new__(MetaSource)
    return meta_source(mem, meta_fn)


cdef MetaSource meta_source(Arena mem, object meta):
    """Metadata for all frames alike."""
    cdef MetaSource source = MetaSource.__new__(MetaSource)
    cdef MetaView value
    value = meta_value(mem, meta, &source.type_id)
    mem.check_open()        # making the metadata may have closed it
    if value is not None:
        source.size = mem.a.type_info[source.type_id].size
        source.keep = value
        source.storage = value.data
    return source


cdef int ask_each(MetaSource source, Arena mem, object meta_fn, object paddrs) except -1:
    """Call meta_fn for every paddr; all must be of one type.

    If this process is another one by then, which has another epoch, the frames are its parent's.
    """
    cdef uint32_t type_id
    cdef uint32_t epoch = mem.a.epoch
    source.each = []
    for paddr in paddrs:
        value = meta_value(mem, meta_fn(paddr), &type_id)
        if value is None:
            value = meta_value(mem, mem.classes[TYPE_UNTYPED], &type_id)
        if source.type_id not in (0, type_id):
            raise FrameTypeError(
                f"metadata must be of one type: {type(source.each[0]).__name__}, then "
                f"{type(value).__name__} at {paddr:#x}")
        source.type_id = type_id
        source.each.append(own_copy(value))     # the user may give the same one each time
    if mem.a.epoch != epoch:
        raise MovedError("this process was forked by what gives metadata: the frames stay with its parent")
    source.size = mem.a.type_info[source.type_id].size
    return 0


# -- raw references ----------------------------------------------------------------------------

cdef int raw_add(Arena mem, uint64_t frame) except -1:
    """Count a raw reference that is given out.

    Release pairs with the acquire in raw_take(): who takes the reference back sees
    what its last holder did to the frame.
    """
    cdef uint32_t *raw = &mem.a.raw[frame]
    cdef uint32_t old = pf_load_relaxed_u32(raw)
    mem.raw_used = True
    while old != <uint32_t>-1:
        if pf_cas_release_u32(raw, old, old + 1):
            return 0
        old = pf_load_relaxed_u32(raw)
    raise RefCountOverflowError(
        f"frame {frame << mem.a.page_shift:#x} has {old} raw references, the maximum")


cdef int raw_take(Arena mem, uint64_t frame) except -1:
    """Take back a raw reference."""
    cdef uint32_t *raw = &mem.a.raw[frame]
    cdef uint32_t old = pf_load_relaxed_u32(raw)
    while old != 0:
        if pf_cas_acquire_u32(raw, old, old - 1):
            return 0
        old = pf_load_relaxed_u32(raw)
    raise NotRawError(f"frame {frame << mem.a.page_shift:#x} has no raw reference")


# -- classes -----------------------------------------------------------------------------------

# The collector does not see a handle, which refers to its arena alone.  So an arena that
# holds handles to itself, in an attribute or through a user's allocator, is never collected.
@cython.no_gc
@cython.freelist(256)
cdef class Holder:
    def __dealloc__(self):
        if self.slot != NULL and not self.borrowed:
            put_held(self, self.slot)

    def __init__(self, *args, **kwargs):
        raise TypeError(f"a {type(self).__name__} is had from a PhysicalMemory or a class method")

    @classmethod
    def __class_getitem__(cls, item):
        return types.GenericAlias(cls, item)

    def reader(self):
        """Return a `VmReader` over the bytes.

        Raises
        ------
        FrameTypeError
            If the frames are typed.
        """
        check_bytes(self)
        return VmReader(self)

    def writer(self):
        """Return a `VmWriter` over the bytes.

        Raises
        ------
        FrameTypeError
            If the frames are typed.
        """
        check_bytes(self)
        return VmWriter(self)

    def readonly(self):
        """Return a read-only memoryview of the bytes.

        Raises
        ------
        FrameTypeError
            If the frames are typed.
        """
        check_bytes(self)
        return memoryview(self).toreadonly()

    def __dlpack__(self, **kwargs):
        """Export the bytes, as unsigned 8-bit integers, by the DLPack protocol."""
        check_bytes(self)
        return np.frombuffer(self, np.uint8).__dlpack__(**kwargs)

    def __dlpack_device__(self):
        """Return the DLPack device: the CPU."""
        check_bytes(self)
        return (1, 0)   # kDLCPU, https://dmlc.github.io/dlpack/latest/c_api.html

    def cast(self, meta_type):
        """Return this same handle if its frames are of a metadata type.

        Parameters
        ----------
        meta_type : type
            A metadata type, or a base of one: ``UntypedFrameMeta`` is every untyped type.

        Raises
        ------
        FrameTypeError
            If the frames are of another type. The handle stays as it was.
        """
        cls = self.meta_type
        if not issubclass(cls, meta_type):
            raise FrameTypeError(f"{self!r} has metadata of type {cls.__name__}, not {meta_type.__name__}")
        return self

    def __reduce__(self):
        # Frames, segments and vectors are pickled by message.pyx.
        raise TypeError(f"a {type(self).__name__} can't be pickled")


cdef int check_bytes(object holder) except -1:
    if not PyObject_CheckBuffer(holder):
        raise FrameTypeError(f"{holder!r} does not export its bytes")
    return 0


@cython.no_gc
cdef class Handle(Holder):
    @property
    @cython.critical_section
    def start_paddr(self):
        """Physical address of the frame: a byte offset in the arena."""
        return pf_frame_of(&self.mem.a, held(self)) << self.mem.a.page_shift

    @property
    @cython.critical_section
    def size(self):
        """Bytes of the frame."""
        held(self)
        return 1 << self.mem.a.page_shift

    @property
    @cython.critical_section
    def map_level(self):
        """Level of the page-table entry that maps the frame: always 1, the arena's base page."""
        held(self)
        return 1

    @property
    @cython.critical_section
    def generation(self):
        """Lives that the frame had before this one."""
        return held(self).generation

    @property
    @cython.critical_section
    def meta(self):
        """The frame's metadata: a read-only view, or a mutable one of a unique frame.

        The view works as long as this handle does: once the handle is dropped or
        moved its fields raise `MovedError`.
        """
        cdef pf_slot *slot = held(self)
        return view_slot(
            self.mem, slot, self, &self.slot, self.sole)

    @property
    @cython.critical_section
    def meta_type(self):
        """Class of the metadata."""
        return class_of(self.mem, held(self))

    def __eq__(self, other):
        if self is other:
            return True
        if not isinstance(other, Handle):
            return NotImplemented
        with cython.critical_section(self, other):
            return self.slot != NULL and self.slot == (<Handle>other).slot and same_life(self, other)

    @cython.critical_section
    def __hash__(self):
        return hash(<size_t>held(self))

    @cython.critical_section
    def __repr__(self):
        cdef pf_slot *slot
        if self.slot == NULL:
            return f"<{type(self).__name__} moved>"
        paddr = pf_frame_of(&self.mem.a, self.slot) << self.mem.a.page_shift
        try:
            slot = held(self)
        except (ArenaClosedError, FrameGoneError, MovedError):
            return f"<{type(self).__name__} {paddr:#x} gone>"
        return f"<{type(self).__name__} {paddr:#x} {class_of(self.mem, slot).__name__}>"


cdef bint same_life(Handle a, Handle b) noexcept:
    """Whether two handles of one frame are of the same life of it, which a borrowed one may outlive."""
    return ((not a.borrowed or a.generation == pf_load_relaxed_u64(&a.slot.generation))
            and (not b.borrowed or b.generation == pf_load_relaxed_u64(&b.slot.generation)))


@cython.no_gc
cdef class Owner(Handle):
    @cython.critical_section
    def __enter__(self):
        held(self)
        return self

    @cython.critical_section
    def __exit__(self, *exc_info):
        if self.slot != NULL and not (self.sole and self.epoch != self.mem.a.epoch):
            self.drop()

    @cython.always_allow_keywords(False)
    @cython.critical_section
    def drop(self):
        """Give up the reference, now; with live views of the bytes, when the last of them goes.

        The last reference releases the frame.
        """
        cdef pf_slot *slot = self.slot
        if slot == NULL:
            raise_moved(self)
        if self.sole and self.epoch != self.mem.a.epoch:
            raise_stayed(self)
        self.slot = NULL
        if self.exports:
            self.pending = slot
        else:
            put_held(self, slot)

    @cython.always_allow_keywords(False)
    @cython.critical_section
    def into_raw(self):
        """Give up the handle but not what it has; return the paddr.

        Raises
        ------
        BufferError
            If views of the bytes live.
        """
        cdef uint64_t frame = pf_frame_of(&self.mem.a, movable(self))
        cdef object paddr = frame << self.mem.a.page_shift     # before anything is moved
        raw_add(self.mem, frame)
        self.slot = NULL
        return paddr
