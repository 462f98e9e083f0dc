# This Source Code Form is subject to the terms of the Mozilla Public
# License, v. 2.0. If a copy of the MPL was not distributed with this
# file, You can obtain one at https://mozilla.org/MPL/2.0/.

from libc.stdint cimport uint64_t

from pageframe._core.arena cimport Arena, pf_arena
from pageframe._core.vector cimport FrameVec

# An entry: frame << ENTRY_FRAME | flags; 0 maps nothing.
cdef enum:
    ENTRY_READ = 1
    ENTRY_WRITE = 2
    ENTRY_EXECUTE = 4
    ENTRY_ACCESS = 7
    ENTRY_COPY = 8      # shared with a snapshot: to be copied before it is written
    ENTRY_LEAF = 16     # maps frames; else leads to the node below
    ENTRY_NODE = 32
    ENTRY_WANTED = 64   # could be written before the snapshot
    ENTRY_SHOWN = ENTRY_ACCESS | ENTRY_COPY | ENTRY_WANTED
    ENTRY_FRAME = 12
    LEVELS = 4          # of the root
    FANOUT_SHIFT = 9    # 512 entries a node

# Pages that show contiguous frames of one type in the same way.
cdef struct page_run:
    uint64_t page
    uint64_t count
    uint64_t frame
    uint64_t flags      # of ENTRY_SHOWN

cdef struct run_list:
    page_run *runs      # by page
    size_t count
    size_t room

cdef struct page_table:
    pf_arena *arena
    uint64_t root       # frame + 1; 0: nothing is mapped
    uint64_t nodes      # frames of the table

# Nodes for a change of a table, which takes them from here and puts here what it frees.
cdef struct node_stock:
    uint64_t *frames
    size_t count
    size_t room


cdef bint add_run(
    const pf_arena *a, run_list *list, uint64_t page, uint64_t count, uint64_t frame,
    uint64_t flags) noexcept nogil
cdef void free_runs(run_list *list) noexcept nogil

cdef uint64_t lookup(const page_table *table, uint64_t page, unsigned *level) noexcept nogil
cdef uint64_t next_mapped(const page_table *table, uint64_t page, uint64_t stop) noexcept nogil
cdef bint collect(const page_table *table, uint64_t first, uint64_t stop, run_list *found) noexcept nogil
cdef uint64_t nodes_needed(
    const page_table *table, uint64_t first, uint64_t stop, const run_list *runs) noexcept nogil
cdef bint rewrite(
    page_table *table, uint64_t first, uint64_t stop, const run_list *runs,
    node_stock *stock) noexcept nogil
cdef uint64_t count_pages(const pf_arena *a, uint64_t node) noexcept nogil
cdef uint64_t count_mappings(const pf_arena *a, uint64_t node, uint64_t frame) noexcept nogil
cdef bint is_node(const pf_arena *a, uint64_t frame, unsigned level) noexcept nogil
cdef FrameVec new_nodes(Arena mem, uint64_t count, uint64_t room)
cdef void release_nodes(FrameVec nodes) noexcept
cdef void release_all(Arena mem, page_table *table) noexcept
cdef void release_runs(Arena mem, const run_list *runs) noexcept


cdef inline uint64_t span(unsigned level) noexcept nogil:
    """Pages that an entry of a level covers."""
    return 1ull << FANOUT_SHIFT * (level - 1)


cdef inline uint64_t frame_of_entry(uint64_t entry) noexcept nogil:
    return entry >> ENTRY_FRAME
