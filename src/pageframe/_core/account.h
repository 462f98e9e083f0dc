/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

/* Accounts: how many frames adaptors have given that this process still holds.
 *
 * All accounts of the process are one table, whose pages exist once they are used.  A frame
 * that an adaptor gave has a tag (pf_arena.tags): the account of the outermost adaptor and
 * the type that the frame was allocated with.  It counts in that account and in those above
 * it, its parents: the adaptors that the allocation went through.
 *
 *   charged   frames that count against the limit: used ones, and those about to be
 *   used      frames that bear the account's tag, or that of one below it
 *
 * Each adaptor charges its own account before it asks its upstream, and settles it with
 * what came back; the tag of the last one replaces that of the one before.  Who lets go of
 * a frame exchanges its tag for 0, so it is taken off once, whoever else lets go of it.
 *
 * Counters are relaxed: they order nothing.  An account can be used again once no adaptor
 * owns it and nothing is charged; so charged is lowered last, with release, which pairs with
 * the acquire of the next owner, and nobody touches the account after that.  An account with
 * frames keeps its parents, since its frames are charged there, too.
 */
#ifndef PAGEFRAME_ACCOUNT_H
#define PAGEFRAME_ACCOUNT_H

#include <sys/mman.h>

#include "arena.h"
#include "event_log.h"

#define PF_ACCOUNTS 4096
#define PF_NO_LIMIT UINT64_MAX

typedef struct pf_account {
    uint32_t owned; /* by an adaptor; else it can be used again once nothing is charged */
    uint64_t charged;
    uint64_t limit;
    uint64_t used;
    uint64_t peak;
    uint64_t total;       /* frames given, ever */
    uint64_t allocations; /* that gave them */
    uint64_t used_by_type[PF_TYPE_LIMIT];
    uint64_t peak_by_type[PF_TYPE_LIMIT];
    struct pf_account *parent;
    pf_log *log;
} pf_account;

/* Number 0 stays free: a tag of 0 is none. */
static pf_account *pf_accounts;

/* Once per process, when the module is imported. */
static int pf_accounts_setup(void) {
    void *p = mmap(NULL, PF_ACCOUNTS * sizeof(pf_account), PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED)
        return -1;
    pf_accounts = p;
    return pf_log_setup();
}

/* An account of one's own, with nothing in it; NULL: all are in use. */
static pf_account *pf_account_claim(pf_account *parent) {
    for (uint32_t i = 1; i < PF_ACCOUNTS; i++) {
        pf_account *c = &pf_accounts[i];
        if (pf_load_relaxed_u32(&c->owned) || pf_load_acquire_u64(&c->charged))
            continue;
        if (!pf_cas_acquire_u32(&c->owned, 0, 1))
            continue;
        if (pf_load_acquire_u64(&c->charged)) { /* another owner came and went meanwhile */
            pf_store_release_u32(&c->owned, 0);
            continue;
        }
        pf_log_free(c->log);
        /* All but what is 0 already, and others may look at now. */
        memset(&c->limit, 0, sizeof(pf_account) - offsetof(pf_account, limit));
        c->limit = PF_NO_LIMIT;
        c->parent = parent;
        return c;
    }
    return NULL;
}

static void pf_account_raise(uint64_t *peak, uint64_t used) {
    uint64_t old = pf_load_relaxed_u64(peak);
    while (old < used && !pf_cas_release_u64(peak, old, used))
        old = pf_load_relaxed_u64(peak);
}

/* False: the limit does not allow it, and all is as it was. */
static int pf_account_charge(pf_account *c, uint64_t frames) {
    uint64_t old = pf_load_relaxed_u64(&c->charged);
    do {
        if (old > c->limit || frames > c->limit - old)
            return 0;
    } while (!pf_cas_acquire_u64(&c->charged, old, old + frames) &&
             (old = pf_load_relaxed_u64(&c->charged), 1));
    return 1;
}

/* Take back what was charged and not used. */
static void pf_account_refund(pf_account *c, uint64_t frames) {
    pf_sub_release_u64(&c->charged, frames);
}

static void pf_account_add(pf_account *c, uint32_t type, uint64_t frames) {
    uint64_t used = pf_add_relaxed_u64(&c->used, frames) + frames;
    pf_account_raise(&c->peak, used);
    used = pf_add_relaxed_u64(&c->used_by_type[type], frames) + frames;
    pf_account_raise(&c->peak_by_type[type], used);
    pf_add_relaxed_u64(&c->total, frames);
    pf_add_relaxed_u64(&c->allocations, 1);
}

static void pf_account_log(const pf_arena *a, pf_account *c, int event, uint32_t type, uint64_t first,
                           uint64_t frames) {
    if (c->log)
        pf_log_event(c->log, event, first << a->page_shift, frames << a->page_shift,
                     type ? a->types[type - 1].name : "", PF_TYPE_NAME);
}

/* This process lets go of a frame: pf_let_go(). */
static void pf_uncharge(pf_arena *a, uint64_t frame) {
    uint32_t tag = pf_load_relaxed_u32(&a->tags[frame]);
    pf_account *c, *parent;
    if (tag == 0 || (tag = pf_exchange_u32(&a->tags[frame], 0)) == 0)
        return;
    for (c = &pf_accounts[tag >> 8]; c; c = parent) {
        parent = c->parent;
        pf_account_log(a, c, PF_LOG_RELEASE, tag & (PF_TYPE_LIMIT - 1), frame, 1);
        pf_sub_relaxed_u64(&c->used_by_type[tag & (PF_TYPE_LIMIT - 1)], 1);
        pf_sub_relaxed_u64(&c->used, 1);
        pf_sub_release_u64(&c->charged, 1);
    }
}

/* Have the frames of an arena tagged from now on; 0: no memory for that. */
static int pf_account_watch(pf_arena *a) {
    size_t size = a->frames * sizeof(uint32_t);
    uint32_t *none = NULL;
    void *p;
    if (__atomic_load_n(&a->tags, __ATOMIC_ACQUIRE) == NULL) {
        p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (p == MAP_FAILED)
            return 0;
        if (!__atomic_compare_exchange_n(&a->tags, &none, p, 0, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE))
            munmap(p, size);
    }
    a->uncharge = pf_uncharge;
    pf_watch(a, PF_WATCH_ACCOUNTS);
    return 1;
}

/* Tag a frame that has been allocated through an account, if it is in its parent and, so
 * far, nowhere above.  Else 0: what a user's own adaptor gives it may have given before, or
 * have got elsewhere, and what is not charged below must not be taken off there. */
static int pf_account_tag(pf_arena *a, pf_account *c, uint32_t type, uint64_t frame) {
    uint32_t parent = c->parent ? (uint32_t)(c->parent - pf_accounts) : 0;
    uint32_t old = pf_load_relaxed_u32(&a->tags[frame]);
    return old >> 8 == parent &&
           pf_cas_acq_rel_u32(&a->tags[frame], old, (uint32_t)(c - pf_accounts) << 8 | type);
}

#endif
