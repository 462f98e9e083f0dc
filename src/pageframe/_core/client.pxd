# This Source Code Form is subject to the terms of the Mozilla Public
# License, v. 2.0. If a copy of the MPL was not distributed with this
# file, You can obtain one at https://mozilla.org/MPL/2.0/.

from libc.stdint cimport int64_t, uint32_t, uint64_t

from pageframe._core.arena cimport Arena
from pageframe._core.slot cimport pf_load_relaxed_u32


cdef struct ledger_walk:
    const uint32_t *ledger
    uint64_t frame      # to be looked at next
    uint64_t stop       # where the ledger has a hole
    uint64_t frames
    int64_t offset      # of the ledger in the file
    int fd

cdef ledger_walk walk_ledger(Arena mem, uint32_t client) noexcept nogil
cdef bint next_extent(ledger_walk *walk) noexcept nogil
cdef uint64_t client_offset(Arena mem, uint32_t client) noexcept
cdef object client_info(Arena mem, uint32_t client)
cdef list client_infos(Arena mem)
cdef bint is_alive(Arena mem, uint32_t client) except -1
cdef int64_t lock_place(Arena mem, int fd, uint32_t state) except -2
cdef int use_place(Arena mem, int fd, uint32_t client) except -1
cdef int free_place(Arena mem, uint32_t client) except -1
cdef int become(Arena mem, uint32_t client) except -1
cdef int describe(Arena mem, uint32_t client) except -1


cdef inline bint next_held(ledger_walk *walk, uint64_t *frame) noexcept nogil:
    """Go to the next frame with an entry."""
    while True:
        while walk.frame < walk.stop:
            walk.frame += 1
            if pf_load_relaxed_u32(&walk.ledger[walk.frame - 1]):
                frame[0] = walk.frame - 1
                return True
        if not next_extent(walk):
            return False
