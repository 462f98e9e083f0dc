# This Source Code Form is subject to the terms of the Mozilla Public
# License, v. 2.0. If a copy of the MPL was not distributed with this
# file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""The page table: which frame each page of an address space shows.

Four levels of nodes, each with 512 entries of 8 bytes, as the hardware of x86-64 has
them.  A node is a typed frame of the arena, `PageTableMeta`, that the space alone owns:
its count is UNIQUE, so nobody else can take a reference, and it is in the ledger of the
process like anything that is owned.  Nodes come when an entry needs them and go when
their last entry goes, the root included.

An entry maps frames or leads to a node a level below.  At level 1 it maps one frame; at
level 2 and 3 it maps 512 or 262,144 contiguous ones of one type, if page and frame are
aligned to as many.  An entry that maps holds one reference to each of its frames.

A change of a range is all or nothing: the nodes that it needs are allocated before
anything is touched (`nodes_needed`, `new_nodes`), so that writing it can't fail
(`rewrite`).

The table lies in memory that other processes may write, if the arena is shared.  So what
an entry leads to is checked before it is followed.
"""

from libc.stdlib cimport free, realloc
from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memset

from pageframe._core.arena cimport Arena, pf_arena, pf_bytes_at, pf_slot_at
from pageframe._core.handle cimport begin_life, put_unique
from pageframe._core.meta cimport TYPE_PAGE_TABLE
from pageframe._core.segment cimport give_up
from pageframe._core.slot cimport (
    PF_UNIQUE, pf_load_relaxed_u32, pf_load_relaxed_u64, pf_slot, pf_slot_count)
from pageframe._core.traces cimport track_many
from pageframe._core.vector cimport FrameVec, claim_for, empty_vec

cdef enum:
    FANOUT = 1 << FANOUT_SHIFT
    NODE_SIZE = FANOUT * 8

cdef uint64_t NONE = ~0ull

# The fields of PageTableMeta as they lie in the slot.
cdef struct node_meta:
    uint32_t level
    uint32_t entries


# -- runs --------------------------------------------------------------------------------------

cdef bint add_run(
        const pf_arena *a, run_list *list, uint64_t page, uint64_t count, uint64_t frame,
        uint64_t flags) noexcept nogil:
    """Add pages behind those of a list; False if there is no memory."""
    cdef page_run *last
    cdef size_t room
    cdef void *runs
    if list.count:
        last = &list.runs[list.count - 1]
        if (last.page + last.count == page and last.frame + last.count == frame
                and last.flags == flags
                and pf_slot_at(a, frame - 1).type_id == pf_slot_at(a, frame).type_id):
            last.count += count
            return True
    if list.count == list.room:
        room = 2 * list.room + 4
        runs = realloc(list.runs, room * sizeof(page_run))
        if runs == NULL:
            return False
        list.runs = <page_run *>runs
        list.room = room
    list.runs[list.count] = page_run(page, count, frame, flags)
    list.count += 1
    return True


cdef void free_runs(run_list *list) noexcept nogil:
    free(list.runs)
    memset(list, 0, sizeof(run_list))


# -- reading -----------------------------------------------------------------------------------

cdef inline uint64_t *entries_of(const pf_arena *a, uint64_t node) noexcept nogil:
    return <uint64_t *>pf_bytes_at(a, node)


cdef inline uint64_t entry_at(const pf_arena *a, uint64_t node, uint64_t i) noexcept nogil:
    """An entry, read once: what is checked is followed, though somebody writes over it meanwhile."""
    return pf_load_relaxed_u64(&entries_of(a, node)[i])


cdef inline node_meta *meta_of(const pf_arena *a, uint64_t node) noexcept nogil:
    return <node_meta *>&pf_slot_at(a, node).storage[0]


cdef inline unsigned level_of(const pf_arena *a, uint64_t node) noexcept nogil:
    return pf_load_relaxed_u32(&meta_of(a, node).level)


cdef inline uint64_t index_in(uint64_t page, unsigned level) noexcept nogil:
    """Which entry of a node leads to a page."""
    return page >> FANOUT_SHIFT * (level - 1) & (FANOUT - 1)


cdef bint is_node(const pf_arena *a, uint64_t frame, unsigned level) noexcept nogil:
    """Whether a frame is a node of a page table; level 0: of any level."""
    cdef pf_slot *slot
    if frame >= a.frames:
        return False
    slot = pf_slot_at(a, frame)
    return (slot.type_id == TYPE_PAGE_TABLE and pf_slot_count(slot) == PF_UNIQUE
            and (level == 0 or level_of(a, frame) == level))


cdef inline uint64_t child_of(const pf_arena *a, uint64_t entry, unsigned level) noexcept nogil:
    """The node of a level that an entry leads to; NONE if it leads to none."""
    cdef uint64_t child = frame_of_entry(entry)
    return child if entry & ENTRY_NODE and is_node(a, child, level) else NONE


cdef inline bint is_leaf(const pf_arena *a, uint64_t entry, unsigned level) noexcept nogil:
    return entry & ENTRY_LEAF and frame_of_entry(entry) + span(level) <= a.frames


cdef uint64_t lookup(const page_table *table, uint64_t page, unsigned *level) noexcept nogil:
    """The entry that maps a page; 0 if none does.  Level: of the entry, or of the hole."""
    cdef uint64_t node = table.root - 1
    cdef uint64_t entry
    level[0] = LEVELS + 1
    while node != NONE:
        level[0] -= 1
        entry = entry_at(table.arena, node, index_in(page, level[0]))
        if level[0] < LEVELS and is_leaf(table.arena, entry, level[0]):
            return entry
        if level[0] == 1:
            break
        node = child_of(table.arena, entry, level[0] - 1)
    return 0


cdef uint64_t next_mapped(const page_table *table, uint64_t page, uint64_t stop) noexcept nogil:
    """The first page in page .. stop - 1 that is mapped; stop if none is."""
    cdef unsigned level
    while page < stop:
        if lookup(table, page, &level):
            return page
        page = (page | (span(level) - 1)) + 1
    return stop


cdef bint collect(
        const page_table *table, uint64_t first, uint64_t stop, run_list *found) noexcept nogil:
    """List what a range shows; False if there is no memory."""
    cdef uint64_t page = next_mapped(table, first, stop)
    cdef uint64_t entry, offset, count
    cdef unsigned level
    found.count = 0
    while page < stop:
        entry = lookup(table, page, &level)
        offset = page & (span(level) - 1)
        count = min(span(level) - offset, stop - page)
        if not add_run(
                table.arena, found, page, count, frame_of_entry(entry) + offset, entry & ENTRY_SHOWN):
            return False
        page = next_mapped(table, page + count, stop)
    return True


cdef uint64_t count_mappings(const pf_arena *a, uint64_t node, uint64_t frame) noexcept nogil:
    """How many entries of a node map a frame."""
    cdef uint64_t found = 0
    cdef uint64_t i, entry
    cdef unsigned level = level_of(a, node)
    if not 1 <= level < LEVELS:
        return 0
    for i in range(FANOUT):
        entry = entry_at(a, node, i)
        found += is_leaf(a, entry, level) and frame - frame_of_entry(entry) < span(level)
    return found


cdef uint64_t count_pages(const pf_arena *a, uint64_t node) noexcept nogil:
    """How many pages the entries of a node map, those of nodes below it aside."""
    cdef uint64_t found = 0
    cdef uint64_t i
    cdef unsigned level = level_of(a, node)
    if not 1 <= level < LEVELS:
        return 0
    for i in range(FANOUT):
        if is_leaf(a, entry_at(a, node, i), level):
            found += span(level)
    return found


# -- writing -----------------------------------------------------------------------------------

cdef inline unsigned level_for(uint64_t page, uint64_t frame, uint64_t count) noexcept nogil:
    """The highest level of an entry that can map the first of so many pages."""
    cdef unsigned level = LEVELS - 1
    while level > 1 and (count < span(level) or (page | frame) & (span(level) - 1)):
        level -= 1
    return level


cdef inline unsigned split_level(uint64_t page, unsigned level) noexcept nogil:
    """The level at which an entry can begin at a page, if one of a level covers it."""
    while page & (span(level) - 1):
        level -= 1
    return level


cdef inline uint64_t missing(uint64_t page, unsigned have, unsigned level, uint64_t *counted) noexcept nogil:
    """How many nodes there are to be made above an entry of a level, and were not counted yet."""
    cdef uint64_t need = 0
    while have > level:
        have -= 1
        if counted[have] != page >> FANOUT_SHIFT * have:
            counted[have] = page >> FANOUT_SHIFT * have
            need += 1
    return need


cdef uint64_t nodes_needed(
        const page_table *table, uint64_t first, uint64_t stop, const run_list *runs) noexcept nogil:
    """How many nodes `rewrite` takes beside those that it frees."""
    cdef uint64_t need = 0
    cdef uint64_t counted[LEVELS + 1]       # the last node of each level that was counted
    cdef size_t i
    cdef uint64_t page, end
    cdef unsigned level, have
    cdef const page_run *run
    for level in range(LEVELS + 1):
        counted[level] = NONE
    if lookup(table, first, &have):
        need += missing(first, have, split_level(first, have), counted)
    for i in range(runs.count):
        run = &runs.runs[i]
        page = run.page
        end = run.page + run.count
        while page < end:
            level = level_for(page, run.frame + page - run.page, end - page)
            lookup(table, page, &have)
            need += missing(page, have, level, counted)
            # The rest of a node's pages are in the same node.
            page = (page + span(level) if level > 1
                    else min(end, (page | (FANOUT - 1)) + 1))
    if lookup(table, stop, &have):
        need += missing(stop, have, split_level(stop, have), counted)
    return need


cdef uint64_t take_node(page_table *table, node_stock *stock, unsigned level) noexcept nogil:
    """A node without entries from the stock; NONE if that is empty."""
    cdef uint64_t node
    if stock.count == 0:
        return NONE
    stock.count -= 1
    node = stock.frames[stock.count]
    meta_of(table.arena, node).level = level
    meta_of(table.arena, node).entries = 0
    table.nodes += 1
    return node


cdef void free_node(page_table *table, node_stock *stock, uint64_t node) noexcept nogil:
    """Put a node without entries into the stock."""
    if stock.count < stock.room:
        stock.frames[stock.count] = node
        stock.count += 1
        table.nodes -= 1


cdef bint put_entry(
        page_table *table, node_stock *stock, uint64_t page, unsigned level,
        uint64_t entry) noexcept nogil:
    """Set the entry of a page at a level; False if nodes run out."""
    cdef uint64_t node = table.root - 1
    cdef uint64_t child
    cdef uint64_t *place
    cdef unsigned at = LEVELS
    if node == NONE:
        node = take_node(table, stock, LEVELS)
        if node == NONE:
            return False
        table.root = node + 1
    while True:
        place = &entries_of(table.arena, node)[index_in(page, at)]
        if at == level:
            meta_of(table.arena, node).entries += place[0] == 0
            place[0] = entry
            return True
        child = child_of(table.arena, pf_load_relaxed_u64(place), at - 1)
        if child == NONE:
            child = take_node(table, stock, at - 1)
            if child == NONE:
                return False
            meta_of(table.arena, node).entries += place[0] == 0
            place[0] = child << ENTRY_FRAME | ENTRY_NODE
        node = child
        at -= 1


cdef bint split_at(page_table *table, node_stock *stock, uint64_t page) noexcept nogil:
    """Have an entry begin at a page, if one covers it; False if nodes run out."""
    cdef unsigned level
    cdef uint64_t i, node
    cdef uint64_t entry = lookup(table, page, &level)
    while entry and page & (span(level) - 1):
        node = take_node(table, stock, level - 1)
        if node == NONE:
            return False
        for i in range(FANOUT):
            entries_of(table.arena, node)[i] = entry + (i * span(level - 1) << ENTRY_FRAME)
        meta_of(table.arena, node).entries = FANOUT
        put_entry(table, stock, page, level, node << ENTRY_FRAME | ENTRY_NODE)
        entry = lookup(table, page, &level)
    return True


cdef void clear_in(
        page_table *table, node_stock *stock, uint64_t node, unsigned level, uint64_t base,
        uint64_t first, uint64_t stop) noexcept nogil:
    """Empty the entries of a node, which covers the pages from base on, within a range."""
    cdef uint64_t i = (max(first, base) - base) // span(level)
    cdef uint64_t end = min(<uint64_t>FANOUT, (stop - base + span(level) - 1) // span(level))
    cdef uint64_t child
    cdef uint64_t *entries = entries_of(table.arena, node)
    while i < end:
        if entries[i]:
            if level > 1:
                child = child_of(table.arena, pf_load_relaxed_u64(&entries[i]), level - 1)
                if child != NONE:
                    clear_in(table, stock, child, level - 1, base + i * span(level), first, stop)
                    if meta_of(table.arena, child).entries:
                        i += 1
                        continue
                    free_node(table, stock, child)
            entries[i] = 0
            meta_of(table.arena, node).entries -= 1
        i += 1


cdef bint rewrite(
        page_table *table, uint64_t first, uint64_t stop, const run_list *runs,
        node_stock *stock) noexcept nogil:
    """Have a range show these runs and nothing else; False if nodes run out, in a damaged arena.

    References are the caller's business.
    """
    cdef size_t i
    cdef uint64_t page, frame, left
    cdef unsigned level
    if not split_at(table, stock, first) or not split_at(table, stock, stop):
        return False
    if table.root:
        clear_in(table, stock, table.root - 1, LEVELS, 0, first, stop)
    for i in range(runs.count):
        page = runs.runs[i].page
        frame = runs.runs[i].frame
        left = runs.runs[i].count
        while left:
            level = level_for(page, frame, left)
            if not put_entry(
                    table, stock, page, level,
                    frame << ENTRY_FRAME | ENTRY_LEAF | runs.runs[i].flags):
                return False
            page += span(level)
            frame += span(level)
            left -= span(level)
    if table.root and meta_of(table.arena, table.root - 1).entries == 0:
        free_node(table, stock, table.root - 1)
        table.root = 0
    return True


# -- frames ------------------------------------------------------------------------------------

cdef FrameVec new_nodes(Arena mem, uint64_t count, uint64_t room):
    """Frames for nodes, UNIQUE, with room for those that a change frees; for `release_nodes`.

    Raises
    ------
    OutOfFramesError
        If so many are not free; none is taken then.
    """
    cdef FrameVec nodes = empty_vec(mem, count + room)
    cdef uint64_t i
    cdef pf_slot *slot
    cdef node_meta nothing = node_meta(0, 0)
    if count:
        claim_for(nodes, count)
    for i in range(count):
        slot = pf_slot_at(&mem.a, nodes.frames[i])
        if slot.type_id != 0:
            memset(pf_bytes_at(&mem.a, nodes.frames[i]), 0, NODE_SIZE)
        # Whoever knows only the paddr can take no reference, not even before it is in a table.
        begin_life(slot, TYPE_PAGE_TABLE, <unsigned char *>&nothing, sizeof(nothing), PF_UNIQUE)
    track_many(mem, nodes.frames, count)
    nodes.count = count
    nodes.epoch = mem.a.epoch
    return nodes


cdef void release_nodes(FrameVec nodes) noexcept:
    """Give up the nodes that a change has not used, and those that it has freed."""
    cdef Py_ssize_t i
    if nodes.epoch == nodes.mem.a.epoch:    # else they are the parent's
        for i in range(nodes.count):
            put_unique(nodes.mem, pf_slot_at(&nodes.mem.a, nodes.frames[i]))
    nodes.count = 0


cdef void release_runs(Arena mem, const run_list *runs) noexcept:
    """Give up the references that entries had.  May run an on_drop."""
    cdef size_t i
    for i in range(runs.count):
        give_up(mem, runs.runs[i].frame, runs.runs[i].count)


cdef void release_all(Arena mem, page_table *table) noexcept:
    """Give up all nodes of a table, and all references that its entries have."""
    cdef uint64_t root = table.root - 1
    table.root = table.nodes = 0
    if is_node(&mem.a, root, LEVELS):
        release_node(mem, root, LEVELS, mem.a.epoch)


cdef bint release_node(Arena mem, uint64_t node, unsigned level, uint32_t epoch) noexcept:
    """Give up a node and all below; False in a child that an on_drop has forked: they are its parent's."""
    cdef uint64_t i, entry
    cdef page_run run
    cdef run_list runs
    for i in range(FANOUT):
        entry = entry_at(&mem.a, node, i)
        if level > 1 and is_node(&mem.a, child_of(&mem.a, entry, level - 1), level - 1):
            if not release_node(mem, frame_of_entry(entry), level - 1, epoch):
                return False
        elif level < LEVELS and is_leaf(&mem.a, entry, level):
            run = page_run(0, span(level), frame_of_entry(entry), 0)
            runs.runs = &run
            runs.count = runs.room = 1
            release_runs(mem, &runs)
            if mem.a.epoch != epoch:
                return False
    put_unique(mem, pf_slot_at(&mem.a, node))
    return True
