# This Source Code Form is subject to the terms of the Mozilla Public
# License, v. 2.0. If a copy of the MPL was not distributed with this
# file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Physical memory: the arena as a Python object, how it is booted and attached to.

The boot follows that of a kernel: the early allocator places the tables, the
frames that hold them and those of reserved and bad regions get metadata of
their own, and what is left is handed to the frame allocator.
"""

from dataclasses import dataclass

import atexit
import os
import sys
from pathlib import Path

cimport cython
from cpython.ref cimport PyObject
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.string cimport memset

from pageframe._core import backing
from pageframe._core.allocator cimport (
    claim_one, free_frames, my_lane, next_bit, reserve_frames, setup_bits, trim)
from pageframe._core.arena cimport (
    PF_CLIENT_FREE, PF_CLIENT_USED, PF_LANES_SIZE, PF_POISON, PF_RESERVED_MEMORY, PF_RINGS_SIZE, PF_TRACE,
    PF_UNLINK_ON_LAST, Arena, as_int, debug_flags, pf_arena, pf_client, pf_client_used,
    pf_slot_at)
from pageframe._core.arena_view cimport ArenaView
from pageframe._core.array cimport array_like, new_array
from pageframe._core.audit cimport audit, audit_and_repair
from pageframe._core.census cimport count_references
from pageframe._core.client cimport (
    become, client_offset, describe, free_place, is_alive, ledger_walk, lock_place, next_held, use_place,
    walk_ledger)
from pageframe._core.client import shared_arenas
from pageframe._core.early import EarlyAllocator, cover, parse_size
from pageframe._core.errors import (
    ArenaExistsError, ArenaInUseError, ArenaNotFoundError, BadArenaError, ClientsFullError,
    NotAlignedError, OutOfFramesError)
from pageframe._core.fork cimport alive
from pageframe._core.fork import private_arenas
from pageframe._core.frame cimport UFrame, make_frame
from pageframe._core.handle cimport (
    MetaSource, begin_life, get, meta_source, obtain_one, put, raw_add, zero_used)
from pageframe._core.mapping cimport make_ring, map_frames
from pageframe._core.meta cimport (
    TYPE_META_PAGE, TYPE_RESERVED, TYPE_UNTYPED, TYPE_UNUSABLE, register_own_types)
from pageframe._core.poison cimport check_poison
from pageframe._core.reap cimport give_back_all, reap as reap_dead, reaped
from pageframe._core.segment cimport alloc_segment
from pageframe._core.slot cimport (
    PF_MAX, PF_UNIQUE, PF_UNUSED, pf_load_relaxed_u32, pf_slot, pf_store_release_u32)
from pageframe._core.ticket cimport TICKET_BITS
from pageframe._core.traces cimport track
from pageframe._core.user_allocator import FrameAllocator
from pageframe._core.vector cimport alloc_frames
from pageframe._core.vm_space cimport VmSpace, can_map
from pageframe._core.vm_space import spaces

cdef extern from "Python.h":
    void PyErr_SetObject(object, object)
    void PyErr_Fetch(PyObject **, PyObject **, PyObject **)
    void PyErr_Restore(PyObject *, PyObject *, PyObject *)
    void PyErr_WriteUnraisable(object)

REF_COUNT_UNUSED = PF_UNUSED
REF_COUNT_UNIQUE = PF_UNIQUE
REF_COUNT_MAX = PF_MAX

cdef enum:
    TYPE_CAPACITY = 64
cdef object MAX_FRAMES = 2 ** 32    # links hold frame numbers of 32 bits


cdef uint64_t power_of_two(str name, object value, uint64_t low, uint64_t high) except 0:
    value = parse_size(value)
    if value & (value - 1) or not low <= value <= high:
        raise ValueError(f"{name} must be a power of two in {low} .. {high}, not {value}")
    return value


@dataclass(frozen=True)
class ArenaInfo:
    """A shared arena of this machine.

    Attributes
    ----------
    name
        Its name; None if it has none, or lies at a path of its user's own.
    path
        Its file; None for an arena without a name.
    id
        What tells it from all others, as 32 hexadecimal digits.
    size, page_size
        Bytes.
    total_frames, used_frames
        Frames, and those of them that somebody holds.
    clients
        Processes that are attached, one place each.
    dead
        Places of processes that have died, whose frames nobody has reaped.
    created
        When it was made, in seconds since the epoch.
    owner
        Number of the user whose it is.
    stale
        Whether processes that were killed have left it: no client lives, and it should have gone
        with the last one, or holds frames of dead ones.
    problem
        Why it can't be used, such as that it is damaged; None if it can. Then figures that could
        not be read are 0, and an id that could not is empty.
    """

    name: str | None
    path: Path | None
    id: str
    size: int
    page_size: int
    total_frames: int
    used_frames: int
    clients: int
    dead: int
    created: float
    owner: int
    stale: bool
    problem: str | None


@dataclass(frozen=True)
class Sharing:
    """What a shared arena has that a private one has not."""

    id: bytes
    clients: int
    tickets: int
    area_size: int
    flags: int
    ticket_ttl: int


cdef class PhysicalMemory(ArenaView):
    """An arena of page frames, private to this process or shared.

    Constructed directly it is private. `create` makes an arena that other processes
    can `attach` to; it can be pickled, and so can handles to its frames.

    Frames that nobody has used cost nothing. The arena holds its own tables,
    so a few of its frames are never free (see `layout`, `reserved_frames`).

    Parameters
    ----------
    size : int or str
        Bytes, or a string like ``"256 MiB"``; a multiple of the page size.
    page_size : int or str
        Bytes of a frame: a power of two from 4096 to 1 GiB.
    slot_size : int or str
        Bytes of a frame's metadata slot: 64, 128 or 256, of which the arena
        takes 24 and the rest is for the fields of a metadata type.
    regions : iterable of MemoryRegion, optional
        Ranges that are reserved or bad. What no region covers is usable.
    populate : bool
        Have the kernel give all the memory now, not at the first touch.
    mappable : bool
        Frames can be mapped at further addresses: `VmSpace`, `map`, `ring`. A forked child
        gets a copy of what is used, made at the fork. If false the memory is anonymous,
        and a fork copies it as it is written to.
    allocator : FrameAllocator, optional
        An allocator of the user's own that says where frames are placed.

    Raises
    ------
    ValueError
        If a size makes no sense, regions overlap, or the arena is too small
        for its own tables.
    MemoryError
        If the system has not that much memory.

    Examples
    --------
    >>> with PhysicalMemory("1 MiB") as mem:
    ...     with mem.alloc_frame() as frame:
    ...         memoryview(frame)[:5] = b"hello"
    ...         bytes(memoryview(frame)[:5]), frame.reference_count
    (b'hello', 1)
    """

    def __init__(self, size, *, page_size=4096, slot_size=64, regions=None, populate=False,
                 bint mappable=True, allocator=None):
        cdef uint64_t page = power_of_two("page_size", page_size, 4096, 1 << 30)
        cdef uint64_t slot = power_of_two("slot_size", slot_size, 64, 256)
        if allocator is not None and not isinstance(allocator, FrameAllocator):
            raise TypeError(
                f"{type(allocator).__name__} is no FrameAllocator: it needs alloc, dealloc and "
                "add_free_memory")
        size = arena_size(size, page)
        covered = cover(regions, size, page)
        debug = debug_flags()
        self.check_new()
        self.a.debug = debug
        self.a.my_lane = my_lane
        self.map_private(size, page, slot, mappable)
        if populate:
            self.populate(size)
        self.boot(covered, page, None)
        self.a.open = True
        if mappable:
            private_arenas[id(self)] = self
        if allocator is not None:
            self.given = bytearray(self.a.frames)
            self.user_allocator = allocator
            try:
                add_free_memory(self, allocator)
            except BaseException:
                self.a.open = False
                raise

    cdef int boot(self, list covered, uint64_t page, object sharing) except -1:
        """Lay out a new arena and give its frames their first state."""
        early = EarlyAllocator(covered)
        try:
            self.place_tables(early, TYPE_CAPACITY, sharing)
        except MemoryError as error:
            raise ValueError(
                f"the arena of {self.a.size} bytes can't hold its own tables: {error}") from None
        register_own_types(self)
        setup_bits(&self.a)
        for start, stop in early.allocated(page):
            reserve(&self.a, start, stop, TYPE_META_PAGE)
        for region in covered:
            if region.kind != "usable":
                reserve(&self.a, region.start, region.stop,
                        TYPE_RESERVED if region.kind == "reserved" else TYPE_UNUSABLE)
        self.own_frames = self.a.frames - free_frames(&self.a)
        self.seal_header(self.own_frames)
        if self.own_frames == self.a.frames:
            raise ValueError(
                f"the arena of {self.a.size} bytes has no usable frame besides its own tables")
        return 0

    # -- sharing -------------------------------------------------------------------------------

    @classmethod
    def create(cls, size, name=None, *, path=None, bint exist_ok=False, page_size=4096, slot_size=64,
               regions=None, bint populate=False, clients=128, tickets=None, ticket_ttl=3600.0,
               bint unlink_on_last=True):
        """Make an arena that processes share.

        Without a name it lies in memory that only its clients can reach: those that
        were forked from this process, and those that have loaded a pickle of it. With
        a name, or at a path, anybody of the same user can attach.

        Parameters
        ----------
        size, page_size, slot_size, regions, populate
            As in `PhysicalMemory`.
        name : str, optional
            Name of the arena, under /dev/shm.
        path : path-like, optional
            A file elsewhere, instead of a name.
        exist_ok : bool
            If there is an arena of that name, attach to it as it is.
        clients : int
            Processes that can be attached at once, 1 to 4096.
        tickets : int, optional
            Messages that can be in transit at once; by default one for four frames, 64
            at the least and 4096 at the most.
        ticket_ttl : float
            Seconds after which a message that nobody has loaded lets go of its frames.
        unlink_on_last : bool
            The name goes with the last client.

        Returns
        -------
        PhysicalMemory

        Raises
        ------
        ArenaExistsError
            If there is an arena or a file of that name, unless exist_ok. One that killed
            processes have left is removed.
        ArenaNameError
            If the name is empty, too long or has a slash.
        ArenaFullError
            If the file system can't hold the arena: its memory is set aside at once.
        ValueError, MemoryError
            As in `PhysicalMemory`.
        """
        cdef uint64_t page = power_of_two("page_size", page_size, 4096, 1 << 30)
        cdef uint64_t slot = power_of_two("slot_size", slot_size, 64, 256)
        cdef PhysicalMemory self
        where = backing.place_of(name, path)
        size = arena_size(size, page)
        frames = size // page
        clients = in_range("clients", clients, 1, 4096)
        tickets = (max(64, min(4096, frames // 4)) if tickets is None
                   else in_range("tickets", tickets, 1, 1 << TICKET_BITS))
        if not 0 <= ticket_ttl < 2.0 ** 32:
            raise ValueError(f"ticket_ttl must be in 0 .. 2**32 seconds, not {ticket_ttl}")
        covered = cover(regions, size, page)
        debug = debug_flags()
        sharing = Sharing(
            id=os.urandom(16), clients=clients, tickets=tickets,
            area_size=(PF_LANES_SIZE + -(-frames * 4 // 4096) * 4096
                       + (PF_RINGS_SIZE if debug & PF_TRACE else 0)),
            flags=(PF_UNLINK_ON_LAST if unlink_on_last else 0) | (PF_RESERVED_MEMORY if where else 0),
            ticket_ttl=int(ticket_ttl * 1e9))
        areas = clients * sharing.area_size
        backing.sweep()
        # With exist_ok others may create the arena, or leave it and take it along, at any moment.
        while True:
            if where is not None:
                backing.sweep_file(where)
                if exist_ok and os.path.lexists(where):
                    try:
                        return cls.attach(path=where)
                    except ArenaNotFoundError:
                        if where.is_symlink():
                            raise
                        continue
            self = cls.__new__(cls)
            self.check_new()
            self.fd = backing.create_file(where, sharing.id.hex(), size + areas, size)
            self.path = where
            self.a.debug = debug
            self.map_shared(self.fd, size, areas, page, slot, True)
            if populate:
                self.populate(size)
            self.boot(covered, page, sharing)
            self.join()
            self.move_in()
            if where is None:
                return self
            try:
                backing.publish(self.fd, where)
                return self
            except ArenaExistsError:
                if not exist_ok:
                    raise
                self.close()

    @classmethod
    def attach(cls, name=None, *, path=None, id=None, bint reap=True):
        """Attach to an arena of another process.

        Parameters
        ----------
        name : str, optional
            Name that it was created with.
        path : path-like, optional
            Its file, instead of a name.
        id : str, optional
            The first digits of the id of an arena without a name, as `ArenaInfo` has it.
        reap : bool
            Take back what dead clients have left. Otherwise that is for a later `reap`, which
            tells what it was; but one whose place is taken, since none is free, is reaped.

        Returns
        -------
        PhysicalMemory
            A client of its own, even if this process is attached already.

        Raises
        ------
        ArenaNotFoundError
            If there is none.
        ArenaNameError
            If the name can't be one, or more than one arena has an id that begins so.
        ArenaPermissionError
            If it belongs to another user.
        ArenaForeignError, ArenaByteOrderError, ArenaVersionError, ArenaTruncatedError, ArenaDamagedError
            If the file is no arena that can be used.
        ClientsFullError
            If as many processes are attached as it has room for.
        """
        if id is not None:
            if name is not None or path is not None:
                raise TypeError("an arena is named by its name, its path or its id: by one of them")
            return attach_file(cls, backing.open_by_id(id, os.O_RDWR), None, reap)
        where = backing.place_of(name, path)
        if where is None:
            raise TypeError("attach() needs the name, the path or the id of an arena")
        return attach_file(cls, backing.open_file(where), where, reap)

    @classmethod
    def _attach_unnamed(cls, arena_id, pid):
        fd = backing.find_unnamed(arena_id, pid)
        if fd is None:
            raise ArenaNotFoundError(f"no process of this user is attached to arena {arena_id.hex()}")
        return attach_file(cls, fd, None, True)

    @staticmethod
    def list(*, bint all=False):
        """Find the shared arenas of this user on this machine.

        Named ones that killed processes have left are removed, unless all are asked for.

        Parameters
        ----------
        all : bool
            Also those that can't be used, of other users or damaged, and those that killed
            processes have left.

        Returns
        -------
        list of ArenaInfo
            Named arenas first, then those without a name. Arenas at paths of their
            users' own are not found.
        """
        if not all:
            backing.sweep()
        found = [arena_info(where, None) for where in backing.named_files()]
        found += [arena_info(None, arena_id.hex()) for arena_id in sorted(backing.unnamed_ids())]
        return [info for info in found if info is not None and (all or info.problem is None)]

    @staticmethod
    def unlink(name=None, *, path=None):
        """Remove the name of an arena; its clients go on, and no more can attach.

        What lies under a name may be damaged; a file at a path must be an arena.

        Raises
        ------
        ArenaNotFoundError
            If there is none.
        ArenaPermissionError
            If it belongs to another user.
        BadArenaError
            If the file at a path is no sound arena.
        """
        where = backing.place_of(name, path)
        if where is None:
            raise TypeError("unlink() needs the name or the path of an arena")
        fd = backing.open_file(where)
        try:
            backing.check_owner(fd, str(where))
            if name is None:
                backing.read_header(fd, str(where))
            backing.remove_name(fd, where)
        finally:
            os.close(fd)

    @property
    def ticket_ttl(self):
        """Seconds that a message of this arena holds its frames; may be set."""
        self.check_shared("ticket_ttl")
        return self.a.header.ticket_ttl / 1e9

    @ticket_ttl.setter
    def ticket_ttl(self, seconds):
        if not 0 <= seconds < 2.0 ** 32:
            raise ValueError(f"ticket_ttl must be in 0 .. 2**32 seconds, not {seconds}")
        self.check_shared("ticket_ttl")
        self.check_open()
        self.a.header.ticket_ttl = int(seconds * 1e9)

    cdef int join(self) except -1:
        """Become a client: take a free place, or that of a client that is dead."""
        cdef int64_t place = lock_place(self, self.fd, PF_CLIENT_FREE)
        if place >= 0:
            use_place(self, self.fd, place)
        else:
            place = lock_place(self, self.fd, PF_CLIENT_USED)
            if place < 0:
                raise ClientsFullError(
                    f"{self.a.client_capacity} processes are attached to the arena, the maximum")
        become(self, place)
        shared_arenas[id(self)] = self
        self.a.open = True
        return 0

    cdef int move_in(self) except -1:
        """Clear the place that was joined of what a dead client has left there.

        Like any reaping it may run an on_drop, so no lock is held that this needs.
        """
        cdef reaped found
        memset(&found, 0, sizeof(found))
        give_back_all(self, self.a.client, &found)
        describe(self, self.a.client)
        leave_at_exit()
        return 0

    cdef int leave(self) except -1:
        """Give back all that this client has; the last one takes the arena with it."""
        cdef reaped found
        memset(&found, 0, sizeof(found))
        # What follows lets other threads run: from now on they find the arena closed.
        self.a.open = False
        self.a.leaving = True
        try:
            # An on_drop that runs here may attach, so membership is locked behind it.
            give_back_all(self, self.a.client, &found)
        finally:
            self.a.leaving = False
        backing.lock(self.fd, backing.MEMBERSHIP, True)
        try:
            free_place(self, self.a.client)
            if (self.path is not None and self.a.flags & PF_UNLINK_ON_LAST
                    and not backing.locked(self.fd, client_offset(self, 0),
                                           self.a.client_capacity * sizeof(pf_client))):
                pf_store_release_u32(&self.a.header.gone, 1)
                backing.remove_name(self.fd, self.path)
        finally:    # not with the file alone: a child that was forked meanwhile may have that, too
            backing.unlock(self.fd, client_offset(self, self.a.client))
            backing.unlock(self.fd, backing.MEMBERSHIP)
        return 0

    cdef int drop_file(self) except -1:
        """Let go of the locks of a client that has left."""
        shared_arenas.pop(id(self), None)
        fd = self.fd
        self.fd = -1
        os.close(fd)
        return 0

    def __del__(self):
        # Before the collector has cleared anything, should the arena be in a cycle.
        self.leave_unasked()

    def __dealloc__(self):
        self.leave_unasked()    # of a subclass whose __del__ does not call ours

    cdef void leave_unasked(self) noexcept:
        """Leave a shared arena that nobody refers to any more."""
        cdef PyObject *waiting[3]
        if not self.span or not self.a.open:
            return
        PyErr_Fetch(&waiting[0], &waiting[1], &waiting[2])
        try:
            self.leave()
        except BaseException as error:
            # The kernel drops the lock with the file, and others reap what is left.
            PyErr_SetObject(type(error), error)
            PyErr_WriteUnraisable(None)
        PyErr_Restore(waiting[0], waiting[1], waiting[2])

    def reap(self):
        """Take back what dead processes held, and let messages go that have expired.

        Happens by itself when a process attaches and when frames run out. Orphans that
        wait for a class which this process has defined are dropped, too.

        Returns
        -------
        ReapReport
            What was found; nothing if another thread of this process is at it.
        """
        self.check_shared("reap()")
        self.check_open()
        return reap_dead(self, False)

    def audit(self, bint repair=False):
        """Compare the counts of all frames with all their holders.

        Parameters
        ----------
        repair : bool
            Reap first, and let go of what nobody holds. If a process uses the arena
            meanwhile, or repairs it, too, nothing is repaired: see ``repaired`` in the
            report.

        Returns
        -------
        AuditReport
        """
        self.check_shared("audit()")
        if repair:
            self.check_open()
            reap_dead(self, False)
            return audit_and_repair(self)
        return audit(self, False)

    cdef bint make_room(self) except -1:
        """When frames run out: take back what dead clients hold, and expired messages."""
        if not self.span:
            return False
        reap_dead(self, True)
        self.check_open()       # it may have waited for another thread
        return True

    cdef object room_for(self, uint64_t frames, bint zeroed):
        try:
            return alloc_segment(self, frames, None, zeroed, None)
        except OutOfFramesError:
            if not can_map(self) or free_frames(&self.a) < <int64_t>frames:
                raise
        return map_frames(
            self, alloc_frames(self, frames, None, zeroed), None, frames << self.a.page_shift)

    # -- allocation ----------------------------------------------------------------------------

    def alloc_frame(self, meta=None, bint zeroed=True):
        """Allocate one frame.

        Parameters
        ----------
        meta : FrameMeta or type, optional
            Metadata, copied into the slot; a class stands for its defaults.
            None makes an untyped frame without fields.
        zeroed : bool
            Fill the frame with zeros. Otherwise it shows what its last user left.

        Returns
        -------
        UFrame or Frame
            A `UFrame` if the metadata type is untyped.

        Raises
        ------
        OutOfFramesError
            If no frame is free.
        FrameTypeError
            If meta is no metadata, or too large for the slots of this arena.
        """
        cdef int64_t frame
        cdef pf_slot *slot
        cdef UFrame handle
        cdef MetaSource source
        if meta is not None:
            self.check_open()
            source = meta_source(self, meta)
            frame = obtain_one(self)
            slot = pf_slot_at(&self.a, frame)
            if zeroed:
                zero_used(&self.a, frame, slot)
            begin_life(slot, source.type_id, source.storage, source.size, 1)
            track(self, frame, 1)
            return make_frame(self, slot)
        handle = UFrame.__new__(UFrame)     # before there is anything to lose
        if not self.a.open:
            self.check_open()
        frame = claim_one(&self.a) if self.user_allocator is None else -1
        if frame < 0:
            frame = obtain_one(self)
        elif self.a.debug & PF_POISON:
            check_poison(self, NULL, frame, 1)
        slot = pf_slot_at(&self.a, frame)
        if zeroed:
            zero_used(&self.a, frame, slot)
        begin_life(slot, TYPE_UNTYPED, NULL, 0, 1)
        track(self, frame, 1)
        handle.mem = self
        handle.slot = slot
        return handle

    def alloc_frames(self, n, meta=None, bint zeroed=True):
        """Allocate many frames, wherever they are.

        Parameters
        ----------
        n : int
            How many; at least one.
        meta : FrameMeta, type or callable, optional
            As in `alloc_frame`, the same for all; or called with each paddr to
            give the frame's metadata, all of one type.
        zeroed : bool
            As in `alloc_frame`.

        Returns
        -------
        FrameVec

        Raises
        ------
        OutOfFramesError
            If fewer frames are free; none is taken then.
        FrameTypeError
            As in `alloc_frame`, or if meta gives more than one type. What meta
            raises is passed on; the frames go back.
        """
        return alloc_frames(self, self.wanted(n, 0), meta, zeroed)

    def alloc_segment(self, n, meta_fn=None, bint zeroed=True, align=None):
        """Allocate contiguous frames.

        Parameters
        ----------
        n : int
            How many; at least one. No more are taken.
        meta_fn : callable, FrameMeta or type, optional
            Called with each paddr to give the frame's metadata, all of one type;
            or metadata that is the same for all.
        zeroed : bool
            As in `alloc_frame`.
        align : int or str, optional
            Bytes of which the first paddr must be a multiple: a power of two, at
            least the page size.

        Returns
        -------
        USegment or Segment

        Raises
        ------
        OutOfFramesError
            If no run is long enough; the message says how long the longest is.
        FrameTypeError
            As in `alloc_frames`. What meta_fn raises is passed on; the frames go back.
        NotAlignedError, ValueError
            If align is less than the page size, or no power of two.
        """
        if align is not None:
            align = parse_size(align)
            if align <= 0 or align & (align - 1):
                raise ValueError(f"align must be a power of two, not {align}")
            if align & ((1 << self.a.page_shift) - 1):
                raise NotAlignedError(
                    f"align {align} is not a multiple of the page size {1 << self.a.page_shift}")
        return alloc_segment(self, self.wanted(n, align or 1), meta_fn, zeroed, align)

    cdef uint64_t wanted(self, object n, object align) except 0:
        """A number of frames that could be had if the arena were empty."""
        n = as_int(n)
        self.check_open()
        if n < 1:
            raise ValueError(f"at least one frame must be asked for, not {n}")
        if align > self.a.size:
            raise OutOfFramesError(
                f"a run aligned to {align} bytes wanted, the arena has {self.a.size}")
        if n > self.a.frames:
            raise OutOfFramesError(
                f"{n} frames wanted, the arena has {self.a.frames}, of which "
                f"{free_frames(&self.a)} are free")
        return n

    def inc_frame_ref_count(self, paddr):
        """Take one more reference to a frame that the caller holds, as a raw one.

        `Frame.from_raw` takes it back.

        Raises
        ------
        GetFrameError
            If the paddr is not that of a frame in use.
        """
        cdef uint64_t frame = self.frame_at(paddr)
        get(self, frame)
        try:
            raw_add(self, frame)
        except BaseException:
            put(self, pf_slot_at(&self.a, frame))
            raise

    def trim(self):
        """Give the memory of free frames back to the system.

        Returns
        -------
        int
            Frames whose memory went back. They read as zero when next used.
        """
        cdef uint64_t frames
        self.check_open()
        # Other threads are not let in: the frames being trimmed are away meanwhile, and a
        # thread would find fewer free than there are, as one without interpreter lock may.
        frames = trim(&self.a)
        return frames

    # -- arrays --------------------------------------------------------------------------------

    def array(self, shape, dtype=float, *, order="C", bint zeroed=True):
        """Allocate a NumPy array.

        Its frames are contiguous in the arena. If no run of free frames is long enough they
        are scattered, and mapped one behind another, as by `map`.

        Parameters
        ----------
        shape : int or tuple of int
        dtype : data-type
            Anything but objects.
        order : {"C", "F"}
            Rows or columns first.
        zeroed : bool
            Fill it with zeros. Otherwise it shows what the frames' last users left.

        Returns
        -------
        FrameArray
            A `numpy.ndarray` that holds its frames, and is pickled as a handle if the
            arena is shared.

        Raises
        ------
        OutOfFramesError
            If too few frames are free; of an arena made with ``mappable=False``, if no run of
            them is long enough.
        MapBudgetError
            If scattered frames would take more kernel mappings than the process may have.
        FrameTypeError
            If the data type holds objects.
        """
        return new_array(self, shape, dtype, order, zeroed)

    def zeros(self, shape, dtype=float, *, order="C"):
        """Allocate an array of zeros; see `array`."""
        return new_array(self, shape, dtype, order, True)

    def empty(self, shape, dtype=float, *, order="C"):
        """Allocate an array that shows what the frames' last users left; see `array`."""
        return new_array(self, shape, dtype, order, False)

    def asarray(self, array):
        """Return an array over frames of this arena with the same elements.

        Parameters
        ----------
        array : array_like
            Copied, once, unless it lies in frames of this arena already.

        Returns
        -------
        FrameArray

        Raises
        ------
        OutOfFramesError, FrameTypeError
            As `array` does.
        """
        return array_like(self, array)

    # -- mapped frames -------------------------------------------------------------------------

    def map(self, frames, prop=None, *, reserve=None):
        """Map frames, wherever they are, one behind another: as one contiguous buffer.

        Parameters
        ----------
        frames : UFrame, USegment, FrameVec or iterable of them
            They are moved: their references become those of the mapping. Map a ``clone()`` to
            keep a handle.
        prop : PageProperty, optional
            What may be done with the pages; to be read and written by default.
        reserve : int or str, optional
            Bytes of addresses, so that the mapping can grow; as many as the arena has by default.

        Returns
        -------
        Mapping

        Raises
        ------
        ValueError
            If there is no frame, a handle is given twice, or the pages could not be read.
        NotAlignedError
            If reserve is no multiple of the page size.
        TypeError
            If the arena was made with ``mappable=False``.
        OutOfBoundError, FrameTypeError, MovedError, BufferError, OutOfFramesError, MapBudgetError
            As `Mapping.append` does; the handles stay as they were. `OSError` and `MemoryError`, too.
        """
        return map_frames(self, frames, prop, reserve)

    def ring(self, size, meta=None, bint zeroed=True):
        """Allocate frames and map them twice in a row, so that a window on them never wraps.

        Parameters
        ----------
        size : int or str
            Bytes; a multiple of the page size.
        meta : FrameMeta or type, optional
            Metadata of the frames, untyped.
        zeroed : bool
            As in `alloc_frame`.

        Returns
        -------
        Ring

        Raises
        ------
        NotAlignedError
            If the size is no multiple of the page size.
        TypeError
            If the arena was made with ``mappable=False``.
        OutOfFramesError, MapBudgetError, MemoryError
            If there are not enough frames, kernel mappings or addresses.
        """
        return make_ring(self, size, meta, zeroed)

    # -- closing -------------------------------------------------------------------------------

    @cython.critical_section
    def close(self):
        """Give the arena's memory back; of a shared arena, leave it.

        Does nothing if it is closed already. The last client that leaves a shared
        arena takes it with it, unless it was created with ``unlink_on_last=False``.

        Raises
        ------
        ArenaInUseError
            If handles, mappings, views or raw references of this process still hold
            frames; says how many.

        Notes
        -----
        Where there is no interpreter lock, an object whose last reference goes in
        another thread than the one that made it may die only when that thread next
        runs, or in `gc.collect`, and what it refers to then in the same way: an array
        after some time, its frames later.
        """
        if not self.a.open:
            return
        if self.span and not self.reaping.acquire(False):
            raise ArenaInUseError("the arena can't be closed: a thread of this process is reaping in it")
        try:
            self.check_unused()
            # From here on no other code may run, the collector's included.
            self.a.closing = True   # what a thread drops meanwhile must not be lost, should it stay open
            try:
                if not self.shut():
                    raise ArenaInUseError("the arena can't be closed: a thread of this process works in it")
                self.check_unused()     # a thread that did not know yet may have come between
                self.a.closing = False
                self.stop_threads()     # those that have dropped the last are done
            except BaseException:
                self.a.open = True
                self.a.closing = False
                raise
            if self.span:
                self.leave()
            self.release_memory()
            if self.span:
                self.drop_file()
        finally:
            if self.span:
                self.reaping.release()

    cdef int check_unused(self) except -1:
        """Refuse to close an arena of which this process holds anything."""
        cdef ledger_walk walk
        cdef uint64_t frame, raw
        cdef uint64_t frames = 0
        cdef uint64_t references = 0
        cdef uint32_t views = pf_load_relaxed_u32(&self.a.views)
        if not self.span:
            count_references(&self.a, &references, &raw)
            frames = self.a.frames - self.own_frames - free_frames(&self.a)
            if frames or references or views:       # a reserved frame may be held, too
                raise ArenaInUseError(
                    f"the arena can't be closed: {frames} frames are held by {references} references, "
                    f"{raw} of them raw, and {views} arrays over its tables live{open_spaces(self)}")
            return 0
        walk = walk_ledger(self, self.a.client)
        while next_held(&walk, &frame):
            frames += 1
            references += walk.ledger[frame]
        if frames or views:
            raise ArenaInUseError(
                f"the arena can't be closed: this process holds {frames} frames by {references} "
                f"references, and {views} arrays over its tables live{open_spaces(self)}")
        return 0


cdef str open_spaces(Arena mem):
    """What to say of the spaces that hold frames of an arena."""
    cdef VmSpace space
    cdef int found = 0
    for space in alive(spaces):
        found += space.mem is mem and space.table.nodes != 0
    return f"; spaces and mappings that hold frames: {found}" if found else ""


cdef object in_range(str name, object value, uint64_t low, uint64_t high):
    value = as_int(value)
    if not low <= value <= high:
        raise ValueError(f"{name} must be in {low} .. {high}, not {value}")
    return value


cdef object arena_size(object size, uint64_t page):
    """A size that an arena can have."""
    size = parse_size(size)
    if size <= 0 or size % page:
        raise ValueError(f"size must be a positive multiple of the page size {page}, not {size}")
    if size // page >= MAX_FRAMES:
        raise ValueError(f"{size // page} frames are too many: an arena has fewer than {MAX_FRAMES}")
    return size


cdef object attach_file(object cls, int fd, object where, bint clear):
    """Attach to the arena in an open file, which is closed if that fails."""
    cdef PhysicalMemory self = cls.__new__(cls)
    self.show_file(fd, where, True)
    backing.lock(fd, backing.MEMBERSHIP, True)
    try:
        if self.a.header.gone:
            raise ArenaNotFoundError(
                f"the last client of {where or 'the arena'} has left and taken it along")
        self.join()
    finally:
        backing.unlock(fd, backing.MEMBERSHIP)
    self.move_in()
    if clear:
        reap_dead(self, False)
    return self


cdef object arena_info(object where, object arena_id):
    """What is to be known of an arena in a file, or of one without a name; None if it is gone."""
    cdef ArenaView view
    cdef uint32_t client
    name = None if where is None else backing.name_of(where)
    try:
        view = ArenaView(path=where, id=arena_id)
    except ArenaNotFoundError:
        return None
    except (OSError, BadArenaError) as error:
        try:
            status = os.lstat(where)
        except (OSError, TypeError):
            return None
        return ArenaInfo(
            name=name, path=where, id="", size=status.st_size, page_size=0, total_frames=0,
            used_frames=0, clients=0, dead=0, created=0.0, owner=status.st_uid, stale=False,
            problem=getattr(error, "strerror", None) or str(error))
    with view:
        places = [
            is_alive(view, client) for client in range(view.a.client_capacity)
            if pf_client_used(&view.a, client)]
        clients, dead = places.count(True), places.count(False)
        return ArenaInfo(
            name=name, path=where, id=view.id, size=view.size, page_size=view.page_size,
            total_frames=view.total_frames, used_frames=view.used_frames, clients=clients, dead=dead,
            created=view.created, owner=os.fstat(view.fd).st_uid,
            stale=clients == 0 and (dead > 0 or view.a.flags & PF_UNLINK_ON_LAST != 0),
            problem=None)


exit_arranged = []      # process ids in which leave_all() will run at the end


def leave_all():
    """At the end of the process: leave all arenas, unless a thread still works in one."""
    for mem in list(shared_arenas.values()):
        if (<PhysicalMemory>mem).a.open and (<PhysicalMemory>mem).shut():
            (<PhysicalMemory>mem).leave()
            (<PhysicalMemory>mem).drop_file()


cdef int leave_at_exit() except -1:
    """Have leave_all() run when this process ends, which for a child of multiprocessing is not atexit."""
    if exit_arranged and exit_arranged[-1] == os.getpid():
        return 0
    if not exit_arranged:
        atexit.register(leave_all)
        os.register_at_fork(after_in_child=leave_at_exit_of_child)
    exit_arranged.append(os.getpid())
    leave_at_exit_of_child()
    return 0


def leave_at_exit_of_child():
    """Children of multiprocessing end without running what is registered with atexit."""
    util = sys.modules.get("multiprocessing.util")
    if util is None:
        return
    # Its own finalizers, such as joining the threads of queues, have higher priorities. A child
    # forgets those of its parent when it begins, and then runs what is registered here.
    util.register_after_fork(leave_all, arrange_finalizer)
    arrange_finalizer(leave_all)


def arrange_finalizer(function):
    """Register with multiprocessing."""
    sys.modules["multiprocessing.util"].Finalize(None, function, exitpriority=-100)


cdef int reserve(pf_arena *a, uint64_t start, uint64_t stop, uint32_t type_id) except -1:
    """Give a range of frames to the arena itself."""
    cdef uint64_t frame
    cdef uint64_t first = start >> a.page_shift
    cdef uint64_t count = (stop - start) >> a.page_shift
    if not start < stop <= a.size:
        raise ValueError(f"the range {start:#x} .. {stop:#x} is not within the arena")
    reserve_frames(a, first, count)
    for frame in range(first, first + count):
        begin_life(pf_slot_at(a, frame), type_id, NULL, 0, 1)
    return 0


cdef int add_free_memory(Arena mem, object allocator) except -1:
    """Tell the user's allocator of every run of free frames."""
    cdef uint64_t start = next_bit(&mem.a, 0, mem.a.frames, False)
    cdef uint64_t stop
    while start < mem.a.frames:
        stop = next_bit(&mem.a, start, mem.a.frames, True)
        allocator.add_free_memory(start << mem.a.page_shift, (stop - start) << mem.a.page_shift)
        start = next_bit(&mem.a, stop, mem.a.frames, False)
    return 0
