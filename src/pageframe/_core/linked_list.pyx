# This Source Code Form is subject to the terms of the Mozilla Public
# License, v. 2.0. If a copy of the MPL was not distributed with this
# file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Linked lists of frames: intrusive, owning, with cursors.

The links lie in the metadata of the frames, so a list needs no memory of its own
and a frame is in one list at the most.  The list owns its frames: they are
UNIQUE, and only the list's operations reach them; like a unique frame (unique.pyx) it
stays with the parent when a process forks.  The slot records the id of
the list, so whether a frame is in a list, and a cursor at it, cost one read.

The ghost position lies past the end and before the front.  Links are frame
numbers; frame 0 holds the arena's header and is never in a list, so 0 means none.
"""

cimport cython
from libc.stdint cimport uint32_t, uint64_t

from pageframe._core.arena cimport (
    PF_LINKED, Arena, as_int, gives_back, pf_arena, pf_frame_of, pf_slot_at)
from pageframe._core.errors import FrameTypeError, MovedError, PageFrameError
from pageframe._core.handle cimport movable, put_unique, raise_moved, raise_stayed
from pageframe._core.ledger cimport (
    PF_S_list_id, PF_S_list_link, PF_S_list_no_id, PF_S_list_unlink, pf_step)
from pageframe._core.meta cimport MetaView, type_id_of, view_slot
from pageframe._core.slot cimport (
    pf_add_relaxed_u32, pf_load_relaxed_u32, pf_slot, pf_store_relaxed_u32)
from pageframe._core.unique cimport UniqueFrame, make_unique


cdef inline pf_link *links(const pf_arena *a, uint32_t frame) noexcept nogil:
    return <pf_link *>&pf_slot_at(a, frame).storage[0]


cdef inline uint32_t neighbour(const pf_arena *a, uint32_t frame, uint32_t other) noexcept nogil:
    """What a frame's link names; 0 unless it is of the same list where others can damage links."""
    cdef uint32_t list_id
    if a.ledger == NULL:
        return other
    list_id = pf_load_relaxed_u32(&pf_slot_at(a, frame).list_id)
    if (other >= a.frames or list_id == 0
            or pf_load_relaxed_u32(&pf_slot_at(a, other).list_id) != list_id):
        return 0
    return other


cdef uint32_t new_list_id(Arena mem) except 0:
    """An id that no live list of the arena has; those of dropped lists are used again."""
    cdef uint32_t list_id
    try:
        return mem.list_ids.pop()
    except IndexError:
        list_id = pf_add_relaxed_u32(&mem.a.header.last_list_id, 1) + 1
    if list_id == 0:
        pf_store_relaxed_u32(&mem.a.header.last_list_id, <uint32_t>-1)
        raise PageFrameError(f"the arena has had {2 ** 32 - 1} lists at once, the maximum")
    return list_id


@cython.final
@cython.no_gc
cdef class LinkedList(Holder):
    """A list of unique frames that are linked through their metadata.

    The list owns its frames: they are reached only through it, and go with it.
    Iteration gives paddrs, front first; ``paddr in list`` costs one read.

    Parameters
    ----------
    mem : PhysicalMemory
    meta_type : type
        Metadata type of the frames, which mixes in `Link`.

    Raises
    ------
    FrameTypeError
        If the type does not mix in `Link`.
    """

    def __init__(self, Arena mem not None, meta_type):
        type_id = type_id_of(mem, meta_type)
        mem.check_open()
        if not mem.a.type_info[type_id].flags & PF_LINKED:
            raise FrameTypeError(f"{meta_type.__name__} can't be in a list: it does not mix in Link")
        list_id = new_list_id(mem)
        with cython.critical_section(self):
            if self.mem is None:
                self.mem = mem
                self.epoch = mem.a.epoch
                self.meta_type = meta_type
                self.type_id = type_id
                self.list_id = list_id
                return
        mem.list_ids.append(list_id)
        raise TypeError("this list is initialised already")

    def __dealloc__(self):
        if self.list_id:
            release(self)

    cdef int check(self) except -1:
        if self.list_id == 0:
            raise_moved(self)
        if not self.mem.a.open:
            self.mem.check_open()
        if self.epoch != self.mem.a.epoch:
            raise_stayed(self)
        return 0

    cdef uint32_t find(self, object paddr) except? 0:
        """The number of the frame at a paddr if it is in this list, else 0."""
        cdef uint64_t frame
        try:
            frame = as_int(paddr)
        except OverflowError:
            frame = <uint64_t>-1
        self.check()
        if frame & ((1ull << self.mem.a.page_shift) - 1) or frame >= self.mem.a.size:
            return 0
        frame >>= self.mem.a.page_shift
        # Relaxed: only this list's operations write its id, and one thread at a
        # time runs them.
        if pf_load_relaxed_u32(&pf_slot_at(&self.mem.a, frame).list_id) != self.list_id:
            return 0
        return frame

    cdef void insert(self, uint32_t frame, uint32_t before) noexcept:
        """Link a frame in before another one, or at the back (before 0)."""
        cdef uint32_t prev = (
            neighbour(&self.mem.a, before, links(&self.mem.a, before).prev) if before else self.back)
        links(&self.mem.a, frame).prev = prev
        links(&self.mem.a, frame).next = before
        if prev:
            links(&self.mem.a, prev).next = frame
        else:
            self.front = frame
        if before:
            links(&self.mem.a, before).prev = frame
        else:
            self.back = frame

    cdef void remove(self, uint32_t frame) noexcept:
        """Unlink a frame."""
        cdef pf_link *link = links(&self.mem.a, frame)
        cdef uint32_t prev = neighbour(&self.mem.a, frame, link.prev)
        cdef uint32_t next = neighbour(&self.mem.a, frame, link.next)
        if prev:
            links(&self.mem.a, prev).next = next
        else:
            self.front = next
        if next:
            links(&self.mem.a, next).prev = prev
        else:
            self.back = prev
        link.prev = link.next = 0

    cdef pf_slot *take(self, uint32_t frame) noexcept:
        """Unlink a frame and give up the ownership of it."""
        cdef pf_slot *slot = pf_slot_at(&self.mem.a, frame)
        pf_step(PF_S_list_unlink)
        self.remove(frame)
        pf_step(PF_S_list_no_id)
        pf_store_relaxed_u32(&slot.list_id, 0)
        self.count -= 1
        return slot

    cdef object cursor(self, uint32_t frame):
        cdef Cursor cursor = Cursor.__new__(Cursor)
        cursor.list = self
        cursor.at = frame
        return cursor

    def push_front(self, UniqueFrame frame not None):
        """Take a unique frame in at the front.

        Raises
        ------
        FrameTypeError
            If the frame is of another arena or type. It stays as it was.
        BufferError
            If views of its bytes live.
        """
        with cython.critical_section(self, frame):
            push(self, frame, self.front)

    def push_back(self, UniqueFrame frame not None):
        """Take a unique frame in at the back; as `push_front`."""
        with cython.critical_section(self, frame):
            push(self, frame, 0)

    @cython.always_allow_keywords(False)
    @cython.critical_section
    def pop_front(self):
        """Take the first frame out: a `UniqueFrame`, or None if the list is empty."""
        self.check()
        return make_unique(self.mem, self.take(self.front)) if self.front else None

    @cython.always_allow_keywords(False)
    @cython.critical_section
    def pop_back(self):
        """Take the last frame out: a `UniqueFrame`, or None if the list is empty."""
        self.check()
        return make_unique(self.mem, self.take(self.back)) if self.back else None

    @cython.always_allow_keywords(False)
    @cython.critical_section
    def cursor_front(self):
        """Return a `Cursor` at the first frame; at the ghost position if the list is empty."""
        self.check()
        return self.cursor(self.front)

    @cython.always_allow_keywords(False)
    @cython.critical_section
    def cursor_back(self):
        """Return a `Cursor` at the last frame; at the ghost position if the list is empty."""
        self.check()
        return self.cursor(self.back)

    @cython.always_allow_keywords(False)
    @cython.critical_section
    def cursor_at(self, paddr):
        """Return a `Cursor` at the frame with a paddr, or None if it is not in this list."""
        cdef uint32_t frame = self.find(paddr)
        return self.cursor(frame) if frame else None

    @cython.always_allow_keywords(False)
    @cython.critical_section
    def drop(self):
        """Release all frames and end the list."""
        self.check()
        release(self)

    def __len__(self):
        self.check()
        return self.count

    @cython.critical_section
    def __contains__(self, paddr):
        try:
            return self.find(paddr) != 0
        except TypeError:
            return False

    def __iter__(self):
        cdef Cursor cursor = self.cursor_front()
        cdef uint64_t _i
        for _i in range(self.mem.a.frames):
            paddr = cursor.paddr
            if paddr is None:
                return
            yield paddr
            cursor.move_next()

    def __enter__(self):
        self.check()
        return self

    @cython.critical_section
    def __exit__(self, *exc_info):
        if self.list_id and self.epoch == self.mem.a.epoch:
            self.drop()

    def __repr__(self):
        if self.list_id == 0:
            return "<LinkedList dropped>"
        return f"<LinkedList of {self.count} frames {self.meta_type.__name__}>"


cdef int push(LinkedList self, UniqueFrame frame, uint32_t before) except -1:
    """Take a frame into the list, before another one or at the back."""
    cdef pf_slot *slot
    self.check()
    slot = movable(frame)
    if frame.mem is not self.mem:
        raise FrameTypeError(f"{frame!r} belongs to another arena than the list")
    if slot.type_id != self.type_id:
        raise FrameTypeError(f"{frame!r} is no {self.meta_type.__name__}")
    frame.slot = NULL
    pf_step(PF_S_list_link)
    self.insert(pf_frame_of(&self.mem.a, slot), before)
    pf_step(PF_S_list_id)
    pf_store_relaxed_u32(&slot.list_id, self.list_id)
    self.count += 1
    return 0


cdef void release(LinkedList self) noexcept:
    """Free the frames, front first; on_drop finds each out of the list."""
    cdef uint32_t list_id = self.list_id
    self.list_id = 0
    if gives_back(&self.mem.a) and self.epoch == self.mem.a.epoch:
        while self.front:
            put_unique(self.mem, self.take(self.front))
        self.mem.list_ids.append(list_id)


@cython.final
@cython.no_gc
@cython.freelist(64)
cdef class Cursor:
    """A position in a `LinkedList`: at a frame, or at the ghost position.

    The ghost position lies past the end and before the front. A cursor whose
    frame was taken out by another way raises `MovedError`.
    """

    def __init__(self, *args, **kwargs):
        raise TypeError("a Cursor is had from a LinkedList")

    cdef int check(self) except -1:
        if self.list is None:
            raise MovedError("this Cursor belongs to no list")
        self.list.check()
        if self.at and pf_load_relaxed_u32(
                &pf_slot_at(&self.list.mem.a, self.at).list_id) != self.list.list_id:
            raise MovedError(
                f"frame {<uint64_t>self.at << self.list.mem.a.page_shift:#x} at this cursor was "
                "taken out of the list")
        return 0

    @property
    def paddr(self):
        """Address of the current frame; None at the ghost position."""
        self.check()
        return <uint64_t>self.at << self.list.mem.a.page_shift if self.at else None

    @cython.always_allow_keywords(False)
    def move_next(self):
        """Move towards the back; from the last frame to the ghost, from there to the front."""
        with cython.critical_section(self.list):
            self.check()
            self.at = (neighbour(&self.list.mem.a, self.at, links(&self.list.mem.a, self.at).next)
                       if self.at else self.list.front)

    @cython.always_allow_keywords(False)
    def move_prev(self):
        """Move towards the front; from the first frame to the ghost, from there to the back."""
        with cython.critical_section(self.list):
            self.check()
            self.at = (neighbour(&self.list.mem.a, self.at, links(&self.list.mem.a, self.at).prev)
                       if self.at else self.list.back)

    @property
    def current_meta(self):
        """Mutable view of the current frame's metadata; None at the ghost position."""
        cdef pf_slot *slot
        cdef MetaView view
        with cython.critical_section(self.list):
            self.check()
            if not self.at:
                return None
            slot = pf_slot_at(&self.list.mem.a, self.at)
            view = view_slot(self.list.mem, slot, self.list, NULL, True)
            view.list_alive = &self.list.list_id
            return view

    @cython.always_allow_keywords(False)
    def take_current(self):
        """Take the current frame out and move to the next; None at the ghost position."""
        cdef uint32_t frame
        with cython.critical_section(self.list):
            self.check()
            frame = self.at
            if not frame:
                return None
            self.at = neighbour(&self.list.mem.a, frame, links(&self.list.mem.a, frame).next)
            return make_unique(self.list.mem, self.list.take(frame))

    def insert_before(self, UniqueFrame frame not None):
        """Take a unique frame in before the current one; at the ghost, at the back.

        Raises as `LinkedList.push_front` does.
        """
        with cython.critical_section(self.list, frame):
            self.check()
            push(self.list, frame, self.at)

    @cython.always_allow_keywords(False)
    def move_to_front(self):
        """Make the current frame the first of the list. Nothing happens at the ghost."""
        with cython.critical_section(self.list):
            self.check()
            relink(self.list, self.at, self.list.front)

    @cython.always_allow_keywords(False)
    def move_to_back(self):
        """Make the current frame the last of the list. Nothing happens at the ghost."""
        with cython.critical_section(self.list):
            self.check()
            relink(self.list, self.at, 0)

    def __reduce__(self):
        raise TypeError("a Cursor can't be pickled")

    def __repr__(self):
        self.check()
        return f"<Cursor at {self.paddr:#x}>" if self.at else "<Cursor at the ghost position>"


cdef void relink(LinkedList self, uint32_t frame, uint32_t before) noexcept:
    """Move a frame within the list, before another one or to the back."""
    if frame and frame != before:
        self.remove(frame)
        self.insert(frame, before)
