# This Source Code Form is subject to the terms of the Mozilla Public
# License, v. 2.0. If a copy of the MPL was not distributed with this
# file, You can obtain one at https://mozilla.org/MPL/2.0/.

cimport cython
from libc.stdint cimport uint64_t

from pageframe._core.arena cimport Arena
from pageframe._core.handle cimport Holder


@cython.final
@cython.no_gc
cdef class FrameVec(Holder):
    """A reference to each of many scattered frames."""
    cdef uint64_t *frames       # numbers; NULL: dropped or moved
    cdef Py_ssize_t count

    cdef int check(self) except -1
    cdef FrameVec pick(self, Py_ssize_t start, Py_ssize_t step, Py_ssize_t count)
    cdef object numbers(self)


cdef FrameVec empty_vec(Arena mem, Py_ssize_t count)
cdef int claim_for(FrameVec vec, Py_ssize_t wanted) except -1
cdef int hold_all(Arena mem, const uint64_t *frames, Py_ssize_t count) except -1
cdef void forget_frames(FrameVec vec) noexcept
cdef FrameVec alloc_frames(Arena mem, Py_ssize_t count, object meta_fn, bint zeroed)
