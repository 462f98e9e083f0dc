/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

/* The stores of the shared protocol, by name.
 *
 * pf_step() stands before every store that another process may find done or
 * undone after a kill.  In an ordinary build it is nothing.  Built with
 * -Dsteps=true, a process counts the steps it passes in a file that the
 * environment names (PAGEFRAME_STEPS), and kills itself where the file says so:
 * that is how the tests stop a process at each of them.
 */
#ifndef PAGEFRAME_STEP_H
#define PAGEFRAME_STEP_H

#define PF_STEPS_LIST(S)                                                       \
    S(op_begin) S(op_end)                                                      \
    S(claim_bit) S(claim_kept) S(claim_ledger)                                 \
    S(free_ledger) S(free_kept) S(free_bit)                                    \
    S(take_kept) S(take_kept_bit)                                              \
    S(begin_type) S(begin_storage) S(publish)                                  \
    S(inc_count) S(inc_ledger) S(get_count) S(get_ledger)                      \
    S(put_last) S(put_ledger) S(put_count) S(put_mark)                         \
    S(unique_busy) S(retire_generation) S(retire_count)                        \
    S(orphan_ledger) S(orphan_count) S(adopt_count) S(adopt_ledger)            \
    S(join_state) S(leave_state)                                               \
    S(reap_count) S(reap_ledger) S(reap_sub) S(reap_mark) S(reap_busy)         \
    S(reap_generation) S(reap_unused) S(reap_clear) S(reap_bit)                \
    S(reap_kept) S(reap_kept_bit) S(reap_chunk) S(reap_lanes)                  \
    S(fork_count) S(fork_ledger)                                               \
    S(ticket_take) S(ticket_fill) S(ticket_count) S(ticket_done)               \
    S(ticket_live) S(redeem_take) S(redeem_done) S(redeem_ledger)              \
    S(release_take) S(release_done) S(release_count) S(ticket_free)            \
    S(type_entry) S(type_count)

#define PF_STEP_ENUM(name) PF_S_##name,
enum { PF_STEPS_LIST(PF_STEP_ENUM) PF_STEP_COUNT };

#ifdef PF_STEPS

#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

typedef struct {
    uint64_t pid;    /* who is to be killed */
    uint64_t step;   /* where */
    uint64_t after;  /* passes of that step that are let go */
    uint64_t killed; /* whether it was */
    uint64_t passed[PF_STEP_COUNT];
} pf_steps;

static pf_steps *pf_steps_page;

static inline void pf_step(int step) {
    if (pf_steps_page == NULL) {
        const char *path = getenv("PAGEFRAME_STEPS");
        int fd = path ? open(path, O_RDWR | O_CLOEXEC) : -1;
        if (fd < 0)
            return;
        void *page = mmap(NULL, sizeof(pf_steps), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
        close(fd);
        if (page == MAP_FAILED)
            return;
        pf_steps_page = page;
    }
    __atomic_fetch_add(&pf_steps_page->passed[step], 1, __ATOMIC_SEQ_CST);
    if (pf_steps_page->pid != (uint64_t)getpid() || pf_steps_page->step != (uint64_t)step)
        return;
    if (__atomic_fetch_sub(&pf_steps_page->after, 1, __ATOMIC_SEQ_CST) == 0) {
        pf_steps_page->killed = 1;
        kill(getpid(), SIGKILL);
    }
}

#else

static inline void pf_step(int step) { (void)step; }

#endif

#endif
