# This Source Code Form is subject to the terms of the Mozilla Public
# License, v. 2.0. If a copy of the MPL was not distributed with this
# file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Tickets: what holds the frames of a message while nobody else may.

A handle that is pickled becomes a ticket in the arena.  It holds one reference to
each of its frames until the message is loaded, whatever becomes of the sender, or
until it expires.  Loading it moves these references into the ledger of the receiver,
once: the ticket changes state by a compare-and-swap that one loader wins.

A ticket is a run of frames, or a list of frame numbers, which lies in frames of its
own that the ticket holds, too, ahead of the frames of the message.  In every state it
holds the first ``done`` of all these.  The number changes one by one, in the order
that leaves a count too high if the process dies between two stores:

    filling      count + 1, then done + 1
    redeeming    done - 1, then the entry in the ledger + 1
    releasing    done - 1, then count - 1

A ticket that is being filled, redeemed or released has an owner; if that one dies,
whoever reaps it goes on releasing.  So a message is loaded or lost as a whole, and
what it held comes back either way.
"""

from libc.stdint cimport int64_t, uint32_t, uint64_t

from pageframe._core.arena cimport Arena, pf_arena, pf_bytes_at, pf_slot_at, pf_ticket
from pageframe._core.errors import ArenaDamagedError, RefCountOverflowError, TicketsFullError
from pageframe._core.allocator cimport my_lane
from pageframe._core.handle cimport end_life
from pageframe._core.ledger cimport (
    PF_EVENT_LOAD, PF_EVENT_SEND, PF_LEDGER_MAX, PF_OP_LESS, PF_OP_MORE, PF_S_put_mark,
    PF_S_redeem_done, PF_S_redeem_ledger, PF_S_redeem_take, PF_S_release_count, PF_S_release_done,
    PF_S_release_take, PF_S_ticket_count, PF_S_ticket_done, PF_S_ticket_fill, PF_S_ticket_free,
    PF_S_ticket_live, PF_S_ticket_take, pf_note, pf_now, pf_op_begin, pf_op_end, pf_step)
from pageframe._core.slot cimport (
    PF_OK, pf_add_relaxed_u64, pf_add_release_u32, pf_cas_acq_rel_u64, pf_load_acquire_u64,
    pf_load_relaxed_u32, pf_load_relaxed_u64, pf_slot, pf_slot_end, pf_slot_in_use, pf_slot_inc, pf_slot_put,
    pf_store_relaxed_u32, pf_store_relaxed_u64, pf_store_release_u32, pf_store_release_u64)
from pageframe._core.traces cimport track

cdef inline uint64_t word_of(uint64_t serial, uint32_t owner, ticket_state state) noexcept nogil:
    return serial << 24 | owner << 8 | state


cdef inline uint32_t owner_of(uint64_t word) noexcept nogil:
    """Number of the client that works on a ticket, plus 1."""
    return (word >> 8) & 0xFFFF


cdef int64_t ticket_frame(const pf_arena *a, const pf_ticket *ticket, uint64_t i) noexcept nogil:
    """The frame that a ticket holds at a place; -1 if what it says can't be true."""
    cdef uint64_t frame
    # Read once: what was checked is used, though somebody writes over the ticket meanwhile.
    cdef uint64_t first = pf_load_relaxed_u64(&ticket.first)
    cdef uint64_t listed = pf_load_relaxed_u32(&ticket.listed)
    if i < listed or listed == 0:
        frame = first + i
    elif first >= a.frames or first + listed > a.frames or (
            (i - listed) * sizeof(uint32_t) >= listed << a.page_shift):
        return -1
    else:
        frame = pf_load_relaxed_u32(&(<const uint32_t *>pf_bytes_at(a, first))[i - listed])
    return frame if frame < a.frames else -1


cdef uint64_t list_pages(const pf_arena *a, uint64_t count) noexcept nogil:
    """How many frames it takes to list so many frames."""
    return ((count * sizeof(uint32_t) - 1) >> a.page_shift) + 1


cdef uint64_t ticket_held(const pf_arena *a, const pf_ticket *ticket) noexcept nogil:
    """How many frames a ticket holds: no more than it can, if what it says can't be true."""
    cdef uint64_t listed = pf_load_relaxed_u32(&ticket.listed)
    cdef uint64_t count = pf_load_relaxed_u64(&ticket.count)
    # Acquire pairs with the releases of those who change it: who sees that it is not 0 sees the list.
    return min(pf_load_acquire_u64(&ticket.done), min(listed, a.frames) + min(count, a.frames))


cdef pf_ticket *take_free(Arena mem, uint64_t serial) noexcept nogil:
    """Take a free ticket to be filled; NULL if there is none."""
    cdef uint64_t i, word
    cdef uint32_t capacity = mem.a.ticket_capacity
    cdef pf_ticket *ticket
    for i in range(capacity):
        ticket = &mem.a.tickets[(serial + i) % capacity]
        word = pf_load_acquire_u64(&ticket.word)
        if state_of(word) == TICKET_FREE:
            pf_step(PF_S_ticket_take)
            if pf_cas_acq_rel_u64(
                    &ticket.word, word, word_of(serial, mem.a.client + 1, TICKET_FILLING)):
                return ticket
    return NULL


cdef pf_ticket *new_ticket(Arena mem) except NULL:
    """Take a ticket, to be issued or released.  May run an on_drop."""
    cdef uint64_t serial = (pf_add_relaxed_u64(&mem.a.header.last_ticket, 1) + 1) & 0xFFFFFFFFFF
    cdef pf_ticket *ticket = take_free(mem, serial)
    if ticket == NULL:
        expire_tickets(mem)
        ticket = take_free(mem, serial)
        if ticket == NULL:
            raise TicketsFullError(
                f"{mem.a.ticket_capacity} messages are in transit, the maximum of this arena")
    return ticket


cdef int64_t issue(
        Arena mem, pf_ticket *ticket, uint64_t first, uint64_t count, uint64_t listed) except -1:
    """Make a ticket hold frames that this client holds.

    Returns its serial number and, below that, TICKET_BITS of its number in the table: who
    asks for the serial number later may find that of another, if this one has expired.

    The frames are ``first .. first + count - 1``; or, if listed is not 0, that many
    frames from first on list them.  No other code runs meanwhile.
    """
    cdef uint64_t time = pf_now()
    cdef uint64_t serial = serial_of(ticket.word)
    cdef uint64_t i
    cdef int64_t frame
    pf_step(PF_S_ticket_fill)
    # Relaxed: it is published at the end, but a census or an audit may read it before.
    pf_store_relaxed_u64(&ticket.first, first)
    pf_store_relaxed_u64(&ticket.count, count)
    pf_store_relaxed_u32(&ticket.listed, listed)
    pf_store_relaxed_u32(&ticket.pid, mem.a.clients[mem.a.client].pid)
    pf_store_relaxed_u64(&ticket.started, mem.a.clients[mem.a.client].started)
    pf_store_relaxed_u64(&ticket.issued, time)
    pf_store_relaxed_u64(&ticket.expires, time + mem.a.header.ticket_ttl)
    for i in range(listed + count):
        frame = ticket_frame(&mem.a, ticket, i)
        if frame < 0:
            pf_op_end(&mem.a, my_lane(&mem.a))
            raise ArenaDamagedError(f"ticket {ticket - mem.a.tickets} was written over while it was made")
        pf_op_begin(&mem.a, my_lane(&mem.a), PF_OP_MORE, frame)
        pf_step(PF_S_ticket_count)
        if pf_slot_inc(pf_slot_at(&mem.a, frame)) != PF_OK:
            pf_op_end(&mem.a, my_lane(&mem.a))
            raise RefCountOverflowError("the reference count of a frame of the message is at its maximum")
        pf_step(PF_S_ticket_done)
        pf_store_release_u64(&ticket.done, i + 1)
    pf_op_end(&mem.a, my_lane(&mem.a))
    pf_note(&mem.a, PF_EVENT_SEND, ticket_frame(&mem.a, ticket, listed))
    pf_step(PF_S_ticket_live)
    # Release pairs with the acquire of the loader's compare-and-swap.
    pf_store_release_u64(&ticket.word, word_of(serial, 0, TICKET_LIVE))
    return serial << TICKET_BITS | <uint64_t>(ticket - mem.a.tickets)


cdef bint redeem(
        Arena mem, uint64_t index, uint64_t serial, uint64_t first, uint64_t count,
        uint64_t *frames) except -1:
    """Move the references of a ticket to this client; False if it is no longer in transit.

    The message says which frames it is about; of frames that are listed the numbers
    are written to frames.
    """
    cdef pf_ticket *ticket = &mem.a.tickets[index]
    cdef uint64_t listed = 0 if frames == NULL else list_pages(&mem.a, count)
    cdef uint64_t i
    cdef int64_t frame
    if pf_load_acquire_u64(&ticket.word) != word_of(serial, 0, TICKET_LIVE):
        return False
    if (ticket.count != count or ticket.listed != listed or ticket.done != listed + count
            or (frames == NULL and ticket.first != first)):
        raise ArenaDamagedError(
            f"this pickle of {count} frames does not fit ticket {index} of the arena, which has "
            f"{ticket.count}")
    pf_step(PF_S_redeem_take)
    if not pf_cas_acq_rel_u64(
            &ticket.word, word_of(serial, 0, TICKET_LIVE),
            word_of(serial, mem.a.client + 1, TICKET_REDEEMING)):
        return False
    pf_note(&mem.a, PF_EVENT_LOAD, ticket_frame(&mem.a, ticket, listed))
    for i in range(listed + count, listed, -1):
        frame = ticket_frame(&mem.a, ticket, i - 1)
        if frame < 0 or pf_load_relaxed_u32(&mem.a.ledger[frame]) >= PF_LEDGER_MAX:
            pf_op_end(&mem.a, my_lane(&mem.a))
            release(mem, ticket)
            raise ArenaDamagedError(f"ticket {index} of the arena holds what it can't")
        pf_op_begin(&mem.a, my_lane(&mem.a), PF_OP_MORE, frame)
        pf_step(PF_S_redeem_done)
        pf_store_release_u64(&ticket.done, i - 1)
        pf_step(PF_S_redeem_ledger)
        if pf_add_release_u32(&mem.a.ledger[frame], 1) == 0:
            track(mem, frame, 1)
        if frames != NULL:
            frames[i - 1 - listed] = frame
    pf_op_end(&mem.a, my_lane(&mem.a))
    release(mem, ticket)
    return True


cdef int release(Arena mem, pf_ticket *ticket) except -1:
    """Give up what a ticket of ours still holds, and free it."""
    cdef uint64_t i
    cdef int64_t frame
    for i in range(ticket_held(&mem.a, ticket), 0, -1):
        frame = ticket_frame(&mem.a, ticket, i - 1)
        if frame >= 0:
            pf_op_begin(&mem.a, my_lane(&mem.a), PF_OP_LESS, frame)
        pf_step(PF_S_release_done)
        pf_store_release_u64(&ticket.done, i - 1)
        if frame >= 0:
            put_counted(mem, frame)
    pf_step(PF_S_ticket_free)
    pf_store_release_u64(&ticket.word, word_of(serial_of(ticket.word), 0, TICKET_FREE))
    return 0


cdef void put_counted(Arena mem, uint64_t frame) noexcept:
    """Give up a reference that is in no ledger; the operation is begun already."""
    cdef pf_slot *slot = pf_slot_at(&mem.a, frame)
    if not pf_slot_in_use(slot):
        pf_op_end(&mem.a, my_lane(&mem.a))
        return      # tampered with
    pf_step(PF_S_release_count)
    if not pf_slot_end(slot, 1) and not pf_slot_put(slot):
        pf_op_end(&mem.a, my_lane(&mem.a))
        return
    pf_step(PF_S_put_mark)
    pf_store_release_u32(&mem.a.ledger[frame], 1)
    pf_op_end(&mem.a, my_lane(&mem.a))
    end_life(mem, slot, True)


cdef int settle_tickets(Arena mem, uint32_t client) except -1:
    """Release the tickets that a dead client was working on."""
    cdef uint32_t i
    cdef uint64_t word
    for i in range(mem.a.ticket_capacity):
        word = pf_load_acquire_u64(&mem.a.tickets[i].word)
        if owner_of(word) == client + 1:
            release_as_owner(mem, &mem.a.tickets[i], word)
    return 0


cdef uint64_t expire_tickets(Arena mem) except? 0:
    """Release the messages that nobody has loaded in time; returns how many."""
    cdef uint32_t i
    cdef uint64_t word
    cdef uint64_t expired = 0
    cdef uint64_t time = pf_now()
    for i in range(mem.a.ticket_capacity):
        word = pf_load_acquire_u64(&mem.a.tickets[i].word)
        if state_of(word) == TICKET_LIVE and pf_load_relaxed_u64(&mem.a.tickets[i].expires) <= time:
            expired += release_as_owner(mem, &mem.a.tickets[i], word)
    return expired


cdef bint release_as_owner(Arena mem, pf_ticket *ticket, uint64_t word) except -1:
    """Release a ticket if it still is as it was seen."""
    pf_step(PF_S_release_take)
    if not pf_cas_acq_rel_u64(
            &ticket.word, word, word_of(serial_of(word), mem.a.client + 1, TICKET_RELEASING)):
        return False
    release(mem, ticket)
    return True
