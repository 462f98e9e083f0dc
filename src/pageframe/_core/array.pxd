# This Source Code Form is subject to the terms of the Mozilla Public
# License, v. 2.0. If a copy of the MPL was not distributed with this
# file, You can obtain one at https://mozilla.org/MPL/2.0/.

cimport cython
cimport numpy as np
from libc.stdint cimport int64_t, uint64_t

from pageframe._core.arena cimport Arena
from pageframe._core.handle cimport Holder
from pageframe._core.vector cimport FrameVec


@cython.no_gc
cdef class VirtualBytes(Holder):
    """Frames as contiguous bytes at addresses of a space: something mapped."""
    cdef unsigned char *data
    cdef uint64_t nbytes
    cdef bint writable

    cdef void unexport(self) noexcept
    cdef FrameVec frames_of(self, uint64_t first, uint64_t count)


@cython.final
@cython.no_gc
cdef class FrameBytes:
    """The bytes of a segment, or of something mapped, as the base of arrays."""
    cdef Holder owner
    cdef unsigned char *data
    cdef uint64_t size
    cdef bint readonly


cdef enum:
    MAX_DIMS = 32       # what all versions of NumPy can hold


cdef struct geometry:
    int ndim
    int64_t lengths[MAX_DIMS]
    int64_t strides[MAX_DIMS]   # in FORTRAN's order; C's needs none
    uint64_t size               # bytes


cdef struct extent:
    uint64_t first      # pages of the owner that the elements of an array lie in
    uint64_t count
    int64_t offset      # of the first element from the first of these pages, in bytes
    bint readonly
    bint contiguous     # in C order

cdef object new_array(Arena mem, object shape, object dtype, object order, bint zeroed)
cdef object array_like(Arena mem, object source)
cdef int lay_out(geometry *found, object shape, object dtype, object order) except -1
cdef object array_over(
    Holder owner, int ndim, const int64_t *lengths, const int64_t *strides, np.dtype dtype,
    uint64_t offset, bint readonly)
cdef FrameBytes bytes_of(np.ndarray array)
cdef int find_extent(np.ndarray array, extent *found) except -1
