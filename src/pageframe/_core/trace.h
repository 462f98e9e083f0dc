/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

/* Trace: the last events of each lane of a traced arena (PF_TRACE), for a post-mortem.
 *
 * A lane has a ring of PF_RING events.  The rings of a client lie at the end of its area,
 * so they outlive its process, and its place in the table, too: they are overwritten by
 * the next that has the place, event by event.  Those of a private arena are memory of
 * the process.  A thread without a lane is not traced.
 *
 * Only the lane's thread writes its ring; anybody may read it meanwhile, or after the
 * thread was killed between any two stores.  The serial number tells a whole event from a
 * torn one, as in a seqlock:
 *
 *   write   serial = 0; release fence; the rest; serial = number, with release
 *   read    serial, with acquire; the rest; acquire fence; serial once more
 *
 * The first fence pairs with the reader's: whoever reads anything of the new event finds
 * 0 or the new number in the end.  The release store pairs with the acquire load: whoever
 * finds a number reads what belongs to it, or something newer.  And the number must be
 * one that belongs at its place in the ring, so other bytes that got there are left out.
 */
#ifndef PAGEFRAME_TRACE_H
#define PAGEFRAME_TRACE_H

#include "origin.h"

/* Kinds of events beside the operations of a lane (ledger.h), which are below these. */
enum {
    PF_EVENT_UNIQUE = 8, /* a frame became unique */
    PF_EVENT_SHARE,      /* a unique frame became shared */
    PF_EVENT_REPURPOSE,  /* a unique frame began another life */
    PF_EVENT_MAP,        /* of a run of frames: the first */
    PF_EVENT_UNMAP,
    PF_EVENT_SEND,       /* of a message: the first */
    PF_EVENT_LOAD,
};

/* Out of line, as it is rare: what calls it stays small. */
static __attribute__((unused, noinline, cold)) void pf_trace(const pf_arena *a, pf_lane *lane, unsigned kind, uint64_t frame) {
    uint64_t serial = lane->events + 1;
    pf_event *e = &a->rings[(lane - a->lanes) * PF_RING + serial % PF_RING];
    pf_store_relaxed_u64(&e->serial, 0);
    pf_fence_release();
    pf_store_relaxed_u64(&e->time, pf_now());
    pf_store_relaxed_u64(&e->what, frame << 8 | kind);
    pf_store_relaxed_u32(&e->pid, pf_pid_of(a, a->client));
    pf_store_release_u64(&e->serial, serial);
    pf_store_relaxed_u64(&lane->events, serial);
}

/* Note an event that is no operation of the lane. */
static inline void pf_note(pf_arena *a, unsigned kind, uint64_t frame) {
    if (a->rings) {
        pf_lane *lane = a->my_lane(a);
        if (lane)
            pf_trace(a, lane, kind, frame);
    }
}

/* Read the event at a place of a ring; false if there is none, or not a whole one. */
static inline int pf_event_read(const pf_event *e, uint64_t place, pf_event *event) {
    event->serial = pf_load_acquire_u64(&e->serial);
    event->time = pf_load_relaxed_u64(&e->time);
    event->what = pf_load_relaxed_u64(&e->what);
    event->pid = pf_load_relaxed_u32(&e->pid);
    pf_fence_acquire();
    return event->serial && event->serial % PF_RING == place
        && pf_load_relaxed_u64(&e->serial) == event->serial;
}

#endif
