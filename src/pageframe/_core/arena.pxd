# This Source Code Form is subject to the terms of the Mozilla Public
# License, v. 2.0. If a copy of the MPL was not distributed with this
# file, You can obtain one at https://mozilla.org/MPL/2.0/.

cimport cython
from cpython.buffer cimport PyBUF_FORMAT, PyBUF_ND, PyBUF_STRIDES, PyBUF_WRITABLE
from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t

from pageframe._core.slot cimport pf_slot


cdef extern from "arena.h" nogil:
    enum:
        PF_VERSION
        PF_TABLE_ALIGN
        PF_TABLE_HEADER
        PF_TABLE_TYPES
        PF_TABLE_CLIENTS
        PF_TABLE_TICKETS
        PF_TABLE_BITS
        PF_TABLE_CHUNKS
        PF_TABLE_SLOTS
        PF_TABLE_AREAS
        PF_TABLES
        PF_TYPE_NAME
        PF_UNTYPED
        PF_LINKED
        PF_ON_DROP
        PF_ARENA
        PF_OPAQUE
        PF_REGISTERED
        PF_CHUNK
        PF_CHUNK_SHIFT
        PF_CHUNK_WORDS
        PF_LANES
        PF_LANES_SIZE
        PF_TYPE_LIMIT
        PF_UNLINK_ON_LAST
        PF_RESERVED_MEMORY
        PF_POISON
        PF_TRACE
        PF_RING
        PF_RINGS_SIZE
        PF_CLIENT_FREE
        PF_CLIENT_USED
        PF_WATCH_TRACES
        PF_WATCH_ACCOUNTS
        PF_WATCH_POISON
    const uint64_t PF_MAGIC
    const uint32_t PF_BYTE_ORDER

    ctypedef struct pf_table:
        uint64_t offset
        uint64_t size

    ctypedef struct pf_header:
        uint64_t magic
        uint32_t version
        uint32_t byte_order
        uint64_t size
        uint64_t frames
        uint32_t page_size
        uint32_t slot_size
        uint32_t type_capacity
        uint32_t client_capacity
        pf_table tables[8]
        unsigned char id[16]
        uint64_t own_frames
        uint64_t area_size
        uint32_t ticket_capacity
        uint32_t flags
        uint64_t created
        uint64_t checksum
        uint32_t type_count
        uint32_t last_list_id
        uint64_t last_ticket
        uint32_t orphans
        uint64_t ticket_ttl
        uint32_t gone
        uint32_t joined

    ctypedef struct pf_client:
        uint32_t state
        uint32_t pid
        uint64_t started
        char name[112]

    ctypedef struct pf_ticket:
        uint64_t word
        uint64_t first
        uint64_t count
        uint64_t done
        uint64_t expires
        uint64_t started
        uint32_t pid
        uint32_t listed
        uint64_t issued

    ctypedef struct pf_type:
        uint64_t fingerprint
        uint32_t size
        uint32_t flags
        char name[224]

    ctypedef struct pf_chunk:
        int32_t free
        uint32_t lane

    ctypedef struct pf_lane:
        uint64_t kept
        uint64_t hint
        uint32_t chunk
        int32_t free
        uint64_t op
        uint64_t ops
        uint64_t events

    ctypedef struct pf_event:
        uint64_t serial
        uint64_t time
        uint64_t what
        uint32_t pid
        uint32_t unused

    ctypedef struct pf_type_info:
        uint32_t size
        uint32_t flags

    ctypedef struct pf_arena:
        unsigned char *base
        uint64_t size
        uint64_t frames
        uint64_t chunk_count
        uint32_t page_shift
        uint32_t slot_shift
        bint open
        bint closing
        bint leaving
        int file
        uint32_t views
        pf_header *header
        pf_type *types
        uint64_t *bits
        pf_chunk *chunks
        unsigned char *slots
        pf_lane *lanes
        uint32_t *raw
        uint32_t type_capacity
        uint32_t types_known
        pf_type_info type_info[128]
        uint32_t client_capacity
        uint32_t ticket_capacity
        uint64_t area_size
        uint32_t *ledger
        unsigned char *areas
        pf_client *clients
        pf_ticket *tickets
        uint32_t client
        uint32_t epoch
        pf_lane *(*my_lane)(pf_arena *) noexcept nogil
        uint32_t flags
        uint32_t debug
        bint recorded
        pf_event *rings
        uint32_t watched
        void (*untrack)(pf_arena *, uint64_t frame) noexcept nogil
        void (*uncharge)(pf_arena *, uint64_t frame) noexcept nogil
        uint32_t *tags

    void pf_watch(pf_arena *, uint32_t)
    void pf_let_go(pf_arena *, uint64_t frame)
    uint32_t pf_client_count(const pf_arena *)
    bint pf_client_used(const pf_arena *, uint32_t)
    pf_lane *pf_lanes_of(const pf_arena *, uint32_t)
    uint32_t *pf_ledger_of(const pf_arena *, uint32_t)
    pf_event *pf_rings_of(const pf_arena *, uint32_t)
    pf_slot *pf_slot_at(const pf_arena *, uint64_t)
    uint64_t pf_frame_of(const pf_arena *, const pf_slot *)
    unsigned char *pf_bytes_at(const pf_arena *, uint64_t)
    uint32_t pf_type_flags(const pf_arena *, const pf_slot *)
    bint pf_is_own(const pf_arena *, uint64_t frame)
    uint64_t pf_fnv1a(const void *, size_t)
    uint64_t pf_header_checksum(const pf_header *)
    uint64_t pf_mask(unsigned, unsigned)
    unsigned pf_ctz(uint64_t)
    unsigned pf_popcount(uint64_t)
    uint64_t pf_highest(uint64_t)


# Cleared by nobody: frames that die with it in one sweep still need its types.
@cython.no_gc_clear
cdef class Arena:
    """The memory of an arena and where its tables lie; see arena.pyx."""
    cdef pf_arena a
    cdef object __weakref__
    cdef list classes       # type id -> class, None where this process knows none
    cdef dict type_ids      # address of a class -> type id
    cdef list known_classes  # keeps these addresses theirs
    cdef list list_ids      # ids of dropped lists, to be used again
    cdef object user_allocator
    cdef bytearray given    # 1 for each frame that the user's allocator gave
    cdef tuple tables
    cdef void *mapping
    cdef size_t mapping_size
    cdef size_t raw_size
    cdef bint raw_used      # whether a raw reference was ever given out
    cdef void *own_lanes
    cdef void *own_rings
    cdef str why_closed
    cdef int map_fd         # the file whose pages the frames are, to map them by; -1: none, or not yet
    cdef int child_fd       # while this process forks: the child's file, which holds its lock or the copy
    # Of a shared arena.
    cdef int fd             # holds the lock of this client; -1: the arena is private
    cdef uint64_t span      # bytes of the file
    cdef bint looking       # this process is no client: it looks at the arena (arena_view.pyx)
    cdef readonly object path   # of its name; None: it has none
    cdef int registering    # how deep this process is in registering types
    cdef object reaping     # lock of the threads of this process that reap
    cdef unsigned long reaper   # which of them does; 0: none
    cdef int64_t child      # while this process forks: the number of the child's client
    cdef uint32_t working   # bulk operations of this process that let its other threads run

    cdef int check_new(self) except -1
    cdef int map_private(self, uint64_t size, uint64_t page_size, uint64_t slot_size,
                         bint mappable) except -1
    cdef int map_file(self) except -1
    cdef int map_shared(self, int fd, uint64_t size, uint64_t areas, uint64_t page_size,
                        uint64_t slot_size, bint writable) except -1
    cdef int set_geometry(self, uint64_t size, uint64_t page_size, uint64_t slot_size) except -1
    cdef int populate(self, uint64_t size) except -1
    cdef int place_tables(self, object early, uint32_t types, object sharing) except -1
    cdef int find_tables(self, const pf_header *header) except -1
    cdef void seal_header(self, uint64_t own_frames) noexcept
    cdef int release_memory(self) except -1
    cdef bint shut(self) except -1
    cdef int stop_threads(self) except -1
    cdef int check_open(self) except -1
    cdef int check_shown(self) except -1
    cdef bint make_room(self) except -1
    cdef object room_for(self, uint64_t frames, bint zeroed)
    cdef int file(self) except -1
    cdef int64_t frame_at(self, object paddr) except -1
    cdef int64_t frame_number(self, object paddr) except -1
    cdef int64_t frame_stop(self, object paddr) except -1


cdef uint32_t debug_flags() except? 0
cdef frozenset debug_words(const pf_arena *a)

cdef object plain_int(object value)


cdef inline object as_int(object value):
    """An integer that is just that: a subclass of int may compute as it likes.

    May run the user's code, so whatever is to be checked is checked afterwards.
    """
    return value if type(value) is int else plain_int(value)


cdef inline bint gives_back(const pf_arena *a) noexcept nogil:
    """Whether what a handle of this process holds is still to be given back."""
    return a.open or a.closing


cdef inline int fill_buffer(
        Py_buffer *buffer, object exporter, unsigned char *data, Py_ssize_t size, bint readonly,
        int flags) except -1:
    """Fill in a buffer of bytes.

    PyBuffer_FillInfo() would do, but it overwrites the reference to None that
    Cython has put there.
    """
    if readonly and flags & PyBUF_WRITABLE:
        raise BufferError("this memory is read-only")
    buffer.obj = exporter
    buffer.buf = data
    buffer.len = size
    buffer.readonly = readonly
    buffer.itemsize = 1
    buffer.format = <char *>"B" if flags & PyBUF_FORMAT else NULL
    buffer.ndim = 1
    buffer.shape = &buffer.len if flags & PyBUF_ND else NULL
    buffer.strides = &buffer.itemsize if flags & PyBUF_STRIDES == PyBUF_STRIDES else NULL
    buffer.suboffsets = NULL
    buffer.internal = NULL
    return 0


@cython.no_gc_clear
cdef class TableView:
    cdef Arena mem
    cdef object keep
    cdef unsigned char *data
    cdef Py_ssize_t size

cdef object table_array(Arena mem, unsigned char *data, Py_ssize_t size, object dtype,
                        object keep)
