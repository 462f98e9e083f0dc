# This Source Code Form is subject to the terms of the Mozilla Public
# License, v. 2.0. If a copy of the MPL was not distributed with this
# file, You can obtain one at https://mozilla.org/MPL/2.0/.

cimport cython
cimport numpy as np
from libc.stdint cimport int64_t, uint64_t

from pageframe._core.arena cimport Arena
from pageframe._core.segment cimport USegment


@cython.final
@cython.no_gc
cdef class FrameBytes:
    """The bytes of a segment as the base of arrays."""
    cdef USegment segment
    cdef bint readonly


cdef struct extent:
    uint64_t first      # frames that the elements of an array lie in
    uint64_t count
    int64_t offset      # of the first element from the first of these frames, in bytes
    bint readonly
    bint contiguous     # in C order

cdef object new_array(Arena mem, object shape, object dtype, object order, bint zeroed)
cdef object array_like(Arena mem, object source)
cdef object array_over(
    USegment segment, int ndim, const int64_t *lengths, const int64_t *strides, np.dtype dtype,
    uint64_t offset, bint readonly)
cdef USegment segment_of(np.ndarray array)
cdef int find_extent(np.ndarray array, USegment segment, extent *found) except -1
