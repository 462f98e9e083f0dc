# This Source Code Form is subject to the terms of the Mozilla Public
# License, v. 2.0. If a copy of the MPL was not distributed with this
# file, You can obtain one at https://mozilla.org/MPL/2.0/.

cimport cython

from pageframe._core.arena cimport Arena
from pageframe._core.handle cimport Owner
from pageframe._core.slot cimport pf_slot


@cython.final
@cython.no_gc
cdef class UniqueFrame(Owner):
    """The only reference to a frame, whose metadata it may write."""


cdef UniqueFrame empty_unique(Arena mem)
cdef UniqueFrame make_unique(Arena mem, pf_slot *slot)
