# This Source Code Form is subject to the terms of the Mozilla Public
# License, v. 2.0. If a copy of the MPL was not distributed with this
# file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Address spaces: frames at virtual addresses.

A space is a range of addresses of this process, and a page table that says which frame
each page of it shows.  Addresses in a space count from 0; ``space.base + va`` is that of
the process.  What the table says is real: the kernel maps the frame there.

A cursor has a range of the space to itself, against all other cursors, and changes what
it shows.  To map takes the reference out of a handle and puts it into the table; to
unmap gives it up.  Every change is all or nothing.  It has two halves.  The first, which
may be begun anew any number of times, checks everything and gets hold of whatever the
change may need, which may run code of the user's and let other threads in.  The second
runs no foreign code, and only the kernel can still refuse it, in which case what was
there is shown again.

A view of a range keeps its pages mapped: while it lives they can't be unmapped, nor
protected against what it may do.  A space that is closed goes with its last view.

Fork (fork.pyx).  The nodes of a table are UNIQUE and stay with the parent, so the child of
a process that shares an arena builds tables of its own, from what the spaces of its parent
showed at the fork.  The child of a process with a private arena has a copy of the tables
with the rest, and maps its own frames where its parent's were.
"""

import os
import sys
import threading
import weakref
from threading import Lock, get_ident
from time import monotonic

import numpy

cimport cython
from libc.errno cimport ENOMEM
from libc.stdint cimport int64_t, uint64_t
from libc.string cimport memcpy, memset, strerror

from pageframe._core.arena cimport (
    PF_UNTYPED, Arena, as_int, fill_buffer, gives_back, pf_bytes_at, pf_frame_of, pf_slot_at, pf_type_flags)
from pageframe._core.array cimport VirtualBytes, array_over, geometry, lay_out
from pageframe._core.early import parse_size
from pageframe._core.errors import (
    AddressInUseError, CopyOnWriteError, FrameTypeError, NotAlignedError, NotMappedError,
    OutOfBoundError, RangeInUseError, RangeLockedError, SpaceClosedError)
from pageframe._core.fork cimport alive, with_spaces
from pageframe._core.frame cimport Frame, UFrame, clone_frame
from pageframe._core.handle cimport Holder, movable
from pageframe._core.kernel_map cimport (
    blank, charge, give_up_range, hide, mappings_of, protect, reserve, show)
from pageframe._core.ledger cimport PF_EVENT_MAP, PF_EVENT_UNMAP, pf_note
from pageframe._core.page_property import PageProperty
from pageframe._core.page_table cimport (
    ENTRY_ACCESS, ENTRY_COPY, ENTRY_EXECUTE, ENTRY_READ, ENTRY_WANTED, ENTRY_WRITE, LEVELS, add_run, collect,
    frame_of_entry, free_runs, lookup, new_nodes, next_mapped, node_stock, nodes_needed, page_run,
    release_all, release_nodes, release_runs, rewrite, run_list, span)
from pageframe._core.segment cimport Segment, USegment, clone_range, give_up, hold_range
from pageframe._core.slot cimport pf_slot_count
from pageframe._core.vector cimport FrameVec, alloc_frames, empty_vec, forget_frames, hold_all

cdef extern from "<unistd.h>" nogil:
    long sysconf(int)
    int _SC_PAGESIZE

cdef uint64_t NOTHING = 1ull << 62      # a frame that no run joins

cdef list properties = [
    PageProperty(bool(flags & ENTRY_READ), bool(flags & ENTRY_WRITE), bool(flags & ENTRY_EXECUTE))
    if flags & ENTRY_READ or not flags & ENTRY_WRITE else None
    for flags in range(ENTRY_ACCESS + 1)]


cdef uint64_t flags_of(object prop) except? 0:
    """The flags of an entry for a property; None stands for the default one."""
    if prop is None:
        return ENTRY_READ | ENTRY_WRITE
    if not isinstance(prop, PageProperty):
        raise TypeError(f"a PageProperty is wanted, not {type(prop).__name__}")
    return ((ENTRY_READ if prop.read else 0) | (ENTRY_WRITE if prop.write else 0)
            | (ENTRY_EXECUTE if prop.execute else 0))


cdef int raise_errno(int error, str what) except -1:
    if error == ENOMEM:
        raise MemoryError(f"{what}: {strerror(error).decode()}")
    raise OSError(error, f"{what}: {strerror(error).decode()}")


# -- changes -----------------------------------------------------------------------------------

@cython.final
@cython.no_gc       # its end must find the nodes, to give them up
cdef class Change:
    """What an operation does to a range of a space."""
    cdef VmSpace space
    cdef uint64_t first, stop
    cdef run_list old, new
    cdef FrameVec nodes         # for the table
    cdef size_t room            # of the vector

    def __dealloc__(self):
        free_runs(&self.old)
        free_runs(&self.new)
        self.leave_nodes()

    cdef void leave_nodes(self) noexcept:
        """Give up the nodes that are in no table."""
        if self.nodes is not None:
            release_nodes(self.nodes)
            self.nodes = None

    cdef int look(self, uint64_t first, uint64_t stop) except -1:
        """Begin anew, with what a range shows now."""
        self.first, self.stop = first, stop
        self.new.count = 0
        if not collect(&self.space.table, first, stop, &self.old):
            raise MemoryError("no memory to list what a range shows")
        return 0

    cdef int add(self, uint64_t page, uint64_t count, uint64_t frame, uint64_t flags) except -1:
        """Have pages show frames; in the order of their addresses."""
        if not add_run(self.space.table.arena, &self.new, page, count, frame, flags):
            raise MemoryError("no memory to list what a range is to show")
        return 0

    cdef bint ready(self) except -1:
        """Whether there are the nodes that it takes; if not they are had now: look again."""
        cdef uint64_t need = nodes_needed(&self.space.table, self.first, self.stop, &self.new)
        # Nodes that may become free: all that lie within the range or cross its ends.
        cdef uint64_t room = (
            min(self.space.table.nodes, (self.stop - self.first) // 500 + 4 * LEVELS)
            if self.old.count else 0)
        if need + room == 0:
            return True
        if (self.nodes is not None and self.nodes.epoch == self.space.mem.a.epoch
                and self.nodes.count >= <Py_ssize_t>need and self.room - self.nodes.count >= room):
            return True
        self.leave_nodes()      # they go back first
        self.nodes = new_nodes(self.space.mem, need, room)
        self.room = need + room
        return False

    cdef int carry_out(self, bint same_frames) except -1:
        """Do it: first the kernel, then the table.  References are the caller's business."""
        cdef VmSpace space = self.space
        cdef page_run before = space_before(space, self.first)
        cdef page_run behind = space_behind(space, self.stop)
        cdef int64_t mappings = (
            mappings_of(before, &self.new, behind) - mappings_of(before, &self.old, behind))
        cdef int error
        fd = space.mem.file()
        if not same_frames:
            note_runs(space.mem, PF_EVENT_UNMAP, &self.old)
            note_runs(space.mem, PF_EVENT_MAP, &self.new)
        if mappings > 0:
            charge(mappings)
        error = change_kernel(space, fd, &self.old, &self.new, same_frames)
        if error:
            if mappings > 0:
                charge(-mappings)
            if change_kernel(space, fd, &self.new, &self.old, same_frames):
                space.why_over = "the system could neither change a range of it nor leave it as it was"
            raise_errno(error, f"can't map {self.stop - self.first} pages")
        if mappings < 0:
            charge(mappings)
        space.where.mappings += mappings
        return self.write()

    cdef int write(self) except -1:
        cdef node_stock stock
        cdef bint done
        memset(&stock, 0, sizeof(stock))
        if self.nodes is not None:
            stock.frames, stock.count, stock.room = self.nodes.frames, self.nodes.count, self.room
        done = rewrite(&self.space.table, self.first, self.stop, &self.new, &stock)
        if self.nodes is not None:
            self.nodes.count = stock.count
        if not done:
            hide(&self.space.where, &self.new)      # what nobody holds must not be seen
            self.space.table.root = 0
            self.space.why_over = "its page table is damaged"
            self.space.check()
        return 0


cdef void note_runs(Arena mem, unsigned kind, const run_list *runs) noexcept:
    """Note an event of each run."""
    cdef size_t i
    for i in range(runs.count):
        pf_note(&mem.a, kind, runs.runs[i].frame)


cdef Change new_change(VmSpace space):
    cdef Change change = Change.__new__(Change)
    change.space = space
    return change


cdef int change_kernel(
        VmSpace space, int fd, const run_list *old, const run_list *new, bint same_frames) noexcept:
    """Show other runs than before; 0, or why the system refuses."""
    if same_frames:
        return protect(&space.where, new)
    if new.count:
        return show(&space.where, fd, new)
    return hide(&space.where, old)


cdef page_run space_before(VmSpace space, uint64_t page) noexcept:
    """What is to the left of a page, for mappings_of(): a run, a hole or the end of the space."""
    cdef unsigned level
    cdef uint64_t entry
    if page == 0:
        return page_run(<uint64_t>-1, 1, NOTHING, 0)
    entry = lookup(&space.table, page - 1, &level)
    if not entry:
        return page_run(page - 2, 1, NOTHING, 0)
    return page_run(page - 1, 1, frame_of_entry(entry) + ((page - 1) & (span(level) - 1)), entry)


cdef page_run space_behind(VmSpace space, uint64_t page) noexcept:
    """What is to the right of a range that ends at a page."""
    cdef unsigned level
    cdef uint64_t entry
    if page == space.pages:
        return page_run(page, 1, NOTHING, 0)
    entry = lookup(&space.table, page, &level)
    if not entry:
        return page_run(page + 1, 1, NOTHING, 0)
    return page_run(page, 1, frame_of_entry(entry) + (page & (span(level) - 1)), entry)


# -- handles -----------------------------------------------------------------------------------

cdef Holder seize(Arena mem, object handle):
    """Take the references out of a handle, for one that no other thread knows."""
    cdef Holder own
    if not isinstance(handle, (Frame, Segment, FrameVec)):
        raise FrameTypeError(f"UFrame, USegment and FrameVec can be mapped, not {type(handle).__name__}")
    if (<Holder>handle).mem is not mem:
        raise FrameTypeError(
            f"{handle!r} belongs to another arena, or to one that this process has attached to twice: "
            "its mem can map it")
    if isinstance(handle, Frame):
        own = UFrame.__new__(UFrame)
    elif isinstance(handle, Segment):
        own = USegment.__new__(USegment)
    else:
        own = FrameVec.__new__(FrameVec)
    own.mem = mem
    with cython.critical_section(handle):
        if not pf_type_flags(&mem.a, pf_slot_at(&mem.a, first_frame(handle))) & PF_UNTYPED:
            raise FrameTypeError(f"{handle!r} is typed: only frames of an UntypedFrameMeta can be mapped")
        move(handle, own)
    return own


cdef uint64_t first_frame(Holder handle) except? 0:
    """The first frame of a handle that can be moved."""
    if isinstance(handle, Frame):
        return pf_frame_of(&handle.mem.a, movable(<Frame>handle))
    if isinstance(handle, Segment):
        (<Segment>handle).check_movable()
        return (<Segment>handle).first
    (<FrameVec>handle).check()
    return (<FrameVec>handle).frames[0]


cdef void move(Holder handle, Holder empty) noexcept:
    """Take the references of a handle into an empty one of its class."""
    if isinstance(handle, Frame):
        empty.slot, handle.slot = handle.slot, NULL
    elif isinstance(handle, Segment):
        (<Segment>empty).first = (<Segment>handle).first
        (<Segment>empty).count, (<Segment>handle).count = (<Segment>handle).count, 0
    else:
        (<FrameVec>empty).count = (<FrameVec>handle).count
        (<FrameVec>empty).frames, (<FrameVec>handle).frames = (<FrameVec>handle).frames, NULL


cdef int add_handle(Change change, Holder handle, uint64_t *page, uint64_t flags) except -1:
    """Have the next pages show the frames of a handle of ours."""
    cdef uint64_t first = first_frame(handle)
    cdef Py_ssize_t i
    cdef Py_ssize_t count = 1
    if isinstance(handle, FrameVec):
        count = (<FrameVec>handle).count
        for i in range(count):
            change.add(page[0] + i, 1, (<FrameVec>handle).frames[i], flags)
    else:
        if isinstance(handle, Segment):
            count = (<Segment>handle).count
        change.add(page[0], count, first, flags)
    page[0] += count
    return 0


cdef void forget_handle(Holder handle) noexcept:
    """Take the references out of a handle of ours: they are the table's now."""
    if isinstance(handle, Frame):
        handle.slot = NULL
    elif isinstance(handle, Segment):
        (<Segment>handle).count = 0
    else:
        forget_frames(handle)


cdef FrameVec frames_at(VmSpace space, uint64_t first, uint64_t count):
    """References of their own to the frames of pages, all of which are mapped and of one type."""
    cdef FrameVec vec
    cdef uint64_t i, entry
    cdef unsigned level
    for i in range(count):      # before there is room for all of them: a space may be very large
        if not lookup(&space.table, first + i, &level):
            raise NotMappedError(f"nothing is mapped at {(first + i) << space.mem.a.page_shift:#x}")
    vec = empty_vec(space.mem, count)
    with cython.critical_section(space):
        for i in range(count):
            entry = lookup(&space.table, first + i, &level)
            if not entry:       # unmapped meanwhile, by another thread
                raise NotMappedError(f"nothing is mapped at {(first + i) << space.mem.a.page_shift:#x}")
            vec.frames[i] = frame_of_entry(entry) + ((first + i) & (span(level) - 1))
            if (pf_slot_at(&space.mem.a, vec.frames[i]).type_id
                    != pf_slot_at(&space.mem.a, vec.frames[0]).type_id):
                raise FrameTypeError(
                    "these frames are not of one metadata type, as those of a vector are; that of copies "
                    "is what make_writable() was told by meta")
        hold_all(space.mem, vec.frames, count)
    vec.count = count
    return vec


# -- spaces ------------------------------------------------------------------------------------

# Those of this process that still have addresses, by their id(): a subclass may compare as it likes.
spaces = weakref.WeakValueDictionary()


cdef VmSpace new_space(Arena mem, object pages):
    cdef VmSpace space = VmSpace.__new__(VmSpace)
    set_up(space, mem, pages)
    return space


cdef bint can_map(Arena mem) noexcept:
    """Whether frames of an arena can be mapped at all."""
    return (mem.span or mem.map_fd >= 0) and (1ull << mem.a.page_shift) >= <uint64_t>sysconf(_SC_PAGESIZE)


cdef int set_up(VmSpace space, Arena mem, object pages) except -1:
    mem.file()
    if not can_map(mem):
        raise ValueError(
            f"the system maps pages of {sysconf(_SC_PAGESIZE)} bytes, the frames of this arena have "
            f"{1 << mem.a.page_shift}")
    if pages > span(LEVELS + 1) or pages << mem.a.page_shift >= 2 ** 64:
        raise ValueError(f"a space has {span(LEVELS + 1)} pages at the most, not {pages}")
    with cython.critical_section(space):
        if space.mem is not None:
            raise TypeError("this space is initialised already")
        reserve(&space.where, pages << mem.a.page_shift, mem.a.page_shift)
        space.locks = []
        space.pages = pages
        space.table.arena = &mem.a
        space.mem = mem
    spaces[id(space)] = space
    return 0


@cython.no_gc_clear     # its end must find the arena, to give the frames up
cdef class VmSpace:
    """A range of addresses in which frames can be mapped.

    Addresses in a space count from 0 and are multiples of the arena's page size where
    a page is meant. No memory lies behind an address until a frame is mapped there.

    Parameters
    ----------
    mem : PhysicalMemory
        Whose frames can be mapped.
    size : int or str
        Bytes, or a string like ``"1 GiB"``; a multiple of the page size.

    Raises
    ------
    ValueError
        If the size makes no sense, or the arena's frames are smaller than the system's pages.
    TypeError
        If the arena was made with ``mappable=False``.
    MapBudgetError
        If the process has as many kernel mappings as it may have.
    MemoryError
        If the process has not so many addresses.

    Examples
    --------
    >>> mem = PhysicalMemory("1 MiB")
    >>> vm = VmSpace(mem, "1 GiB")
    >>> with vm.cursor(0, 8192) as cursor:
    ...     cursor.map(mem.alloc_frame())
    ...     cursor.map(mem.alloc_frame())
    >>> vm.view(0, 8192)[4090:4100] = b"over pages"
    >>> vm.close()
    """

    def __init__(self, Arena mem not None, size):
        if self.mem is not None:
            raise TypeError("this space is initialised already")
        size = parse_size(size)
        mem.check_open()
        page_size = 1 << mem.a.page_shift
        if size <= 0 or size % page_size:
            raise ValueError(
                f"size must be a positive multiple of the page size {page_size}, not {size}")
        set_up(self, mem, size // page_size)

    def __dealloc__(self):
        self.tear_down()
        free_runs(&self.at_fork)

    cdef int check(self) except -1:
        if self.mem is None:
            raise SpaceClosedError("this space was never initialised")
        self.mem.check_open()
        if self.over:
            raise SpaceClosedError("the space is closed")
        if self.why_over is not None:
            raise SpaceClosedError(f"the space can't be used: {self.why_over}")
        return 0

    cdef uint64_t page_at(self, object va) except? 0:
        """The page that starts at an address, or that would start at the end; alignment is checked first."""
        if va & ((1 << self.mem.a.page_shift) - 1):
            raise NotAlignedError(
                f"address {va:#x} is not a multiple of the page size {1 << self.mem.a.page_shift}")
        if not 0 <= va <= self.where.size:
            raise OutOfBoundError(f"address {va:#x} is not within 0 .. {self.where.size:#x}")
        return va >> self.mem.a.page_shift

    cdef int interval(self, object start, object stop, uint64_t *first, uint64_t *end) except -1:
        """The pages of a range that the user gives: a range, or two addresses; to the end by default."""
        if isinstance(start, range):
            if stop is not None:
                raise TypeError("a range has a stop of its own")
            if start.step != 1:
                raise ValueError(f"a range of addresses is contiguous: step must be 1, not {start.step}")
            start, stop = start.start, start.stop
        start = as_int(start)
        if stop is not None:
            stop = as_int(stop)
        self.check()
        first[0] = self.page_at(start)
        end[0] = self.pages if stop is None else self.page_at(stop)
        if first[0] >= end[0]:
            raise OutOfBoundError(
                f"the range {start:#x} .. {self.where.size if stop is None else stop:#x} is empty")
        return 0

    @property
    def base(self):
        """Address in the process at which the space begins."""
        self.check()
        return <size_t>self.where.base

    @property
    def size(self):
        """Bytes of address space."""
        self.check()
        return self.where.size

    @property
    def page_size(self):
        """Bytes of a page: those of a frame."""
        self.check()
        return 1 << self.mem.a.page_shift

    @property
    def table_frames(self):
        """Frames that hold the page table."""
        self.check()
        return self.table.nodes

    @property
    def kernel_mappings(self):
        """Mappings of the kernel's that the space takes; see `map_budget`."""
        self.check()
        return self.where.mappings

    @property
    def closed(self):
        """Whether the space has been closed."""
        return self.over or self.mem is None

    def cursor(self, start=0, stop=None, *, timeout=None):
        """Lock a range and return a cursor at its start.

        Parameters
        ----------
        start, stop : int
            Addresses of the first page and past the last, the end of the space by
            default; or one ``range`` of addresses.
        timeout : float, optional
            Seconds to wait for cursors of other threads that overlap, in all; for ever by default.

        Returns
        -------
        VmCursor
            To be closed: use it in a ``with`` block.

        Raises
        ------
        NotAlignedError, OutOfBoundError
            If this is no range of pages of the space.
        RangeLockedError
            If this thread has a cursor that overlaps, or another one has until time is out.
        """
        cdef uint64_t first, end
        cdef VmCursor cursor
        self.interval(start, stop, &first, &end)
        cursor = VmCursor.__new__(VmCursor)
        cursor.space = self
        cursor.held = self.lock(first, end, timeout)
        cursor.open = True
        cursor.at = first
        return cursor

    # -- what is there -------------------------------------------------------------------------

    def view(self, start=0, stop=None):
        """Return a memoryview of a range, all of which is mapped.

        Parameters
        ----------
        start, stop : int
            As in `cursor`.

        Returns
        -------
        memoryview
            Writable if all pages are. While it lives the pages can't be unmapped.

        Raises
        ------
        NotMappedError
            If a page is not mapped, or can't be read.
        NotAlignedError, OutOfBoundError
            If this is no range of pages of the space.
        """
        cdef uint64_t first, end
        self.interval(start, stop, &first, &end)
        return memoryview(new_view(self, first, end))

    def array(self, va, shape, dtype=float, *, order="C"):
        """Return a NumPy array over mapped pages.

        Parameters
        ----------
        va : int
            Address of a page, where the array begins.
        shape, dtype, order
            As in `PhysicalMemory.array`.

        Returns
        -------
        FrameArray
            Read-only if a page is. While it lives the pages can't be unmapped.

        Raises
        ------
        NotMappedError
            If a page is not mapped, or can't be read.
        NotAlignedError, OutOfBoundError
            If there is no page at this address, or the array would end behind the space.
        FrameTypeError
            If the data type holds objects.
        """
        cdef uint64_t first, pages
        cdef geometry layout
        va = as_int(va)
        dtype = numpy.dtype(dtype)
        lay_out(&layout, shape, dtype, order)
        self.check()
        first = self.page_at(va)
        pages = max(<uint64_t>1, (layout.size + (1ull << self.mem.a.page_shift) - 1) >> self.mem.a.page_shift)
        if pages > self.pages - first:
            raise OutOfBoundError(f"an array of {layout.size} bytes at {va:#x} ends behind the space")
        return array_over(
            new_view(self, first, first + pages), layout.ndim, layout.lengths,
            layout.strides if order == "F" else NULL, dtype, 0, False)

    @cython.critical_section
    def frames(self, start=0, stop=None):
        """Return the frames of a range, all of which is mapped.

        Parameters
        ----------
        start, stop : int
            As in `cursor`.

        Returns
        -------
        FrameVec
            In the order of their addresses, with references of its own.

        Raises
        ------
        NotMappedError
            If a page is not mapped.
        FrameTypeError
            If the frames are not of one metadata type.
        NotAlignedError, OutOfBoundError
            If this is no range of pages of the space.
        """
        cdef uint64_t first, end
        self.interval(start, stop, &first, &end)
        return frames_at(self, first, end - first)

    # -- changes -------------------------------------------------------------------------------

    cdef int take(
            self, VmCursor cursor, uint64_t *at, uint64_t stop, list handles, uint64_t flags) except -1:
        """Map what handles hold from a page on, and go on behind it.  The handles are moved.

        Meanwhile they are as good as moved for everybody else; if it fails they get back what
        they held.
        """
        cdef Holder own
        cdef list seized = []
        if len({id(handle) for handle in handles}) < len(handles):
            raise ValueError("a handle can be mapped once: it is given twice")
        self.check()
        if cursor is not None:
            cursor.check()
        try:
            for handle in handles:
                seized.append(seize(self.mem, handle))
            self.take_own(cursor, at, stop, seized, flags)
        except BaseException:
            for handle, own in zip(handles, seized):
                with cython.critical_section(handle):
                    move(own, handle)
            raise
        return 0

    cdef int take_own(
            self, VmCursor cursor, uint64_t *at, uint64_t stop, list handles, uint64_t flags) except -1:
        """Map what handles hold that no other thread knows."""
        cdef Change change = new_change(self)
        cdef uint64_t end, used
        while True:
            self.check()
            if cursor is not None:
                cursor.check()
            change.look(at[0], at[0])
            end = change.first
            for handle in handles:
                add_handle(change, handle, &end, flags)
            if end > stop and cursor is None:
                raise OutOfBoundError(
                    f"{end} pages do not fit into the {stop} of which addresses were reserved: see reserve")
            if end > stop:
                raise OutOfBoundError(
                    f"pages up to {end << self.mem.a.page_shift:#x} do not fit into the cursor's range, "
                    f"which ends at {stop << self.mem.a.page_shift:#x}")
            used = next_mapped(&self.table, change.first, end)
            if used < end:
                raise AddressInUseError(f"address {used << self.mem.a.page_shift:#x} is in use")
            change.stop = end
            if change.ready():
                break
        change.carry_out(False)
        for handle in handles:
            forget_handle(handle)
        at[0] = end
        return 0

    cdef int check_views(self, uint64_t first, uint64_t stop, bint writable_only) except -1:
        """Refuse to change pages that a view shows."""
        cdef uint64_t view_first, view_stop
        cdef bint writable
        cdef void *view = self.views
        while view != NULL:
            # No reference is taken to what may be about to go, in another thread.
            view_first, view_stop = (<VmView>view).first, (<VmView>view).stop
            writable = (<VmView>view).writable
            if view_first < stop and first < view_stop and (writable or not writable_only):
                raise RangeInUseError(
                    f"a {'writable ' if writable else ''}view of "
                    f"{view_first << self.mem.a.page_shift:#x} .. "
                    f"{view_stop << self.mem.a.page_shift:#x} lives: release it first")
            view = (<VmView>view).next
        return 0

    @cython.critical_section
    def fork(self, *, timeout=None):
        """Return a snapshot: a space that shows the same frames, copy-on-write.

        Pages of both spaces can be read only from now on, until `make_writable`. The
        frames are shared, not copied, and live as long as either space maps them.

        Parameters
        ----------
        timeout : float, optional
            Seconds to wait for cursors of other threads; for ever by default.

        Returns
        -------
        VmSpace
            Of the same size.

        Raises
        ------
        RangeLockedError
            If a cursor of this thread is open, or one of another thread until time is out.
        RangeInUseError
            If a view lives that can write.
        OutOfFramesError
            If there are no frames for the other page table; nothing has changed then.
        MapBudgetError
            If the process has too many kernel mappings for it; nothing has changed then.
        """
        cdef VmSpace copy
        cdef Change here, there
        cdef RangeLock held
        cdef uint64_t flags
        cdef size_t i
        cdef page_run *run
        self.check()
        held = self.lock(0, self.pages, timeout)
        try:
            copy = new_space(self.mem, self.pages)
            here = new_change(self)
            there = new_change(copy)
            while True:
                self.check()
                copy.check()
                self.check_views(0, self.pages, True)
                here.look(0, self.pages)
                there.look(0, self.pages)
                for i in range(here.old.count):
                    run = &here.old.runs[i]
                    flags = run.flags | ENTRY_COPY
                    if flags & ENTRY_WRITE:
                        flags ^= ENTRY_WRITE | ENTRY_WANTED
                    here.add(run.page, run.count, run.frame, flags)
                    there.add(run.page, run.count, run.frame, flags)
                if here.ready() and there.ready():
                    break
            hold_runs(self.mem, &there.new)
            try:
                there.carry_out(False)
            except BaseException:
                release_runs(self.mem, &there.new)
                raise
            try:
                here.carry_out(True)
            except BaseException:
                copy.close_down()
                raise
        finally:
            self.unlock(held)
        return copy

    @cython.critical_section
    def make_writable(self, start=0, stop=None, *, bint force=False, meta=None, timeout=None):
        """Make the pages of a range writable again that a snapshot has made read-only.

        Each has a frame of its own then: one that anything else holds, such as the other
        space, is copied; one that only this page holds is kept. Pages that can be written
        stay as they are, and so do those that could not before the snapshot. A view shows
        what is at its addresses: the copy, from now on.

        Parameters
        ----------
        start, stop : int
            As in `cursor`; the whole space by default.
        force : bool
            Make all mapped pages readable and writable, whatever they were before.
        timeout : float, optional
            As in `cursor`.
        meta : FrameMeta, type or callable, optional
            Metadata of the copies, as in `PhysicalMemory.alloc_frames`; untyped. That of
            the frames they are copied from is not taken over.

        Returns
        -------
        int
            Pages that were copied.

        Raises
        ------
        RangeLockedError
            If a cursor of this thread overlaps, or one of another thread until time is out.
        OutOfFramesError, MapBudgetError
            If there are not as many frames or kernel mappings as it takes; nothing has changed then.
        FrameTypeError
            If meta is none of untyped frames.
        """
        cdef uint64_t first, end
        cdef RangeLock held
        self.interval(start, stop, &first, &end)
        held = self.lock(first, end, timeout)
        try:
            return make_writable(self, first, end, force, meta)
        finally:
            self.unlock(held)

    # -- locks ---------------------------------------------------------------------------------

    cdef RangeLock lock(self, uint64_t first, uint64_t stop, object timeout):
        """Have a range to oneself."""
        cdef RangeLock held = RangeLock.__new__(RangeLock)
        cdef RangeLock other
        held.first, held.stop, held.owner = first, stop, get_ident()
        held.waiting = Lock()
        held.waiting.acquire()
        end = None if timeout is None else monotonic() + timeout
        while True:
            with cython.critical_section(self):
                self.check()
                for other in self.locks:
                    if other.first < stop and first < other.stop:
                        break
                else:
                    self.locks.append(held)
                    return held
            where = (f"{other.first << self.mem.a.page_shift:#x} .. "
                     f"{other.stop << self.mem.a.page_shift:#x}: close it first")
            if other.owner == held.owner:
                raise RangeLockedError(f"this thread has a cursor on {where}")
            left = -1 if end is None else min(max(0.0, end - monotonic()), threading.TIMEOUT_MAX)
            if not other.waiting.acquire(timeout=left):
                ended = other.owner not in sys._current_frames()
                raise RangeLockedError(
                    f"{'a thread that has ended' if ended else 'another thread'} has a cursor on {where}")
            other.waiting.release()

    cdef void unlock(self, RangeLock held) noexcept:
        # One that is not there was let go with the space, or is of a thread that a fork left behind.
        with cython.critical_section(self):
            if held in self.locks:
                self.locks.remove(held)
                held.waiting.release()

    # -- closing -------------------------------------------------------------------------------

    @cython.critical_section
    def close(self):
        """Unmap everything and give the addresses back, now; with live views, when the last goes.

        Does nothing if the space is closed already. Cursors end with it.
        """
        if not self.over and self.mem is not None:
            self.close_down()

    cdef int close_down(self) except -1:
        cdef RangeLock held
        with cython.critical_section(self):
            self.over = True
            for held in self.locks:     # whoever waits finds the space closed
                held.waiting.release()
            self.locks.clear()
            if self.views == NULL:
                self.tear_down()
        return 0

    cdef void tear_down(self) noexcept:
        cdef run_list held
        memset(&held, 0, sizeof(held))
        if self.mem is not None:
            # Nobody can see a frame any more before it is given up.
            give_up_range(&self.where)
            if gives_back(&self.mem.a):
                release_all(self.mem, &self.table)
                if self.unmade:
                    self.unmade = False
                    held, self.at_fork = self.at_fork, held
                    release_runs(self.mem, &held)
                    free_runs(&held)

    def __enter__(self):
        self.check()
        return self

    def __exit__(self, *exc_info):
        self.close()

    def __repr__(self):
        if self.closed:
            return "<VmSpace closed>"
        return (f"<VmSpace of {self.where.size} bytes at {<size_t>self.where.base:#x}: "
                f"{self.table.nodes} frames of page table, {self.where.mappings} kernel mappings>")

    def __reduce__(self):
        raise TypeError("a VmSpace can't be pickled: its addresses are those of this process")


cdef int hold_runs(Arena mem, const run_list *runs) except -1:
    """Take one more reference to every frame of a list, or none."""
    cdef size_t i, k
    for i in range(runs.count):
        try:
            hold_range(mem, runs.runs[i].frame, runs.runs[i].count)
        except BaseException:
            for k in range(i):
                give_up(mem, runs.runs[k].frame, runs.runs[k].count)
            raise
    return 0


cdef object make_writable(VmSpace space, uint64_t first, uint64_t stop, bint force, object meta):
    """VmSpace.make_writable() of a range that is locked."""
    cdef Change change = new_change(space)
    cdef FrameVec copies = None
    cdef run_list copied    # the runs that are copied, page by page
    cdef Arena mem = space.mem
    cdef page_run run
    cdef uint64_t k, frame, flags
    cdef Py_ssize_t used
    cdef size_t i
    memset(&copied, 0, sizeof(copied))
    try:
        while True:
            space.check()
            change.look(first, stop)
            used = 0
            copied.count = 0
            for i in range(change.old.count):
                run = change.old.runs[i]
                if not force and not run.flags & ENTRY_WANTED:
                    change.add(run.page, run.count, run.frame, run.flags)
                    continue
                flags = run.flags & ENTRY_ACCESS | ENTRY_READ | ENTRY_WRITE
                for k in range(run.count):
                    frame = run.frame + k
                    if not run.flags & ENTRY_WRITE and pf_slot_count(pf_slot_at(&mem.a, frame)) > 1:
                        if not add_run(&mem.a, &copied, run.page + k, 1, frame, 0):
                            raise MemoryError("no memory to list what is to be copied")
                        frame = copies.frames[used] if copies is not None and used < copies.count else NOTHING
                        used += 1
                    change.add(run.page + k, 1, frame, flags)
            if used > (0 if copies is None else copies.count):
                copies = None
                copies = alloc_frames(mem, used, meta, False)
                if not pf_type_flags(&mem.a, pf_slot_at(&mem.a, copies.frames[0])) & PF_UNTYPED:
                    raise FrameTypeError("a mapped frame is untyped, so must be the metadata of its copy")
            elif change.ready():
                break
        used = 0
        for i in range(copied.count):
            for k in range(copied.runs[i].count):
                memcpy(pf_bytes_at(&mem.a, copies.frames[used]),
                       pf_bytes_at(&mem.a, copied.runs[i].frame + k), 1ull << mem.a.page_shift)
                used += 1
        change.carry_out(False)
        if used:
            forget_first(copies, used)
        release_runs(mem, &copied)
        return used
    finally:
        free_runs(&copied)


cdef int forget_first(FrameVec vec, Py_ssize_t count) except -1:
    """Take the first frames out of a vector; what is left of it goes with it."""
    cdef Py_ssize_t i
    for i in range(count, vec.count):
        vec.frames[i - count] = vec.frames[i]
    vec.count -= count
    return 0


# -- cursors -----------------------------------------------------------------------------------

@cython.final
@cython.no_gc     # a cursor that the collector finds needs what is in it
cdef class RangeLock:
    pass


@cython.final
cdef class VmItem:
    """What a page-table entry maps, within the range of the cursor that found it.

    Attributes
    ----------
    va
        Address of the first page.
    size
        Bytes.
    level
        Of the entry: 1 for a page; 2 for 512 pages, 3 for 262,144 that are contiguous
        in the arena, of one metadata type, and aligned there and here.
    prop
        What may be done there, a `PageProperty`.
    copy_on_write
        Whether a snapshot may share the frames, so that only `VmSpace.make_writable`
        can make the pages writable.
    frame
        A handle with references of its own: a `UFrame`, or a `USegment` at a level above 1.
    """
    cdef readonly object va
    cdef readonly object size
    cdef readonly int level
    cdef readonly object prop
    cdef readonly bint copy_on_write
    cdef readonly Holder frame

    def __init__(self, *args, **kwargs):
        raise TypeError("a VmItem is had from a cursor's query()")

    def __repr__(self):
        return (f"<VmItem {self.va:#x}..{self.va + self.size:#x} level {self.level} {self.prop}: "
                f"{self.frame!r}>")


@cython.final
@cython.no_gc_clear     # its end must find the space, to unlock the range
cdef class VmCursor:
    """A cursor over a range of a `VmSpace`, which no other cursor overlaps until it is closed.

    Operations begin at `virt_addr`. The end of the range is exclusive; a cursor that
    has come there can only `jump` back.
    """

    def __init__(self, *args, **kwargs):
        raise TypeError("a cursor is had from VmSpace.cursor()")

    def __dealloc__(self):
        if self.open:
            self.space.unlock(self.held)

    cdef int check(self) except -1:
        if not self.open:
            raise SpaceClosedError("this cursor is closed")
        self.space.check()
        return 0

    cdef uint64_t end_of(self, object nbytes) except? 0:
        """The page where so many bytes from here on end."""
        cdef unsigned shift = self.space.mem.a.page_shift
        if nbytes & ((1 << shift) - 1):
            raise NotAlignedError(f"{nbytes} bytes are not a multiple of the page size {1 << shift}")
        if not 0 <= nbytes <= (self.held.stop - self.at) << shift:
            raise OutOfBoundError(
                f"{nbytes} bytes from {self.at << shift:#x} on do not lie within the cursor's range, "
                f"which ends at {self.held.stop << shift:#x}")
        return self.at + (nbytes >> shift)

    @property
    def virt_addr(self):
        """Address at which the cursor is; the end of its range when it has come there."""
        self.check()
        return self.at << self.space.mem.a.page_shift

    @property
    def range(self):
        """Addresses that the cursor has to itself."""
        self.check()
        return range(self.held.first << self.space.mem.a.page_shift,
                     self.held.stop << self.space.mem.a.page_shift)

    def jump(self, va):
        """Go to an address of the range.

        Raises
        ------
        NotAlignedError, OutOfBoundError
            If it is no page's address, or not in the range. The cursor stays where it was.
        """
        cdef uint64_t page
        va = as_int(va)
        self.check()
        page = self.space.page_at(va)
        if not self.held.first <= page < self.held.stop:
            raise OutOfBoundError(f"address {va:#x} is not within {self.range}")
        self.at = page

    def query(self):
        """Find out what is mapped where the cursor is.

        Returns
        -------
        VmItem or None
            None if nothing is.

        Raises
        ------
        OutOfBoundError
            If the cursor is at the end of its range.
        """
        cdef VmSpace space = self.space
        cdef VmItem item = VmItem.__new__(VmItem)   # may run the collector, and that anything
        cdef uint64_t entry, first, stop, frame
        cdef unsigned level, shift
        with cython.critical_section(space):
            self.check()
            if self.at == self.held.stop:
                raise OutOfBoundError(f"the cursor is at the end of {self.range}")
            entry = lookup(&space.table, self.at, &level)
            if not entry:
                return None
            shift = space.mem.a.page_shift
            first = max(self.at & ~(span(level) - 1), self.held.first)
            stop = min((self.at | (span(level) - 1)) + 1, self.held.stop)
            frame = frame_of_entry(entry) + (first & (span(level) - 1))
            item.frame = (clone_frame(space.mem, frame) if level == 1
                          else clone_range(space.mem, frame, stop - first))
        item.va = first << shift
        item.size = (stop - first) << shift
        item.level = level
        item.prop = properties[entry & ENTRY_ACCESS]
        item.copy_on_write = entry & ENTRY_COPY != 0
        return item

    def find_next(self, nbytes=None):
        """Go on to the next mapped page, the one here included.

        Parameters
        ----------
        nbytes : int, optional
            How far to look; to the end of the range by default.

        Returns
        -------
        int or None
            Its address. None if there is none; the cursor stays where it was then.

        Raises
        ------
        NotAlignedError, OutOfBoundError
            If so many bytes do not lie within the range.
        """
        cdef uint64_t stop, page
        if nbytes is not None:
            nbytes = as_int(nbytes)
        with cython.critical_section(self.space):
            self.check()
            stop = self.held.stop if nbytes is None else self.end_of(nbytes)
            page = next_mapped(&self.space.table, self.at, stop)
            if page == stop:
                return None
            self.at = page
        return page << self.space.mem.a.page_shift

    def map(self, frames, prop=None):
        """Map frames from here on, and go on behind them.

        Parameters
        ----------
        frames : UFrame, USegment or FrameVec
            Its references become those of the mapping: it is moved, as by `into_raw`.
        prop : PageProperty, optional
            To be read and written by default.

        Raises
        ------
        AddressInUseError
            If one of the pages is mapped already.
        OutOfBoundError
            If the frames do not fit into the rest of the range.
        FrameTypeError
            If the frames are typed or of another arena, or this is none of these handles.
        MovedError
            If the handle was dropped or moved.
        BufferError
            If views of its bytes live.
        OutOfFramesError
            If there is no frame for the page table.
        MapBudgetError
            If the process has as many kernel mappings as it may have.
        OSError, MemoryError
            If the system refuses, for instance to execute from the file system of the arena.
        """
        cdef uint64_t flags = flags_of(prop)
        self.check()
        with cython.critical_section(self.space):
            self.space.take(self, &self.at, self.held.stop, [frames], flags)

    def unmap(self, nbytes):
        """Unmap what is mapped in the next bytes, and go on behind them.

        The references of the mappings are given up.

        Parameters
        ----------
        nbytes : int
            A multiple of the page size. Holes are skipped.

        Returns
        -------
        int
            Pages that were unmapped.

        Raises
        ------
        NotAlignedError, OutOfBoundError
            If so many bytes do not lie within the range.
        RangeInUseError
            If a view of these pages lives.
        OutOfFramesError
            If an entry of a higher level must be split and there is no frame for that.
        MapBudgetError
            If a hole would part a kernel mapping and the process has as many as it may have.
        """
        cdef Change change
        nbytes = as_int(nbytes)
        self.check()
        change = new_change(self.space)
        with cython.critical_section(self.space):
            while True:
                self.check()
                change.look(self.at, self.end_of(nbytes))
                if change.old.count == 0:
                    self.at = change.stop
                    return 0
                self.space.check_views(change.first, change.stop, False)
                if change.ready():
                    break
            change.carry_out(False)
            self.at = change.stop
        release_runs(self.space.mem, &change.old)
        return pages_of(&change.old)

    def protect(self, nbytes, prop):
        """Set what may be done with the pages mapped in the next bytes, and go on behind them.

        Parameters
        ----------
        nbytes : int
            A multiple of the page size. Holes are skipped.
        prop : PageProperty

        Returns
        -------
        int
            Pages that have the property now.

        Raises
        ------
        NotAlignedError, OutOfBoundError
            If so many bytes do not lie within the range.
        CopyOnWriteError
            If a page would become writable that a snapshot may share.
        RangeInUseError
            If a view of these pages lives that may do more.
        OutOfFramesError, MapBudgetError, OSError
            As `map` does.
        """
        cdef Change change
        cdef uint64_t flags
        cdef size_t i
        cdef page_run *run
        nbytes = as_int(nbytes)
        if prop is None:
            raise TypeError("a PageProperty is wanted, not NoneType")
        flags = flags_of(prop)
        self.check()
        change = new_change(self.space)
        with cython.critical_section(self.space):
            while True:
                self.check()
                change.look(self.at, self.end_of(nbytes))
                if change.old.count == 0:
                    self.at = change.stop
                    return 0
                if not flags & ENTRY_WRITE:
                    self.space.check_views(change.first, change.stop, flags & ENTRY_READ != 0)
                for i in range(change.old.count):
                    run = &change.old.runs[i]
                    if run.flags & ENTRY_COPY and flags & ENTRY_WRITE:
                        raise CopyOnWriteError(
                            f"a snapshot may share the page at "
                            f"{run.page << self.space.mem.a.page_shift:#x}: see VmSpace.make_writable"
                            + ("" if run.flags & ENTRY_WANTED else " and its force"))
                    change.add(run.page, run.count, run.frame, flags | run.flags & ENTRY_COPY)
                if change.ready():
                    break
            change.carry_out(True)
            self.at = change.stop
        return pages_of(&change.old)

    def close(self):
        """Let other cursors have the range. Does nothing if the cursor is closed already."""
        if self.space is not None:
            with cython.critical_section(self.space):
                if self.open:
                    self.open = False
                    self.space.unlock(self.held)

    def __enter__(self):
        self.check()
        return self

    def __exit__(self, *exc_info):
        self.close()

    def __repr__(self):
        if not self.open:
            return "<VmCursor closed>"
        shift = self.space.mem.a.page_shift
        return (f"<VmCursor at {self.at << shift:#x} in {self.held.first << shift:#x}.."
                f"{self.held.stop << shift:#x}>")

    def __reduce__(self):
        raise TypeError("a VmCursor can't be pickled")


cdef object pages_of(const run_list *runs):
    cdef size_t i
    cdef uint64_t pages = 0
    for i in range(runs.count):
        pages += runs.runs[i].count
    return pages


# -- views -------------------------------------------------------------------------------------

@cython.final
@cython.no_gc
cdef class VmView(VirtualBytes):
    """Some pages of a space as bytes; keeps them mapped."""

    def __getbuffer__(self, Py_buffer *buffer, int flags):
        if self.space is None:
            raise BufferError("this view is of no space")
        fill_buffer(buffer, self, self.data, self.nbytes, not self.writable, flags)

    cdef FrameVec frames_of(self, uint64_t first, uint64_t count):
        return frames_at(self.space, self.first + first, count)

    def __dealloc__(self):
        cdef VmSpace space = self.space
        if space is None:
            return
        with cython.critical_section(space):
            if self.next != NULL:
                (<VmView>self.next).previous = self.previous
            if self.previous != NULL:
                (<VmView>self.previous).next = self.next
            else:
                space.views = self.next
            if space.over and space.views == NULL:
                space.tear_down()


@cython.critical_section
cdef VmView new_view(VmSpace space, uint64_t first, uint64_t stop):
    """A view of a range all of which is mapped."""
    cdef VmView view = VmView.__new__(VmView)
    cdef run_list shown
    cdef uint64_t page = first
    cdef uint64_t flags = ENTRY_ACCESS
    cdef int error
    cdef size_t i
    memset(&shown, 0, sizeof(shown))
    try:
        space.check()
        if not collect(&space.table, first, stop, &shown):
            raise MemoryError("no memory to list what a range shows")
        for i in range(shown.count):
            if shown.runs[i].page != page:
                break
            if not shown.runs[i].flags & ENTRY_READ:
                raise NotMappedError(
                    f"the page at {page << space.mem.a.page_shift:#x} must not be read")
            flags &= shown.runs[i].flags
            page += shown.runs[i].count
        if page < stop:
            raise NotMappedError(f"nothing is mapped at {page << space.mem.a.page_shift:#x}")
        # Others may have written over the table of a shared arena; a page that is not there must not
        # be touched.  Where the kernel has it as the table says, this changes nothing.
        if space.mem.span:
            error = protect(&space.where, &shown)
            if error:
                raise_errno(error, f"can't show {stop - first} pages")
        view.mem = space.mem
        view.data = space.where.base + (first << space.mem.a.page_shift)
        view.nbytes = (stop - first) << space.mem.a.page_shift
        view.writable = flags & ENTRY_WRITE != 0
        view.first, view.stop = first, stop
        view.next = space.views
        if view.next != NULL:
            (<VmView>view.next).previous = <void *>view
        space.views = <void *>view
        view.space = space
    finally:
        free_runs(&shown)
    return view


# -- fork --------------------------------------------------------------------------------------

cdef list forking_spaces = None     # within a fork: those that a child has


cdef int note_spaces() except -1:
    """Within fork(): note what the spaces of shared arenas show."""
    global forking_spaces
    forking_spaces = alive(spaces)
    for space in forking_spaces:
        note_for_child(space)
    return 0


cdef void note_for_child(VmSpace space) noexcept:
    space.noted = space.mem.a.open and space.mem.span and (
        space.unmade or collect(&space.table, 0, space.pages, &space.at_fork))


cdef void leave_spaces() noexcept:
    """In the child, within fork(): no space may end as the parent's, or show what is the parent's."""
    if forking_spaces is not None:
        for space in forking_spaces:
            leave_to_parent(space)


cdef void leave_to_parent(VmSpace space) noexcept:
    cdef unsigned long me
    if space.mem.span:
        space.table.root = space.table.nodes = 0        # they are the parent's
        space.unmade = space.unmade or space.noted      # what it shows is held until it goes
        if space.mem.a.open and space.where.base != NULL:
            space.why_over = "this process is being forked"
    elif space.where.base != NULL:
        show_copy(space)
    me = get_ident()
    space.locks = [held for held in space.locks if (<RangeLock>held).owner == me]


cdef void show_copy(VmSpace space) noexcept:
    """In the child: show its copies of the frames of a private arena."""
    cdef run_list shown
    cdef int error = 0
    if not space.mem.a.open:
        blank(&space.where)
        return
    memset(&shown, 0, sizeof(shown))
    if not collect(&space.table, 0, space.pages, &shown):
        error = ENOMEM
    error = error or show(&space.where, space.mem.map_fd, &shown)
    free_runs(&shown)
    if error:
        blank(&space.where)
        space.why_over = "its frames could not be mapped when this process was forked"


with_spaces(note_spaces, leave_spaces)


def after_in_parent():
    """Forget what was noted."""
    global forking_spaces
    forking_spaces = None
    for space in alive(spaces):
        (<VmSpace>space).noted = False
        if not (<VmSpace>space).unmade:
            free_runs(&(<VmSpace>space).at_fork)


def after_in_child():
    """Have all spaces of shared arenas show what this process holds."""
    here = alive(spaces)
    errors = []
    if forking_spaces is None:      # forked by something that does not tell Python before
        for space in here:
            leave_to_parent(space)
    for space in here:
        try:
            be_child(space)
        except BaseException as error:
            errors.append(error)
    after_in_parent()
    if errors:
        raise errors[0]


cdef int be_child(VmSpace space) except -1:
    """In the child: make the space one of this process."""
    cdef Change change
    if space.where.base == NULL or not space.mem.span or not space.mem.a.open:
        return 0
    space.why_over = "there was no memory for a page table of its own when this process was forked"
    if space.noted:
        change = new_change(space)
        change.new, space.at_fork = space.at_fork, change.new
        change.first, change.stop = 0, space.pages
        try:
            change.ready()
            change.write()
            space.unmade = False
        except MemoryError:
            return 0
        finally:
            if space.unmade:    # what it shows is held until it goes
                change.new, space.at_fork = space.at_fork, change.new
        space.why_over = None
    return 0


os.register_at_fork(after_in_parent=after_in_parent, after_in_child=after_in_child)
