/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

/* Atomic operations on plain integers, with the memory ordering in the name.
 *
 * The arena is memory that several threads and processes share, so
 * its words are plain integers reached through these wrappers and never C11
 * `_Atomic` objects, whose representation C leaves open.  Which operation
 * pairs with which is said at each use; slot.h states the protocol.
 */
#ifndef PAGEFRAME_ATOMIC_H
#define PAGEFRAME_ATOMIC_H

#include <stdint.h>

#define PF_ATOMIC(T, S)                                                        \
    static inline T pf_load_relaxed_##S(const T *p) {                          \
        return __atomic_load_n(p, __ATOMIC_RELAXED);                           \
    }                                                                          \
    static inline T pf_load_acquire_##S(const T *p) {                          \
        return __atomic_load_n(p, __ATOMIC_ACQUIRE);                           \
    }                                                                          \
    static inline void pf_store_relaxed_##S(T *p, T v) {                       \
        __atomic_store_n(p, v, __ATOMIC_RELAXED);                              \
    }                                                                          \
    static inline void pf_store_release_##S(T *p, T v) {                       \
        __atomic_store_n(p, v, __ATOMIC_RELEASE);                              \
    }                                                                          \
    static inline T pf_exchange_##S(T *p, T v) {                               \
        return __atomic_exchange_n(p, v, __ATOMIC_ACQ_REL);                    \
    }                                                                          \
    static inline T pf_add_relaxed_##S(T *p, T v) {                            \
        return __atomic_fetch_add(p, v, __ATOMIC_RELAXED);                     \
    }                                                                          \
    static inline T pf_add_release_##S(T *p, T v) {                            \
        return __atomic_fetch_add(p, v, __ATOMIC_RELEASE);                     \
    }                                                                          \
    static inline T pf_sub_relaxed_##S(T *p, T v) {                            \
        return __atomic_fetch_sub(p, v, __ATOMIC_RELAXED);                     \
    }                                                                          \
    static inline T pf_sub_release_##S(T *p, T v) {                            \
        return __atomic_fetch_sub(p, v, __ATOMIC_RELEASE);                     \
    }                                                                          \
    static inline T pf_and_release_##S(T *p, T v) {                            \
        return __atomic_fetch_and(p, v, __ATOMIC_RELEASE);                     \
    }                                                                          \
    static inline T pf_or_release_##S(T *p, T v) {                             \
        return __atomic_fetch_or(p, v, __ATOMIC_RELEASE);                      \
    }                                                                          \
    static inline T pf_load_##S(const T *p) {                                  \
        return __atomic_load_n(p, __ATOMIC_SEQ_CST);                           \
    }                                                                          \
    static inline void pf_store_##S(T *p, T v) {                               \
        __atomic_store_n(p, v, __ATOMIC_SEQ_CST);                              \
    }                                                                          \
    static inline T pf_add_##S(T *p, T v) {                                    \
        return __atomic_fetch_add(p, v, __ATOMIC_SEQ_CST);                     \
    }                                                                          \
    static inline int pf_cas_##S(T *p, T expected, T desired) {                \
        return __atomic_compare_exchange_n(p, &expected, desired, 0,           \
                                           __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);\
    }                                                                          \
    static inline int pf_cas_acq_rel_##S(T *p, T expected, T desired) {        \
        return __atomic_compare_exchange_n(p, &expected, desired, 0,           \
                                           __ATOMIC_ACQ_REL, __ATOMIC_RELAXED);\
    }                                                                          \
    static inline int pf_cas_release_##S(T *p, T expected, T desired) {        \
        return __atomic_compare_exchange_n(p, &expected, desired, 0,           \
                                           __ATOMIC_RELEASE, __ATOMIC_RELAXED);\
    }                                                                          \
    static inline int pf_cas_acquire_##S(T *p, T expected, T desired) {        \
        return __atomic_compare_exchange_n(p, &expected, desired, 0,           \
                                           __ATOMIC_ACQUIRE, __ATOMIC_RELAXED);\
    }

PF_ATOMIC(uint8_t, u8)
PF_ATOMIC(uint16_t, u16)
PF_ATOMIC(uint32_t, u32)
PF_ATOMIC(uint64_t, u64)
PF_ATOMIC(int32_t, i32)

static inline void pf_fence_acquire(void) {
    __atomic_thread_fence(__ATOMIC_ACQUIRE);
}

/* The same for what was released to one word, which has been read.  ThreadSanitizer knows no
 * fences; for it the word is read once more. */
static inline void pf_fence_acquire_u64(const uint64_t *p) {
#ifdef __SANITIZE_THREAD__
    pf_load_acquire_u64(p);
#else
    (void)p;
    pf_fence_acquire();
#endif
}

static inline void pf_fence_release(void) {
    __atomic_thread_fence(__ATOMIC_RELEASE);
}

#endif
