# This Source Code Form is subject to the terms of the Mozilla Public
# License, v. 2.0. If a copy of the MPL was not distributed with this
# file, You can obtain one at https://mozilla.org/MPL/2.0/.

cimport cython
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from pageframe._core.arena cimport Arena, pf_arena, pf_bytes_at
from pageframe._core.ledger cimport PF_S_begin_storage, PF_S_begin_type, pf_step
from pageframe._core.slot cimport pf_slot, pf_slot_publish, pf_store_relaxed_u32


@cython.no_gc
cdef class Holder:
    """Something that holds frames of an arena, or watches one.

    All state of a `Handle` is here, since only the base class of a hierarchy can
    keep a free list, and only for instances of its own size.
    """
    cdef readonly Arena mem
    cdef pf_slot *slot          # NULL: dropped or moved, or never had a frame
    cdef pf_slot *pending       # dropped, but views of the bytes still live
    cdef Py_ssize_t exports     # live views of the bytes
    cdef uint64_t generation    # of a borrowed frame
    cdef bint borrowed          # holds no count: the frame may go at any time
    cdef bint sole              # owns the frame
    cdef uint32_t epoch         # of the process in which it came to own it


@cython.no_gc
cdef class Handle(Holder):
    """A holder of one frame, or a borrower."""


@cython.no_gc
cdef class Owner(Handle):
    """A handle that has something to give up: a reference, or a whole frame."""


@cython.final
@cython.no_gc
cdef class MetaSource:
    """Metadata for frames about to be built: the same for all, or one for each."""
    cdef uint32_t type_id
    cdef uint32_t size
    cdef const unsigned char *storage   # for all; NULL if there is one for each
    cdef list each
    cdef object keep

    cdef const unsigned char *at(self, Py_ssize_t i) noexcept


cdef MetaSource meta_source(Arena mem, object meta)
cdef MetaSource meta_sources(Arena mem, object meta_fn)
cdef int ask_each(MetaSource source, Arena mem, object meta_fn, object paddrs) except -1

cdef Py_ssize_t index_within(object index, Py_ssize_t count) except -1
cdef int raise_moved(Holder self) except -1
cdef int raise_get(Arena mem, uint64_t frame, int error) except -1
cdef int raise_out_of_frames(Arena mem, uint64_t count, uint64_t align) except -1
cdef pf_slot *held(Handle self) except NULL
cdef int raise_stayed(Holder self) except -1
cdef pf_slot *movable(Handle self) except NULL
cdef int export_bytes(Handle self, Py_buffer *buffer, int flags) except -1
cdef pf_slot *unexport_bytes(Handle self) noexcept

cdef int64_t obtain_one(Arena mem) except -1
cdef int64_t obtain_run(Arena mem, uint64_t count, uint64_t align) except -1
cdef int claim_exactly(Arena mem, uint64_t first, uint64_t count) except -1
cdef void end_life(Arena mem, pf_slot *slot, bint tell) noexcept
cdef bint knows_on_drop(Arena mem, const pf_slot *slot) noexcept
cdef void orphan(pf_arena *a, uint32_t *entry, pf_slot *slot) noexcept nogil
cdef void put(Arena mem, pf_slot *slot) noexcept
cdef void put_unique(Arena mem, pf_slot *slot) noexcept
cdef int get(Arena mem, uint64_t frame) except -1
cdef int hold_again(Arena mem, pf_slot *slot) except -1
cdef int raw_add(Arena mem, uint64_t frame) except -1
cdef int raw_take(Arena mem, uint64_t frame) except -1


cdef inline void zero_used(pf_arena *a, uint64_t frame, const pf_slot *slot) noexcept nogil:
    """Zero a frame's bytes, unless they are as the kernel gave them."""
    if slot.type_id != 0:
        memset(pf_bytes_at(a, frame), 0, 1ull << a.page_shift)


cdef inline void begin_life(
        pf_slot *slot, uint32_t type_id, const unsigned char *storage, uint32_t size,
        uint64_t count) noexcept nogil:
    """Build the slot of a frame whose bit is ours, and publish it."""
    pf_step(PF_S_begin_type)
    # Relaxed: the count publishes them, but a census, an audit, a list may read them before.
    pf_store_relaxed_u32(&slot.type_id, type_id)
    pf_store_relaxed_u32(&slot.list_id, 0)
    if size:
        pf_step(PF_S_begin_storage)
        memcpy(&slot.storage[0], storage, size)
    pf_slot_publish(slot, count)
