/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

/* The stores of the shared protocol, by name.
 *
 * pf_step() stands before every store that another process may find done or
 * undone after a kill.  In an ordinary build it is nothing.  Built with
 * -Dsteps=true, a process counts the steps it passes in a file that the
 * environment names (PAGEFRAME_STEPS), lists the first of them there in their order, and
 * sends itself a signal where the file says so: that is how the tests kill a process at
 * each of them, and hold it against a model.
 *
 * Counters that are hints (allocator.pyx) are no part of the protocol, nor is what
 * a process writes where nobody else can reach yet, and that it never publishes.
 */
#ifndef PAGEFRAME_STEP_H
#define PAGEFRAME_STEP_H

#define PF_STEPS_LIST(S)                                                       \
    S(op_begin) S(op_number) S(op_end)                                         \
    S(claim_bit) S(claim_kept) S(claim_ledger)                                 \
    S(free_ledger) S(free_kept) S(free_bit)                                    \
    S(take_kept) S(take_kept_bit) S(chunk_lane) S(trim_type)                   \
    S(begin_type) S(begin_storage) S(publish)                                  \
    S(inc_count) S(inc_ledger) S(get_count) S(get_ledger)                      \
    S(put_last) S(put_ledger) S(put_count) S(put_mark)                         \
    S(unique_take) S(unique_busy) S(repurpose_generation)                      \
    S(list_link) S(list_id) S(list_unlink) S(list_no_id)                       \
    S(retire_generation) S(retire_count)                                       \
    S(orphan_ledger) S(orphan_total) S(orphan_count)                           \
    S(adopt_count) S(adopt_ledger) S(adopt_total)                              \
    S(join_describe) S(join_state) S(join_count) S(leave_area) S(leave_state)  \
    S(reap_count) S(reap_ledger) S(reap_sub) S(reap_mark) S(reap_busy)         \
    S(reap_chunk) S(reap_lanes)                                                \
    S(audit_busy) S(audit_ledger) S(audit_count)                               \
    S(fork_count) S(fork_ledger)                                               \
    S(ticket_take) S(ticket_fill) S(ticket_count) S(ticket_done)               \
    S(ticket_live) S(redeem_take) S(redeem_done) S(redeem_ledger)              \
    S(release_take) S(release_done) S(release_count) S(ticket_free)            \
    S(type_entry) S(type_count) S(type_flags)

#define PF_STEP_ENUM(name) PF_S_##name,
enum { PF_STEPS_LIST(PF_STEP_ENUM) PF_STEP_COUNT };

#ifdef PF_STEPS

#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#define PF_STEP_TARGETS 8
#define PF_STEP_ORDER 4096

typedef struct {
    uint64_t pid;    /* who is watched */
    uint64_t step;   /* where it sends itself the signal */
    uint64_t after;  /* passes of that step that are let go */
    uint64_t signal; /* which: SIGKILL; or SIGSTOP, for another process to come between */
    uint64_t hit;    /* whether it did */
    uint64_t passed[PF_STEP_COUNT];
    uint64_t listed;
    uint8_t order[PF_STEP_ORDER];
} pf_steps;

_Static_assert(PF_STEP_COUNT < 256, "a step's number is a byte");

static pf_steps *pf_steps_page; /* PF_STEP_TARGETS of them */

static inline void pf_step(int step) {
    if (pf_steps_page == NULL) {
        const char *path = getenv("PAGEFRAME_STEPS");
        int fd = path ? open(path, O_RDWR | O_CLOEXEC) : -1;
        if (fd < 0)
            return;
        void *page = mmap(NULL, PF_STEP_TARGETS * sizeof(pf_steps), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
        close(fd);
        if (page == MAP_FAILED)
            return;
        pf_steps_page = page;
    }
    uint64_t pid = (uint64_t)getpid();
    for (pf_steps *t = pf_steps_page; t < pf_steps_page + PF_STEP_TARGETS; t++) {
        if (t->pid != pid)
            continue;
        __atomic_fetch_add(&t->passed[step], 1, __ATOMIC_SEQ_CST);
        uint64_t number = __atomic_fetch_add(&t->listed, 1, __ATOMIC_SEQ_CST);
        if (number < PF_STEP_ORDER)
            t->order[number] = (uint8_t)step;
        if (t->step == (uint64_t)step && __atomic_fetch_sub(&t->after, 1, __ATOMIC_SEQ_CST) == 0) {
            t->hit = 1;
            kill(getpid(), (int)t->signal);
        }
    }
}

#else

static inline void pf_step(int step) { (void)step; }

#endif

#endif
