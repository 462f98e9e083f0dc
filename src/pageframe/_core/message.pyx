# This Source Code Form is subject to the terms of the Mozilla Public
# License, v. 2.0. If a copy of the MPL was not distributed with this
# file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Messages: handles that are pickled, and what loads them.

A pickled handle is a few dozen bytes that name an arena, a ticket (ticket.pyx) and
the frames with their generations.  The first to load it gets the ticket's references.
Whoever comes later, or too late, takes references of his own, if all frames still
live the life that was sent; otherwise `FrameGoneError` says that they don't.  The list
of a vector's frames goes with its ticket, so a vector whose frames lie in more than a
few runs can be loaded once.

A process that is not attached to the arena attaches when it loads the first message
of it, and stays attached until it ends.
"""

import copyreg
import os
import weakref
from multiprocessing.reduction import ForkingPickler

import numpy

cimport cython
cimport numpy as np
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy

from pageframe._core.arena cimport Arena, pf_arena, pf_bytes_at, pf_frame_of, pf_slot_at, pf_ticket
from pageframe._core.array cimport (
    MAX_DIMS, FrameBytes, VirtualBytes, array_over, bytes_of, extent, find_extent)
from pageframe._core.array import FrameArray
from pageframe._core.client import shared_arenas
from pageframe._core.errors import (
    ArenaDamagedError, ArenaGoneError, ArenaNotFoundError, BadArenaError,
    FrameGoneError, GetFrameError)
from pageframe._core.fork cimport alive
from pageframe._core.frame cimport Frame, UFrame, make_frame
from pageframe._core.handle cimport begin_life, get, held, obtain_run, put
from pageframe._core.mapping cimport map_frames
from pageframe._core.memory import PhysicalMemory
from pageframe._core.meta cimport TYPE_TICKET_PAGE, know_types
from pageframe._core.page_property import PageProperty
from pageframe._core.segment cimport Segment, USegment, make_segment
from pageframe._core.segment cimport give_up as give_up_run
from pageframe._core.ticket cimport TICKET_BITS, issue, list_pages, new_ticket, redeem, release
from pageframe._core.vector cimport FrameVec, empty_vec

cdef enum:
    ONE = 1
    RUN = 2
    MANY = 3
    ID_SIZE = 16
    MAX_RUNS = 8    # of a vector's frames in its message

# A message as it lies in the pickle; behind it the path of the arena, if it has one.
cdef struct pf_message:
    unsigned char arena[ID_SIZE]    # its id
    uint64_t generations
    uint32_t ticket
    uint32_t first                  # frame
    uint32_t count
    uint32_t pid                    # of the sender
    uint32_t serial                 # of the ticket, the low bits
    uint8_t serial_high
    uint8_t kind
    uint16_t shown                  # bytes of what follows: about an array, or runs of a vector

# How an array lies in its frames; its shape follows, its strides unless the elements are
# contiguous, and the name of its data type unless that has none which says all.
cdef struct pf_array_message:
    uint64_t offset
    uint8_t ndim
    uint8_t strided
    uint8_t readonly
    uint8_t name_size
    uint32_t reserved

kept = {}       # arenas that messages have attached this process to, by id

cdef dict dtypes = {}       # by name
cdef dict names = {}        # by data type
cdef object last_used = None    # weak reference to the arena of the last message; guarded by kept


cdef uint64_t mix(uint64_t value, uint64_t generation) noexcept nogil:
    """Fold a generation into what stands for those of all frames: FNV-1a, by words."""
    return (value ^ generation) * <uint64_t>0x100000001b3


cdef uint64_t mix_run(const pf_arena *a, uint64_t first, uint64_t count) noexcept nogil:
    """What stands for the generations of a run of frames."""
    cdef uint64_t frame
    cdef uint64_t generations = 0
    for frame in range(first, first + count):
        generations = mix(generations, pf_slot_at(a, frame).generation)
    return generations


cdef bytes pack(
        Arena mem, int kind, int64_t ticket, uint64_t first, uint64_t count, uint64_t generations,
        bytes shown=b""):
    cdef pf_message message
    cdef bytes packed
    message.kind = kind
    memcpy(message.arena, mem.a.header.id, sizeof(message.arena))
    message.ticket = ticket & ((1 << TICKET_BITS) - 1)
    message.serial = (ticket >> TICKET_BITS) & 0xFFFFFFFF
    message.serial_high = ticket >> (TICKET_BITS + 32)
    message.first = first
    message.count = count
    message.generations = generations
    message.pid = mem.a.clients[mem.a.client].pid
    message.shown = len(shown)
    packed = PyBytes_FromStringAndSize(NULL, sizeof(message) + len(shown))
    memcpy(PyBytes_AS_STRING(packed), &message, sizeof(message))
    memcpy(PyBytes_AS_STRING(packed) + sizeof(message), PyBytes_AS_STRING(shown), len(shown))
    return packed if mem.path is None else packed + os.fsencode(mem.path)


cdef int check_shared(Arena mem, object handle) except -1:
    mem.check_open()
    if mem.fd < 0:
        raise TypeError(
            f"a {type(handle).__name__} of a private arena can't be pickled: see PhysicalMemory.create")
    return 0


def reduce_frame(Frame frame not None):
    """Pickle a frame."""
    cdef Arena mem = frame.mem
    cdef uint64_t number, generation
    cdef int64_t index
    cdef pf_ticket *ticket
    with cython.critical_section(frame):
        held(frame)
    check_shared(mem, frame)
    ticket = new_ticket(mem)
    try:
        with cython.critical_section(frame):
            number = pf_frame_of(&mem.a, held(frame))
            generation = frame.slot.generation
            index = issue(mem, ticket, number, 1, 0)
    except BaseException:
        release(mem, ticket)
        raise
    return load, (pack(mem, ONE, index, number, 1, mix(0, generation)),)


def reduce_segment(Segment segment not None):
    """Pickle a segment."""
    cdef Arena mem = segment.mem
    cdef uint64_t count, generations
    cdef int64_t index
    cdef pf_ticket *ticket
    segment.check()
    check_shared(mem, segment)
    ticket = new_ticket(mem)
    try:
        with cython.critical_section(segment):
            segment.check()
            mem.check_open()
            count = segment.count
            generations = mix_run(&mem.a, segment.first, count)
            index = issue(mem, ticket, segment.first, count, 0)
    except BaseException:
        release(mem, ticket)
        raise
    return load, (pack(mem, RUN, index, segment.first, count, generations),)


def reduce_vector(FrameVec vec not None):
    """Pickle a vector: the ticket's own frames list the frames."""
    cdef Arena mem = vec.mem
    cdef uint64_t generations = 0
    cdef uint64_t i, pages
    cdef int64_t first, index
    cdef uint32_t *numbers
    cdef pf_ticket *ticket
    vec.check()
    check_shared(mem, vec)
    pages = list_pages(&mem.a, vec.count)
    first = obtain_run(mem, pages, 1)
    # First their lives: without a type, pages that a kill leaves here would pass for zero.
    for i in range(pages):
        begin_life(pf_slot_at(&mem.a, first + i), TYPE_TICKET_PAGE, NULL, 0, 1)
    numbers = <uint32_t *>pf_bytes_at(&mem.a, first)
    try:
        ticket = new_ticket(mem)
        try:
            with cython.critical_section(vec):
                vec.check()
                mem.check_open()
                for i in range(<uint64_t>vec.count):
                    numbers[i] = vec.frames[i]
                    generations = mix(generations, pf_slot_at(&mem.a, vec.frames[i]).generation)
                index = issue(mem, ticket, first, vec.count, pages)
                runs = runs_of(vec)
        except BaseException:
            release(mem, ticket)
            raise
    finally:
        give_up_run(mem, first, pages)      # the ticket has references of its own
    return load, (pack(mem, MANY, index, 0, vec.count, generations, runs),)


cdef bytes runs_of(FrameVec vec):
    """The frames of a vector as runs, (first, frames) each; nothing if they are too scattered.

    The list of the ticket goes with the ticket; these are for whoever loads the message
    again.
    """
    cdef uint32_t runs[2 * MAX_RUNS]
    cdef Py_ssize_t i
    cdef Py_ssize_t count = 0
    for i in range(vec.count):
        if i and vec.frames[i] == vec.frames[i - 1] + 1:
            runs[2 * count - 1] += 1
            continue
        if count == MAX_RUNS:
            return b""
        runs[2 * count] = vec.frames[i]
        runs[2 * count + 1] = 1
        count += 1
    return (<const char *>runs)[:2 * count * sizeof(uint32_t)]


cdef bint unpack_runs(const uint32_t *runs, Py_ssize_t size, FrameVec vec, uint64_t count) noexcept:
    """Write the frames of a message's runs to a vector; False if they are not so many."""
    cdef Py_ssize_t i
    cdef uint64_t frame
    cdef uint64_t got = 0
    for i in range(size // <Py_ssize_t>(2 * sizeof(uint32_t))):
        if runs[2 * i + 1] > count - got:
            return False
        for frame in range(runs[2 * i], <uint64_t>runs[2 * i] + runs[2 * i + 1]):
            if frame >= vec.mem.a.frames:
                return False
            vec.frames[got] = frame
            got += 1
    return got == count


def reduce_array(np.ndarray array not None):
    """Pickle an array by the frames that it lies in; by its elements if these are not shared."""
    cdef extent found
    cdef int64_t index
    cdef pf_ticket *ticket
    cdef bytes name, packed
    cdef char *at
    cdef Py_ssize_t ndim, extents
    cdef pf_array_message shown
    cdef USegment segment
    cdef FrameBytes base = bytes_of(array)
    if base is None or base.owner.mem.fd < 0:
        return array.__reduce__()
    find_extent(array, &found)
    if not isinstance(base.owner, USegment):
        return load_mapped, (
            (<VirtualBytes>base.owner).frames_of(found.first, found.count), (<object>array).shape,
            None if found.contiguous else (<object>array).strides, array.dtype, found.offset, found.readonly)
    segment = base.owner
    found.first += segment.first
    dtype = array.dtype
    name = name_of(dtype)
    shown.offset = found.offset
    shown.ndim = ndim = np.PyArray_NDIM(array)
    shown.strided = not found.contiguous
    shown.readonly = found.readonly
    shown.name_size = len(name)
    shown.reserved = 0
    extents = (2 if shown.strided else 1) * ndim * sizeof(np.npy_intp)
    packed = PyBytes_FromStringAndSize(NULL, sizeof(shown) + extents + len(name))
    at = PyBytes_AS_STRING(packed)
    memcpy(at, &shown, sizeof(shown))
    if ndim:        # else NumPy has no lengths at all
        memcpy(at + sizeof(shown), np.PyArray_DIMS(array), ndim * sizeof(np.npy_intp))
    if shown.strided and ndim:
        memcpy(at + sizeof(shown) + ndim * sizeof(np.npy_intp), np.PyArray_STRIDES(array),
               ndim * sizeof(np.npy_intp))
    memcpy(at + sizeof(shown) + extents, PyBytes_AS_STRING(name), len(name))
    # The array keeps the segment's references where they are.
    ticket = new_ticket(segment.mem)
    try:
        index = issue(segment.mem, ticket, found.first, found.count, 0)
    except BaseException:
        release(segment.mem, ticket)
        raise
    message = pack(
        segment.mem, RUN, index, found.first, found.count,
        mix_run(&segment.mem.a, found.first, found.count), packed)
    return load_array, (message,) if name else (message, dtype)


def load_array(bytes message not None, np.dtype dtype=None):
    """Return the array that was pickled; raises as `load` does."""
    cdef const pf_message *m = <const pf_message *><const char *>message
    cdef const pf_array_message *shown
    cdef const int64_t *words
    cdef Py_ssize_t size, count
    if len(message) < <Py_ssize_t>sizeof(pf_message) or m.kind != RUN or m.shown < sizeof(pf_array_message):
        raise ArenaDamagedError("this pickle is of no array")
    if len(message) < <Py_ssize_t>sizeof(pf_message) + m.shown:
        raise ArenaDamagedError(f"a message of {len(message)} bytes was cut")
    shown = <const pf_array_message *>(m + 1)
    words = <const int64_t *>(shown + 1)
    count = shown.ndim * (2 if shown.strided else 1)
    size = sizeof(pf_array_message) + count * sizeof(int64_t) + shown.name_size
    if m.shown != size:
        raise ArenaDamagedError("this pickle is of no array")
    if dtype is None:
        dtype = dtype_of((<const char *>(words + count))[:shown.name_size])
    return array_over(
        handle_of(message), shown.ndim, words, words + shown.ndim if shown.strided else NULL, dtype,
        shown.offset, shown.readonly)


def load_mapped(FrameVec frames not None, tuple shape, strides, np.dtype dtype not None, offset, readonly):
    """Return an array that was pickled with its scattered frames."""
    cdef int64_t lengths[MAX_DIMS]
    cdef int64_t steps[MAX_DIMS]
    cdef Py_ssize_t i
    if len(shape) > MAX_DIMS or (strides is not None and len(strides) != len(shape)):
        raise ArenaDamagedError("this pickle is of no array")
    for i in range(len(shape)):
        lengths[i] = shape[i]
        steps[i] = 0 if strides is None else strides[i]
    return array_over(
        map_frames(frames.mem, frames, PageProperty(write=not readonly), frames.size), len(shape), lengths,
        NULL if strides is None else steps, dtype, offset, readonly)


cdef bytes name_of(object dtype):
    """A string that says all of a data type; empty if there is none."""
    name = names.get(dtype)
    if name is None:
        name = dtype.str.encode() if dtype.kind in "biufcSUmM" and dtype.metadata is None else b""
        if len(names) < 256:
            names[dtype] = name
    return name


cdef object dtype_of(bytes name):
    """The data type that a string says in full; looked up where it was met before."""
    dtype = dtypes.get(name)
    if dtype is None:
        dtype = numpy.dtype(name.decode())
        if len(dtypes) < 256:
            dtypes[name] = dtype
    return dtype


def reduce_arena(Arena mem not None):
    """Pickle an arena: who loads it attaches."""
    mem.check_open()
    if mem.fd < 0:
        raise TypeError("a private arena can't be pickled: see PhysicalMemory.create")
    path = b"" if mem.path is None else os.fsencode(mem.path)
    return load_arena, (bytes(mem.a.header.id[:16]), mem.a.clients[mem.a.client].pid, path)


def load_arena(bytes arena_id not None, pid, bytes path not None):
    """Return the arena that was pickled, attached to if need be.

    Raises
    ------
    ArenaGoneError
        If it is not on this machine, or no longer.
    ClientsFullError
        If the table of clients is full.
    """
    if len(arena_id) != ID_SIZE:
        raise ArenaDamagedError(f"the id of an arena has 16 bytes, not {len(arena_id)}")
    mem = find_arena(<const unsigned char *><const char *>arena_id)
    if mem is not None:
        return mem
    where = os.fsdecode(path) or f"without a name, id {arena_id.hex()}"
    try:
        if path:
            mem = PhysicalMemory.attach(path=where)
        else:
            mem = PhysicalMemory._attach_unnamed(arena_id, pid)
    except (ArenaNotFoundError, BadArenaError) as error:
        raise ArenaGoneError(f"the arena {where} of this pickle is not here: {error}") from None
    if not is_arena(mem, <const unsigned char *><const char *>arena_id):
        mem.close()
        raise ArenaGoneError(f"the arena {where} of this pickle is gone: another one has its name")
    kept[arena_id] = mem
    return mem


cdef Arena find_arena(const unsigned char *arena_id):
    """The arena of an id if this process is attached to it."""
    global last_used
    cdef Arena mem
    with cython.critical_section(kept):
        last = last_used
    mem = None if last is None else last()
    if mem is not None and is_arena(mem, arena_id):
        return mem
    for mem in alive(shared_arenas):
        if is_arena(mem, arena_id):
            last = weakref.ref(mem)
            with cython.critical_section(kept):
                last, last_used = last_used, last
            return mem
    return None


cdef bint is_arena(Arena mem, const unsigned char *arena_id) noexcept:
    return mem.a.open and memcmp(mem.a.header.id, arena_id, sizeof(mem.a.header.id)) == 0


def load(bytes message not None):
    """Return the handle that was pickled.

    Raises
    ------
    ArenaGoneError
        If its arena is not on this machine, or no longer.
    FrameGoneError
        If the message was loaded before, or has expired, and its frames have been
        released since.
    ArenaDamagedError
        If this is no message, or none that can be of its arena.
    """
    return handle_of(message)


cdef object handle_of(bytes message):
    cdef Arena mem
    cdef const pf_message *m = <const pf_message *><const char *>message
    cdef uint64_t serial
    cdef FrameVec vec
    if (len(message) < <Py_ssize_t>sizeof(pf_message)
            or len(message) < <Py_ssize_t>sizeof(pf_message) + m.shown):
        raise ArenaDamagedError(f"a message of {len(message)} bytes was cut")
    serial = <uint64_t>m.serial_high << 32 | m.serial
    mem = find_arena(m.arena)
    if mem is None:
        mem = load_arena(m.arena[:16], m.pid, message[sizeof(pf_message) + m.shown:])
    if (m.kind not in (ONE, RUN, MANY) or m.ticket >= mem.a.ticket_capacity or m.count == 0
            or <uint64_t>m.first + m.count > mem.a.frames or (m.kind == ONE and m.count != 1)):
        raise ArenaDamagedError("this pickle does not fit its arena")
    if m.kind == MANY:
        vec = empty_vec(mem, m.count)
        if not redeem(mem, m.ticket, serial, m.first, m.count, vec.frames):
            if m.shown == 0:
                raise FrameGoneError(
                    f"the message of {m.count} scattered frames was loaded before, or has expired: the "
                    "list of them is gone")
            if not unpack_runs(<const uint32_t *>(m + 1), m.shown, vec, m.count):
                raise ArenaDamagedError("this pickle does not fit its arena")
            take_again(mem, vec.frames, 0, m.count, m.generations)
        vec.count = m.count
        know_types(mem)
        return vec
    if not redeem(mem, m.ticket, serial, m.first, m.count, NULL):
        take_again(mem, NULL, m.first, m.count, m.generations)
    know_types(mem)
    if m.kind == ONE:
        return make_frame(mem, pf_slot_at(&mem.a, m.first))
    return make_segment(mem, m.first, m.count)


cdef int take_again(
        Arena mem, const uint64_t *frames, uint64_t first, uint64_t count,
        uint64_t generations) except -1:
    """Take new references to the frames of a message, if all of them still are the same.

    The frames are those given, or the run from first on.
    """
    cdef uint64_t i, frame
    cdef uint64_t found = 0
    cdef uint64_t taken = 0
    try:
        for i in range(count):
            frame = frames[i] if frames != NULL else first + i
            get(mem, frame)
            taken += 1
            found = mix(found, pf_slot_at(&mem.a, frame).generation)
        if found != generations:
            raise FrameGoneError("they were released and used again")
    except GetFrameError as error:
        for i in range(taken):
            put(mem, pf_slot_at(&mem.a, frames[i] if frames != NULL else first + i))
        raise FrameGoneError(
            f"the message of {count} frames was loaded before, or has expired, and its frames are "
            f"gone: {error}") from None
    return 0


cdef int pickle_by(object cls, object reduce) except -1:
    """Have a class pickled by a function."""
    copyreg.pickle(cls, reduce)
    ForkingPickler.register(cls, reduce)    # where multiprocessing looks first

pickle_by(Frame, reduce_frame)
pickle_by(UFrame, reduce_frame)
pickle_by(Segment, reduce_segment)
pickle_by(USegment, reduce_segment)
pickle_by(FrameVec, reduce_vector)
pickle_by(FrameArray, reduce_array)
pickle_by(PhysicalMemory, reduce_arena)
