# This Source Code Form is subject to the terms of the Mozilla Public
# License, v. 2.0. If a copy of the MPL was not distributed with this
# file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Reaping: taking back what a client held that is dead, or that leaves.

Who has locked the place of a dead client (client.pyx) owns its ledger, its lanes and
the tickets that it was working on.  All is given back in this order: tickets, the
ledger frame by frame, the lanes; then the place is free.  Each step leaves what is
still to be done where the next reaper finds it, so a reaper that is killed loses
nothing either: its lock goes, and another one goes on.

What the ledger says of a frame is certain (ledger.h).  The operation that a lane had
in progress is not: the process died somewhere between two stores.  Such a frame, one
a thread at the most, is counted as in doubt unless its state tells that nothing is
amiss, and audit (audit.pyx) settles it.

``on_drop`` of the frames that end runs here, as it would have in the client, unless
the client had begun it.  If this process has not defined the type the frame becomes
an orphan, which waits for a process that has.
"""

from dataclasses import dataclass, field
from threading import get_ident

from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.string cimport memset

from pageframe._core import backing
from pageframe._core.allocator cimport give_back_owned, my_lane, next_bit, release_lane, take_kept_of
from pageframe._core.arena cimport (
    PF_CLIENT_USED, PF_LANES, PF_ON_DROP, PF_TYPE_LIMIT, Arena, pf_arena, pf_lane, pf_lanes_of,
    pf_is_own, pf_ledger_of, pf_let_go, pf_slot_at, pf_type_flags)
from pageframe._core.client cimport (
    client_info, client_offset, free_place, ledger_walk, lock_place, next_held, walk_ledger)
from pageframe._core.errors import PageFrameError
from pageframe._core.handle cimport end_life, knows_on_drop, orphan
from pageframe._core.ledger cimport (
    PF_OP_CLAIM, PF_OP_FREE, PF_OP_LESS, PF_OP_MORE, PF_OP_NONE, PF_S_adopt_count,
    PF_S_adopt_ledger, PF_S_adopt_total, PF_S_reap_busy, PF_S_reap_count, PF_S_reap_ledger, PF_S_reap_lanes,
    PF_S_reap_mark, PF_S_reap_sub, pf_end_life_of, pf_op_begin, pf_op_end, pf_poison_again, pf_step)
from pageframe._core.meta cimport know_types, run_on_drop
from pageframe._core.slot cimport (
    PF_BUSY, PF_MAX, PF_ORPHAN, PF_UNIQUE, PF_UNUSED, pf_cas_acq_rel_u64, pf_load_relaxed_u32,
    pf_slot, pf_slot_count, pf_slot_end, pf_store_release_u32, pf_store_release_u64,
    pf_sub_relaxed_u32)
from pageframe._core.ticket cimport expire_tickets, settle_tickets


@dataclass(frozen=True)
class ReapReport:
    """What was taken back.

    Attributes
    ----------
    clients
        The dead clients whose places are free again.
    frames
        Frames whose life ended with them.
    references
        References that they had; more than `frames` if others hold some of these, too.
    tickets
        Messages that nobody had loaded in time, or that a dead client was loading.
    orphans
        Frames whose ``on_drop`` waits for a process that has defined their type.
    adopted
        Orphans whose ``on_drop`` ran in this call.
    in_doubt
        Frames that may still be held though nobody does, one a killed thread at the
        most; `PhysicalMemory.audit` returns them.
    frames_by_type
        Name of a metadata type -> frames whose life ended.
    """

    clients: tuple = ()
    frames: int = 0
    references: int = 0
    tickets: int = 0
    orphans: int = 0
    adopted: int = 0
    in_doubt: int = 0
    frames_by_type: dict = field(default_factory=dict)


cdef object reap(Arena mem, bint wait):
    """Give back what dead clients hold, run what waits for this process, let old tickets go.

    If another thread of this process is at it, wait until it is done, or find nothing.
    """
    cdef reaped found
    cdef int64_t client
    cdef uint64_t adopted
    cdef uint32_t i
    memset(&found, 0, sizeof(found))
    reaping = mem.reaping       # a child has one of its own
    if not reaping.acquire(False):
        if wait and mem.reaper != get_ident():      # not from an on_drop that the reaper runs
            with reaping:
                pass
        return ReapReport()
    mem.reaper = get_ident()
    clients = []
    try:
        know_types(mem)
        while True:
            client = lock_place(mem, mem.fd, PF_CLIENT_USED)
            if client < 0:
                break
            try:
                info = client_info(mem, client)
                give_back_all(mem, client, &found)
                free_place(mem, client)
                clients.append(info)
            finally:
                backing.unlock(mem.fd, client_offset(mem, client))
        tickets = expire_tickets(mem)
        adopted = adopt_orphans(mem)
    finally:
        mem.reaper = 0
        reaping.release()
    frames_by_type = {}
    for i in range(1, mem.a.types_known):
        if found.by_type[i]:
            name = mem.classes[i].__layout__.name   # which more types may have
            frames_by_type[name] = frames_by_type.get(name, 0) + found.by_type[i]
    return ReapReport(
        clients=tuple(clients), frames=found.frames, references=found.references, tickets=tickets,
        orphans=found.orphans, adopted=adopted, in_doubt=found.in_doubt,
        frames_by_type=frames_by_type)


cdef int give_back_all(Arena mem, uint32_t client, reaped *found) except -1:
    """Give back all that a client has: its place must be locked, and its threads gone."""
    cdef uint64_t ops[PF_LANES]
    cdef pf_lane *lanes = pf_lanes_of(&mem.a, client)
    cdef ledger_walk walk
    cdef outcome result
    cdef uint32_t i
    cdef uint64_t frame
    for i in range(PF_LANES):
        ops[i] = lanes[i].op
    settle_tickets(mem, client)
    walk = walk_ledger(mem, client)
    with nogil:
        give_back_plain(&mem.a, client, &walk, found)
    # What is left has an on_drop to run.
    walk = walk_ledger(mem, client)
    while next_held(&walk, &frame):
        result = give_back_frame(&mem.a, client, frame, found, True)
        if result == ENDED:
            give_back_owned(&mem.a, walk.ledger, frame >> 6, 1ull << (frame & 63))
        elif result == BUSY:
            drop_frame(mem, client, frame, found)
    take_kept_of(&mem.a, client)
    for i in range(PF_LANES):
        release_lane(&mem.a, client, &lanes[i])
        if ops[i] != PF_OP_NONE and in_doubt(&mem.a, ops[i] >> 8, ops[i] & 0xFF):
            found.in_doubt += 1
        if &lanes[i] != my_lane(&mem.a):
            pf_step(PF_S_reap_lanes)
            pf_store_release_u64(&lanes[i].op, PF_OP_NONE)
    return 0


cdef enum outcome:
    KEPT        # others hold the frame
    ENDED       # it is UNUSED, and its bit and its entry in the ledger are still to go
    BUSY        # its on_drop is to run


cdef void give_back_plain(pf_arena *a, uint32_t client, ledger_walk *walk, reaped *found) noexcept nogil:
    """Give back all frames of a ledger but those that have an on_drop; bits word by word."""
    cdef uint64_t frame
    cdef uint64_t word = 0
    cdef uint64_t ended = 0
    while next_held(walk, &frame):
        if ended and frame >> 6 != word:
            give_back_owned(a, walk.ledger, word, ended)
            ended = 0
        if give_back_frame(a, client, frame, found, False) == ENDED:
            word = frame >> 6
            ended |= 1ull << (frame & 63)
    if ended:
        give_back_owned(a, walk.ledger, word, ended)


cdef outcome give_back_frame(
        pf_arena *a, uint32_t client, uint64_t frame, reaped *found, bint drops) noexcept nogil:
    """Give back what a client holds of a frame.

    A frame that has an on_drop is passed over unless drops is set.
    """
    cdef pf_slot *slot = pf_slot_at(a, frame)
    cdef uint32_t *entry = &pf_ledger_of(a, client)[frame]
    cdef uint32_t references = pf_load_relaxed_u32(entry)
    cdef uint64_t count = pf_slot_count(slot)
    cdef bint on_drop = pf_type_flags(a, slot) & PF_ON_DROP != 0
    cdef bint own = pf_is_own(a, frame)
    if own and not 1 <= count <= PF_MAX:
        pf_store_release_u32(entry, 0)      # tampered with
        return KEPT
    if count == PF_UNUSED:
        pf_poison_again(a, slot, client)
        return ENDED        # claimed and not yet built, or torn down and not yet free
    if count == PF_BUSY:
        return end_frame(a, client, slot, found)        # its on_drop may have run
    if on_drop and not drops:
        return KEPT
    if count == PF_UNIQUE:
        found.references += 1
        pf_step(PF_S_reap_busy)
        pf_store_release_u64(&slot.count, PF_BUSY)
    elif count == PF_ORPHAN:
        pf_store_release_u32(entry, 0)
        return KEPT
    else:
        found.references += references
        pf_step(PF_S_reap_count)
        if own or not pf_slot_end(slot, references):
            # Others hold it, too.  As in pf_recorded_less(): the ledger first.
            pf_op_begin(a, my_lane(a), PF_OP_LESS, frame)
            pf_step(PF_S_reap_ledger)
            pf_store_release_u32(entry, 0)
            if client == a.client:      # which leaves
                pf_let_go(a, frame)
            pf_step(PF_S_reap_sub)
            if not drop_references(slot, references, own):
                pf_op_end(a, my_lane(a))
                return KEPT
            pf_step(PF_S_reap_mark)
            pf_store_release_u32(entry, 1)
            pf_op_end(a, my_lane(a))
    return BUSY if on_drop else end_frame(a, client, slot, found)


cdef bint drop_references(pf_slot *slot, uint64_t references, uint64_t least) noexcept nogil:
    """Take references off a count; true if none is left, and the slot is busy and ours."""
    cdef uint64_t count = pf_slot_count(slot)
    # A count that is less than what a ledger says, or would leave less than there must be, was
    # tampered with: it stays.
    while references + least <= count <= PF_MAX:
        if pf_cas_acq_rel_u64(&slot.count, count, count - references):
            return count == references
        count = pf_slot_count(slot)
    return False


cdef outcome end_frame(pf_arena *a, uint32_t client, pf_slot *slot, reaped *found) noexcept nogil:
    """End a frame that is busy."""
    found.frames += 1
    found.by_type[slot.type_id & (PF_TYPE_LIMIT - 1)] += 1
    slot.list_id = 0
    pf_end_life_of(a, slot, client)
    return ENDED


cdef int drop_frame(Arena mem, uint32_t client, uint64_t frame, reaped *found) except -1:
    """Run the on_drop of a busy frame and end it; or leave it to a process that can."""
    cdef pf_slot *slot = pf_slot_at(&mem.a, frame)
    cdef uint32_t *ledger = pf_ledger_of(&mem.a, client)
    cdef uint32_t epoch = mem.a.epoch
    slot.list_id = 0
    if knows_on_drop(mem, slot):
        run_on_drop(mem, slot)
        if mem.a.epoch != epoch:
            raise PageFrameError("this process was forked by an on_drop: its parent goes on reaping")
        end_frame(&mem.a, client, slot, found)
        give_back_owned(&mem.a, ledger, frame >> 6, 1ull << (frame & 63))
    else:
        orphan(&mem.a, &ledger[frame], slot)
        found.orphans += 1
    return 0


cdef bint in_doubt(const pf_arena *a, uint64_t frame, unsigned op) noexcept nogil:
    """Whether an operation that was cut may have left a frame held too long."""
    cdef uint64_t count
    if frame >= a.frames:
        return False
    count = pf_slot_count(pf_slot_at(a, frame))
    if op == PF_OP_CLAIM or op == PF_OP_FREE:
        # Its bit may be set though nobody owns it.
        return count == PF_UNUSED and next_bit(a, frame, frame + 1, True) == frame
    # Its count may be one more than all holders together have.
    return count != PF_UNUSED and count != PF_UNIQUE


cdef uint64_t adopt_orphans(Arena mem) except? 0:
    """Run the on_drop of frames that waited for a process which knows their type."""
    cdef uint64_t frame
    cdef uint64_t adopted = 0
    cdef pf_slot *slot
    if pf_load_relaxed_u32(&mem.a.header.orphans) == 0:
        return 0
    for frame in range(mem.a.frames):
        slot = pf_slot_at(&mem.a, frame)
        if pf_slot_count(slot) != PF_ORPHAN or not knows_on_drop(mem, slot):
            continue
        pf_op_begin(&mem.a, my_lane(&mem.a), PF_OP_MORE, frame)
        pf_step(PF_S_adopt_count)
        if not pf_cas_acq_rel_u64(&slot.count, PF_ORPHAN, PF_BUSY):
            pf_op_end(&mem.a, my_lane(&mem.a))
            continue
        pf_step(PF_S_adopt_ledger)
        pf_store_release_u32(&mem.a.ledger[frame], 1)
        pf_step(PF_S_adopt_total)
        pf_sub_relaxed_u32(&mem.a.header.orphans, 1)
        pf_op_end(&mem.a, my_lane(&mem.a))
        adopted += 1
        end_life(mem, slot, True)
    return adopted
