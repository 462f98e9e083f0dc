# This Source Code Form is subject to the terms of the Mozilla Public
# License, v. 2.0. If a copy of the MPL was not distributed with this
# file, You can obtain one at https://mozilla.org/MPL/2.0/.

cimport cython
from libc.stdint cimport uint64_t

from pageframe._core.arena cimport Arena
from pageframe._core.array cimport VirtualBytes
from pageframe._core.kernel_map cimport address_range
from pageframe._core.page_table cimport page_table, run_list
from pageframe._core.vector cimport FrameVec


@cython.no_gc_clear
cdef class VmSpace:
    """A range of addresses and the page table that says what is there."""
    cdef readonly Arena mem
    cdef object __weakref__
    cdef address_range where
    cdef page_table table
    cdef uint64_t pages
    cdef list locks             # RangeLock
    cdef void *views            # the first VmView that lives
    cdef bint over              # closed; goes when the last view does
    cdef str why_over
    cdef run_list at_fork       # what it showed when the process was forked,
    cdef bint noted             # if that was noted
    cdef bint unmade            # there was no memory for a table of it: at_fork is what it shows

    cdef int check(self) except -1
    cdef uint64_t page_at(self, object va) except? 0
    cdef int interval(self, object start, object stop, uint64_t *first, uint64_t *end) except -1
    cdef int take(
        self, VmCursor cursor, uint64_t *at, uint64_t stop, list handles, uint64_t flags) except -1
    cdef int take_own(
        self, VmCursor cursor, uint64_t *at, uint64_t stop, list handles, uint64_t flags) except -1
    cdef int check_views(self, uint64_t first, uint64_t stop, bint writable_only) except -1
    cdef RangeLock lock(self, uint64_t first, uint64_t stop, object timeout)
    cdef void unlock(self, RangeLock held) noexcept
    cdef int close_down(self) except -1
    cdef void tear_down(self) noexcept


@cython.final
@cython.no_gc
cdef class RangeLock:
    """Pages that a cursor has to itself."""
    cdef uint64_t first, stop
    cdef unsigned long owner    # the thread
    cdef object waiting         # a lock that is held as long as this is


@cython.final
@cython.no_gc_clear
cdef class VmCursor:
    """A place in a range of a space, which the cursor has to itself."""
    cdef readonly VmSpace space
    cdef RangeLock held
    cdef bint open
    cdef uint64_t at            # page

    cdef int check(self) except -1
    cdef uint64_t end_of(self, object nbytes) except? 0


@cython.final
@cython.no_gc
cdef class VmView(VirtualBytes):
    """Some pages of a space as bytes."""
    cdef VmSpace space
    cdef uint64_t first, stop
    cdef void *next             # views of the same space, which hold no references
    cdef void *previous


cdef bint can_map(Arena mem) noexcept
cdef VmSpace new_space(Arena mem, object pages)
cdef uint64_t flags_of(object prop) except? 0
cdef FrameVec frames_at(VmSpace space, uint64_t first, uint64_t count)
