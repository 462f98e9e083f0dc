# This Source Code Form is subject to the terms of the Mozilla Public
# License, v. 2.0. If a copy of the MPL was not distributed with this
# file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Looking at an arena: its figures, tables, clients and holders.

A view shows a shared arena to a process that is no client of it.  It maps the file to be
read only and takes no lock, so it has no place among the clients, holds nothing and can't
change a count; frames can't be had from it.  `PhysicalMemory` is a view, too: of an arena
that this process uses.

What is read changes meanwhile.  Figures of a living arena are those of no single moment.
"""

import os

import numpy as np

cimport cython
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.string cimport memcpy

from pageframe._core import backing
from pageframe._core.allocator cimport free_frames
from pageframe._core.arena cimport Arena, as_int, debug_words, pf_client_used, pf_header, table_array
from pageframe._core.audit cimport audit, holders
from pageframe._core.census cimport stats
from pageframe._core.client cimport client_infos, ledger_walk, next_held, walk_ledger
from pageframe._core.errors import ArenaInUseError
from pageframe._core.event_trace cimport events
from pageframe._core.handle cimport Handle, held
from pageframe._core.meta cimport find_type, know_own_types, know_types, slot_dtype
from pageframe._core.slot cimport PF_BUSY, PF_ORPHAN, PF_UNUSED, pf_load_relaxed_u32


HELD = np.dtype([("paddr", "u8"), ("references", "u4")])


@cython.no_gc_clear
cdef class ArenaView(Arena):
    """A shared arena as one looks at it from outside.

    Takes no client's place and changes nothing, so it can look at an arena that is full,
    damaged or left by processes that were killed. It shows the frames' metadata and who
    holds them, not their bytes.

    Parameters
    ----------
    name : str, optional
        Name of the arena.
    path : path-like, optional
        Its file, instead of a name.
    id : str, optional
        The first digits of the id of an arena without a name, as `ArenaInfo` has it.

    Raises
    ------
    ArenaNotFoundError
        If there is none.
    ArenaNameError
        If the name can't be one, or more than one arena has an id that begins so.
    ArenaPermissionError
        If it belongs to another user.
    ArenaForeignError, ArenaByteOrderError, ArenaVersionError, ArenaTruncatedError, ArenaDamagedError
        If the file is no arena that can be shown.

    Examples
    --------
    >>> with PhysicalMemory.create("1 MiB", "seen") as mem, mem.alloc_frame() as frame:
    ...     with ArenaView("seen") as view:
    ...         view.used_frames, len(view.holders(frame.start_paddr)), len(view.clients)
    (1, 1, 1)
    """

    def __init__(self, name=None, *, path=None, id=None):
        self.check_new()
        if id is not None:
            if name is not None or path is not None:
                raise TypeError("an arena is named by its name, its path or its id: by one of them")
            fd, where = backing.open_by_id(id), None
        else:
            where = backing.place_of(name, path)
            if where is None:
                raise TypeError("a view needs the name, the path or the id of an arena")
            fd = backing.open_file(where, os.O_RDONLY)
        self.show_file(fd, where, False)
        self.looking = True

    cdef int show_file(self, int fd, object where, bint writable) except -1:
        """Map the arena in an open file, which is this object's from now on."""
        cdef pf_header checked
        label = "the arena" if where is None else str(where)
        if self.mapping != NULL:
            os.close(fd)
            self.check_new()
        self.fd = fd
        self.path = where
        header = backing.read_header(fd, label)
        backing.check_owner(fd, label)
        self.map_shared(
            fd, header.size, header.tables["areas"][1], header.page_size, header.slot_size, writable)
        memcpy(&checked, <const unsigned char *><bytes>header.raw, sizeof(checked))
        self.find_tables(&checked)
        self.own_frames = header.own_frames
        know_own_types(self)
        know_types(self)
        return 0

    cdef int check_shared(self, str what) except -1:
        self.check_shown()
        if not self.span:
            raise TypeError(f"{what} is for shared arenas: see PhysicalMemory.create")
        return 0

    # -- what it is ----------------------------------------------------------------------------

    @property
    def name(self):
        """Name of a shared arena; None if it has none, or lies at a path of its own."""
        return None if self.path is None else backing.name_of(self.path)

    @property
    def id(self):
        """What tells a shared arena from all others: 32 hexadecimal digits; None if it is private."""
        self.check_shown()
        return bytes(self.a.header.id[:16]).hex() if self.span else None

    @property
    def created(self):
        """When the arena was made, in seconds since the epoch."""
        self.check_shown()
        return self.a.header.created / 1e9

    @property
    def shared(self):
        """Whether other processes can attach."""
        return self.span != 0

    @property
    def size(self):
        """Bytes of the arena, its own tables included."""
        return self.a.size

    @property
    def max_paddr(self):
        """First physical address past the arena; the same as `size`."""
        return self.a.size

    @property
    def page_size(self):
        """Bytes of a frame."""
        return 1 << self.a.page_shift

    @property
    def slot_size(self):
        """Bytes of a frame's metadata slot."""
        return 1 << self.a.slot_shift

    @property
    def layout(self):
        """Tables of the arena in the order of their placement, as (name, paddr, bytes)."""
        return self.tables

    @property
    def closed(self):
        """Whether it has been closed."""
        return not (self.a.open or self.looking)

    # -- figures -------------------------------------------------------------------------------

    @property
    def total_frames(self):
        """Frames of the arena: free, used and reserved."""
        return self.a.frames

    @property
    def free_frames(self):
        """Frames that can be allocated. Exact while nobody allocates or releases."""
        self.check_shown()
        return free_frames(&self.a)

    @property
    def used_frames(self):
        """Frames that somebody holds."""
        self.check_shown()
        # In a damaged arena more may be free than there are.
        return max(<int64_t>0, <int64_t>(self.a.frames - self.own_frames - free_frames(&self.a)))

    @property
    def reserved_frames(self):
        """Frames of the arena's own tables and of reserved and bad regions."""
        return self.own_frames

    def stats(self):
        """Count all frames, clients and messages.

        Returns
        -------
        ArenaStats
            Taken frame by frame while others go on; exact at rest.
        """
        self.check_shown()
        return stats(self, self.own_frames)

    # -- the whole arena as arrays -------------------------------------------------------------

    @property
    def slots(self):
        """All metadata slots as a live, read-only structured array.

        Shape ``(total_frames,)``, indexed by ``paddr // page_size``, with the fields
        ``count`` (see `REF_COUNT_UNUSED`, `REF_COUNT_UNIQUE`; 0 is busy),
        ``generation``, ``type`` (see `types`; of a frame that is not used the type
        it had last, 0 if it had none) and ``list`` (0: in none). Keeps the arena
        from being closed.
        """
        return table_array(
            self, self.a.slots, self.a.frames << self.a.slot_shift,
            {"names": ["count", "generation", "type", "list"],
             "formats": ["u8", "u8", "u4", "u4"],
             "offsets": [0, 8, 16, 20],
             "itemsize": 1 << self.a.slot_shift}, None)

    @property
    def bitfield(self):
        """The allocator's bitfield as a live, read-only array of unsigned 64-bit integers.

        Bit ``i % 64`` of item ``i // 64`` is set if frame i is used, reserved, or kept by a
        thread as its next one. The slots of other frames need not be read: those of frames that
        nobody has ever used may have no memory yet, and reading would give them some. Keeps the
        arena from being closed.
        """
        return table_array(
            self, <unsigned char *>self.a.bits, (self.a.frames + 63) // 64 * 8, np.dtype(np.uint64), None)

    def meta(self, meta_type):
        """The metadata of all frames of a type, as a masked structured array.

        Parameters
        ----------
        meta_type : type
            A metadata type.

        Returns
        -------
        numpy.ma.MaskedArray
            Shape ``(total_frames,)``. Take a column, ``mem.meta(T)["field"]``, before
        asking for more: NumPy compresses and counts plain columns only. The
            data are a live, read-only view; the mask, taken when this is called,
            hides frames that are not in use with this type. Keeps the arena from
            being closed.
        """
        type_id = find_type(self, meta_type)
        slots = self.slots
        columns = table_array(
            self, self.a.slots, self.a.frames << self.a.slot_shift, slot_dtype(self, meta_type), None)
        count = slots["count"]
        dead = (slots["type"] != type_id) | (count == PF_UNUSED) | (count == PF_BUSY) | (
            count == PF_ORPHAN)
        return np.ma.MaskedArray(columns, mask=dead)

    @property
    def types(self):
        """Metadata types known to the arena: number -> class, the numbers that `slots` shows.

        A class that this process has not defined is an `OpaqueMeta`.
        """
        if not self.closed:
            know_types(self)
        return dict(enumerate(self.classes[1:self.a.types_known], 1))

    # -- who holds what ------------------------------------------------------------------------

    @property
    def clients(self):
        """The processes that are attached, and dead ones that nobody has reaped."""
        self.check_shown()
        return tuple(client_infos(self))

    def holders(self, frame):
        """Find out who holds a frame.

        Parameters
        ----------
        frame : Frame, UniqueFrame, FrameRef or int
            A handle, or a paddr.

        Returns
        -------
        list of FrameHolder
            The sum of their handles, mappings and tickets is the frame's reference count.

        Raises
        ------
        NotAlignedError, OutOfBoundError
            If a paddr is no frame's address.
        TypeError
            If the arena is private.
        """
        cdef uint64_t number
        if isinstance(frame, Handle):
            held(frame)
            if (<Handle>frame).mem is not self:
                raise ValueError(f"{frame!r} belongs to another arena")
            frame = frame.start_paddr
        number = self.frame_number(frame)
        self.check_shared("holders()")
        return holders(self, number)

    def held_by(self, pid):
        """Find out what a process holds.

        Parameters
        ----------
        pid : int
            A process that is attached, or was when it died.

        Returns
        -------
        numpy.ndarray
            The frames, by address, as a structured array: ``paddr`` and ``references``, the
            handles and mappings that the process has of it.

        Raises
        ------
        TypeError
            If the arena is private.
        """
        cdef uint32_t client
        cdef uint64_t frame
        cdef ledger_walk walk
        cdef Py_ssize_t i
        cdef bint more
        cdef uint64_t[:] frames
        cdef uint32_t[:] counts
        pid = as_int(pid)
        self.check_shared("held_by()")
        found, clients = [np.empty(0, HELD)], 0
        for client in range(self.a.client_capacity):
            if not pf_client_used(&self.a, client) or self.a.clients[client].pid != pid:
                continue
            clients += 1
            walk = walk_ledger(self, client)
            more = True
            while more:     # in one walk: it changes all the time
                paddrs, references = np.empty(4096, np.uint64), np.empty(4096, np.uint32)
                frames, counts = paddrs, references
                i = 0
                while i < 4096:
                    more = next_held(&walk, &frame)
                    if not more:
                        break
                    frames[i] = frame << self.a.page_shift
                    counts[i] = pf_load_relaxed_u32(&walk.ledger[frame])
                    i += counts[i] != 0
                part = np.empty(i, HELD)
                part["paddr"], part["references"] = paddrs[:i], references[:i]
                found.append(part)
        parts = np.concatenate(found)
        if clients < 2:
            return parts
        # A process may be more than one client.
        paddrs, place = np.unique(parts["paddr"], return_inverse=True)
        merged = np.zeros(len(paddrs), HELD)
        merged["paddr"] = paddrs
        np.add.at(merged["references"], place, parts["references"])
        return merged

    def audit(self):
        """Compare the counts of all frames with all their holders.

        Returns
        -------
        AuditReport
            While others work, what they work on may be called damaged; the report says in
            ``quiet`` whether anybody did.

        Raises
        ------
        TypeError
            If the arena is private.
        """
        self.check_shared("audit()")
        return audit(self, False)

    # -- debugging -----------------------------------------------------------------------------

    @property
    def debug(self):
        """What the arena keeps for debugging, of "poison" and "trace".

        ``PAGEFRAME_DEBUG`` says so in the environment of the process that makes the arena,
        for all that attach.
        """
        return debug_words(&self.a)

    def events(self, pid=None):
        """What was done last to frames, in an arena made with ``PAGEFRAME_DEBUG=trace``.

        Of each thread of each process the last 256 events, those of processes that are gone
        included until others take their places. Threads beyond the 64th of a process
        are not traced.

        Parameters
        ----------
        pid : int, optional
            A process, if only its events are wanted.

        Returns
        -------
        numpy.ndarray
            A structured array in the order of ``time`` (since the machine was started, in
            nanoseconds), with the fields ``pid``, ``lane`` (a number for the thread),
            ``paddr`` and ``event``: ``"claim"`` of a free frame and ``"free"`` at its end,
            ``"more"`` and ``"less"`` references, ``"unique"``, ``"share"``, ``"repurpose"``;
            of the first frame of a run ``"map"`` and ``"unmap"``, of the first of a
            message ``"send"`` and ``"load"``. Each is noted as it begins.

        Raises
        ------
        TypeError
            If the arena keeps no events.
        """
        return events(self, None if pid is None else as_int(pid))

    # -- for people ----------------------------------------------------------------------------

    def report(self, file=None):
        """Print what there is to know of the arena: `stats` as tables.

        Parameters
        ----------
        file : file object, optional
            Where to, instead of standard output.
        """
        from pageframe.observe.report import print_report
        print_report(self, file)

    def plot(self, ax=None, *, by="state"):
        """Draw a map of the arena with matplotlib.

        Parameters
        ----------
        ax : matplotlib.axes.Axes, optional
            Where to draw; by default in a new figure of pyplot's, with the free runs beneath.
        by : {"state", "type", "holder"}
            What the colours tell apart.

        Returns
        -------
        matplotlib.axes.Axes
            Those with the map.

        Raises
        ------
        ImportError
            If matplotlib is not installed.
        TypeError
            If a private arena is to be shown by holder.
        """
        from pageframe.observe.picture import plot
        return plot(self, ax, by)

    def _repr_html_(self):
        from pageframe.observe.html import arena_html
        return arena_html(self)

    # -- closing -------------------------------------------------------------------------------

    def close(self):
        """Let go of the arena. Does nothing if that is done already.

        Raises
        ------
        ArenaInUseError
            If arrays over its tables live.
        """
        cdef uint32_t views
        if not self.looking:
            return
        views = pf_load_relaxed_u32(&self.a.views)
        if views:
            raise ArenaInUseError(f"the view can't be closed: {views} arrays over its tables live")
        self.looking = False
        self.release_memory()
        fd = self.fd
        self.fd = -1
        os.close(fd)

    def __enter__(self):
        self.check_shown()
        return self

    def __exit__(self, exc_type, exc, traceback):
        try:
            self.close()
        except ArenaInUseError:
            # What raised may still hold frames; the arena goes with the last of them.
            if exc_type is None:
                raise

    def __repr__(self):
        if self.closed:
            return f"<{type(self).__name__} closed>"
        return (f"<{type(self).__name__} of {self.a.size} bytes: {self.a.frames} frames of "
                f"{1 << self.a.page_shift}, {free_frames(&self.a)} free>")
