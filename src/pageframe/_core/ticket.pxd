# This Source Code Form is subject to the terms of the Mozilla Public
# License, v. 2.0. If a copy of the MPL was not distributed with this
# file, You can obtain one at https://mozilla.org/MPL/2.0/.

from libc.stdint cimport int64_t, uint32_t, uint64_t

from pageframe._core.arena cimport Arena, pf_arena, pf_ticket

cdef enum ticket_state:
    TICKET_FREE
    TICKET_FILLING      # the owner is adding references
    TICKET_LIVE         # in transit
    TICKET_REDEEMING    # the owner is taking the references over
    TICKET_RELEASING    # the owner is giving them up

cdef enum:
    TICKET_BITS = 20    # of a ticket's number in the table

cdef inline ticket_state state_of(uint64_t word) noexcept nogil:
    return <ticket_state>(word & 0xFF)

cdef inline uint64_t serial_of(uint64_t word) noexcept nogil:
    return word >> 24

cdef pf_ticket *new_ticket(Arena mem) except NULL
cdef int64_t issue(Arena mem, pf_ticket *ticket, uint64_t first, uint64_t count, uint64_t listed) except -1
cdef int release(Arena mem, pf_ticket *ticket) except -1
cdef bint redeem(Arena mem, uint64_t index, uint64_t serial, uint64_t first, uint64_t count,
                 uint64_t *frames) except -1
cdef int settle_tickets(Arena mem, uint32_t client) except -1
cdef uint64_t expire_tickets(Arena mem) except? 0
cdef int64_t ticket_frame(const pf_arena *a, const pf_ticket *ticket, uint64_t i) noexcept nogil
cdef uint64_t ticket_held(const pf_arena *a, const pf_ticket *ticket) noexcept nogil
cdef uint64_t list_pages(const pf_arena *a, uint64_t count) noexcept nogil
