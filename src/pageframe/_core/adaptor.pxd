# This Source Code Form is subject to the terms of the Mozilla Public
# License, v. 2.0. If a copy of the MPL was not distributed with this
# file, You can obtain one at https://mozilla.org/MPL/2.0/.

cimport cython
from libc.stdint cimport uint32_t, uint64_t

from pageframe._core.memory cimport PhysicalMemory

cdef extern from "account.h" nogil:
    ctypedef struct pf_log:
        pass
    ctypedef struct pf_account:
        uint32_t owned
        uint64_t charged
        uint64_t limit
        uint64_t used
        uint64_t peak
        uint64_t total
        uint64_t allocations
        uint64_t *used_by_type
        uint64_t *peak_by_type
        pf_log *log


@cython.no_gc_clear
cdef class Adaptor:
    """Allocates as its upstream does, and keeps account."""
    cdef readonly PhysicalMemory mem
    cdef readonly object upstream
    cdef object __weakref__
    cdef pf_account *account

    cdef int check(self) except -1
    cdef uint64_t frames_of(self, object nbytes) except? 0
    cdef object run(self, uint64_t wanted, object method, tuple args, dict kwargs)
    cdef int charge(self, uint64_t frames) except -1
    cdef void log_failure(self, uint64_t wanted) noexcept
    cdef int settle(self, object handle, uint64_t wanted) except -1
    cdef bint take(self, uint64_t frame, uint32_t *type_id) noexcept
