# This Source Code Form is subject to the terms of the Mozilla Public
# License, v. 2.0. If a copy of the MPL was not distributed with this
# file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""The last events of each lane of a traced arena, read for a post-mortem.

What a ring is and how it can be read while it is written, trace.h tells. A ring may
hold anything, if somebody has written over it: what is no event of this arena is left
out, and nothing is believed but that. Rings of a shared arena are found by way of its
file, since most of them are holes, which must not be filled by looking.

An event is noted when it begins, so the last of a lane may be what its thread died
over. Trying again, as when two threads want the same frame, notes it again.
"""

import numpy as np

from libc.stdint cimport int64_t, uint32_t, uint64_t

from pageframe._core.arena cimport (
    PF_LANES, PF_RING, PF_RINGS_SIZE, PF_TRACE, Arena, pf_client_count, pf_event, pf_rings_of)
from pageframe._core.ledger cimport (
    PF_EVENT_LOAD, PF_EVENT_MAP, PF_EVENT_REPURPOSE, PF_EVENT_SEND, PF_EVENT_SHARE, PF_EVENT_UNIQUE,
    PF_EVENT_UNMAP, PF_OP_CLAIM, PF_OP_FREE, PF_OP_LESS, PF_OP_MORE, pf_event_read)

cdef extern from "<unistd.h>" nogil:
    int64_t lseek(int, int64_t, int)
    int SEEK_DATA

cdef dict NAMES = {
    PF_OP_CLAIM: "claim", PF_OP_FREE: "free", PF_OP_MORE: "more", PF_OP_LESS: "less",
    PF_EVENT_UNIQUE: "unique", PF_EVENT_SHARE: "share", PF_EVENT_REPURPOSE: "repurpose",
    PF_EVENT_MAP: "map", PF_EVENT_UNMAP: "unmap", PF_EVENT_SEND: "send", PF_EVENT_LOAD: "load"}

# By number; the empty ones are no kinds of events.
cdef object KINDS = np.array([NAMES.get(number, "") for number in range(256)])

# As pf_event; its last word, which is unused there, is the lane here.
cdef object READ = np.dtype([("serial", "u8"), ("time", "u8"), ("what", "u8"), ("pid", "u4"), ("lane", "u4")])
cdef object EVENT = np.dtype([
    ("time", "u8"), ("pid", "u4"), ("lane", "u1"), ("event", KINDS.dtype), ("paddr", "u8")])


cdef uint64_t next_ring(Arena mem, uint32_t client, uint64_t lane) noexcept nogil:
    """The first lane from one on whose ring may have events; PF_LANES if there is none."""
    cdef int64_t ring = PF_RING * sizeof(pf_event)
    cdef int64_t rings, data
    if mem.a.clients == NULL or lane == PF_LANES:
        return lane
    rings = mem.a.size + (client + 1) * mem.a.area_size - PF_RINGS_SIZE
    data = lseek(mem.fd, rings + lane * ring, SEEK_DATA)
    return min(<uint64_t>PF_LANES, <uint64_t>(data - rings) // ring) if data >= 0 else PF_LANES


cdef object events(Arena mem, object pid):
    """ArenaView.events(); pid is an integer or None."""
    cdef pf_event found[PF_RING]
    cdef const pf_event *ring
    cdef uint32_t client
    cdef uint64_t place
    cdef size_t count
    cdef uint64_t lane
    mem.check_shown()
    if not mem.a.debug & PF_TRACE:
        raise TypeError("this arena keeps no events: PAGEFRAME_DEBUG=trace is to be set where it is made")
    data = bytearray()
    for client in range(pf_client_count(&mem.a)):
        lane = next_ring(mem, client, 0)
        while lane < PF_LANES:
            ring = pf_rings_of(&mem.a, client) + lane * PF_RING
            count = 0
            for place in range(PF_RING):
                if pf_event_read(&ring[place], place, &found[count]):
                    found[count].unused = lane
                    count += 1
            data += (<const unsigned char *>found)[:count * sizeof(pf_event)]
            lane = next_ring(mem, client, lane + 1)
    read = np.frombuffer(data, READ)
    kinds = KINDS[read["what"] & np.uint64(0xFF)]
    frames = read["what"] >> np.uint64(8)
    sound = (kinds != "") & (frames < mem.a.frames)
    if pid is not None:
        sound &= read["pid"] == pid
    order = np.lexsort((read["serial"], read["lane"], read["pid"], read["time"]))
    order = order[sound[order]]
    result = np.empty(len(order), EVENT)
    for name in ("time", "pid", "lane"):
        result[name] = read[name][order]
    result["event"] = kinds[order]
    result["paddr"] = frames[order] << np.uint64(mem.a.page_shift)
    return result
