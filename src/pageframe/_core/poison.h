/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

/* Poison: what a released frame of a poisoned arena is filled with (PF_POISON).
 *
 * The pattern is that of Linux for freed pages, PAGE_POISON in include/linux/poison.h:
 * as a number it is implausible, as an address none, and as text it is no ASCII.
 *
 * A frame is filled while its slot is BUSY, before it is UNUSED; the stores that retire
 * the slot and clear the allocator bit are releases, and the acquire of whoever claims the
 * frame pairs with the latter: it sees the fill.  Who released the frame, and when, stands
 * in the storage of the slot, which is dead until the frame's next life.
 *
 * A process that is killed while it fills leaves a BUSY frame, which its reaper ends
 * again; one that is killed while it zeroes a frame that it has claimed leaves an UNUSED
 * one, which its reaper fills again.  So here is nothing that a kill could leave half done.
 *
 * A frame of type 0 was not used since the kernel gave its memory: it is zero, not filled.
 */
#ifndef PAGEFRAME_POISON_H
#define PAGEFRAME_POISON_H

#include "origin.h"

#define PF_POISON_BYTE 0xaa

typedef struct {
    uint64_t time;   /* CLOCK_BOOTTIME, nanoseconds */
    uint32_t client; /* the last holder: its number, and its process */
    uint32_t pid;
} pf_release;

_Static_assert(sizeof(pf_release) <= sizeof(((pf_slot *)0)->storage), "any slot has room for it");

/* Out of line, as it is rare: what calls it stays small. */
static __attribute__((unused, noinline, cold)) void pf_poison(const pf_arena *a, pf_slot *s, uint32_t client) {
    pf_release release = {pf_now(), client, pf_pid_of(a, client)};
    memset(pf_bytes_at(a, pf_frame_of(a, s)), PF_POISON_BYTE, (size_t)1 << a->page_shift);
    memcpy(s->storage, &release, sizeof(release));
}

/* Fill a claimed frame that was never built again, of whoever died over it. */
static inline void pf_poison_again(const pf_arena *a, pf_slot *s, uint32_t client) {
    if (a->debug & PF_POISON && s->type_id)
        pf_poison(a, s, client);
}

/* Whether a claimed frame is as it was filled.  One that is not UNUSED is that of a
 * damaged arena: it is left alone. */
static inline int pf_poison_sound(const pf_arena *a, uint64_t frame) {
    const uint64_t *words = (const uint64_t *)pf_bytes_at(a, frame);
    const uint64_t fill = UINT64_MAX / 0xff * PF_POISON_BYTE;
    uint64_t differing = 0;
    if (pf_slot_at(a, frame)->type_id == 0 || pf_slot_count(pf_slot_at(a, frame)) != PF_UNUSED)
        return 1;
    for (uint64_t i = 0; i < UINT64_C(1) << (a->page_shift - 3); i++)
        differing |= words[i] ^ fill;
    return differing == 0;
}

#endif
