# This Source Code Form is subject to the terms of the Mozilla Public
# License, v. 2.0. If a copy of the MPL was not distributed with this
# file, You can obtain one at https://mozilla.org/MPL/2.0/.

from libc.stdint cimport int64_t, uint64_t

from pageframe._core.arena cimport Arena

cdef int64_t user_alloc(Arena mem, uint64_t count, uint64_t align) except -1
cdef void user_given(Arena mem, uint64_t first, uint64_t count) noexcept
cdef void user_dealloc(Arena mem, uint64_t first, uint64_t count, bint tell) noexcept
