# This Source Code Form is subject to the terms of the Mozilla Public
# License, v. 2.0. If a copy of the MPL was not distributed with this
# file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Audit: comparing all counts with all holders, and who the holders of a frame are.

A frame's count must be the sum of what all ledgers and tickets say; its allocator bit
must be set if and only if somebody owns the frame or a lane keeps it.  A process that
is killed can leave a count that is too high, or a bit that nobody owns (ledger.h); a
quiet arena shows these, and repairing lets them go.  Anything else means that the
arena's memory was tampered with; that is reported, too.

Ledgers and counts are not read at one moment.  So a frame that somebody works on is
passed over, and nothing is repaired if any lane had an operation in progress, or began
one, while they were read.  What was found wrong then stays as it is until somebody lets go
of it; so one process at a time repairs, under a lock of the file.
"""

from dataclasses import dataclass
from threading import get_ident

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free

from pageframe._core import backing
from pageframe._core.allocator cimport give_back_range, next_bit, recount_chunks, set_bit
from pageframe._core.arena cimport (
    PF_LANES, Arena, pf_arena, pf_client_count, pf_client_used, pf_lane, pf_lanes_of,
    pf_is_own, pf_ledger_of, pf_slot_at, pf_ticket)
from pageframe._core.client cimport client_info, client_infos, ledger_walk, next_held, walk_ledger
from pageframe._core.handle cimport end_life
from pageframe._core.ledger cimport (
    PF_OP_NONE, PF_S_audit_busy, PF_S_audit_count, PF_S_audit_ledger, pf_end_life, pf_step)
from pageframe._core.meta cimport know_types, type_name
from pageframe._core.page_table cimport count_mappings, is_node
from pageframe._core.slot cimport (
    PF_BUSY, PF_MAX, PF_ORPHAN, PF_UNIQUE, PF_UNUSED, pf_add_relaxed_u32, pf_cas_acq_rel_u64,
    pf_fence_acquire, pf_load_acquire_u32, pf_load_acquire_u64, pf_load_relaxed_u32, pf_load_relaxed_u64,
    pf_slot, pf_slot_count, pf_store_release_u32)
from pageframe._core.ticket cimport TICKET_FREE, state_of, ticket_frame, ticket_held


@dataclass(frozen=True)
class AuditReport:
    """What an audit found.

    Attributes
    ----------
    frames
        Frames that were looked at: all of the arena.
    clients
        The clients, dead ones included that nobody has reaped.
    tickets
        Messages in transit.
    orphans
        Frames whose ``on_drop`` waits for a process that has defined their type.
    leaked
        Paddrs of frames that are not free though nobody holds them.
    miscounted
        Paddrs of frames in use whose count is more than their holders have.
    damaged
        Paddrs of frames whose count, bit and holders can't come about by any crash.
    busy
        Frames that somebody was working on, which could not be judged.
    quiet
        Whether no operation was in progress. If one was, nothing is repaired.
    repaired
        Whether what was found has been put right.
    frames_by_type
        Name of a metadata type -> leaked frames that carried it.
    """

    frames: int
    clients: tuple
    tickets: int
    orphans: int
    leaked: tuple
    miscounted: tuple
    damaged: tuple
    busy: int
    quiet: bool
    repaired: bool
    frames_by_type: dict

    @property
    def clean(self):
        """Whether nothing was wrong."""
        return not (self.leaked or self.miscounted or self.damaged)


@dataclass(frozen=True)
class FrameHolder:
    """A process that holds a frame, or has sent it.

    Attributes
    ----------
    pid, name, started
        The process; see `ClientInfo`.
    handles
        References that its handles, segments, vectors and raw references have.
    mappings
        Pages of its address spaces at which the frame is mapped, a reference each.
    tickets
        Messages with the frame that it has sent and nobody has loaded yet.
    """

    pid: int
    name: str
    started: float
    handles: int
    mappings: int
    tickets: int


cdef enum verdict:
    FINE
    ORPHAN
    LEAKED          # not free, and nobody's
    MISCOUNTED
    DAMAGED
    WORKED_ON


cdef verdict judge(
        const pf_arena *a, uint64_t frame, uint64_t count, uint64_t expected,
        bint kept) noexcept nogil:
    """What is to be thought of a count if the holders have so many references.

    The arena has one to each frame of its own, which no crash touches.
    """
    cdef bint bit = next_bit(a, frame, frame + 1, True) == frame
    if pf_is_own(a, frame):
        expected += 1
        if not 1 <= count <= PF_MAX:
            return DAMAGED
    if count == PF_UNUSED:
        if expected == 0:
            return LEAKED if bit and not kept else DAMAGED if kept and not bit else FINE
        return WORKED_ON if bit else DAMAGED
    if not bit or kept:
        return DAMAGED
    if count == PF_ORPHAN:
        return ORPHAN if expected == 0 else DAMAGED
    if expected == 0:
        return LEAKED
    if count == PF_BUSY:
        return WORKED_ON
    if count == PF_UNIQUE:
        return FINE if expected == 1 else DAMAGED
    return FINE if count == expected else MISCOUNTED if count > expected else DAMAGED


ctypedef struct work:
    uint32_t joined         # clients that have come
    uint64_t operations     # that lanes have begun, of the clients that were there at first


cdef bint at_rest(const pf_arena *a, uint8_t *there, bint first, work *seen) noexcept nogil:
    """See how much work has been begun; False if some is in progress."""
    cdef uint32_t client, i
    cdef const pf_lane *lane
    # Acquire, each: what is read behind it is not older.  A lane's number comes before its
    # operation: see pf_op_write().
    seen.joined = pf_load_acquire_u32(&a.header.joined)
    seen.operations = 0
    for client in range(pf_client_count(a)):
        if first:
            there[client] = pf_client_used(a, client)
        if there[client]:
            for i in range(PF_LANES):
                lane = &pf_lanes_of(a, client)[i]
                seen.operations += pf_load_acquire_u64(&lane.ops)
                if pf_load_acquire_u64(&lane.op) != PF_OP_NONE:
                    return False
    return True


cdef int count_holders(Arena mem, uint32_t *expected, uint8_t *kept) except -1:
    """Add up all ledgers and tickets; note the frames that lanes keep. Returns the tickets."""
    cdef uint32_t client, i
    cdef uint64_t frame, k
    cdef int64_t held
    cdef ledger_walk walk
    cdef int tickets = 0
    cdef const pf_ticket *ticket
    for client in range(pf_client_count(&mem.a)):
        if not pf_client_used(&mem.a, client):
            continue
        walk = walk_ledger(mem, client)
        while next_held(&walk, &frame):
            expected[frame] += pf_load_relaxed_u32(&walk.ledger[frame])
        for i in range(PF_LANES):
            frame = pf_load_relaxed_u64(&pf_lanes_of(&mem.a, client)[i].kept) - 1
            if frame < mem.a.frames:
                kept[frame] = 1
    for i in range(mem.a.ticket_capacity):
        ticket = &mem.a.tickets[i]
        if state_of(pf_load_acquire_u64(&ticket.word)) == TICKET_FREE:
            continue
        tickets += 1
        for k in range(ticket_held(&mem.a, ticket)):
            held = ticket_frame(&mem.a, ticket, k)
            if held >= 0:
                expected[held] += 1
    return tickets


cdef object audit_and_repair(Arena mem):
    """Audit, and let go of what nobody holds, unless somebody else is at that."""
    reaping = mem.reaping       # a child has one of its own
    if not reaping.acquire(False):
        return audit(mem, False)
    mem.reaper = get_ident()
    try:
        if not backing.lock(mem.fd, backing.REPAIR, False):
            return audit(mem, False)
        try:
            return audit(mem, True)
        finally:
            backing.unlock(mem.fd, backing.REPAIR)
    finally:
        mem.reaper = 0
        reaping.release()


cdef object audit(Arena mem, bint repair):
    """Compare all counts with all holders; with repair, let go of what nobody holds."""
    cdef uint32_t *expected = <uint32_t *>calloc(mem.a.frames, sizeof(uint32_t))
    cdef uint8_t *kept = <uint8_t *>calloc(mem.a.frames, 1)
    cdef uint8_t *there = <uint8_t *>calloc(pf_client_count(&mem.a), 1)
    cdef work before, after
    cdef uint64_t frame, count
    cdef verdict found
    cdef uint64_t orphans = 0
    cdef uint32_t counted
    cdef uint64_t busy = 0
    cdef bint still
    wrong = []
    paddrs = {LEAKED: [], MISCOUNTED: [], DAMAGED: []}
    frames_by_type = {}
    try:
        if expected == NULL or kept == NULL or there == NULL:
            raise MemoryError(f"no memory to audit {mem.a.frames} frames")
        know_types(mem)
        still = at_rest(&mem.a, there, True, &before)
        counted = pf_load_relaxed_u32(&mem.a.header.orphans)
        tickets = count_holders(mem, expected, kept)
        for frame in range(mem.a.frames):
            count = pf_slot_count(pf_slot_at(&mem.a, frame))
            found = judge(&mem.a, frame, count, expected[frame], kept[frame])
            if found == ORPHAN:
                orphans += 1
            elif found == WORKED_ON:
                busy += 1
            elif found != FINE:
                wrong.append((frame, found, count))
        # Pairs with the releases by which counts and ledgers change: whose work was seen in
        # them has its number written.
        pf_fence_acquire()
        still = (still and at_rest(&mem.a, there, False, &after)
                 and after.joined == before.joined and after.operations == before.operations)
        for number, judged, seen in wrong:
            paddrs[judged].append(number << mem.a.page_shift)
            if judged == LEAKED:
                name = type_name(mem, pf_load_relaxed_u32(&pf_slot_at(&mem.a, number).type_id))
                frames_by_type[name] = frames_by_type.get(name, 0) + 1
            if repair and still:
                put_right(mem, number, judged, seen, expected[<uint64_t>number])
        if repair and still:
            recount_chunks(&mem.a)
            # What is missing: somebody may have left one more orphan since.
            pf_add_relaxed_u32(&mem.a.header.orphans, <uint32_t>orphans - counted)
        clients = tuple(client_infos(mem))
    finally:
        free(expected)
        free(kept)
        free(there)
    return AuditReport(
        frames=mem.a.frames, clients=clients, tickets=tickets, orphans=orphans,
        leaked=tuple(paddrs[LEAKED]), miscounted=tuple(paddrs[MISCOUNTED]),
        damaged=tuple(paddrs[DAMAGED]), busy=busy, quiet=still, repaired=repair and still,
        frames_by_type=frames_by_type)


cdef int put_right(
        Arena mem, uint64_t frame, verdict found, uint64_t count, uint64_t expected) except -1:
    """Make a frame agree with its holders, unless its count has changed since it was judged."""
    cdef pf_slot *slot = pf_slot_at(&mem.a, frame)
    cdef bint own = pf_is_own(&mem.a, frame)
    expected += own
    if found != LEAKED:
        if own or (expected and 1 <= count <= PF_MAX):
            # Whoever tampered with it: nobody who holds the frame may lose it.
            set_bit(&mem.a, frame)
            pf_step(PF_S_audit_count)
            pf_cas_acq_rel_u64(&slot.count, count, expected)
    elif count == PF_UNUSED or count == PF_BUSY:
        if count == PF_BUSY:        # its on_drop may have run
            slot.list_id = 0
            pf_end_life(&mem.a, slot)
        give_back_range(&mem.a, frame, 1)
    else:
        pf_step(PF_S_audit_busy)
        if pf_cas_acq_rel_u64(&slot.count, count, PF_BUSY):
            slot.list_id = 0
            pf_step(PF_S_audit_ledger)
            pf_store_release_u32(&mem.a.ledger[frame], 1)
            end_life(mem, slot, True)
    return 0


cdef uint64_t mapped_by(Arena mem, uint32_t client, uint64_t frame) noexcept nogil:
    """At how many pages a client's spaces show a frame, by the nodes that it owns."""
    cdef uint64_t node
    cdef uint64_t found = 0
    cdef ledger_walk walk = walk_ledger(mem, client)
    while next_held(&walk, &node):
        if is_node(&mem.a, node, 0):
            found += count_mappings(&mem.a, node, frame)
    return found


cdef list holders(Arena mem, uint64_t frame):
    """Every process that holds a frame or has sent it."""
    cdef uint32_t client, i
    cdef uint64_t k
    cdef const pf_ticket *ticket
    handles = {}
    mappings = {}
    tickets = {}
    for client in range(pf_client_count(&mem.a)):
        if pf_client_used(&mem.a, client):
            info = client_info(mem, client)
            references = pf_load_relaxed_u32(&pf_ledger_of(&mem.a, client)[frame])
            # A process may be more than one client.
            _, others = handles.get((info.pid, info.started), (None, 0))
            handles[info.pid, info.started] = info, others + references
            mapped = min(references, mapped_by(mem, client, frame)) if references else 0
            mappings[info.pid, info.started] = mappings.get((info.pid, info.started), 0) + mapped
    for i in range(mem.a.ticket_capacity):
        ticket = &mem.a.tickets[i]
        if state_of(pf_load_acquire_u64(&ticket.word)) == TICKET_FREE:
            continue
        for k in range(ticket_held(&mem.a, ticket)):
            if ticket_frame(&mem.a, ticket, k) == <int64_t>frame:
                key = pf_load_relaxed_u32(&ticket.pid), pf_load_relaxed_u64(&ticket.started) / 1e9
                tickets[key] = tickets.get(key, 0) + 1
    found = []
    for key in dict.fromkeys([*handles, *tickets]):
        info, held = handles.get(key, (None, 0))
        if held or key in tickets:
            found.append(FrameHolder(
                pid=key[0], name=info.name if info else "gone", started=key[1],
                handles=held - mappings.get(key, 0), mappings=mappings.get(key, 0),
                tickets=tickets.get(key, 0)))
    return found
