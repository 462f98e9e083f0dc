# This Source Code Form is subject to the terms of the Mozilla Public
# License, v. 2.0. If a copy of the MPL was not distributed with this
# file, You can obtain one at https://mozilla.org/MPL/2.0/.

from libc.stdint cimport uint64_t

from pageframe._core.arena cimport Arena, pf_arena

cdef void count_references(const pf_arena *a, uint64_t *references, uint64_t *raw) noexcept nogil
cdef object stats(Arena mem, uint64_t own_frames)
