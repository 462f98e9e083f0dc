# This Source Code Form is subject to the terms of the Mozilla Public
# License, v. 2.0. If a copy of the MPL was not distributed with this
# file, You can obtain one at https://mozilla.org/MPL/2.0/.

cimport cython
from libc.stdint cimport uint64_t

from pageframe._core.arena_view cimport ArenaView


@cython.no_gc_clear
cdef class PhysicalMemory(ArenaView):
    """An arena of page frames."""
    cdef uint64_t wanted(self, object n, object align) except 0
    cdef int boot(self, list covered, uint64_t page, object sharing) except -1
    cdef int join(self) except -1
    cdef int move_in(self) except -1
    cdef int leave(self) except -1
    cdef void leave_unasked(self) noexcept
    cdef int drop_file(self) except -1
    cdef int check_unused(self) except -1
