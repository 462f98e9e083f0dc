# This Source Code Form is subject to the terms of the Mozilla Public
# License, v. 2.0. If a copy of the MPL was not distributed with this
# file, You can obtain one at https://mozilla.org/MPL/2.0/.

cimport cython
from libc.stdint cimport uint32_t, uint64_t

from pageframe._core.arena cimport Arena, pf_arena
from pageframe._core.slot cimport pf_slot

# Ids of the types that every arena has, in the order of their registration.
cdef enum:
    TYPE_UNTYPED = 1
    TYPE_META_PAGE = 2
    TYPE_RESERVED = 3
    TYPE_UNUSABLE = 4
    TYPE_TICKET_PAGE = 5
    TYPE_PAGE_TABLE = 6


@cython.no_gc
cdef class MetaView:
    """The fields of one frame's metadata, or a value of them in memory of its own."""
    cdef unsigned char *data    # first byte of the storage
    cdef unsigned char *own     # storage of a value; NULL for a view of a slot
    cdef pf_slot *slot          # viewed slot; NULL for a value, or when the view is over
    cdef pf_slot **guard        # valid while this points to the slot; NULL: no such condition
    cdef object owner           # keeps guard and arena alive
    cdef const pf_arena *arena
    cdef uint64_t generation
    cdef uint32_t list_id
    cdef uint32_t *list_alive   # of a list's element: the list's id, while the list lives
    cdef bint writable
    cdef uint32_t epoch         # of the process that may write
    cdef Py_ssize_t first       # the fields lie from here, behind the links of a list,
    cdef Py_ssize_t room        # to here


cdef MetaView view_slot(
    Arena mem, pf_slot *slot, object owner, pf_slot **guard, bint writable)
cdef bint is_meta_type(object cls) except -1
cdef MetaView own_copy(MetaView value)
cdef uint32_t type_id_of(Arena mem, object cls) except 0
cdef object class_of(Arena mem, const pf_slot *slot)
cdef object class_numbered(Arena mem, uint32_t type_id)
cdef MetaView meta_value(Arena mem, object meta, uint32_t *type_id)
cdef int register_own_types(Arena mem) except -1
cdef int know_own_types(Arena mem) except -1
cdef int know_types(Arena mem) except -1
cdef object type_name(Arena mem, uint32_t type_id)
cdef uint32_t find_type(Arena mem, object cls) except? 0
cdef void run_on_drop(Arena mem, pf_slot *slot) noexcept
cdef void forget_lock() noexcept
cdef object slot_dtype(Arena mem, object cls)
