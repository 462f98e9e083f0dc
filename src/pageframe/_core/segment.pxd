# This Source Code Form is subject to the terms of the Mozilla Public
# License, v. 2.0. If a copy of the MPL was not distributed with this
# file, You can obtain one at https://mozilla.org/MPL/2.0/.

cimport cython
from libc.stdint cimport uint64_t

from pageframe._core.arena cimport Arena
from pageframe._core.handle cimport Holder


@cython.no_gc
cdef class Segment(Holder):
    """A reference to each frame of a run."""
    cdef uint64_t first
    cdef uint64_t count         # 0: dropped or moved
    cdef uint64_t pending_count  # frames to give up when the last view goes

    cdef int check(self) except -1
    cdef int check_movable(self) except -1
    cdef uint64_t frames_in(self, object nbytes) except? 0
    cdef Segment part(self, uint64_t start, uint64_t stop)


@cython.final
@cython.no_gc
cdef class USegment(Segment):
    """A reference to each frame of a run of untyped frames."""
    cdef void unexport(self) noexcept


cdef void give_up(Arena mem, uint64_t first, uint64_t count) noexcept
cdef int hold_range(Arena mem, uint64_t first, uint64_t count) except -1
cdef Segment clone_range(Arena mem, uint64_t first, uint64_t count)
cdef Segment make_segment(Arena mem, uint64_t first, uint64_t count)
cdef Segment alloc_segment(Arena mem, uint64_t count, object meta_fn, bint zeroed, object align)
