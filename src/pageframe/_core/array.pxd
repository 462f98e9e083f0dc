# This Source Code Form is subject to the terms of the Mozilla Public
# License, v. 2.0. If a copy of the MPL was not distributed with this
# file, You can obtain one at https://mozilla.org/MPL/2.0/.

from libc.stdint cimport int64_t, uint64_t

from pageframe._core.arena cimport Arena
from pageframe._core.segment cimport USegment


cdef struct extent:
    uint64_t first      # frames that the elements of an array lie in
    uint64_t count
    int64_t offset      # of the first element from the first of these frames, in bytes
    bint readonly
    bint contiguous     # in C order

cdef object new_array(Arena mem, object shape, object dtype, object order, bint zeroed)
cdef object array_like(Arena mem, object source)
cdef object array_over(USegment segment, object shape, object dtype, object offset, object strides,
                       bint readonly)
cdef USegment segment_of(object array)
cdef int find_extent(object array, USegment segment, extent *found) except -1
