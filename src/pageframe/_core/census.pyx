# This Source Code Form is subject to the terms of the Mozilla Public
# License, v. 2.0. If a copy of the MPL was not distributed with this
# file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Census: counting all frames of an arena by state and type, its free runs, its holders.

Everything is read while others go on, and nothing is written or locked: so the figures of a
living arena are those of no single moment, and those of an arena at rest are exact.  What a
damaged arena says is cut down to what can be.
"""

from dataclasses import dataclass

from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.stdlib cimport free, realloc
from libc.string cimport memset

from pageframe._core.allocator cimport free_frames
from pageframe._core.arena cimport (
    PF_ARENA, PF_TYPE_LIMIT, Arena, pf_arena, pf_client_used, pf_ctz, pf_slot_at, pf_ticket, pf_type_flags)
from pageframe._core.client cimport (
    client_info, client_infos, is_alive, ledger_walk, next_held, walk_ledger)
from pageframe._core.ledger cimport pf_now
from pageframe._core.meta cimport TYPE_PAGE_TABLE, know_types, type_name
from pageframe._core.page_table cimport count_pages
from pageframe._core.slot cimport (
    PF_BUSY, PF_ORPHAN, PF_UNIQUE, PF_UNUSED, pf_load_acquire_u64, pf_load_relaxed_u32,
    pf_load_relaxed_u64, pf_slot, pf_slot_count)
from pageframe._core.ticket cimport (
    TICKET_FILLING, TICKET_FREE, TICKET_LIVE, TICKET_REDEEMING, serial_of, state_of, ticket_frame,
    ticket_held)

cdef enum:
    ORDERS = 33     # an arena has fewer than 2**32 frames
    WORD = 64
    # States of a frame that is used.
    SHARED = 0
    UNIQUE
    LISTED
    BUSY
    ORPHAN
    STATES

STATE_NAMES = ("shared", "unique", "in a list", "busy", "orphan")


@dataclass(frozen=True)
class ClientStats:
    """What a process that is attached has of an arena.

    Attributes
    ----------
    pid, name, started
        The process; see `ClientInfo`.
    alive
        Whether it lives. What a dead one held comes back when it is reaped.
    frames, bytes
        What it holds, each frame once.
    handles
        References that its handles, segments, vectors and raw references have.
    mappings
        Pages of its address spaces, a reference each.
    tickets
        Messages that it has sent and nobody has loaded yet.
    """

    pid: int
    name: str
    started: float
    alive: bool
    frames: int
    bytes: int
    handles: int
    mappings: int
    tickets: int


@dataclass(frozen=True)
class TicketInfo:
    """A message in transit.

    Attributes
    ----------
    serial
        Its number: messages are numbered in the order in which they were made.
    pid, name
        The sender; "gone" if it is attached no more.
    state
        "filling", "in transit", "loading" or "releasing".
    frames, bytes
        What the message is about.
    age
        Seconds since it was made.
    expires
        Seconds until it lets go of its frames, unless it is loaded before.
    paddr
        Its first frame.
    """

    serial: int
    pid: int
    name: str
    state: str
    frames: int
    bytes: int
    age: float
    expires: float
    paddr: int


@dataclass(frozen=True)
class ArenaStats:
    """Figures of an arena at one moment.

    Attributes
    ----------
    size, page_size, slot_size
        Bytes.
    total_frames, free_frames, used_frames, reserved_frames
        Frames; the first is the sum of the others.
    shared_frames, unique_frames, busy_frames, orphan_frames
        Used frames by state: with a count; with one owner (in a list or not); being built or torn
        down; waiting for a process that knows their ``on_drop``.
    references
        References to used frames, and those to the arena's own frames beside
        the arena's.
    raw_references
        Of these, the raw ones of this process.
    longest_free_run
        Frames of the longest run that `PhysicalMemory.alloc_segment` could give.
    free_runs
        How many free blocks of ``2**i`` frames there are at index i, if all free runs are cut
        into aligned blocks as large as can be: what Linux shows in /proc/buddyinfo.
    overhead
        Bytes of the arena's own tables.
    frames_by_type
        Name of a metadata type -> frames that carry it.
    frames_by_state
        "shared", "unique", "in a list", "busy" or "orphan" -> name of a metadata type -> used
        frames. Those of the arena itself are in none.
    clients
        `ClientStats` of the processes that are attached to a shared arena.
    tickets
        `TicketInfo` of the messages in transit, the oldest first.
    messages
        Messages made since the arena was created, those in transit included.
    """

    size: int
    page_size: int
    slot_size: int
    total_frames: int
    free_frames: int
    used_frames: int
    reserved_frames: int
    shared_frames: int
    unique_frames: int
    busy_frames: int
    orphan_frames: int
    references: int
    raw_references: int
    longest_free_run: int
    free_runs: tuple
    overhead: int
    frames_by_type: dict
    frames_by_state: dict
    clients: tuple
    tickets: tuple
    messages: int

    @property
    def fragmentation(self):
        """The part of the free frames that is not in the longest free run: 0.0 .. 1.0."""
        # In a damaged arena there may be frames in a free run that are not free.
        return max(0.0, 1 - self.longest_free_run / self.free_frames) if self.free_frames else 0.0

    def unusable(self, order):
        """The part of the free frames that is of no use for aligned blocks of ``2**order`` frames.

        That is Linux's "unusable free space index" (mm/vmstat.c), 0.0 .. 1.0.
        """
        whole = sum(blocks << i for i, blocks in enumerate(self.free_runs))
        fit = sum(blocks << i for i, blocks in enumerate(self.free_runs) if i >= order)
        return 1 - fit / whole if whole else 0.0


# -- frames ------------------------------------------------------------------------------------

cdef struct frame_census:
    uint64_t by_state[STATES][PF_TYPE_LIMIT]
    uint64_t own[PF_TYPE_LIMIT]
    uint64_t blocks[ORDERS]
    uint64_t longest
    uint64_t idle           # UNUSED though their bits are set: lanes keep them, or they are being built
    uint64_t references
    uint64_t raw
    uint64_t *nodes         # frames of page tables
    uint64_t node_count
    uint64_t node_room
    bint failed


cdef void count_run(frame_census *c, uint64_t start, uint64_t stop) noexcept nogil:
    """Cut a free run into aligned blocks."""
    cdef unsigned order
    c.longest = max(c.longest, stop - start)
    while start < stop:
        order = pf_ctz(start) if start else ORDERS - 1
        while (1ull << order) > stop - start:
            order -= 1
        c.blocks[order] += 1
        start += 1ull << order


cdef void note_node(frame_census *c, uint64_t frame) noexcept nogil:
    cdef void *more
    if c.node_count == c.node_room:
        c.node_room = max(64, 2 * c.node_room)
        more = realloc(c.nodes, c.node_room * sizeof(uint64_t))
        if more == NULL:
            c.failed = True
            return
        c.nodes = <uint64_t *>more
    c.nodes[c.node_count] = frame
    c.node_count += 1


cdef bint count_frame(const pf_arena *a, uint64_t frame, frame_census *c) noexcept nogil:
    """Count a frame whose bit is set; whether it is in use."""
    cdef const pf_slot *slot = pf_slot_at(a, frame)
    cdef uint64_t count = pf_slot_count(slot)
    cdef uint32_t type_id = pf_load_relaxed_u32(&slot.type_id) & (PF_TYPE_LIMIT - 1)
    cdef unsigned state
    if count == PF_UNUSED:
        c.idle += 1
        return False
    c.raw += pf_load_relaxed_u32(&a.raw[frame])
    if count == PF_UNIQUE:
        state = LISTED if pf_load_relaxed_u32(&slot.list_id) else UNIQUE
        c.references += 1
        if type_id == TYPE_PAGE_TABLE:
            note_node(c, frame)
    elif count == PF_BUSY:
        state = BUSY
    elif count == PF_ORPHAN:
        state = ORPHAN
    elif pf_type_flags(a, slot) & PF_ARENA:
        c.references += count - 1      # all but the arena's own
        c.own[type_id] += 1
        return True
    else:
        state = SHARED
        c.references += count
    c.by_state[state][type_id] += 1
    return True


cdef void count_frames(const pf_arena *a, frame_census *c) noexcept nogil:
    """Count all frames; slots of frames whose bit says that they are free are not even read."""
    cdef uint64_t frame = 0
    cdef uint64_t stop, bits
    cdef uint64_t free_from = 0     # start of the free run that ends here
    memset(c, 0, sizeof(frame_census))
    while frame < a.frames:
        bits = pf_load_relaxed_u64(&a.bits[frame // WORD])
        stop = min(frame + WORD, a.frames)
        if bits == 0:
            frame = stop
            continue
        while frame < stop:
            if bits & 1 and count_frame(a, frame, c):
                if free_from < frame:
                    count_run(c, free_from, frame)
                free_from = frame + 1
            bits >>= 1
            frame += 1
    if free_from < a.frames:
        count_run(c, free_from, a.frames)


cdef void count_references(const pf_arena *a, uint64_t *references, uint64_t *raw) noexcept nogil:
    """References to all frames, those of the arena to its own aside, and the raw ones among them."""
    cdef frame_census c
    count_frames(a, &c)
    free(c.nodes)
    references[0] = c.references
    raw[0] = c.raw


cdef object stats(Arena mem, uint64_t own_frames):
    """Count everything there is."""
    cdef frame_census c
    cdef uint64_t frames[STATES]
    cdef uint32_t type_id
    cdef int state
    cdef unsigned order
    cdef uint64_t free_now
    with nogil:
        count_frames(&mem.a, &c)
        free_now = free_frames(&mem.a)
    try:
        if c.failed:
            raise MemoryError(f"no memory for a list of {c.node_count} nodes of page tables")
        know_types(mem)
        frames_by_state = {}
        frames_by_type = {}
        memset(frames, 0, sizeof(frames))
        for state in range(STATES):
            by_type = {}
            for type_id in range(PF_TYPE_LIMIT):
                if c.by_state[state][type_id]:
                    add(by_type, type_name(mem, type_id), c.by_state[state][type_id])
                    frames[state] += c.by_state[state][type_id]
            if by_type:
                frames_by_state[STATE_NAMES[state]] = by_type
            if state <= LISTED:
                for name, number in by_type.items():
                    add(frames_by_type, name, number)
        for type_id in range(PF_TYPE_LIMIT):
            if c.own[type_id]:
                add(frames_by_type, type_name(mem, type_id), c.own[type_id])
        sent = tickets(mem)
        clients = client_stats(mem, &c, sent)
    finally:
        free(c.nodes)
    order = ORDERS - 1
    while order and mem.a.frames >> order == 0:
        order -= 1
    kept = free_now + c.idle
    kept = min(c.idle, max(0, kept - sum(c.blocks[i] << i for i in range(ORDERS))))
    return ArenaStats(
        size=mem.a.size,
        page_size=1 << mem.a.page_shift,
        slot_size=1 << mem.a.slot_shift,
        total_frames=mem.a.frames,
        free_frames=free_now,
        used_frames=max(<int64_t>0, <int64_t>(mem.a.frames - own_frames - free_now)),
        reserved_frames=own_frames,
        shared_frames=frames[SHARED],
        unique_frames=frames[UNIQUE] + frames[LISTED],
        busy_frames=frames[BUSY] + c.idle - kept,
        orphan_frames=frames[ORPHAN],
        references=c.references,
        raw_references=c.raw,
        longest_free_run=c.longest,
        free_runs=tuple([c.blocks[i] for i in range(order + 1)]),
        overhead=sum(size for _, paddr, size in mem.tables if paddr < mem.a.size),
        frames_by_type=frames_by_type,
        frames_by_state=frames_by_state,
        clients=clients,
        tickets=sent,
        messages=pf_load_relaxed_u64(&mem.a.header.last_ticket),
    )


cdef int add(dict to, object name, uint64_t frames) except -1:
    to[name] = to.get(name, 0) + frames
    return 0


# -- messages and clients ----------------------------------------------------------------------

cdef object state_name(uint64_t word):
    cdef int state = state_of(word)
    if state == TICKET_FILLING:
        return "filling"
    if state == TICKET_LIVE:
        return "in transit"
    return "loading" if state == TICKET_REDEEMING else "releasing"


cdef tuple tickets(Arena mem):
    """The messages in transit, the oldest first."""
    cdef uint32_t i
    cdef uint64_t word, time
    cdef int64_t first
    cdef const pf_ticket *ticket
    found = []
    names = {}
    for i in range(mem.a.ticket_capacity):
        ticket = &mem.a.tickets[i]
        word = pf_load_acquire_u64(&ticket.word)
        if state_of(word) == TICKET_FREE:
            continue
        if not names:
            names = {(info.pid, info.started): info.name for info in client_infos(mem)}
        time = pf_now()
        frames = min(pf_load_relaxed_u64(&ticket.count), mem.a.frames)
        first = -1
        if ticket_held(&mem.a, ticket):
            first = ticket_frame(&mem.a, ticket, pf_load_relaxed_u32(&ticket.listed))
        pid = pf_load_relaxed_u32(&ticket.pid)
        started = pf_load_relaxed_u64(&ticket.started) / 1e9
        found.append(TicketInfo(
            serial=serial_of(word), pid=pid, name=names.get((pid, started), "gone"), state=state_name(word),
            frames=frames, bytes=frames << mem.a.page_shift,
            age=max(0, <int64_t>(time - pf_load_relaxed_u64(&ticket.issued))) / 1e9,
            expires=<int64_t>(pf_load_relaxed_u64(&ticket.expires) - time) / 1e9,
            paddr=max(first, 0) << mem.a.page_shift))
    return tuple(sorted(found, key=lambda info: info.serial))


cdef tuple client_stats(Arena mem, const frame_census *c, tuple sent):
    """What each client has."""
    cdef uint32_t client
    cdef uint64_t i, frame, frames, held, mapped
    cdef ledger_walk walk
    waiting = {}
    for info in sent:
        waiting[info.pid] = waiting.get(info.pid, 0) + 1
    found = []
    if mem.a.clients == NULL:
        return ()
    for client in range(mem.a.client_capacity):
        if not pf_client_used(&mem.a, client):
            continue
        i = frames = held = mapped = 0
        with nogil:
            walk = walk_ledger(mem, client)
            while next_held(&walk, &frame):
                frames += 1
                held += pf_load_relaxed_u32(&walk.ledger[frame])
                while i < c.node_count and c.nodes[i] < frame:
                    i += 1
                if i < c.node_count and c.nodes[i] == frame:
                    mapped += count_pages(&mem.a, frame)
        info = client_info(mem, client)
        mapped = min(mapped, held)
        found.append(ClientStats(
            pid=info.pid, name=info.name, started=info.started, alive=is_alive(mem, client),
            frames=frames, bytes=frames << mem.a.page_shift, handles=held - mapped, mappings=mapped,
            # A process that is more than one client: they count with the first.
            tickets=waiting.pop(info.pid, 0)))
    return tuple(found)
