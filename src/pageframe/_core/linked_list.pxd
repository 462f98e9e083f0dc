# This Source Code Form is subject to the terms of the Mozilla Public
# License, v. 2.0. If a copy of the MPL was not distributed with this
# file, You can obtain one at https://mozilla.org/MPL/2.0/.

cimport cython
from libc.stdint cimport uint32_t, uint64_t

from pageframe._core.arena cimport Arena
from pageframe._core.handle cimport Holder
from pageframe._core.slot cimport pf_slot


cdef struct pf_link:
    uint32_t prev
    uint32_t next


@cython.final
@cython.no_gc
cdef class LinkedList(Holder):
    """A list of unique frames, linked through their metadata."""
    cdef readonly object meta_type
    cdef uint32_t type_id
    cdef uint32_t list_id       # 0: dropped
    cdef uint32_t front         # frame numbers; 0 (the arena's header) stands for none
    cdef uint32_t back
    cdef Py_ssize_t count

    cdef int check(self) except -1
    cdef uint32_t find(self, object paddr) except? 0
    cdef void insert(self, uint32_t frame, uint32_t before) noexcept
    cdef void remove(self, uint32_t frame) noexcept
    cdef pf_slot *take(self, uint32_t frame) noexcept
    cdef object cursor(self, uint32_t frame)


@cython.final
@cython.no_gc
cdef class Cursor:
    """A position in a linked list."""
    cdef readonly LinkedList list
    cdef uint32_t at            # 0: the ghost position

    cdef int check(self) except -1
