# This Source Code Form is subject to the terms of the Mozilla Public
# License, v. 2.0. If a copy of the MPL was not distributed with this
# file, You can obtain one at https://mozilla.org/MPL/2.0/.

cimport cython
from libc.stdint cimport uint64_t

from pageframe._core.arena cimport Arena
from pageframe._core.handle cimport Handle, Owner
from pageframe._core.slot cimport pf_slot


@cython.no_gc
cdef class Frame(Owner):
    """A reference to a frame that others may hold too."""


@cython.final
@cython.no_gc
cdef class UFrame(Frame):
    """A reference to an untyped frame."""


@cython.final
@cython.no_gc
cdef class FrameRef(Handle):
    """A frame borrowed from a handle, without a reference."""


cdef Frame empty_frame(Arena mem, const pf_slot *like)
cdef Frame make_frame(Arena mem, pf_slot *slot)
cdef Frame clone_frame(Arena mem, uint64_t frame)
