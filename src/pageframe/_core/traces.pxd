# This Source Code Form is subject to the terms of the Mozilla Public
# License, v. 2.0. If a copy of the MPL was not distributed with this
# file, You can obtain one at https://mozilla.org/MPL/2.0/.

from libc.stdint cimport int32_t, uint64_t

from pageframe._core.arena cimport Arena
from pageframe._core.slot cimport pf_load_relaxed_i32

cdef const int *tracing     # 0: tracemalloc does not trace

cdef void track_run(Arena mem, uint64_t first, uint64_t count) noexcept
cdef void track_each(Arena mem, const uint64_t *frames, uint64_t count) noexcept


cdef inline void track(Arena mem, uint64_t first, uint64_t count) noexcept:
    """This process has got a run of frames."""
    if pf_load_relaxed_i32(<const int32_t *>tracing):
        track_run(mem, first, count)


cdef inline void track_many(Arena mem, const uint64_t *frames, uint64_t count) noexcept:
    """This process has got scattered frames."""
    if pf_load_relaxed_i32(<const int32_t *>tracing):
        track_each(mem, frames, count)
