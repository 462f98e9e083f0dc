# This Source Code Form is subject to the terms of the Mozilla Public
# License, v. 2.0. If a copy of the MPL was not distributed with this
# file, You can obtain one at https://mozilla.org/MPL/2.0/.

# cython: language_level=3, freethreading_compatible=True

"""Threads of C that use the compiled core at the same time, and never the interpreter.

Every life of a frame has a number, which its maker writes into the slot and into the first and
the last word of the frame: so two owners of a frame show in what either finds there.  These
words are written and read without atomics by whoever may do that, so ThreadSanitizer sees
where the protocol does not order one owner's accesses before those of the next.

A thread draws its operations from a seeded generator.  When it has done its share it is
followed by another, which goes on with what it holds, perhaps in another lane.  Meanwhile
the caller may use the arena from Python.

Each end of a life, each look at a frame is checked; the first thing that is wrong ends its thread,
and `Threads.join` raises.
"""

from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free

from pageframe._core.allocator cimport (
    claim_many, claim_one, claim_range, claim_run, free_frames, give_back, give_back_mask, give_back_range,
    longest_free_run, my_lane, next_bit, take_kept_of, trim)
from pageframe._core.arena cimport (
    PF_CHUNK, PF_LANES, PF_POISON, PF_RING, Arena, pf_arena, pf_bytes_at, pf_event, pf_lane, pf_rings_of,
    pf_slot_at)
from pageframe._core.frame cimport Frame
from pageframe._core.handle cimport begin_life, zero_used
from pageframe._core.ledger cimport (
    PF_EVENT_REPURPOSE, PF_EVENT_SHARE, PF_EVENT_UNIQUE, pf_end_life, pf_event_read, pf_note,
    pf_poison_sound, pf_ref_get, pf_ref_inc, pf_ref_put)
from pageframe._core.slot cimport (
    PF_E_BUSY, PF_E_UNIQUE, PF_E_UNUSED, PF_OK, PF_UNIQUE, PF_UNUSED, pf_add_release_u32,
    pf_exchange_u64, pf_load_acquire_u32, pf_load_relaxed_u32, pf_load_relaxed_u64, pf_slot, pf_slot_count,
    pf_slot_make_busy, pf_slot_publish, pf_slot_taken, pf_slot_try_unique,
    pf_store_relaxed_u64, pf_store_release_u32)
from pageframe._core.ticket cimport ticket_frame, ticket_held

cdef extern from "<sched.h>" nogil:
    int sched_yield()

cdef extern from "<pthread.h>" nogil:
    ctypedef struct pthread_t:
        pass
    int pthread_create(pthread_t *, const void *, void *(*)(void *) noexcept nogil, void *)
    int pthread_join(pthread_t, void **)
    pthread_t pthread_self()

cdef extern from "account.h" nogil:
    ctypedef struct pf_account:
        uint32_t owned
        uint64_t charged
        uint64_t limit
        uint64_t used
    int pf_accounts_setup()
    bint pf_account_watch(pf_arena *)
    pf_account *pf_account_claim(pf_account *parent)
    bint pf_account_charge(pf_account *, uint64_t frames)
    void pf_account_refund(pf_account *, uint64_t frames)
    void pf_account_add(pf_account *, uint32_t type, uint64_t frames)
    bint pf_account_tag(pf_arena *, pf_account *, uint32_t type, uint64_t frame)

if pf_accounts_setup() != 0:
    raise ImportError("no memory for accounts")

cdef enum:
    HELD = 96           # handles of a thread, at the most
    BOARD = 16          # references on their way from thread to thread
    LONGEST = 160       # frames of a run: it crosses words
    NUMBER_SHIFT = 40   # a life's number: its maker's, and how many that one has made

cdef enum:        # what is counted
    OPERATIONS
    LIVES
    NOTHING_FREE        # a claim found nothing
    KEPT_STOLEN         # the frame that the lane kept was taken by somebody else
    FOREIGN_CHUNK       # a frame was claimed in a chunk that another lane has reserved
    RUN_LOST            # a range that was free was claimed by somebody else first
    CLAIM_REFUSED       # ... and is in use
    GOT                 # a reference was taken by the frame's number alone
    GET_UNUSED
    GET_UNIQUE
    GET_BUSY
    MOVED               # a reference passed from thread to thread
    ENDED_FOR_ANOTHER   # the last reference was not its maker's
    MADE_UNIQUE
    NOT_UNIQUE          # somebody took a reference first
    SHARED_AGAIN
    REPURPOSED
    FROM_KERNEL         # the memory of a claimed frame was as the kernel gives it
    TRIMMED
    NO_LANE             # a thread came when all lanes were taken
    LANE_INHERITED      # a thread found a lane as another thread had left it
    EVENT_READ
    EVENT_BEING_WRITTEN
    TICKET_READ
    CHARGED
    CHARGE_REFUSED
    ACCOUNT_REUSED
    COUNTERS

NAMES = (
    "operations", "lives", "nothing free", "kept frame stolen", "claimed in another's chunk", "run lost",
    "claim refused", "got by number", "get: unused", "get: unique", "get: busy", "moved between threads",
    "ended for another", "made unique", "not unique", "shared again", "repurposed", "as the kernel gave it",
    "trimmed", "no lane", "lane inherited", "event read", "event being written",
    "ticket read", "charged", "charge refused", "account reused")


cdef struct meeting:
    # What threads of the same client share.
    pf_arena *a
    uint32_t type_id
    uint32_t awaited        # threads that have not begun: the first do so together
    uint32_t at_work        # threads that are not through
    uint64_t board[BOARD]   # frame + 1; 0: none
    pf_account *lower       # NULL: no accounts
    pf_account *upper


cdef struct handle:
    uint64_t first
    uint32_t count
    bint unique


cdef struct worker:
    meeting *meeting
    uint64_t number
    uint64_t random
    uint64_t operations     # of each thread
    uint32_t threads        # that are still to come, this one included
    bint follows            # a thread that came before, whose end is to be waited for
    pthread_t before
    const char *wrong       # NULL: nothing
    uint64_t where
    uint32_t count
    handle held[HELD]
    uint64_t counters[COUNTERS]


cdef uint64_t draw(worker *w, uint64_t below) noexcept nogil:
    """A pseudo-random number (xorshift64*)."""
    w.random ^= w.random >> 12
    w.random ^= w.random << 25
    w.random ^= w.random >> 27
    return ((w.random * 0x2545F4914F6CDD1Dull) >> 32) % below


cdef void fail(worker *w, const char *what, uint64_t frame) noexcept nogil:
    if w.wrong == NULL:
        w.wrong = what
        w.where = frame


# -- lives -------------------------------------------------------------------------------------

cdef inline uint64_t *number_in(pf_slot *slot) noexcept nogil:
    return <uint64_t *>&slot.storage[0]


cdef inline uint64_t *words(const pf_arena *a, uint64_t frame) noexcept nogil:
    return <uint64_t *>pf_bytes_at(a, frame)


cdef inline uint64_t last_word(const pf_arena *a) noexcept nogil:
    return (1ull << (a.page_shift - 3)) - 1


cdef uint64_t mark(worker *w, uint64_t frame) noexcept nogil:
    """Write the number of a new life into a frame of ours; returns it."""
    cdef pf_arena *a = w.meeting.a
    w.counters[LIVES] += 1
    words(a, frame)[0] = words(a, frame)[last_word(a)] = w.number << NUMBER_SHIFT | w.counters[LIVES]
    return words(a, frame)[0]


cdef void begin(worker *w, uint64_t frame, uint64_t count) noexcept nogil:
    """Begin a life of a frame that was claimed."""
    cdef pf_arena *a = w.meeting.a
    cdef pf_slot *slot = pf_slot_at(a, frame)
    cdef uint64_t life
    if pf_slot_count(slot) != PF_UNUSED:
        fail(w, "a frame was claimed that somebody uses", frame)
    if slot.type_id == 0:
        w.counters[FROM_KERNEL] += 1
        if words(a, frame)[0] or words(a, frame)[last_word(a)]:
            fail(w, "a frame of no type is not as the kernel gave it", frame)
    elif a.debug & PF_POISON and not pf_poison_sound(a, frame):
        fail(w, "a free frame was written", frame)
    if draw(w, 4) == 0:
        zero_used(a, frame, slot)
    life = mark(w, frame)
    begin_life(slot, w.meeting.type_id, <const unsigned char *>&life, sizeof(life), count)


cdef void look(worker *w, uint64_t frame) noexcept nogil:
    """Check a frame that we hold, unless it is one of Python's."""
    cdef pf_arena *a = w.meeting.a
    cdef pf_slot *slot = pf_slot_at(a, frame)
    if slot.type_id == w.meeting.type_id and not (
            number_in(slot)[0] == words(a, frame)[0] == words(a, frame)[last_word(a)]):
        fail(w, "a frame has two owners", frame)


cdef void end(worker *w, uint64_t frame) noexcept nogil:
    """End the life of a frame that is busy, and ours; its bit stays set."""
    cdef pf_arena *a = w.meeting.a
    cdef pf_slot *slot = pf_slot_at(a, frame)
    look(w, frame)
    w.counters[ENDED_FOR_ANOTHER] += number_in(slot)[0] >> NUMBER_SHIFT != w.number
    if draw(w, 8) == 0:
        sched_yield()       # others find it busy
    number_in(slot)[0] = words(a, frame)[0] = 0
    pf_end_life(a, slot)


cdef void keep(worker *w, uint64_t first, uint32_t count, bint unique) noexcept nogil:
    w.held[w.count] = handle(first=first, count=count, unique=unique)
    w.count += 1


cdef void drop(worker *w, uint32_t i) noexcept nogil:
    """Give up a handle; those of a run go back a word at a time."""
    cdef pf_arena *a = w.meeting.a
    cdef handle held = w.held[i]
    cdef uint64_t frame
    cdef uint64_t ended = 0
    w.count -= 1
    w.held[i] = w.held[w.count]
    for frame in range(held.first, held.first + held.count):
        look(w, frame)
        if held.unique:
            number_in(pf_slot_at(a, frame))[0] = mark(w, frame)
            pf_slot_make_busy(pf_slot_at(a, frame))
        if held.unique or pf_ref_put(a, pf_slot_at(a, frame)):
            end(w, frame)
            ended |= 1ull << (frame & 63)
        if ended and held.count == 1:
            give_back(a, frame)
        elif ended and (frame & 63 == 63 or frame == held.first + held.count - 1):
            give_back_mask(a, frame >> 6, ended)
            ended = 0


# -- operations --------------------------------------------------------------------------------

cdef void take_one(worker *w) noexcept nogil:
    cdef pf_arena *a = w.meeting.a
    cdef pf_lane *lane = my_lane(a)
    cdef uint64_t kept = pf_load_relaxed_u64(&lane.kept) if lane != NULL else 0
    cdef int64_t frame = claim_one(a)
    cdef uint32_t owner
    cdef bint unique = draw(w, 4) == 0
    if kept and frame != <int64_t>kept - 1:
        w.counters[KEPT_STOLEN] += 1
    if frame < 0:
        w.counters[NOTHING_FREE] += 1
        return
    owner = pf_load_relaxed_u32(&a.chunks[frame // PF_CHUNK].lane)
    w.counters[FOREIGN_CHUNK] += owner != 0 and (
        lane == NULL or owner != a.client * PF_LANES + <uint32_t>(lane - a.lanes) + 1)
    begin(w, frame, PF_UNIQUE if unique else 1)
    keep(w, frame, 1, unique)


cdef void take_run(worker *w) noexcept nogil:
    cdef uint64_t count = draw(w, LONGEST) + 1
    cdef int64_t first = claim_run(w.meeting.a, count, 1ull << draw(w, 4))
    cdef uint64_t frame
    if first < 0:
        w.counters[NOTHING_FREE] += 1
        return
    for frame in range(first, first + count):
        begin(w, frame, 1)
    keep(w, first, count, False)


cdef void take_many(worker *w) noexcept nogil:
    cdef uint64_t frames[HELD]
    cdef uint64_t wanted = draw(w, HELD - w.count) + 1     # there is room for one at least
    cdef uint64_t got = claim_many(w.meeting.a, wanted, frames)
    cdef uint64_t i
    w.counters[NOTHING_FREE] += got < wanted
    for i in range(got):
        begin(w, frames[i], 1)
        keep(w, frames[i], 1, False)


cdef void take_range(worker *w) noexcept nogil:
    """Claim certain frames, a part of a free run."""
    cdef pf_arena *a = w.meeting.a
    cdef uint64_t first = next_bit(a, draw(w, a.frames), a.frames, False)
    cdef uint64_t stop = next_bit(a, first, min(a.frames, first + draw(w, LONGEST) + 1), True)
    cdef uint64_t frame
    if first == stop:
        return
    if draw(w, 4) == 0:
        sched_yield()
    frame = first + claim_range(a, first, stop - first)
    if frame < stop:
        w.counters[RUN_LOST] += 1
        w.counters[CLAIM_REFUSED] += pf_slot_taken(pf_slot_at(a, frame)) != PF_OK
        return
    if draw(w, 2):      # as if the arena had not liked what it found
        give_back_range(a, first, stop - first)
        return
    for frame in range(first, stop):
        begin(w, frame, 1)
    keep(w, first, stop - first, False)


cdef void get(worker *w, uint64_t frame) noexcept nogil:
    """Take a reference to whatever frame it is, and look at it."""
    cdef pf_arena *a = w.meeting.a
    cdef int error = pf_ref_get(a, pf_slot_at(a, frame))
    w.counters[GET_UNUSED] += error == PF_E_UNUSED
    w.counters[GET_UNIQUE] += error == PF_E_UNIQUE
    w.counters[GET_BUSY] += error == PF_E_BUSY
    if error == PF_OK:
        w.counters[GOT] += 1
        look(w, frame)
        keep(w, frame, 1, False)
        if draw(w, 2):
            drop(w, w.count - 1)


cdef void move(worker *w) noexcept nogil:
    """Pass a reference to another thread, and take one that is on its way."""
    cdef uint64_t mine = 0
    cdef uint64_t theirs
    cdef uint32_t i
    if w.count:
        i = draw(w, w.count)
        if not w.held[i].unique:
            mine = w.held[i].first + draw(w, w.held[i].count)
            if pf_ref_inc(w.meeting.a, pf_slot_at(w.meeting.a, mine)) != PF_OK:
                fail(w, "no more references to a frame", mine)
                return
            mine += 1
    theirs = pf_exchange_u64(&w.meeting.board[draw(w, BOARD)], mine)
    if theirs:
        w.counters[MOVED] += 1
        look(w, theirs - 1)
        keep(w, theirs - 1, 1, False)


cdef void change(worker *w) noexcept nogil:
    """From a reference to the ownership, and back; another life in between."""
    cdef pf_arena *a = w.meeting.a
    cdef pf_slot *slot
    cdef handle *held
    cdef uint64_t life
    if w.count == 0:
        return
    held = &w.held[draw(w, w.count)]
    slot = pf_slot_at(a, held.first)
    if held.count > 1:
        return
    if not held.unique:
        if pf_slot_count(slot) != 1:
            return
        if slot.type_id != w.meeting.type_id:
            return      # one of Python's, that it has dropped since
        if draw(w, 4) == 0:
            sched_yield()
        if not pf_slot_try_unique(slot):
            w.counters[NOT_UNIQUE] += 1
            return
        w.counters[MADE_UNIQUE] += 1
        pf_note(a, PF_EVENT_UNIQUE, held.first)
        held.unique = True
    look(w, held.first)
    life = mark(w, held.first)
    if draw(w, 2):
        w.counters[REPURPOSED] += 1
        pf_slot_make_busy(slot)
        pf_note(a, PF_EVENT_REPURPOSE, held.first)
        pf_store_relaxed_u64(&slot.generation, slot.generation + 1)
        begin_life(slot, w.meeting.type_id, <const unsigned char *>&life, sizeof(life), PF_UNIQUE)
    else:
        w.counters[SHARED_AGAIN] += 1
        number_in(slot)[0] = life
        pf_note(a, PF_EVENT_SHARE, held.first)
        pf_slot_publish(slot, 1)
        held.unique = False


cdef void read_events(worker *w) noexcept nogil:
    """Read the rings of the first lanes while their threads may write them."""
    cdef pf_arena *a = w.meeting.a
    cdef const pf_event *ring
    cdef pf_event event
    cdef uint64_t place
    if a.rings == NULL:
        return
    ring = pf_rings_of(a, a.client)
    for place in range(4 * PF_RING):
        if not pf_event_read(&ring[place], place % PF_RING, &event):
            w.counters[EVENT_BEING_WRITTEN] += event.what != 0
        elif event.what >> 8 >= a.frames:
            fail(w, "an event tells of no frame", event.what >> 8)
        else:
            w.counters[EVENT_READ] += 1


cdef void read_tickets(worker *w) noexcept nogil:
    """Read what messages hold while they are made and loaded.

    Not what a list says, which lies in frames that may be another's by then: that is an answer of
    before, which whoever asks must check, and a race by the letter.
    """
    cdef pf_arena *a = w.meeting.a
    cdef uint64_t i
    for i in range(a.ticket_capacity):
        if ticket_held(a, &a.tickets[i]):
            w.counters[TICKET_READ] += 1
            if ticket_frame(a, &a.tickets[i], 0) >= <int64_t>a.frames:
                fail(w, "a message holds no frame", i)


cdef void look_around(worker *w) noexcept nogil:
    """What goes over the whole arena."""
    cdef pf_arena *a = w.meeting.a
    cdef uint64_t what = draw(w, 8)
    if what == 0:
        w.counters[TRIMMED] += trim(a)
    elif what == 1:
        longest_free_run(a)
    elif what == 2:
        take_kept_of(a, a.client)
    elif what == 3:
        if not 0 <= free_frames(a) <= <int64_t>a.frames:
            fail(w, "more frames are free than there are", 0)
    elif what == 4:
        read_tickets(w)
    else:
        read_events(w)


cdef void settle(worker *w, pf_account *account, uint64_t frame) noexcept nogil:
    if not pf_account_tag(w.meeting.a, account, w.meeting.type_id, frame):
        fail(w, "a fresh frame has the tag of another account", frame)
    pf_account_add(account, w.meeting.type_id, 1)


cdef void take_charged(worker *w) noexcept nogil:
    """Allocate a frame as an adaptor over an adaptor does; or use an account for a moment."""
    cdef meeting *m = w.meeting
    cdef pf_account *account
    cdef int64_t frame
    if m.upper == NULL:
        return
    while draw(w, 4):
        account = pf_account_claim(NULL)
        if account == NULL or account.charged or account.used:
            fail(w, "no empty account was to be had", 0)
            return
        w.counters[ACCOUNT_REUSED] += 1
        pf_account_charge(account, 1)
        pf_account_refund(account, 1)
        pf_store_release_u32(&account.owned, 0)
    if not pf_account_charge(m.upper, 1):
        w.counters[CHARGE_REFUSED] += 1
        return
    pf_account_charge(m.lower, 1)       # which has no limit
    frame = claim_one(m.a)
    if frame < 0:
        pf_account_refund(m.lower, 1)
        pf_account_refund(m.upper, 1)
        return
    begin(w, frame, 1)
    w.counters[CHARGED] += 1
    settle(w, m.lower, frame)
    settle(w, m.upper, frame)
    keep(w, frame, 1, False)


cdef void operate(worker *w) noexcept nogil:
    cdef uint64_t what = draw(w, 32)
    if what < 8:
        if w.count:
            drop(w, draw(w, w.count))
    elif w.count == HELD:
        while w.count > HELD // 4:
            drop(w, draw(w, w.count))
    elif what < 14:
        take_one(w)
    elif what < 20:
        get(w, draw(w, w.meeting.a.frames))
    elif what < 23:
        move(w)
    elif what < 26:
        change(w)
    elif what < 27:
        take_run(w)
    elif what < 28:
        take_many(w)
    elif what < 29:
        take_range(w)
    elif what < 31:
        take_charged(w)
    else:
        look_around(w)


cdef void *work(void *argument) noexcept nogil:
    """A thread; what it holds goes to the one that follows."""
    cdef worker *w = <worker *>argument
    cdef pf_lane *lane
    cdef pthread_t thread
    cdef uint64_t _i
    if w.follows:
        pthread_join(w.before, NULL)
    lane = my_lane(w.meeting.a)
    if not w.follows:
        pf_add_release_u32(&w.meeting.awaited, <uint32_t>-1)
        while pf_load_acquire_u32(&w.meeting.awaited):
            sched_yield()
    w.counters[NO_LANE] += lane == NULL
    w.counters[LANE_INHERITED] += lane != NULL and lane.chunk != 0
    for _i in range(w.operations):
        if w.wrong == NULL:
            w.counters[OPERATIONS] += 1
            operate(w)
    w.follows = True
    w.before = pthread_self()
    w.threads -= 1
    if w.threads:
        if pthread_create(&thread, NULL, work, w) == 0:
            return NULL     # w is the other one's now
        fail(w, "no thread could be made", 0)
    while w.count and w.wrong == NULL:
        drop(w, w.count - 1)
    # Release pairs with the acquire in Threads.running.
    pf_add_release_u32(&w.meeting.at_work, <uint32_t>-1)
    return NULL


# -- from Python -------------------------------------------------------------------------------

cdef uint64_t workers_made = 0


cdef class Threads:
    """Threads of one client of an arena.

    Parameters
    ----------
    mem : PhysicalMemory
    like : Frame
        A frame of the type that theirs are to have, which has a field of 8 bytes.
    count : int
        Threads at a time.
    each : int
        Threads that follow one another.
    operations : int
        Operations of each thread.
    seed : int
    limit : int, optional
        Frames that may be charged to the accounts that frames are allocated through.
    """
    cdef readonly Arena mem
    cdef meeting meeting
    cdef worker *workers
    cdef uint32_t count

    def __cinit__(
            self, Arena mem not None, Frame like not None, uint32_t count, uint32_t each, uint64_t operations,
            uint64_t seed, limit=None):
        global workers_made
        cdef uint32_t i
        cdef worker *w
        cdef pthread_t thread
        self.mem = mem
        self.workers = <worker *>calloc(count, sizeof(worker))
        if self.workers == NULL:
            raise MemoryError()
        self.meeting.a = &mem.a
        self.meeting.type_id = like.slot.type_id
        if limit is not None:
            if not pf_account_watch(&mem.a):
                raise MemoryError()
            self.meeting.lower = pf_account_claim(NULL)
            self.meeting.upper = pf_account_claim(self.meeting.lower)
            self.meeting.upper.limit = limit
        self.count = self.meeting.awaited = self.meeting.at_work = count
        for i in range(count):
            workers_made += 1
            w = &self.workers[i]
            w.meeting = &self.meeting
            w.number = workers_made
            w.random = (seed << 16) + workers_made
            w.operations = operations
            w.threads = each
            if pthread_create(&thread, NULL, work, w) != 0:
                raise RuntimeError("no thread could be made")

    @property
    def running(self):
        return pf_load_acquire_u32(&self.meeting.at_work) != 0

    def join(self):
        """Wait for the end of the last threads; returns what they counted."""
        cdef uint32_t i, k
        cdef worker *w
        if self.running:
            raise RuntimeError("threads are running")
        for i in range(self.count):
            pthread_join(self.workers[i].before, NULL)
        w = &self.workers[0]
        for i in range(BOARD):
            if self.meeting.board[i] and w.wrong == NULL:
                keep(w, self.meeting.board[i] - 1, 1, False)
                drop(w, w.count - 1)
        counted = dict.fromkeys(NAMES, 0)
        for i in range(self.count):
            w = &self.workers[i]
            if w.wrong != NULL:
                raise AssertionError(f"{w.wrong.decode()}: frame {w.where} of {self.mem}")
            for k in range(COUNTERS):
                counted[NAMES[k]] += w.counters[k]
        free(self.workers)
        self.workers = NULL
        for account in ("lower", "upper") if self.meeting.upper != NULL else ():
            check_empty(self.meeting.lower if account == "lower" else self.meeting.upper, account)
        return counted


cdef int check_empty(const pf_account *account, str name) except -1:
    if account.charged or account.used:
        raise AssertionError(f"the {name} account has {account.charged} frames charged, {account.used} used")
    return 0
