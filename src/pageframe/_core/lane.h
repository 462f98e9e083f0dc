/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

/* Which lane the calling thread has.
 *
 * A number in 0 .. PF_LANES - 1 that no other live thread of the process has,
 * the same in every arena.  It goes back when the thread ends, and its next
 * owner finds the lane as it was left.  Threads beyond PF_LANES get -1 and
 * allocate without a lane.  After fork only the thread that forked lives on.
 *
 * To be included by one translation unit only: the state is static.
 */
#ifndef PAGEFRAME_LANE_H
#define PAGEFRAME_LANE_H

#include <pthread.h>
#include <stdint.h>

#include "arena.h"

_Static_assert(PF_LANES == 64, "lanes in use are one word");

#define PF_LANE_UNKNOWN (-2)

/* glibc has room for a few bytes of this model in libraries loaded late; it saves a
 * call at each use. */
#ifdef __GLIBC__
#define PF_TLS __attribute__((tls_model("initial-exec")))
#else
#define PF_TLS
#endif

static _Thread_local int pf_lane_of_thread PF_TLS = PF_LANE_UNKNOWN;
static uint64_t pf_lanes_in_use;
static pthread_key_t pf_lane_key;

/* Release and the acquire of the next owner's claim hand over the lane. */
static void pf_lane_give_back(void *number_plus_one) {
    pf_lane_of_thread = PF_LANE_UNKNOWN;
    pf_and_release_u64(&pf_lanes_in_use, ~(UINT64_C(1) << ((uintptr_t)number_plus_one - 1)));
}

static void pf_lane_after_fork(void) {
    uint64_t mine = pf_lane_of_thread >= 0 ? UINT64_C(1) << pf_lane_of_thread : 0;
    pf_store_relaxed_u64(&pf_lanes_in_use, mine);
}

/* Once per process, when the module is imported. */
static int pf_lane_setup(void) {
    int error = pthread_key_create(&pf_lane_key, pf_lane_give_back);
    return error ? error : pthread_atfork(NULL, NULL, pf_lane_after_fork);
}

static int pf_lane_claim(void) {
    uint64_t used = pf_load_relaxed_u64(&pf_lanes_in_use);
    while (~used) {
        unsigned number = pf_ctz(~used);
        if (pf_cas_acquire_u64(&pf_lanes_in_use, used, used | UINT64_C(1) << number)) {
            if (pthread_setspecific(pf_lane_key, (void *)(uintptr_t)(number + 1))) {
                pf_lane_give_back((void *)(uintptr_t)(number + 1));
                break;
            }
            return pf_lane_of_thread = (int)number;
        }
        used = pf_load_relaxed_u64(&pf_lanes_in_use);
    }
    return pf_lane_of_thread = -1;
}

static inline int pf_lane_number(void) {
    int number = pf_lane_of_thread;
    return number == PF_LANE_UNKNOWN ? pf_lane_claim() : number;
}

#endif
