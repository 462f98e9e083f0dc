# This Source Code Form is subject to the terms of the Mozilla Public
# License, v. 2.0. If a copy of the MPL was not distributed with this
# file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Writes after release: whether claimed frames of a poisoned arena are still as they were filled.

A released frame is filled with a pattern (poison.h). Whoever claims frames has them
checked before anything is built on them, all of one claim in one call. A frame
that differs was written by somebody who did not hold it: `WriteAfterReleaseWarning`
says where, and who held it last. The fill is made good first, so that each such write
is told once.

A warning runs the user's code, which may do anything to the arena but reach the
frames: they are claimed, so the arena can't be closed. If it forks, frames of a
shared arena stay with the parent. If a warning is made an error, all frames go back.
"""

import warnings

from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memcpy, memset

from pageframe._core.allocator cimport give_back_range
from pageframe._core.arena cimport Arena, gives_back, pf_arena, pf_bytes_at, pf_client, pf_slot_at
from pageframe._core.errors import ArenaDamagedError, MovedError, WriteAfterReleaseWarning
from pageframe._core.ledger cimport PF_POISON_BYTE, pf_now, pf_poison_sound, pf_release
from pageframe._core.meta cimport class_of

cdef enum:
    SHOWN = 8       # bytes from the first that differs on


cdef inline uint64_t number_of(const uint64_t *frames, uint64_t first, uint64_t i) noexcept nogil:
    return first + i if frames == NULL else frames[i]


cdef uint64_t next_written(
        const pf_arena *a, const uint64_t *frames, uint64_t first, uint64_t i, uint64_t count) noexcept nogil:
    """The first frame from the i-th on that was written after its release; count if none was."""
    while i < count and pf_poison_sound(a, number_of(frames, first, i)):
        i += 1
    return i


cdef int check_poison(Arena mem, const uint64_t *frames, uint64_t first, uint64_t count) except -1:
    """Warn of writes to frames that were just claimed, in a poisoned arena.

    The frames are those listed; or, if that is NULL, first .. first + count - 1. If this
    raises they have gone back; a user's own allocator was not told.
    """
    cdef uint32_t epoch = mem.a.epoch
    cdef uint64_t i = 0
    try:
        while True:
            with nogil:
                i = next_written(&mem.a, frames, first, i, count)
            if i == count:
                return 0
            warnings.warn(make_good(mem, number_of(frames, first, i)), WriteAfterReleaseWarning)
            if mem.a.epoch != epoch:
                raise MovedError("this process was forked by a warning: the frames stay with its parent")
            mem.check_open()
            i += 1
    except BaseException:
        if gives_back(&mem.a) and mem.a.epoch == epoch:
            for i in range(count):
                give_back_range(&mem.a, number_of(frames, first, i), 1)
        raise


cdef str make_good(Arena mem, uint64_t frame):
    """Fill a frame again; returns what there is to be said about it."""
    cdef unsigned char *data = pf_bytes_at(&mem.a, frame)
    cdef uint64_t size = 1ull << mem.a.page_shift
    cdef uint64_t at = size
    cdef uint64_t differing = 0
    cdef uint64_t i
    cdef pf_release release
    with nogil:
        for i in range(size):
            if data[i] != PF_POISON_BYTE:
                at = min(at, i)
                differing += 1
    found = data[at:min(size, at + SHOWN)].hex(" ")
    memset(data, PF_POISON_BYTE, size)
    memcpy(&release, &pf_slot_at(&mem.a, frame).storage[0], sizeof(release))
    ago = max(<uint64_t>0, pf_now() - release.time) / 1e9
    return (
        f"frame {frame << mem.a.page_shift:#x} was written after its release: {differing} of its bytes "
        f"differ from the fill, the first at offset {at:#x}, from where on it has {found}; it was "
        f"{type_before(mem, frame)}, last held by process {release.pid}{name_of(mem, &release)}, and "
        f"released {ago:.6f} s ago")


cdef str type_before(Arena mem, uint64_t frame):
    try:
        return class_of(mem, pf_slot_at(&mem.a, frame)).__name__
    except ArenaDamagedError:
        return "of a type that the arena has not"


cdef str name_of(Arena mem, const pf_release *release):
    """The name of a client in parentheses, if the table still has it."""
    cdef const pf_client *record
    if mem.a.clients == NULL or release.client >= mem.a.client_capacity:
        return ""
    record = &mem.a.clients[release.client]
    if record.pid != release.pid:
        return ""
    name = bytes(record.name[:sizeof(record.name)]).split(b"\0")[0].decode(errors="replace")
    return f" ({name})"
