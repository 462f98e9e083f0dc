# This Source Code Form is subject to the terms of the Mozilla Public
# License, v. 2.0. If a copy of the MPL was not distributed with this
# file, You can obtain one at https://mozilla.org/MPL/2.0/.

from libc.stdint cimport int64_t

from pageframe._core.page_table cimport page_run, run_list


# A reserved range of addresses, and how its frames are shown there.
cdef struct address_range:
    unsigned char *base
    size_t size
    int64_t mappings    # the kernel's, of this range
    unsigned page_shift

cdef int reserve(address_range *where, size_t size, unsigned page_shift) except -1
cdef void give_up_range(address_range *where) noexcept
cdef int64_t mappings_of(page_run before, const run_list *runs, page_run behind) noexcept nogil
cdef int charge(int64_t mappings) except -1
cdef int show(const address_range *where, int fd, const run_list *runs) noexcept nogil
cdef int protect(const address_range *where, const run_list *runs) noexcept nogil
cdef int hide(const address_range *where, const run_list *runs) noexcept nogil
cdef int blank(const address_range *where) noexcept nogil
