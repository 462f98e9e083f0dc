# This Source Code Form is subject to the terms of the Mozilla Public
# License, v. 2.0. If a copy of the MPL was not distributed with this
# file, You can obtain one at https://mozilla.org/MPL/2.0/.

from libc.stdint cimport uint32_t, uint64_t

from pageframe._core.arena cimport Arena


cdef struct reaped:
    uint64_t references     # given back
    uint64_t frames         # whose life ended
    uint64_t orphans        # of these, frames whose on_drop waits
    uint64_t in_doubt       # frames that may be held too long: audit finds out
    uint64_t by_type[128]

cdef int give_back_all(Arena mem, uint32_t client, reaped *found) except -1
cdef object reap(Arena mem, bint wait)
cdef uint64_t adopt_orphans(Arena mem) except? 0
