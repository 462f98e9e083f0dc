/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

/* The metadata slot of a frame, and the states of its reference count.
 *
 * The count is the whole state of a frame:
 *
 *   PF_UNUSED      nobody holds the frame; the storage is dead.
 *   PF_BUSY (0)    one thread is tearing the frame down, or giving it another
 *                  life.  (While a frame is built it is still UNUSED; its
 *                  allocator bit keeps others away.)
 *   1 .. PF_MAX    that many references exist; the storage is read-only,
 *                  atomic fields aside.
 *   PF_UNIQUE      one UniqueFrame (or one LinkedList) owns the frame and
 *                  may write the storage.
 *   PF_ORPHAN      nobody holds the frame, but its on_drop has not run: it waits
 *                  for a process that knows the type (shared arenas only).
 *
 * Values between PF_MAX and PF_ORPHAN are never reached: an increment that
 * finds PF_MAX is taken back and refused.  PF_MAX leaves 2^63 - 2 values of
 * room, so increments that race with the refusal can't reach PF_UNIQUE.
 *
 * Who may leave a state:
 *
 *   UNUSED -> 1 | UNIQUE          whoever set the frame's allocator bit.  The
 *                                 bit is the right to the slot, so these are
 *                                 stores, not compare-and-swaps.
 *   n -> n + 1                    a holder, or pf_slot_get() by paddr.
 *   n -> n - 1, 1 -> BUSY         a holder, giving up its reference.
 *   1 <-> UNIQUE                  the only holder.
 *   BUSY -> UNUSED | UNIQUE       the thread that made it busy.
 *   UNIQUE -> BUSY                the owner.
 *   BUSY -> ORPHAN                the thread that made it busy.
 *   ORPHAN -> BUSY                whoever gets it by compare-and-swap.
 *
 * Once the slot is UNUSED the allocator bit is cleared, last of all.
 */
#ifndef PAGEFRAME_SLOT_H
#define PAGEFRAME_SLOT_H

#include <stddef.h>
#include <stdint.h>

#include "atomic.h"
#include "step.h"

#define PF_UNUSED UINT64_MAX
#define PF_UNIQUE (UINT64_MAX - 1)
#define PF_ORPHAN (UINT64_MAX - 2)
#define PF_BUSY UINT64_C(0)
#define PF_MAX ((uint64_t)INT64_MAX)

#define PF_SLOT_HEADER 24
#define PF_SLOT_MAX 256

typedef struct {
    uint64_t count;
    /* Lives this frame has had: one more each time it is released.  A frame
     * reference and a view remember it, to notice that their frame is gone. */
    uint64_t generation;
    /* Type of the metadata.  It stays behind when the frame is released: 0
     * says that nobody has used the frame since the kernel gave its (zeroed)
     * memory, so that it need not be zeroed again. */
    uint32_t type_id;
    /* The linked list that owns the frame, or 0. */
    uint32_t list_id;
    /* The user's fields: the rest of a slot of 64, 128 or 256 bytes. */
    unsigned char storage[64 - PF_SLOT_HEADER];
} pf_slot;

_Static_assert(sizeof(pf_slot) == 64, "the smallest slot is a cache line");
_Static_assert(offsetof(pf_slot, storage) == PF_SLOT_HEADER, "storage follows");
_Static_assert(PF_SLOT_HEADER % 8 == 0, "fields of 8 bytes are aligned");

/* Why a frame could not be had. */
enum {
    PF_OK = 0,
    PF_E_IN_USE,
    PF_E_UNUSED,
    PF_E_BUSY,
    PF_E_UNIQUE,
    PF_E_OVERFLOW,
};

static inline uint64_t pf_slot_count(const pf_slot *s) {
    return pf_load_relaxed_u64(&s->count);
}

static inline int pf_slot_in_use(const pf_slot *s) {
    uint64_t count = pf_slot_count(s);
    return count != PF_BUSY && count <= PF_MAX;
}

/* The state of a count as an error: why it can't be taken as unused. */
static inline int pf_slot_taken(const pf_slot *s) {
    uint64_t count = pf_slot_count(s);
    if (count == PF_UNIQUE)
        return PF_E_UNIQUE;
    /* UNUSED with its bit set: being claimed or released this moment. */
    if (count == PF_BUSY || count == PF_UNUSED || count == PF_ORPHAN)
        return PF_E_BUSY;
    return PF_E_IN_USE;
}

/* Publish a slot that nobody else can reach: one that was built under its
 * allocator bit, or a unique one that is shared.  Release: whoever reads this
 * count in pf_slot_get() also sees type and storage. */
static inline void pf_slot_publish(pf_slot *s, uint64_t count) {
    pf_step(PF_S_publish);
    pf_store_release_u64(&s->count, count);
}

/* One more reference, by somebody who holds one.  The holder sees the slot's contents
 * already, and nobody learns of them by this increment.  Release: not before our operation
 * is written down (ledger.h), or an audit would find the count too high and nobody at work. */
static inline int pf_slot_inc(pf_slot *s) {
    if (pf_add_release_u64(&s->count, 1) >= PF_MAX) {
        pf_sub_relaxed_u64(&s->count, 1);
        return PF_E_OVERFLOW;
    }
    return PF_OK;
}

/* More references, by somebody who knows only the paddr.  Acquire pairs
 * with the release of pf_slot_publish(): type and storage are visible.  Release as in
 * pf_slot_inc(). */
static inline int pf_slot_get_many(pf_slot *s, uint64_t references) {
    for (;;) {
        uint64_t count = pf_slot_count(s);
        if (count == PF_UNUSED)
            return PF_E_UNUSED;
        if (count == PF_UNIQUE)
            return PF_E_UNIQUE;
        if (count == PF_BUSY || count == PF_ORPHAN)
            return PF_E_BUSY;
        if (count > PF_MAX - references)
            return PF_E_OVERFLOW;
        if (pf_cas_acq_rel_u64(&s->count, count, count + references))
            return PF_OK;
    }
}

static inline int pf_slot_get(pf_slot *s) {
    return pf_slot_get_many(s, 1);
}

/* One reference less.  True if it was the last: the slot is now busy and the
 * caller must tear it down.  Release orders our use of the frame before the
 * decrement; the fence of the last holder pairs with all of them. */
static inline int pf_slot_put(pf_slot *s) {
    if (pf_sub_release_u64(&s->count, 1) != 1)
        return 0;
    pf_fence_acquire_u64(&s->count);
    return 1;
}

/* All the references there are, at once: true if they were, and the slot is busy
 * and ours.  The order is that of pf_slot_put(). */
static inline int pf_slot_end(pf_slot *s, uint64_t references) {
    return pf_slot_count(s) == references && pf_cas_acq_rel_u64(&s->count, references, PF_BUSY);
}

/* From the only reference to unique ownership.  Acquire pairs with the
 * releases of the holders that went before. */
static inline int pf_slot_try_unique(pf_slot *s) {
    pf_step(PF_S_unique_take);
    return pf_cas_acquire_u64(&s->count, 1, PF_UNIQUE);
}

/* Make a unique slot of ours busy.  Relaxed: nobody reads anything on its word. */
static inline void pf_slot_make_busy(pf_slot *s) {
    pf_step(PF_S_unique_busy);
    pf_store_relaxed_u64(&s->count, PF_BUSY);
}

/* End a life: the slot must be busy, and ours.  The allocator bit, cleared
 * afterwards with release, orders these stores for the next owner; release here
 * keeps them in this order where a process may be killed between. */
static inline void pf_slot_retire(pf_slot *s) {
    pf_step(PF_S_retire_generation);
    pf_store_release_u64(&s->generation, s->generation + 1);
    pf_step(PF_S_retire_count);
    pf_store_release_u64(&s->count, PF_UNUSED);
}

#endif
