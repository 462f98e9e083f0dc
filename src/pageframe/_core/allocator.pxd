# This Source Code Form is subject to the terms of the Mozilla Public
# License, v. 2.0. If a copy of the MPL was not distributed with this
# file, You can obtain one at https://mozilla.org/MPL/2.0/.

from libc.stdint cimport int64_t, uint32_t, uint64_t

from pageframe._core.arena cimport pf_arena, pf_lane

cdef int setup_bits(pf_arena *a) noexcept nogil
cdef int reserve_frames(pf_arena *a, uint64_t first, uint64_t count) noexcept nogil

cdef pf_lane *my_lane(pf_arena *a) noexcept nogil
cdef int64_t claim_one(pf_arena *a) noexcept nogil
cdef uint64_t claim_range(pf_arena *a, uint64_t first, uint64_t count) noexcept nogil
cdef int64_t claim_run(pf_arena *a, uint64_t count, uint64_t align) noexcept nogil
cdef uint64_t claim_many(pf_arena *a, uint64_t count, uint64_t *frames) noexcept nogil
cdef void give_back(pf_arena *a, uint64_t frame) noexcept nogil
cdef void give_back_mask(pf_arena *a, uint64_t word, uint64_t mask) noexcept nogil
cdef void give_back_owned(
    pf_arena *a, uint32_t *ledger, uint64_t word, uint64_t mask) noexcept nogil
cdef void give_back_range(pf_arena *a, uint64_t first, uint64_t count) noexcept nogil
cdef uint64_t next_bit(const pf_arena *a, uint64_t frame, uint64_t stop, bint taken) noexcept nogil
cdef int64_t free_frames(const pf_arena *a) noexcept nogil
cdef uint64_t longest_free_run(pf_arena *a) noexcept nogil
cdef uint64_t trim(pf_arena *a) noexcept nogil
cdef uint64_t take_kept_of(pf_arena *a, uint32_t client) noexcept nogil
cdef void release_lane(pf_arena *a, uint32_t client, pf_lane *lane) noexcept nogil
cdef void set_bit(pf_arena *a, uint64_t frame) noexcept nogil
cdef void recount_chunks(pf_arena *a) noexcept nogil
