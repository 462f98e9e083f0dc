/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

/* When and by whom: what releases of frames, events and tickets are stamped with. */
#ifndef PAGEFRAME_ORIGIN_H
#define PAGEFRAME_ORIGIN_H

#include <stdint.h>
#include <time.h>
#include <unistd.h>

#include "arena.h"

/* The time since the machine was started, in nanoseconds: the same in all processes. */
static inline uint64_t pf_now(void) {
    struct timespec t;
    clock_gettime(CLOCK_BOOTTIME, &t);
    return (uint64_t)t.tv_sec * UINT64_C(1000000000) + (uint64_t)t.tv_nsec;
}

/* The process of a client, or that has a private arena. */
static inline uint32_t pf_pid_of(const pf_arena *a, uint32_t client) {
    return a->clients ? pf_load_relaxed_u32(&a->clients[client].pid) : (uint32_t)getpid();
}

#endif
