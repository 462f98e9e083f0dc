# This Source Code Form is subject to the terms of the Mozilla Public
# License, v. 2.0. If a copy of the MPL was not distributed with this
# file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""The frame allocator: a bitfield, counters above it, a reserved chunk a lane.

One bit a frame: set while somebody owns the frame's slot, clear while the frame
is free.  To set a bit is to own the slot; it is cleared last of all, when the
slot is UNUSED again.  Setting is a compare-and-swap with acquire, clearing an
atomic "and" with release, and the two pair: the new owner sees all that the
last one wrote.  There is no lock and no log, so a thread that stops between any
two instructions leaves at worst bits set that nobody owns.

512 frames make a chunk, whose bits are one cache line.  A lane (lane.h) reserves
a chunk to itself and allocates single frames there, so that threads don't meet on
the same line; when others have nothing left they take from it all the same, and
runs and many frames at once are taken wherever they are.  The free
frames of a chunk are the sum of its own counter and, where a lane has reserved
it, of the lane's, which costs no atomic operation.  The counters guide the
search, the bits decide.  The structure is that of LLFree (Wrenger et al.,
"LLFree: Scalable and Optionally-Persistent Page-Frame Allocation", USENIX ATC
2023), with one level of counters.

In a shared arena bits are claimed and cleared one by one, each with its entry in
the ledger (ledger.h), so that a process that is killed on the way leaves one frame
a thread in doubt; in a private arena a whole word at a time, unless it is traced.

What was just given back is given out again: its memory is still in the cache.
So a lane keeps one frame that its thread has given back: the bit stays set and
the next allocation takes the frame from the lane.  Everybody else who can't find
enough free frames, or wants that very one, takes it from there too: the lane's
thread stores a frame only where there is none and everybody takes by exchange,
so nobody overwrites anybody.
Runs are looked for where frames were given back last, then first-fit from the
bottom, so that long runs survive at the top.
"""

from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t

from pageframe._core.arena cimport (
    PF_CHUNK, PF_CHUNK_SHIFT, PF_CHUNK_WORDS, PF_LANES, PF_RESERVED_MEMORY, pf_arena, pf_bytes_at,
    pf_chunk, pf_client_count, pf_client_used, pf_ctz, pf_highest, pf_lane, pf_lanes_of, pf_mask,
    pf_popcount, pf_slot_at)
from pageframe._core.ledger cimport (
    PF_OP_CLAIM, PF_S_chunk_lane, PF_S_claim_bit, PF_S_claim_kept, PF_S_free_bit, PF_S_free_kept,
    PF_S_reap_chunk, PF_S_take_kept, PF_S_take_kept_bit, PF_S_trim_type, pf_ledger_claim,
    pf_ledger_free, pf_op_begin, pf_op_end, pf_op_write, pf_step)
from pageframe._core.slot cimport (
    pf_add_relaxed_i32, pf_and_release_u64, pf_cas_acq_rel_u64, pf_cas_acquire_u32,
    pf_exchange_i32, pf_exchange_u64, pf_load_relaxed_i32, pf_load_relaxed_u32, pf_load_relaxed_u64,
    PF_UNUSED, pf_slot_count, pf_store_relaxed_i32, pf_store_relaxed_u32, pf_store_relaxed_u64,
    pf_store_release_u64)

cdef extern from "lane.h" nogil:
    int pf_lane_setup()
    int pf_lane_number()

cdef extern from "<sys/mman.h>" nogil:
    int madvise(void *, size_t, int)
    int MADV_DONTNEED, MADV_REMOVE

cdef enum:
    WORD_SHIFT = 6
    WORD_BITS = 64
    RETRIES = 16        # searches that find nothing though there is something

if pf_lane_setup() != 0:
    raise ImportError("no thread-specific key is left for the allocator's lanes")


cdef pf_lane *my_lane(pf_arena *a) noexcept nogil:
    cdef int number = pf_lane_number()
    return &a.lanes[number] if number >= 0 else NULL


cdef inline uint64_t frame_bit(uint64_t frame) noexcept nogil:
    """The bit of a frame in its word."""
    return 1ull << (frame & (WORD_BITS - 1))


cdef inline uint64_t free_in(const pf_arena *a, uint64_t word, uint64_t bits) noexcept nogil:
    """The frames of a word that its bits say are free; past the last frame there is none to be had."""
    if word >= a.frames >> WORD_SHIFT:
        return 0 if word > a.frames >> WORD_SHIFT else ~bits & (frame_bit(a.frames) - 1)
    return ~bits


cdef inline bint take_over(pf_arena *a, pf_lane *lane, uint64_t frame) noexcept nogil:
    """Own a frame that was claimed just now; False if it is in use all the same.

    That takes a process which wrote over the arena's tables.  The bit stays set then, so that
    nobody else gets the frame either.
    """
    if a.ledger != NULL and pf_slot_count(pf_slot_at(a, frame)) != PF_UNUSED:
        pf_op_end(a, lane)
        return False
    pf_ledger_claim(a, lane, frame)
    return True


cdef inline int32_t plus(int32_t a, int32_t b) noexcept nogil:
    """Add, whatever a damaged counter says."""
    return <int32_t>(<uint32_t>a + <uint32_t>b)


cdef inline void tally(pf_arena *a, pf_lane *lane, uint64_t word, int32_t frames) noexcept nogil:
    """Count frames given back to (or, negative, taken from) the chunk of a word.

    Relaxed: counters are hints and order nothing.
    """
    cdef uint64_t chunk = word // PF_CHUNK_WORDS
    if lane != NULL and lane.chunk == chunk + 1:
        pf_store_relaxed_i32(&lane.free, plus(lane.free, frames))
    else:
        pf_add_relaxed_i32(&a.chunks[chunk].free, frames)


cdef int setup_bits(pf_arena *a) noexcept nogil:
    """Every frame free; the bits past the last frame are set for good."""
    cdef uint64_t chunk
    cdef uint64_t end = a.chunk_count * PF_CHUNK
    for chunk in range(a.chunk_count):
        a.chunks[chunk].free = PF_CHUNK
    return reserve_frames(a, a.frames, end - a.frames)


cdef int reserve_frames(pf_arena *a, uint64_t first, uint64_t count) noexcept nogil:
    """Take frames for good while the arena is being made."""
    cdef uint64_t frame
    for frame in range(first, first + count):
        a.bits[frame >> WORD_SHIFT] |= frame_bit(frame)
        a.chunks[frame >> PF_CHUNK_SHIFT].free -= 1
    return 0


# -- single frames -----------------------------------------------------------------------------

cdef inline int64_t claim_in_word(
        pf_arena *a, pf_lane *lane, uint64_t word, uint64_t preferred) noexcept nogil:
    """Claim a free frame of a word, the preferred bit if it is free."""
    cdef uint64_t *p = &a.bits[word]
    cdef uint64_t old = pf_load_relaxed_u64(p)
    cdef uint64_t bit, frame
    cdef uint64_t found = free_in(a, word, old)
    while found:
        bit = preferred & found
        if bit == 0:
            bit = found & -found        # the lowest one
        frame = (word << WORD_SHIFT) + pf_ctz(bit)
        pf_op_begin(a, lane, PF_OP_CLAIM, frame)
        pf_step(PF_S_claim_bit)
        # Acquire: what the last owner wrote.  Release: our operation in progress.
        if pf_cas_acq_rel_u64(p, old, old | bit) and take_over(a, lane, frame):
            return frame
        old = pf_load_relaxed_u64(p)
        found = free_in(a, word, old)
    pf_op_end(a, lane)
    return -1


cdef int64_t claim_in_chunk(pf_arena *a, pf_lane *lane, uint64_t chunk) noexcept nogil:
    cdef uint64_t word
    cdef int64_t frame
    for word in range(chunk * PF_CHUNK_WORDS, (chunk + 1) * PF_CHUNK_WORDS):
        frame = claim_in_word(a, lane, word, 0)
        if frame >= 0:
            return frame
    return -1


cdef inline uint32_t lane_id(const pf_arena *a, const pf_lane *lane) noexcept nogil:
    """The number of a lane of this process among those of all clients; from 1."""
    return a.client * PF_LANES + <uint32_t>(lane - a.lanes) + 1


cdef bint lane_reserve(pf_arena *a, pf_lane *lane, uint64_t chunk) noexcept nogil:
    """Make a chunk the lane's own, unless another lane has it."""
    cdef pf_chunk *c
    # Read once: what was checked is used, though somebody writes over the lane meanwhile.
    cdef uint64_t mine = pf_load_relaxed_u32(&lane.chunk)
    # Who has a chunk reserved is a hint like the counters; the bits alone give frames.
    pf_step(PF_S_chunk_lane)
    if not pf_cas_acquire_u32(&a.chunks[chunk].lane, 0, lane_id(a, lane)):
        return False
    if mine - 1 < a.chunk_count:
        c = &a.chunks[mine - 1]
        pf_add_relaxed_i32(&c.free, lane.free)
        pf_store_relaxed_u32(&c.lane, 0)
    pf_store_relaxed_u32(&lane.chunk, chunk + 1)
    pf_store_relaxed_i32(&lane.free, pf_exchange_i32(&a.chunks[chunk].free, 0))
    return True


cdef void release_lane(pf_arena *a, uint32_t client, pf_lane *lane) noexcept nogil:
    """Give up the chunk that a lane has reserved, of a client that goes."""
    cdef pf_chunk *c
    cdef uint64_t reserved = pf_load_relaxed_u32(&lane.chunk)
    if reserved - 1 < a.chunk_count:
        c = &a.chunks[reserved - 1]
        pf_step(PF_S_reap_chunk)
        if pf_cas_acquire_u32(&c.lane, client * PF_LANES + <uint32_t>(lane - pf_lanes_of(a, client)) + 1, 0):
            pf_add_relaxed_i32(&c.free, lane.free)
    lane.chunk = 0
    lane.free = 0


cdef int64_t claim_searching(pf_arena *a, pf_lane *lane) noexcept nogil:
    """The slow path: the rest of the lane's chunk, another chunk, anything at all."""
    cdef uint64_t start = 0
    cdef uint64_t i, chunk, mine
    cdef int64_t frame
    cdef int tries = 0
    if lane != NULL:
        mine = pf_load_relaxed_u32(&lane.chunk)
        if mine - 1 < a.chunk_count:    # not 0, and not damaged
            # Frames of this chunk that other lanes have given back count from now on.
            start = mine - 1
            pf_store_relaxed_i32(&lane.free, plus(lane.free, pf_exchange_i32(&a.chunks[start].free, 0)))
            if lane.free > 0:
                frame = claim_in_chunk(a, lane, start)
                if frame >= 0:
                    return frame
        else:
            # Lanes begin far from each other, so that their counters don't share a line.
            start = (<uint64_t>lane_id(a, lane) - 1) * 7 * a.chunk_count // 64 % a.chunk_count
        for i in range(a.chunk_count):
            chunk = start + i
            if chunk >= a.chunk_count:
                chunk -= a.chunk_count
            if (pf_load_relaxed_i32(&a.chunks[chunk].free) > 0
                    and pf_load_relaxed_u32(&a.chunks[chunk].lane) == 0
                    and lane_reserve(a, lane, chunk)):
                frame = claim_in_chunk(a, lane, chunk)
                if frame >= 0:
                    return frame
    while True:
        for i in range(a.chunk_count):
            chunk = start + i
            if chunk >= a.chunk_count:
                chunk -= a.chunk_count
            frame = claim_in_chunk(a, lane, chunk)
            if frame >= 0:
                return frame
        # Others may have given back frames behind the search.
        if take_kept(a) == 0 and (tries == RETRIES or free_frames(a) == 0):
            return -1
        tries += 1


cdef int64_t claim_one(pf_arena *a) noexcept nogil:
    """Claim any free frame; -1 if there is none."""
    cdef pf_lane *lane = my_lane(a)
    cdef uint64_t hint = 0
    cdef uint64_t kept
    cdef int64_t frame
    if lane != NULL:
        kept = pf_load_relaxed_u64(&lane.kept)
        if kept - 1 < a.frames:
            pf_op_begin(a, lane, PF_OP_CLAIM, kept - 1)
            pf_step(PF_S_claim_kept)
            # Acquire pairs with the release in give_back(); an exchange, since
            # others may take the frame at the same time.
            if pf_exchange_u64(&lane.kept, 0) == kept and take_over(a, lane, kept - 1):
                return kept - 1
        hint = min(pf_load_relaxed_u64(&lane.hint), a.frames - 1)
    frame = claim_in_word(a, lane, hint >> WORD_SHIFT, frame_bit(hint))
    if frame < 0:
        frame = claim_searching(a, lane)
        if frame < 0:
            return -1
        if lane != NULL:
            pf_store_relaxed_u64(&lane.hint, frame)
    tally(a, lane, frame >> WORD_SHIFT, -1)
    return frame


cdef void give_back(pf_arena *a, uint64_t frame) noexcept nogil:
    """Give back a frame whose slot is UNUSED: the lane keeps it, or its bit is cleared."""
    cdef pf_lane *lane = my_lane(a)
    if lane != NULL and pf_load_relaxed_u64(&lane.kept) == 0:
        pf_ledger_free(a, a.ledger, lane, frame)
        pf_step(PF_S_free_kept)
        # Release: whoever takes the frame sees its slot as we left it.
        pf_store_release_u64(&lane.kept, frame + 1)
        pf_op_end(a, lane)
    else:
        give_back_mask(a, frame >> WORD_SHIFT, frame_bit(frame))


cdef uint64_t take_kept(pf_arena *a) noexcept nogil:
    """Give back the frames that lanes keep, of all clients; returns how many there were."""
    cdef uint64_t taken = 0
    cdef uint32_t client
    for client in range(pf_client_count(a)):
        if pf_client_used(a, client):
            taken += take_kept_of(a, client)
    return taken


cdef uint64_t take_kept_of(pf_arena *a, uint32_t client) noexcept nogil:
    cdef uint64_t taken = 0
    cdef uint64_t kept
    cdef uint32_t i
    cdef pf_lane *mine = my_lane(a)
    cdef pf_lane *lane
    for i in range(PF_LANES):
        lane = &pf_lanes_of(a, client)[i]
        kept = pf_load_relaxed_u64(&lane.kept)
        if kept - 1 >= a.frames:
            continue
        if a.ledger != NULL and mine != NULL:
            pf_op_write(mine, PF_OP_CLAIM, kept - 1)    # no claim that a trace should tell of
        pf_step(PF_S_take_kept)
        kept = pf_exchange_u64(&lane.kept, 0)
        if kept - 1 < a.frames:
            pf_step(PF_S_take_kept_bit)
            pf_and_release_u64(&a.bits[(kept - 1) >> WORD_SHIFT], ~frame_bit(kept - 1))
            tally(a, mine, (kept - 1) >> WORD_SHIFT, 1)
            taken += 1
        pf_op_end(a, mine)
    return taken


# -- runs --------------------------------------------------------------------------------------

cdef bint claim_mask(pf_arena *a, uint64_t word, uint64_t mask) noexcept nogil:
    """Claim all of a mask's frames, or none."""
    cdef uint64_t *p = &a.bits[word]
    cdef uint64_t old = pf_load_relaxed_u64(p)
    cdef uint64_t left = mask
    cdef uint64_t bit, frame
    cdef pf_lane *lane = my_lane(a)
    while old & left == 0:
        bit = left & -left if a.recorded else left
        frame = (word << WORD_SHIFT) + pf_ctz(bit)
        pf_op_begin(a, lane, PF_OP_CLAIM, frame)
        pf_step(PF_S_claim_bit)
        if pf_cas_acq_rel_u64(p, old, old | bit):
            if not take_over(a, lane, frame):
                break
            left ^= bit
            if left == 0:
                tally(a, lane, word, -<int32_t>pf_popcount(mask))
                return True
        old = pf_load_relaxed_u64(p)
    pf_op_end(a, lane)
    if left != mask:
        tally(a, lane, word, -<int32_t>pf_popcount(mask ^ left))
        give_back_mask(a, word, mask ^ left)
    return False


cdef void give_back_mask(pf_arena *a, uint64_t word, uint64_t mask) noexcept nogil:
    """Clear the bits of frames of ours; the lane's hint goes to the first."""
    give_back_owned(a, a.ledger, word, mask)


cdef void give_back_owned(
        pf_arena *a, uint32_t *ledger, uint64_t word, uint64_t mask) noexcept nogil:
    """Clear the bits of frames that some client owns, by its ledger."""
    cdef pf_lane *lane = my_lane(a)
    cdef uint64_t left = mask
    if lane != NULL:
        pf_store_relaxed_u64(&lane.hint, (word << WORD_SHIFT) + pf_ctz(mask))
    while left and a.recorded:
        pf_ledger_free(a, ledger, lane, (word << WORD_SHIFT) + pf_ctz(left))
        pf_step(PF_S_free_bit)
        pf_and_release_u64(&a.bits[word], ~(left & -left))
        left &= left - 1
    if left:
        pf_and_release_u64(&a.bits[word], ~left)
    pf_op_end(a, lane)
    tally(a, lane, word, pf_popcount(mask))


cdef inline uint64_t word_mask(uint64_t frame, uint64_t stop) noexcept nogil:
    """The bits from frame to the end of its word, or to stop if that comes first."""
    cdef unsigned first = frame & (WORD_BITS - 1)
    return pf_mask(first, min(<uint64_t>(WORD_BITS - first), stop - frame))


cdef uint64_t claim_range(pf_arena *a, uint64_t first, uint64_t count) noexcept nogil:
    """Claim frames first .. first + count - 1, word by word.

    Returns count; or, when another owner holds a word of them, how many could be
    claimed before that, all of which are given back.
    """
    cdef uint64_t frame = first
    cdef uint64_t stop = first + count
    cdef uint64_t mask
    while frame < stop:
        mask = word_mask(frame, stop)
        if not claim_mask(a, frame >> WORD_SHIFT, mask):
            if take_kept(a):
                continue
            give_back_range(a, first, frame - first)
            return frame - first
        frame += pf_popcount(mask)
    return count


cdef void give_back_range(pf_arena *a, uint64_t first, uint64_t count) noexcept nogil:
    """Clear the bits of a run; the lane's hint ends at its first frame."""
    cdef uint64_t frame = first + count
    cdef uint64_t start
    while frame > first:
        start = max(first, (frame - 1) & ~<uint64_t>(WORD_BITS - 1))
        give_back_mask(a, start >> WORD_SHIFT, word_mask(start, frame))
        frame = start


cdef uint64_t next_bit(const pf_arena *a, uint64_t frame, uint64_t stop, bint taken) noexcept nogil:
    """The first frame in frame .. stop - 1 that is taken (or free); stop if none is."""
    cdef uint64_t flip = 0 if taken else ~0ull
    cdef uint64_t word = frame >> WORD_SHIFT
    cdef uint64_t bits
    if frame >= stop:
        return stop
    bits = (pf_load_relaxed_u64(&a.bits[word]) ^ flip) & (~0ull << (frame & (WORD_BITS - 1)))
    while bits == 0:
        word += 1
        if word << WORD_SHIFT >= stop:
            return stop
        bits = pf_load_relaxed_u64(&a.bits[word]) ^ flip
    return min(stop, (word << WORD_SHIFT) + pf_ctz(bits))


cdef int64_t claim_run(pf_arena *a, uint64_t count, uint64_t align) noexcept nogil:
    """Claim a run of frames that begins at a multiple of align; -1 if there is none.

    A run may be of any length and cross words and chunks; it is claimed word by
    word and given back if another owner comes between.
    """
    cdef int64_t first = search_run(a, count, align)
    cdef int tries = 0
    # Others may give back frames behind the search, so a run may have been overlooked.
    while first < 0 and (take_kept(a) or (tries < RETRIES and longest_free_run(a) >= count)):
        tries += 1
        first = search_run(a, count, align)
    return first


cdef int64_t search_run(pf_arena *a, uint64_t count, uint64_t align) noexcept nogil:
    cdef pf_lane *lane = my_lane(a)
    cdef uint64_t start = a.frames if lane == NULL else pf_load_relaxed_u64(&lane.hint)
    cdef uint64_t taken, done
    if start < a.frames and start % align == 0 and start + count <= a.frames:
        # What was given back last, if it fits again: it is warm.
        if next_bit(a, start, start + count, True) == start + count:
            if claim_range(a, start, count) == count:
                return start
    start = 0
    while start + count <= a.frames:
        taken = next_bit(a, start, start + count, True)
        if taken == start + count:
            done = claim_range(a, start, count)
            if done == count:
                return start
            taken = start + done
        start = next_bit(a, taken + 1, a.frames, False)
        start = (start + align - 1) // align * align
    return -1


# -- many scattered frames ---------------------------------------------------------------------

cdef uint64_t claim_many(pf_arena *a, uint64_t count, uint64_t *frames) noexcept nogil:
    """Claim any frames; returns how many there were."""
    cdef uint64_t got = claim_round(a, count, frames)
    cdef int tries = 0
    while got < count and (
            take_kept(a) or (tries < RETRIES and <uint64_t>free_frames(a) >= count - got)):
        tries += 1
        got += claim_round(a, count - got, frames + got)
    return got


cdef uint64_t claim_round(pf_arena *a, uint64_t count, uint64_t *frames) noexcept nogil:
    """Claim frames a word at a time, once round from the frame given back last."""
    cdef pf_lane *lane = my_lane(a)
    cdef uint64_t words = a.chunk_count * PF_CHUNK_WORDS
    cdef uint64_t hint = 0 if lane == NULL else pf_load_relaxed_u64(&lane.hint)
    cdef uint64_t word = min(hint, a.frames - 1) >> WORD_SHIFT
    cdef uint64_t got = 0
    cdef uint64_t _i, take
    for _i in range(words + 1):
        if got == count:
            break
        take = claim_any(a, lane, word, count - got)
        while take:
            frames[got] = (word << WORD_SHIFT) + pf_ctz(take)
            got += 1
            take &= take - 1
        word += 1
        if word == words:
            word = 0
    return got


cdef uint64_t claim_any(pf_arena *a, pf_lane *lane, uint64_t word, uint64_t count) noexcept nogil:
    """Claim free frames of a word, the lowest ones if it has more than are wanted."""
    cdef uint64_t *p = &a.bits[word]
    cdef uint64_t old = pf_load_relaxed_u64(p)
    cdef uint64_t got = 0
    cdef uint64_t take = free_in(a, word, old)
    cdef uint64_t frame
    while take and pf_popcount(got) < count:
        if a.recorded:
            take &= -take
        while pf_popcount(take) > count:
            take ^= pf_highest(take)
        frame = (word << WORD_SHIFT) + pf_ctz(take)
        pf_op_begin(a, lane, PF_OP_CLAIM, frame)
        pf_step(PF_S_claim_bit)
        if pf_cas_acq_rel_u64(p, old, old | take) and take_over(a, lane, frame):
            got |= take
            if not a.recorded:
                break
        old = pf_load_relaxed_u64(p)
        take = free_in(a, word, old)
    pf_op_end(a, lane)
    if got:
        tally(a, lane, word, -<int32_t>pf_popcount(got))
    return got


# -- the whole arena ---------------------------------------------------------------------------

cdef int64_t free_frames(const pf_arena *a) noexcept nogil:
    """Free frames by the bits, and those that lanes keep: exact at rest."""
    cdef uint64_t total = 0
    cdef uint64_t word
    cdef uint32_t client, i
    for word in range(a.chunk_count * PF_CHUNK_WORDS):
        total += pf_popcount(free_in(a, word, pf_load_relaxed_u64(&a.bits[word])))
    for client in range(pf_client_count(a)):
        if pf_client_used(a, client):
            for i in range(PF_LANES):
                total += pf_load_relaxed_u64(&pf_lanes_of(a, client)[i].kept) - 1 < a.frames
    return min(total, a.frames)


cdef uint64_t longest_free_run(pf_arena *a) noexcept nogil:
    cdef uint64_t longest = 0
    cdef uint64_t start, stop
    take_kept(a)
    start = next_bit(a, 0, a.frames, False)
    while start < a.frames:
        stop = next_bit(a, start, a.frames, True)
        longest = max(longest, stop - start)
        start = next_bit(a, stop, a.frames, False)
    return longest


cdef uint64_t trim(pf_arena *a) noexcept nogil:
    """Give the memory of free frames back to the system; returns how many frames.

    Claims a run, a chunk at the most, while its memory goes: nobody gets a frame
    of it in between, and few frames are away at any time.  Memory that a file system
    has set aside for the arena stays with it, or there might be none left when the
    frames are used again.
    """
    cdef uint64_t trimmed = 0
    cdef uint64_t start, stop, frame
    cdef int advice = MADV_REMOVE if a.file else MADV_DONTNEED
    take_kept(a)
    if a.flags & PF_RESERVED_MEMORY:
        return 0
    start = next_bit(a, 0, a.frames, False)
    while start < a.frames:
        stop = next_bit(a, start, min(a.frames, start + PF_CHUNK), True)
        if claim_range(a, start, stop - start) == stop - start:
            if madvise(pf_bytes_at(a, start), (stop - start) << a.page_shift, advice) == 0:
                for frame in range(start, stop):
                    trimmed += pf_slot_at(a, frame).type_id != 0
                    pf_step(PF_S_trim_type)
                    pf_store_relaxed_u32(&pf_slot_at(a, frame).type_id, 0)
            give_back_range(a, start, stop - start)
        start = next_bit(a, stop, a.frames, False)
    return trimmed


cdef void set_bit(pf_arena *a, uint64_t frame) noexcept nogil:
    """Take a frame that is in use out of what can be claimed."""
    cdef uint64_t *p = &a.bits[frame >> WORD_SHIFT]
    cdef uint64_t old = pf_load_relaxed_u64(p)
    while not old & frame_bit(frame) and not pf_cas_acq_rel_u64(p, old, old | frame_bit(frame)):
        old = pf_load_relaxed_u64(p)


cdef void recount_chunks(pf_arena *a) noexcept nogil:
    """Set the counters by the bits; nobody may be at work."""
    cdef uint64_t chunk, word
    cdef int32_t counted
    cdef uint32_t owner
    for chunk in range(a.chunk_count):
        counted = 0
        for word in range(chunk * PF_CHUNK_WORDS, (chunk + 1) * PF_CHUNK_WORDS):
            counted += <int32_t>pf_popcount(free_in(a, word, pf_load_relaxed_u64(&a.bits[word])))
        owner = pf_load_relaxed_u32(&a.chunks[chunk].lane)
        if owner:
            owner -= 1
            if (owner < pf_client_count(a) * PF_LANES and pf_client_used(a, owner // PF_LANES)
                    and pf_lanes_of(a, owner // PF_LANES)[owner % PF_LANES].chunk == chunk + 1):
                counted = plus(
                    counted, plus(~pf_lanes_of(a, owner // PF_LANES)[owner % PF_LANES].free, 1))
            else:
                pf_store_relaxed_u32(&a.chunks[chunk].lane, 0)
        pf_store_relaxed_i32(&a.chunks[chunk].free, counted)
