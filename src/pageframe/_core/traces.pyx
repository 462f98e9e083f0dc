# This Source Code Form is subject to the terms of the Mozilla Public
# License, v. 2.0. If a copy of the MPL was not distributed with this
# file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""What tracemalloc is told: the frames that this process holds, and the line that got each.

A frame is told of when this process gets it (allocates or claims it, takes it by its
paddr or loads it from a message without having held it) and until it lets go of it: its
life ends, or in a shared arena others alone hold it (pf_let_go() in arena.h).  Handles
don't count: a clone changes nothing.  The traces are in a domain of their own, each at the
address of the frame's bytes and of the size of a page.

tracemalloc may be started and stopped at any time, and forgets its traces then; what was
got while it did not trace it never learns of.  So it is asked at each allocation, by
reading its own flag, and of what is let go only once a trace of the arena was made.
"""

from libc.stdint cimport uint64_t, uintptr_t

from pageframe._core.arena cimport PF_WATCH_TRACES, Arena, pf_arena, pf_bytes_at, pf_watch

cdef extern from * nogil:
    """
    #ifdef PF_TRACING_FLAG
    const int *pf_tracing_flag(void);   /* tracing.c */
    #else
    static const int *pf_tracing_flag(void) {
        static const int perhaps = 1;   /* PyTraceMalloc_Track() says */
        return &perhaps;
    }
    #endif
    #define PF_DOMAIN 0x7066u
    """
    const int *pf_tracing_flag()
    unsigned int PF_DOMAIN

cdef extern from "Python.h" nogil:
    int PyTraceMalloc_Track(unsigned int domain, uintptr_t, size_t)
    int PyTraceMalloc_Untrack(unsigned int domain, uintptr_t)
    enum:
        NOT_TRACING "-2"

TRACEMALLOC_DOMAIN = PF_DOMAIN
tracing = pf_tracing_flag()


cdef void untrack(pf_arena *a, uint64_t frame) noexcept nogil:
    """This process has let go of a frame; needs no interpreter lock."""
    PyTraceMalloc_Untrack(PF_DOMAIN, <uintptr_t>pf_bytes_at(a, frame))


cdef inline bint told(Arena mem, uint64_t frame) noexcept:
    """Tell of a frame; False if tracemalloc does not trace."""
    # A trace that there is no memory for is one that is missing.
    return PyTraceMalloc_Track(
        PF_DOMAIN, <uintptr_t>pf_bytes_at(&mem.a, frame), 1ull << mem.a.page_shift) != NOT_TRACING


cdef void watch(Arena mem) noexcept:
    mem.a.untrack = untrack
    pf_watch(&mem.a, PF_WATCH_TRACES)


cdef void track_run(Arena mem, uint64_t first, uint64_t count) noexcept:
    cdef uint64_t frame
    for frame in range(first, first + count):
        if not told(mem, frame):
            return
        if frame == first:
            watch(mem)


cdef void track_each(Arena mem, const uint64_t *frames, uint64_t count) noexcept:
    cdef uint64_t i
    for i in range(count):
        if not told(mem, frames[i]):
            return
        if i == 0:
            watch(mem)
