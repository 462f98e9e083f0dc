# This Source Code Form is subject to the terms of the Mozilla Public
# License, v. 2.0. If a copy of the MPL was not distributed with this
# file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""The memory of an arena: mapping it, laying it out, finding frames in it.

A private arena is memory of this process: a file without a name, so that frames can be
mapped at further addresses, or anonymous.  A shared one is a file (backing.py) that
every process maps, at whatever address.

An arena is one range of bytes.  A physical address (``paddr``) is an offset
into it and a frame number is ``paddr / page size``; paddr, slot and bytes of a
frame follow from one another by arithmetic (arena.h).  The tables of the arena
lie in frames of the arena, at places that the early allocator chooses and the
header records.

Closing an arena gives its memory back to the system (or lets go of the file) but
keeps the range of addresses until the last Python object that refers to the arena is gone.  So a
thread that still runs an operation when another closes the arena meets zeroes,
never an unmapped page.
"""

import os
import sys
from time import time_ns

import numpy as np

cimport cython
from cpython.number cimport PyNumber_Index
from cpython.long cimport PyLong_AsUnsignedLongLong
from libc.errno cimport EINVAL, errno
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, strerror

from pageframe._core import backing
from pageframe._core.errors import ArenaClosedError, NotAlignedError, OutOfBoundError
from pageframe._core.slot cimport (
    PF_UNUSED, pf_add_relaxed_u32, pf_load_acquire_u32, pf_sub_relaxed_u32)

cdef extern from * nogil:
    """
    #include <sys/mman.h>
    #ifndef MADV_POPULATE_WRITE     /* Linux 5.14 */
    #define MADV_POPULATE_WRITE 23
    #endif
    """
    void *mmap(void *, size_t, int, int, int, long)
    int munmap(void *, size_t)
    int madvise(void *, size_t, int)
    int PROT_NONE, PROT_READ, PROT_WRITE
    int MAP_PRIVATE, MAP_SHARED, MAP_ANONYMOUS, MAP_NORESERVE, MAP_FIXED
    int MADV_POPULATE_WRITE
    void *MAP_FAILED

cdef extern from "<unistd.h>" nogil:
    int close(int)

cdef extern from *:
    """
    #ifdef Py_GIL_DISABLED
    #define PF_FREE_THREADED 1
    #else
    #define PF_FREE_THREADED 0
    #endif
    """
    bint FREE_THREADED "PF_FREE_THREADED"


cdef void *map_memory(void *at, size_t size, int protection, int flags, int fd) except NULL:
    cdef void *p = mmap(at, size, protection, flags, fd, 0)
    if p == MAP_FAILED:
        raise MemoryError(f"can't map {size} bytes: {strerror(errno).decode()}")
    return p


cdef void *map_anonymous(size_t size, int flags) except NULL:
    return map_memory(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | flags, -1)


cdef object plain_int(object value):
    """What stands for an integer as a plain one."""
    return int.__index__(PyNumber_Index(value))


cdef dict DEBUG_WORDS = {"poison": PF_POISON, "trace": PF_TRACE}


cdef uint32_t debug_flags() except? 0:
    """What the environment asks for in an arena that is made now."""
    cdef uint32_t flags = 0
    for word in os.environ.get("PAGEFRAME_DEBUG", "").split(","):
        word = word.strip()
        if word in DEBUG_WORDS:
            flags |= <uint32_t>DEBUG_WORDS[word]
        elif word:
            raise ValueError(
                f"PAGEFRAME_DEBUG is a list of {' and '.join(DEBUG_WORDS)} with commas between, "
                f"it can't have {word!r}")
    return flags


cdef frozenset debug_words(const pf_arena *a):
    return frozenset([word for word, flag in DEBUG_WORDS.items() if a.debug & <uint32_t>flag])


cdef unsigned log2(uint64_t value) noexcept:
    cdef unsigned shift = 0
    while value >> shift > 1:
        shift += 1
    return shift


cdef class Arena:
    def __cinit__(self, *args, **kwargs):
        self.classes = [None] * PF_TYPE_LIMIT
        self.type_ids = {}
        self.known_classes = []
        self.list_ids = []
        self.tables = ()
        self.fd = self.child_fd = self.map_fd = -1
        self.a.client = <uint32_t>-1

    def __dealloc__(self):
        cdef uint64_t frame
        if self.a.open and self.a.watched:      # what raw references still held
            for frame in range(self.a.frames):
                pf_let_go(&self.a, frame)
        if self.child_fd >= 0:
            close(self.child_fd)
        if self.mapping != NULL:
            munmap(self.mapping, self.mapping_size)
        if self.a.raw != NULL:
            munmap(self.a.raw, self.raw_size)
        if self.a.tags != NULL:
            munmap(self.a.tags, self.raw_size)
        free(self.own_lanes)
        free(self.own_rings)
        if self.fd >= 0:
            close(self.fd)
        if self.map_fd >= 0:
            close(self.map_fd)

    cdef int check_new(self) except -1:
        """Refuse to initialise an arena once more, which the user's code may have done on the way."""
        if self.mapping != NULL:
            raise TypeError(f"this {type(self).__name__} is initialised already")
        return 0

    cdef int map_private(
            self, uint64_t size, uint64_t page_size, uint64_t slot_size, bint mappable) except -1:
        """Map memory of this process alone; paddr 0 is aligned to the page size.

        What the arena is to keep for debugging must be known.
        """
        self.check_new()
        self.mapping_size = size + page_size
        self.mapping = map_anonymous(self.mapping_size, 0)
        self.set_geometry(size, page_size, slot_size)
        if mappable:
            self.map_fd = backing.create_private(size)
            self.map_file()
            self.a.file = True
        self.own_lanes = calloc(PF_LANES, sizeof(pf_lane))
        if self.own_lanes == NULL:
            raise MemoryError("no memory for the lanes")
        self.a.lanes = <pf_lane *>self.own_lanes
        if self.a.debug & PF_TRACE:
            self.own_rings = calloc(1, PF_RINGS_SIZE)
            if self.own_rings == NULL:
                raise MemoryError("no memory for the rings of events")
            self.a.rings = <pf_event *>self.own_rings
            self.a.recorded = True
        self.a.client = 0
        return 0

    cdef int map_file(self) except -1:
        """Show the file of a private arena at its addresses."""
        map_memory(
            self.a.base, self.a.size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE | MAP_FIXED,
            self.map_fd)
        return 0

    cdef int map_shared(
            self, int fd, uint64_t size, uint64_t areas, uint64_t page_size,
            uint64_t slot_size, bint writable) except -1:
        """Map a file: the arena, and behind it the areas of its clients."""
        cdef uint64_t span = size + areas
        cdef int mapped
        self.check_new()
        # With addresses before and behind that nobody can touch.
        self.mapping_size = span + 2 * page_size
        self.mapping = map_memory(
            NULL, self.mapping_size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1)
        self.set_geometry(size, page_size, slot_size)
        # A mapping, inherited ones included, keeps its open file description, and with it the
        # locks of that: so it is made through another one than that of the client's lock.
        mapped = backing.open_again(fd, os.O_RDWR if writable else os.O_RDONLY)
        try:
            map_memory(
                self.a.base, span, PROT_READ | PROT_WRITE if writable else PROT_READ,
                MAP_SHARED | MAP_NORESERVE | MAP_FIXED, mapped)
        finally:
            close(mapped)
        self.a.file = True
        self.span = span
        return 0

    cdef int set_geometry(self, uint64_t size, uint64_t page_size, uint64_t slot_size) except -1:
        cdef size_t address = (<size_t>self.mapping + page_size) & ~(page_size - 1)
        self.a.base = <unsigned char *>address
        self.a.size = size
        self.a.frames = size // page_size
        self.a.chunk_count = (self.a.frames + PF_CHUNK - 1) // PF_CHUNK
        self.a.page_shift = log2(page_size)
        self.a.slot_shift = log2(slot_size)
        # Raw references are counted by frame; the kernel backs only what is used.
        self.raw_size = self.a.frames * sizeof(uint32_t)
        self.a.raw = <uint32_t *>map_anonymous(self.raw_size, MAP_NORESERVE)
        return 0

    cdef int populate(self, uint64_t size) except -1:
        """Have the kernel give all the memory now."""
        cdef uint64_t i
        if madvise(self.a.base, size, MADV_POPULATE_WRITE) == 0:
            return 0
        if errno != EINVAL:
            raise MemoryError(f"can't populate {size} bytes: {strerror(errno).decode()}")
        for i in range(0, size, 4096):      # a kernel older than Linux 5.14
            self.a.base[i] = 0
        return 0

    cdef int place_tables(self, object early, uint32_t types, object sharing) except -1:
        """Let the early allocator place the tables; write slots and header.

        The header has no magic number and no checksum before `seal_header`.
        """
        cdef pf_arena *a = &self.a
        cdef uint64_t slot_size = 1ull << a.slot_shift
        cdef uint64_t frame
        cdef pf_header *header = <pf_header *>a.base
        cdef int i
        sizes = [0] * PF_TABLES
        sizes[PF_TABLE_HEADER] = PF_TABLE_ALIGN
        sizes[PF_TABLE_TYPES] = types * sizeof(pf_type)
        sizes[PF_TABLE_BITS] = a.chunk_count * PF_CHUNK_WORDS * 8
        sizes[PF_TABLE_CHUNKS] = a.chunk_count * sizeof(pf_chunk)
        sizes[PF_TABLE_SLOTS] = a.frames * slot_size
        if sharing is not None:
            sizes[PF_TABLE_CLIENTS] = sharing.clients * sizeof(pf_client)
            sizes[PF_TABLE_TICKETS] = sharing.tickets * sizeof(pf_ticket)
        offsets = [early.alloc(size, PF_TABLE_ALIGN) if size else 0 for size in sizes]
        if offsets[PF_TABLE_HEADER] != 0:
            raise MemoryError("paddr 0 must be usable: the header lies there")
        if sharing is not None:
            header.client_capacity = sharing.clients
            header.ticket_capacity = sharing.tickets
            header.area_size = sharing.area_size
            header.flags = sharing.flags
            header.ticket_ttl = sharing.ticket_ttl
            memcpy(header.id, <const unsigned char *><bytes>sharing.id, sizeof(header.id))
            offsets[PF_TABLE_AREAS] = a.size
            sizes[PF_TABLE_AREAS] = self.span - a.size
        header.flags |= a.debug
        header.version = PF_VERSION
        header.byte_order = PF_BYTE_ORDER
        header.size = a.size
        header.frames = a.frames
        header.page_size = 1u << a.page_shift
        header.slot_size = slot_size
        header.type_capacity = types
        for i in range(PF_TABLES):
            header.tables[i].offset = offsets[i]
            header.tables[i].size = sizes[i]
        self.find_tables(header)
        with nogil:
            for frame in range(a.frames):
                pf_slot_at(a, frame).count = PF_UNUSED
        return 0

    cdef int find_tables(self, const pf_header *header) except -1:
        """Set the pointers to the tables as a header says.

        That of an arena which was attached to is the copy that was checked: what lies at paddr 0
        may have been written over since.
        """
        cdef pf_arena *a = &self.a
        a.header = <pf_header *>a.base
        a.types = <pf_type *>(a.base + header.tables[PF_TABLE_TYPES].offset)
        a.bits = <uint64_t *>(a.base + header.tables[PF_TABLE_BITS].offset)
        a.chunks = <pf_chunk *>(a.base + header.tables[PF_TABLE_CHUNKS].offset)
        a.slots = a.base + header.tables[PF_TABLE_SLOTS].offset
        a.type_capacity = header.type_capacity
        a.client_capacity = header.client_capacity
        a.ticket_capacity = header.ticket_capacity
        a.area_size = header.area_size
        a.flags = header.flags
        a.debug = a.flags & (PF_POISON | PF_TRACE)
        if a.debug & PF_POISON:
            pf_watch(a, PF_WATCH_POISON)
        if a.client_capacity:
            a.clients = <pf_client *>(a.base + header.tables[PF_TABLE_CLIENTS].offset)
            a.tickets = <pf_ticket *>(a.base + header.tables[PF_TABLE_TICKETS].offset)
            a.areas = a.base + header.tables[PF_TABLE_AREAS].offset
        self.tables = tuple([
            (name, header.tables[i].offset, header.tables[i].size)
            for i, name in enumerate(backing.TABLES)])
        return 0

    cdef void seal_header(self, uint64_t own_frames) noexcept:
        """Complete the header: from now on the arena can be attached to."""
        self.a.header.own_frames = own_frames
        self.a.header.created = time_ns()
        self.a.header.magic = PF_MAGIC
        self.a.header.checksum = pf_header_checksum(self.a.header)

    cdef bint shut(self) except -1:
        """Have the other threads of this process begin nothing more; False if one works in the arena.

        They look whether it is open after whatever may have let others run, and then do their
        work.  Where there is no interpreter lock, those that had looked are waited for: to see
        the frames of all threads, each is stopped where it lets others run.
        """
        self.a.open = False
        self.stop_threads()
        # Acquire pairs with the release of those that have ended.
        if pf_load_acquire_u32(&self.working):
            self.a.open = True
            return False
        return True

    cdef int stop_threads(self) except -1:
        """Where there is no interpreter lock: wait until each thread is where it lets others run."""
        if FREE_THREADED:
            sys._current_frames()
        return 0

    cdef int release_memory(self) except -1:
        """Give the memory back to the system; the addresses stay reserved and read as zero."""
        self.a.open = self.a.closing = False
        map_memory(self.a.base, self.span or self.a.size, PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1)
        if self.map_fd >= 0:
            close(self.map_fd)
            self.map_fd = -1
        return 0

    cdef int check_open(self) except -1:
        """Refuse to use frames of an arena that is closed, or only looked at."""
        if self.looking:
            raise TypeError("a view only shows the arena: attach to use its frames")
        if not self.a.open:
            raise ArenaClosedError(self.why_closed or "the arena is closed")
        return 0

    cdef int check_shown(self) except -1:
        """Refuse to look at an arena that is closed."""
        if not self.looking and not self.a.open:
            raise ArenaClosedError(self.why_closed or "the arena is closed")
        return 0

    cdef bint make_room(self) except -1:
        """Try to free frames that nobody needs; whether it is worth looking again."""
        return False

    cdef object room_for(self, uint64_t frames, bint zeroed):
        """Fresh frames that lie one behind another, in the arena or mapped."""
        raise NotImplementedError

    cdef int file(self) except -1:
        """The file to map frames by."""
        self.check_open()
        if self.map_fd < 0:
            if not self.span:
                raise TypeError("the frames of an arena made with mappable=False can't be mapped")
            # Not that of the lock: a mapping keeps it open (map_shared).
            fd = backing.open_again(self.fd)    # may let other threads in
            with cython.critical_section(self):
                if self.map_fd < 0:
                    self.map_fd, fd = fd, -1
            if fd >= 0:
                close(fd)
        return self.map_fd

    cdef int64_t frame_at(self, object paddr) except -1:
        """The number of the frame that starts at a paddr, to be used."""
        paddr = as_int(paddr)
        self.check_open()
        return self.frame_number(paddr)

    cdef int64_t frame_number(self, object paddr) except -1:
        """The number of the frame that starts at a paddr; alignment is checked first."""
        paddr = as_int(paddr)
        self.check_shown()
        if paddr & ((1 << self.a.page_shift) - 1):
            raise NotAlignedError(
                f"paddr {paddr:#x} is not a multiple of the page size {1 << self.a.page_shift}")
        if not 0 <= paddr < self.a.size:
            raise OutOfBoundError(f"paddr {paddr:#x} is not within 0 .. {self.a.size:#x}")
        return PyLong_AsUnsignedLongLong(paddr) >> self.a.page_shift

    cdef int64_t frame_stop(self, object paddr) except -1:
        """The number past the frames that end at a paddr; may be the arena's end."""
        paddr = as_int(paddr)
        self.check_open()
        if paddr == self.a.size:
            return self.a.frames
        return self.frame_at(paddr)


@cython.no_gc_clear     # its end must find the arena, to count itself off
cdef class TableView:
    """Exports a table of the arena, read-only, and keeps the arena open."""

    def __cinit__(self, Arena mem not None):
        mem.check_shown()
        self.mem = mem
        pf_add_relaxed_u32(&mem.a.views, 1)

    def __dealloc__(self):
        if self.mem is not None:
            pf_sub_relaxed_u32(&self.mem.a.views, 1)

    def __getbuffer__(self, Py_buffer *buffer, int flags):
        fill_buffer(buffer, self, self.data, self.size, True, flags)


cdef object table_array(
        Arena mem, unsigned char *data, Py_ssize_t size, object dtype, object keep):
    """A read-only NumPy array over a table of the arena; keeps the arena open and 'keep' alive."""
    cdef TableView view = TableView(mem)
    view.keep = keep
    view.data = data
    view.size = size
    return np.frombuffer(view, dtype=dtype)
