# This Source Code Form is subject to the terms of the Mozilla Public
# License, v. 2.0. If a copy of the MPL was not distributed with this
# file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Clients: the processes that share an arena.

A client is a place in the arena's table, and the lock on that place (backing.py),
which the kernel drops when the process dies.  The table says which places are used,
the locks say whose processes live: a used place that can be locked is that of a dead
client, and whoever has locked it may reap it (reap.pyx).

The area of a client holds its lanes, its ledger, and of a traced arena its rings of
events, which stay when it goes.  It is sparse: pages that were never written take no
memory, and walking over a ledger skips them.
"""

import os
import sys
import weakref
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from pageframe._core import backing
from pageframe._core.allocator cimport my_lane
from pageframe._core.arena cimport (
    PF_CLIENT_FREE, PF_CLIENT_USED, PF_LANES, PF_LANES_SIZE, PF_RESERVED_MEMORY, PF_RINGS_SIZE, PF_TRACE,
    Arena, pf_client, pf_client_used, pf_lane, pf_lanes_of, pf_ledger_of, pf_rings_of)
from pageframe._core.ledger cimport (
    PF_S_join_count, PF_S_join_describe, PF_S_join_state, PF_S_leave_area, PF_S_leave_state, pf_step)
from pageframe._core.slot cimport pf_add_release_u32, pf_load_relaxed_u32, pf_store_release_u32

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


cdef list client_infos(Arena mem):
    """Who has a place: living clients, and dead ones that nobody has reaped."""
    cdef uint32_t client
    if mem.a.clients == NULL:
        return []
    return [
        client_info(mem, client) for client in range(mem.a.client_capacity) if pf_client_used(&mem.a, client)]


cdef bint is_alive(Arena mem, uint32_t client) except -1:
    """Whether the process that has a place lives: its lock says so, and ours is no lock to us."""
    return client == mem.a.client or backing.locked(mem.fd, client_offset(mem, client), 1)


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
    if mem.a.flags & PF_RESERVED_MEMORY:
        backing.reserve(
            fd, mem.a.size + client * size, size,
            str(mem.path))
    pf_step(PF_S_join_describe)
    describe(mem, client)
    pf_step(PF_S_join_state)
    pf_store_release_u32(&mem.a.clients[client].state, PF_CLIENT_USED)
    pf_step(PF_S_join_count)
    # Release: an audit that sees the number sees the client.  It begins no operation before.
    pf_add_release_u32(&mem.a.header.joined, 1)
    return 0


cdef int free_place(Arena mem, uint32_t client) except -1:
    """Free a place that is locked and whose client holds nothing any more.

    The lanes stay, and with them the numbers of their operations, which only grow; others
    may read them at any time.  So does what the file system has set aside: it could be gone
    when somebody reads there who has found the place in use a moment ago.
    """
    cdef pf_lane *lanes = pf_lanes_of(&mem.a, client)
    cdef uint64_t size = mem.a.area_size - (PF_RINGS_SIZE if mem.a.debug & PF_TRACE else 0)
    cdef uint32_t i
    pf_step(PF_S_leave_area)
    for i in range(PF_LANES):
        lanes[i].kept = lanes[i].op = lanes[i].hint = lanes[i].events = 0
    if not mem.a.flags & PF_RESERVED_MEMORY:
        madvise(<char *>lanes + PF_LANES_SIZE, size - PF_LANES_SIZE, MADV_REMOVE)
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
    if program in ("", "-", "-c", "-m"):
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


shared_arenas = weakref.WeakValueDictionary()   # that this process is attached to, in this order


cdef int become(Arena mem, uint32_t client) except -1:
    """Work as a client from now on."""
    mem.a.client = client
    mem.a.lanes = pf_lanes_of(&mem.a, client)
    mem.a.ledger = pf_ledger_of(&mem.a, client)
    mem.a.my_lane = my_lane
    mem.a.recorded = True
    if mem.a.debug & PF_TRACE:
        mem.a.rings = pf_rings_of(&mem.a, client)
    mem.reaping = Lock()
    return 0
