/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

/* References in an arena that processes share: a count, and a ledger a client.
 *
 * The ledger of a client says, frame by frame, how many references it holds, so
 * that they can be given back when its process is killed.  A frame's count is the
 * sum over all ledgers and tickets.  The two can't change in one store, so they
 * change in the order that leaves the count too high when a process dies between:
 *
 *   one more   the count, then the ledger
 *   one less   the ledger, then the count
 *
 * The last reference goes another way: the count becomes BUSY first, which shuts
 * out everybody else, and the ledger keeps its 1 until the frame is UNUSED and
 * about to be free.  So whoever reaps a client finds in its ledger all that it
 * owns, in whatever state:
 *
 *   count 1 .. MAX   it holds that many of the references
 *   UNIQUE           it is the owner
 *   BUSY             it was tearing the frame down
 *   UNUSED           it had claimed the frame and not yet built it, or had torn
 *                    it down and not yet given it back
 *
 * What no ledger tells is the moment between two stores: between the allocator
 * bit (or a lane's kept frame) and the ledger, or between a ledger and the count.
 * Bits are claimed and cleared one by one in a shared arena, so that is one frame
 * a thread.  The lane records which: its operation in progress, one store ahead.
 *
 * A kill is precise: all stores before some instruction have happened and none
 * behind it.  So what matters here is the order in which the compiler leaves the
 * stores, which release keeps; the next process sees them all, since it learns of
 * the death from the kernel.
 *
 * In a private arena there is no ledger, and all this is a test of one word, unless
 * the arena is traced (trace.h): an event is what the lane writes down here.
 */
#ifndef PAGEFRAME_LEDGER_H
#define PAGEFRAME_LEDGER_H

#include "arena.h"
#include "poison.h"
#include "step.h"
#include "trace.h"

/* Operations of a lane: frame << 8 | one of these. */
enum {
    PF_OP_NONE,
    PF_OP_CLAIM, /* bit or kept frame, then ledger */
    PF_OP_FREE,  /* ledger, then kept frame or bit */
    PF_OP_MORE,  /* count, then ledger */
    PF_OP_LESS,  /* ledger, then count */
};

/* A client's references to one frame end below this, so that lanes that race for
 * the last one don't wrap it. */
#define PF_LEDGER_MAX (UINT32_MAX - 2 * PF_LANES)

/* Write down which frame a lane is about to touch.  An audit reads the number first and
 * the operation then: if it saw the old number it finds the new one later, and if it saw
 * the new one it sees the operation, or all that it did.  For that the stores come in this
 * order, and what is done to a count or a ledger next is a release. */
static inline void pf_op_write(pf_lane *lane, unsigned op, uint64_t frame) {
    pf_step(PF_S_op_begin);
    pf_store_release_u64(&lane->op, frame << 8 | op);
    pf_step(PF_S_op_number);
    pf_store_release_u64(&lane->ops, lane->ops + 1);
}

static inline void pf_op_begin(const pf_arena *a, pf_lane *lane, unsigned op, uint64_t frame) {
    if (a->recorded && lane) {
        if (a->rings) {
            pf_trace(a, lane, op, frame);
            if (!a->ledger)
                return;
        }
        pf_op_write(lane, op, frame);
    }
}

static inline void pf_op_end(const pf_arena *a, pf_lane *lane) {
    if (a->ledger && lane) {
        pf_step(PF_S_op_end);
        pf_store_release_u64(&lane->op, PF_OP_NONE);
    }
}

/* The bit of a frame is ours now: nobody else touches its entry in our ledger. */
static inline void pf_ledger_claim(pf_arena *a, pf_lane *lane, uint64_t frame) {
    if (a->ledger) {
        pf_step(PF_S_claim_ledger);
        pf_store_release_u32(&a->ledger[frame], 1);
        pf_op_end(a, lane);
    }
}

/* A frame that is UNUSED is about to become free; the ledger is its owner's. */
static inline void pf_ledger_free(pf_arena *a, uint32_t *ledger, pf_lane *lane, uint64_t frame) {
    pf_op_begin(a, lane, PF_OP_FREE, frame);
    if (ledger) {
        pf_step(PF_S_free_ledger);
        pf_store_release_u32(&ledger[frame], 0);
    }
}

/* One more reference to a frame that is held already (or known by its paddr). */
static inline int pf_recorded_more(pf_arena *a, pf_slot *s, int known_by_paddr) {
    uint64_t frame = pf_frame_of(a, s);
    pf_lane *lane;
    int error;
    if (a->ledger && pf_load_relaxed_u32(&a->ledger[frame]) >= PF_LEDGER_MAX)
        return PF_E_OVERFLOW;
    lane = a->my_lane(a);
    pf_op_begin(a, lane, PF_OP_MORE, frame);
    if (!a->ledger)
        return known_by_paddr ? pf_slot_get(s) : pf_slot_inc(s);
    pf_step(known_by_paddr ? PF_S_get_count : PF_S_inc_count);
    error = known_by_paddr ? pf_slot_get(s) : pf_slot_inc(s);
    if (error == PF_OK) {
        pf_step(known_by_paddr ? PF_S_get_ledger : PF_S_inc_ledger);
        /* Release: not before the count. */
        pf_add_release_u32(&a->ledger[frame], 1);
    }
    pf_op_end(a, lane);
    return error;
}

static inline int pf_ref_inc(pf_arena *a, pf_slot *s) {
    return a->recorded ? pf_recorded_more(a, s, 0) : pf_slot_inc(s);
}

static inline int pf_ref_get(pf_arena *a, pf_slot *s) {
    return a->recorded ? pf_recorded_more(a, s, 1) : pf_slot_get(s);
}

static inline int pf_recorded_less(pf_arena *a, pf_slot *s) {
    uint64_t frame = pf_frame_of(a, s);
    pf_lane *lane = a->my_lane(a);
    pf_op_begin(a, lane, PF_OP_LESS, frame);
    if (!a->ledger)
        return pf_slot_put(s);
    pf_step(PF_S_put_ledger);
    /* Release: not before our operation is written down. */
    if (pf_sub_release_u32(&a->ledger[frame], 1) == 1)
        pf_let_go(a, frame);
    pf_step(PF_S_put_count);
    /* Release within: not before the ledger. */
    int last = pf_slot_put(s);
    if (last) {
        pf_step(PF_S_put_mark);
        pf_store_release_u32(&a->ledger[frame], 1);
    }
    pf_op_end(a, lane);
    return last;
}

/* One reference less.  True if it was the last: the slot is busy and ours. */
static inline int pf_ref_put(pf_arena *a, pf_slot *s) {
    if (!a->recorded)
        return pf_slot_put(s);
    pf_step(PF_S_put_last);
    /* A count of 1 that we hold is our handle's alone; the entry in our ledger is
     * 1, too, and stays until the frame goes. */
    return pf_slot_end(s, 1) || pf_recorded_less(a, s);
}

/* End a life: the slot must be busy, and ours.  Every life ends here.  The client is
 * the last holder: this one, or the one that is reaped. */
static inline void pf_end_life_of(pf_arena *a, pf_slot *s, uint32_t client) {
    if (pf_load_acquire_u32(&a->watched)) {
        pf_let_go(a, pf_frame_of(a, s));
        if (a->debug & PF_POISON)
            pf_poison(a, s, client);
    }
    pf_slot_retire(s);
}

static inline void pf_end_life(pf_arena *a, pf_slot *s) {
    pf_end_life_of(a, s, a->client);
}

#endif
