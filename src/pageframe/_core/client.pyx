# This Source Code Form is subject to the terms of the Mozilla Public
# License, v. 2.0. If a copy of the MPL was not distributed with this
# file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Clients: the processes that share an arena, and what becomes of one that forks.

A client is a place in the arena's table, and the lock on that place (backing.py),
which the kernel drops when the process dies.  The table says which places are used,
the locks say whose processes live: a used place that can be locked is that of a dead
client, and whoever has locked it may reap it (reap.pyx).

The area of a client holds its lanes and its ledger.  It is sparse: pages that were
never written take no memory, and walking over a ledger skips them.

Fork.  Before the fork the parent takes a place for the child, locks it through a
file description of its own, and within fork() gives it a reference for each of its own.  Then the
child, whatever happens to either, holds what the parent held: it needs only to let
go of the parent's file description and to use its own place.  Frames that are UNIQUE
have one owner and stay with the parent.
"""

import os
import sys
import weakref
from dataclasses import dataclass
from pathlib import Path
from threading import Lock, RLock

from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from pageframe._core import backing
from pageframe._core.allocator cimport my_lane
from pageframe._core.arena cimport (
    PF_CLIENT_FREE, PF_CLIENT_USED, PF_LANES_SIZE, PF_RESERVED_MEMORY, Arena, pf_client, pf_ledger_of,
    pf_lanes_of, pf_slot_at)
from pageframe._core.errors import ClientsFullError
from pageframe._core.ledger cimport (
    PF_OP_MORE, PF_S_fork_count, PF_S_fork_ledger, PF_S_join_describe, PF_S_join_state, PF_S_leave_area,
    PF_S_leave_state, pf_op_begin, pf_op_end, pf_step)
from pageframe._core.slot cimport (
    PF_OK, pf_load_relaxed_u32, pf_slot, pf_slot_get, pf_slot_inc, pf_store_release_u32)

cdef extern from * nogil:
    """
    #include <sys/mman.h>
    #include <unistd.h>
    """
    int64_t lseek(int, int64_t, int)
    int SEEK_DATA, SEEK_HOLE
    int madvise(void *, size_t, int)
    int MADV_REMOVE


@dataclass(frozen=True)
class ClientInfo:
    """A process that is, or was, attached to an arena.

    Attributes
    ----------
    pid
        Its process id.
    name
        What it called itself when it attached.
    started
        When the process started, in seconds since the epoch.
    """

    pid: int
    name: str
    started: float


# -- ledgers -----------------------------------------------------------------------------------

cdef ledger_walk walk_ledger(Arena mem, uint32_t client) noexcept nogil:
    """Begin to walk over the frames that a client holds."""
    cdef ledger_walk walk
    walk.ledger = pf_ledger_of(&mem.a, client)
    walk.frame = walk.stop = 0
    walk.frames = mem.a.frames
    walk.offset = (mem.a.size
                   + client * mem.a.area_size + PF_LANES_SIZE)
    walk.fd = mem.fd
    return walk


cdef bint next_extent(ledger_walk *walk) noexcept nogil:
    """Go to the next part of a ledger that is there; holes of the file are skipped, not filled."""
    cdef int64_t data, hole
    if walk.frame >= walk.frames:
        return False
    data = lseek(walk.fd, walk.offset + walk.frame * sizeof(uint32_t), SEEK_DATA)
    if data < 0:        # ENXIO: nothing but a hole from here on
        return False
    hole = lseek(walk.fd, data, SEEK_HOLE)
    walk.frame = max(walk.frame, <uint64_t>(data - walk.offset) // sizeof(uint32_t))
    walk.stop = min(walk.frames, <uint64_t>(hole - walk.offset) // sizeof(uint32_t))
    return True


# -- places in the table -----------------------------------------------------------------------

cdef uint64_t client_offset(Arena mem, uint32_t client) noexcept:
    """Where the record of a client lies in the file: the byte that it locks."""
    return <uint64_t>(<unsigned char *>mem.a.clients - mem.a.base) + client * sizeof(pf_client)


cdef object client_info(Arena mem, uint32_t client):
    cdef const pf_client *record = &mem.a.clients[client]
    name = bytes(record.name[:sizeof(record.name)]).split(b"\0")[0].decode(errors="replace")
    return ClientInfo(record.pid, name, record.started / 1e9)


cdef int64_t lock_place(Arena mem, int fd, uint32_t state) except -2:
    """Lock a place of a state that nobody has locked; -1 if there is none."""
    cdef uint32_t client
    for client in range(mem.a.client_capacity):
        if pf_load_relaxed_u32(&mem.a.clients[client].state) != state or client == mem.a.client:
            continue
        if not backing.lock(fd, client_offset(mem, client), False):
            continue
        if pf_load_relaxed_u32(&mem.a.clients[client].state) == state:
            return client
        backing.unlock(fd, client_offset(mem, client))
    return -1


cdef int use_place(Arena mem, int fd, uint32_t client) except -1:
    """Make a free place that is locked a client's, of this process for the time being."""
    cdef uint64_t size = mem.a.area_size
    if mem.a.header.flags & PF_RESERVED_MEMORY:
        backing.reserve(
            fd, mem.a.size + client * size, size,
            str(mem.path))
    pf_step(PF_S_join_describe)
    describe(mem, client)
    pf_step(PF_S_join_state)
    pf_store_release_u32(&mem.a.clients[client].state, PF_CLIENT_USED)
    return 0


cdef int free_place(Arena mem, uint32_t client) except -1:
    """Free a place that is locked and whose client holds nothing any more."""
    cdef void *area = pf_lanes_of(&mem.a, client)
    pf_step(PF_S_leave_area)
    memset(area, 0, PF_LANES_SIZE)
    madvise(area, mem.a.area_size, MADV_REMOVE)
    pf_step(PF_S_leave_state)
    pf_store_release_u32(&mem.a.clients[client].state, PF_CLIENT_FREE)
    return 0


cdef int describe(Arena mem, uint32_t client) except -1:
    """Write down which process has a place."""
    cdef pf_client *record = &mem.a.clients[client]
    cdef bytes name = process_name().encode(errors="replace")[:sizeof(record.name) - 1]
    record.pid = os.getpid()
    record.started = process_start()
    memset(record.name, 0, sizeof(record.name))
    memcpy(record.name, <const char *>name, len(name))
    return 0


def process_name():
    """What this process is called: the name that multiprocessing gave it, or its program."""
    multiprocessing = sys.modules.get("multiprocessing")
    if multiprocessing is not None:
        name = multiprocessing.current_process().name
        if name != "MainProcess":
            return name
    program = (getattr(sys, "argv", None) or [""])[0]
    if program in ("", "-c", "-m"):
        program = sys.executable or "python"
    return Path(program).name


def process_start():
    """When this process started, in nanoseconds since the epoch."""
    # proc(5): field 22 of /proc/self/stat, behind the name in parentheses, and btime.
    ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    booted = next(
        int(line.split()[1]) for line in Path("/proc/stat").read_text().splitlines()
        if line.startswith("btime "))
    return booted * 10**9 + ticks * 10**9 // os.sysconf("SC_CLK_TCK")


cdef int become(Arena mem, uint32_t client) except -1:
    """Work as a client from now on."""
    mem.a.client = client
    mem.a.lanes = pf_lanes_of(&mem.a, client)
    mem.a.ledger = pf_ledger_of(&mem.a, client)
    mem.a.my_lane = my_lane
    mem.reaping = Lock()
    shared_arenas[id(mem)] = mem
    return 0


# -- fork --------------------------------------------------------------------------------------

shared_arenas = weakref.WeakValueDictionary()   # that this process is attached to, in this order

# What a process holds must not change between giving it to the child and the fork.  Hooks of
# Python's may let other threads run; so these take the places, and what is held is given by a
# handler of the C library, within fork() itself.
forking = RLock()               # one fork at a time: held from before it until after it
cdef list forking_arenas = []   # those that have taken a place for the child

cdef extern from * nogil:
    """
    #include <pthread.h>
    /* Whether this thread forks by way of Python, with places taken. */
    static _Thread_local int pf_forking;
    """
    bint pf_forking
    int pthread_atfork(void (*)() noexcept nogil, void *, void *)


cdef int take_child_place(Arena mem) except -1:
    """Take a place for the child that is about to be forked."""
    cdef int64_t child
    fd = backing.open_again(mem.fd)
    try:
        child = lock_place(mem, fd, PF_CLIENT_FREE)
        if child < 0:
            mem.make_room()     # places of dead clients
            child = lock_place(mem, fd, PF_CLIENT_FREE)
        if child < 0:
            raise ClientsFullError(
                f"the arena has {mem.a.client_capacity} clients, the maximum: a forked child "
                "can't use it")
        use_place(mem, fd, child)
    except BaseException:
        os.close(fd)
        raise
    leave_child_place(mem)      # of a fork that a signal handler has interrupted
    mem.child_fd = fd
    mem.child = child
    return 0


cdef int leave_child_place(Arena mem) except -1:
    """Let go of the child's place: it is the child's, or a dead client's."""
    if mem.child_fd >= 0:
        os.close(mem.child_fd)
        mem.child_fd = -1
    return 0


cdef void give_child(Arena mem) noexcept nogil:
    """Give the child all that this process holds."""
    cdef ledger_walk walk = walk_ledger(mem, mem.a.client)
    cdef uint32_t *ledger = pf_ledger_of(&mem.a, mem.child)
    cdef uint64_t frame
    cdef uint32_t i
    cdef pf_slot *slot
    while next_held(&walk, &frame):
        slot = pf_slot_at(&mem.a, frame)
        pf_op_begin(&mem.a, my_lane(&mem.a), PF_OP_MORE, frame)
        # What is UNIQUE, being built or torn down can't be had, and stays with us.
        for i in range(walk.ledger[frame]):
            pf_step(PF_S_fork_count)
            if (pf_slot_get(slot) if i == 0 else pf_slot_inc(slot)) != PF_OK:
                break
            pf_step(PF_S_fork_ledger)
            pf_store_release_u32(&ledger[frame], i + 1)
    pf_op_end(&mem.a, my_lane(&mem.a))


cdef void within_fork() noexcept nogil:
    """Called by fork() in the thread that forks."""
    if pf_forking:
        with gil:       # which this thread has
            for mem in forking_arenas:
                if (<Arena>mem).a.open:
                    give_child(<Arena>mem)


if pthread_atfork(within_fork, NULL, NULL):
    raise MemoryError("no memory for a fork handler")


cdef int be_child(Arena mem) except -1:
    """In the child: use the place that the parent has taken."""
    cdef uint64_t frame
    os.close(mem.fd)        # with it, the parent's lock would outlive the parent
    mem.fd = mem.child_fd
    mem.child_fd = -1
    mem.a.epoch += 1
    mem.working = mem.registering = mem.reaper = 0
    mem.list_ids.clear()    # the parent may give them to lists of its own
    if mem.fd < 0:
        if mem.a.open:
            mem.why_closed = (
                "this process was forked while the arena's table of clients was full, or by something "
                "that does not tell Python")
        mem.a.open = mem.a.leaving = False
        shared_arenas.pop(id(mem), None)
        return 0
    become(mem, mem.child)
    describe(mem, mem.a.client)
    if mem.raw_used:
        for frame in range(mem.a.frames):
            if mem.a.raw[frame] and mem.a.ledger[frame] == 0:
                mem.a.raw[frame] = 0    # of a frame that stayed with the parent
    return 0


def before_fork():
    """Take places for the child."""
    global pf_forking
    errors = []
    forking.acquire()
    for mem in list(shared_arenas.values()):
        if (<Arena>mem).a.open:
            try:
                take_child_place(mem)
                forking_arenas.append(mem)
            except Exception as error:      # shown below; the child finds the arena closed
                errors.append(error)
    pf_forking = True
    if errors:
        raise errors[0]


def after_in_parent():
    """Let go of the child's places."""
    global pf_forking
    pf_forking = False
    for mem in forking_arenas:
        leave_child_place(mem)
    forking_arenas.clear()
    forking.release()


def after_in_child():
    """Use the places that the parent has taken."""
    global forking, pf_forking
    pf_forking = False
    forking = RLock()
    for mem in list(shared_arenas.values()):
        if not (<Arena>mem).a.open:     # closed since it took a place
            leave_child_place(mem)
        be_child(mem)
    for mem in forking_arenas:
        leave_child_place(mem)
    forking_arenas.clear()


os.register_at_fork(
    before=before_fork, after_in_parent=after_in_parent, after_in_child=after_in_child)
