# This Source Code Form is subject to the terms of the Mozilla Public
# License, v. 2.0. If a copy of the MPL was not distributed with this
# file, You can obtain one at https://mozilla.org/MPL/2.0/.

cimport cython
from libc.stdint cimport uint64_t

from pageframe._core.arena cimport Arena
from pageframe._core.array cimport VirtualBytes
from pageframe._core.vm_space cimport VmSpace


@cython.no_gc
cdef class Mapping(VirtualBytes):
    """Frames one behind another in a space of their own."""
    cdef VmSpace space          # never another one, and closed with the mapping
    cdef uint64_t count         # pages
    cdef uint64_t flags         # of the entries
    cdef bint dropped           # the space is closed when the last view goes

    cdef int check(self) except -1


@cython.final
@cython.no_gc
cdef class Ring(Mapping):
    """Frames twice in a row."""


cdef Mapping map_frames(Arena mem, object frames, object prop, object reserve)
cdef Ring make_ring(Arena mem, object size, object meta, bint zeroed)
