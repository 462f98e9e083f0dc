# This Source Code Form is subject to the terms of the Mozilla Public
# License, v. 2.0. If a copy of the MPL was not distributed with this
# file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Kernel mappings: frames at addresses of the process, and how many of them there may be.

A range of addresses is reserved without memory behind it.  Frames appear in it by
mapping the arena's file there once more.  The kernel keeps one mapping for neighbours
that are contiguous in the file and have the same protection, and one for each hole, so
their number follows from what a range shows.

A process may have ``vm.max_map_count`` mappings in all (65,530 by default, see
https://docs.kernel.org/admin-guide/sysctl/vm.html).  Past it not even malloc() gets
memory.  So this module keeps a budget of half as many for all spaces of the process, and
a change that would exceed it is refused before it begins.
"""

from pathlib import Path

from libc.errno cimport errno
from libc.stdint cimport int64_t, uint64_t
from libc.string cimport strerror

from pageframe._core.errors import MapBudgetError
from pageframe._core.page_table cimport (
    ENTRY_ACCESS, ENTRY_EXECUTE, ENTRY_READ, ENTRY_WRITE, page_run, run_list)
from pageframe._core.slot cimport pf_add_relaxed_u64, pf_load_relaxed_u64

cdef extern from "<sys/mman.h>" nogil:
    void *mmap(void *, size_t, int, int, int, long)
    int munmap(void *, size_t)
    int mprotect(void *, size_t, int)
    int PROT_NONE, PROT_READ, PROT_WRITE, PROT_EXEC
    int MAP_PRIVATE, MAP_SHARED, MAP_ANONYMOUS, MAP_NORESERVE, MAP_FIXED
    void *MAP_FAILED

cdef enum:
    HUGE = 1 << 21      # of x86-64, and the commonest one of aarch64

cdef uint64_t in_use = 0        # kernel mappings of all ranges


cdef object system_limit():
    """How many mappings the system allows a process."""
    try:
        return int(Path("/proc/sys/vm/max_map_count").read_text())
    except OSError:     # a sandbox that hides it
        return 65530

cdef uint64_t limit = system_limit() // 2


def map_budget():
    """Return how many kernel mappings the address spaces of this process have and may have.

    Returns
    -------
    used : int
        Mappings of all `VmSpace` and `Mapping` objects; a contiguous run of frames with
        one property takes one, and so does a hole.
    limit : int
        Half of what the system allows a process, as it was when pageframe was imported.
    """
    return pf_load_relaxed_u64(&in_use), limit


cdef int charge(int64_t mappings) except -1:
    """Count kernel mappings that are about to be made, or, negative, that are gone."""
    cdef uint64_t before = pf_add_relaxed_u64(&in_use, <uint64_t>mappings)
    if mappings > 0 and before + mappings > limit:
        pf_add_relaxed_u64(&in_use, <uint64_t>-mappings)
        raise MapBudgetError(
            f"{mappings} more kernel mappings wanted, {before} of {limit} are in use: contiguous frames "
            "take one together, larger frames fewer")
    return 0


cdef int reserve(address_range *where, size_t size, unsigned page_shift) except -1:
    """Reserve a range of addresses, as aligned as the pages, and as huge pages if it is large."""
    cdef size_t align = max(<size_t>1 << page_shift, <size_t>HUGE if size >= HUGE else 4096)
    cdef unsigned char *start
    cdef size_t before
    charge(1)
    start = <unsigned char *>mmap(
        NULL, size + align, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)
    if start == MAP_FAILED:
        charge(-1)
        raise MemoryError(f"can't reserve {size} bytes of address space: {strerror(errno).decode()}")
    before = -<size_t>start & (align - 1)
    if before:
        munmap(start, before)
    munmap(start + before + size, align - before)
    where.base = start + before
    where.size = size
    where.mappings = 1
    where.page_shift = page_shift
    return 0


cdef void give_up_range(address_range *where) noexcept:
    """Give up a range and all that is mapped there."""
    if where.base != NULL:
        munmap(where.base, where.size)
        pf_add_relaxed_u64(&in_use, <uint64_t>-where.mappings)
        where.base = NULL
        where.mappings = 0


cdef inline bint joined(const page_run *left, const page_run *right) noexcept nogil:
    """Whether the kernel keeps two runs in one mapping."""
    return (left.page + left.count == right.page and left.frame + left.count == right.frame
            and left.flags & ENTRY_ACCESS == right.flags & ENTRY_ACCESS)


cdef int64_t mappings_of(page_run before, const run_list *runs, page_run behind) noexcept nogil:
    """How many kernel mappings there are behind one run, up to and with another."""
    cdef const page_run *last = &before
    cdef const page_run *run
    cdef int64_t found = 0
    cdef size_t i
    for i in range(runs.count + 1):
        run = &runs.runs[i] if i < runs.count else &behind
        if last.page + last.count != run.page:
            found += 2      # the hole before it, too
        elif not joined(last, run):
            found += 1
        last = run
    return found


cdef inline int protection(uint64_t flags) noexcept nogil:
    return ((PROT_READ if flags & ENTRY_READ else PROT_NONE)
            | (PROT_WRITE if flags & ENTRY_WRITE else PROT_NONE)
            | (PROT_EXEC if flags & ENTRY_EXECUTE else PROT_NONE))


cdef int show(const address_range *where, int fd, const run_list *runs) noexcept nogil:
    """Map frames of a file; 0, or why the system refuses."""
    cdef size_t i
    cdef const page_run *run
    for i in range(runs.count):
        run = &runs.runs[i]
        if mmap(where.base + (run.page << where.page_shift), run.count << where.page_shift,
                protection(run.flags), MAP_SHARED | MAP_NORESERVE | MAP_FIXED, fd,
                run.frame << where.page_shift) == MAP_FAILED:
            return errno
    return 0


cdef int protect(const address_range *where, const run_list *runs) noexcept nogil:
    """Set the protection of pages that are mapped; neighbours of the same one at once."""
    cdef size_t i = 0
    cdef uint64_t first, stop
    cdef int wanted
    while i < runs.count:
        first, wanted = runs.runs[i].page, protection(runs.runs[i].flags)
        stop = first
        while (i < runs.count and runs.runs[i].page == stop
               and protection(runs.runs[i].flags) == wanted):
            stop += runs.runs[i].count
            i += 1
        if mprotect(where.base + (first << where.page_shift), (stop - first) << where.page_shift, wanted):
            return errno
    return 0


cdef int hide(const address_range *where, const run_list *runs) noexcept nogil:
    """Leave nothing but reserved addresses from the first to the last page of a list."""
    cdef uint64_t first, stop
    if runs.count == 0:
        return 0
    first = runs.runs[0].page
    stop = runs.runs[runs.count - 1].page + runs.runs[runs.count - 1].count
    if mmap(where.base + (first << where.page_shift), (stop - first) << where.page_shift, PROT_NONE,
            MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0) == MAP_FAILED:
        return errno
    return 0


cdef int blank(const address_range *where) noexcept nogil:
    """Show zeroes everywhere: of an arena that is not there any more, for views that still are."""
    if mmap(where.base, where.size, PROT_READ | PROT_WRITE,
            MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0) == MAP_FAILED:
        return errno
    return 0
