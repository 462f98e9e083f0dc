# This Source Code Form is subject to the terms of the Mozilla Public
# License, v. 2.0. If a copy of the MPL was not distributed with this
# file, You can obtain one at https://mozilla.org/MPL/2.0/.

cimport cython
from libc.stdint cimport uint64_t

from pageframe._core.arena cimport Arena


@cython.no_gc_clear
cdef class ArenaView(Arena):
    """An arena as one looks at it."""
    cdef uint64_t own_frames    # of the tables, and of reserved and bad regions

    cdef int show_file(self, int fd, object where, bint writable) except -1
    cdef int check_shared(self, str what) except -1
