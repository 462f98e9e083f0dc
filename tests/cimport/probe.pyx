# This Source Code Form is subject to the terms of the Mozilla Public
# License, v. 2.0. If a copy of the MPL was not distributed with this
# file, You can obtain one at https://mozilla.org/MPL/2.0/.

# cython: language_level=3, freethreading_compatible=True

"""What C code sees of frames and arenas, for the tests and the benchmarks.

An extension like one that a user could write: it cimports a frame and goes to
the slot without Python in between.  It also does what no user should, such as
setting a count, so that tests can reach states that would take years.
"""

from libc.stdint cimport uint64_t
from libc.stdlib cimport calloc, free

from pageframe._core.arena cimport Arena, pf_header_checksum, pf_slot_at
from pageframe._core.frame cimport Frame
from pageframe._core.slot cimport (
    PF_OK, pf_exchange_u64, pf_slot, pf_slot_count, pf_slot_get, pf_slot_put)

cdef extern from *:
    """
    #include <time.h>
    #include "arena.h"

    #define SIZE(type) {"sizeof(" #type ")", sizeof(type)}
    #define AT(type, field) {#type "." #field, offsetof(type, field)}
    #define VALUE(name) {#name, name}

    typedef struct { const char *name; uint64_t value; } fact;

    static const fact facts[] = {
        SIZE(pf_slot), SIZE(pf_header), SIZE(pf_table), SIZE(pf_type), SIZE(pf_chunk), SIZE(pf_lane),
        AT(pf_slot, count), AT(pf_slot, generation), AT(pf_slot, type_id), AT(pf_slot, list_id),
        AT(pf_slot, storage),
        AT(pf_header, magic), AT(pf_header, version), AT(pf_header, byte_order), AT(pf_header, size),
        AT(pf_header, frames), AT(pf_header, page_size), AT(pf_header, slot_size),
        AT(pf_header, type_capacity), AT(pf_header, client_capacity), AT(pf_header, tables),
        AT(pf_header, checksum), AT(pf_header, type_count), AT(pf_header, last_list_id),
        AT(pf_type, fingerprint), AT(pf_type, size), AT(pf_type, flags), AT(pf_type, name),
        VALUE(PF_MAGIC), VALUE(PF_VERSION), VALUE(PF_BYTE_ORDER), VALUE(PF_TABLE_ALIGN),
        VALUE(PF_CHUNK), VALUE(PF_CHUNK_WORDS), VALUE(PF_SLOT_HEADER), VALUE(PF_SLOT_MAX),
        VALUE(PF_TYPE_NAME),
    };
    static const size_t fact_count = sizeof(facts) / sizeof(facts[0]);

    /* Mean time of an atomic add and an atomic subtract on one word, in ns, with
     * the ordering that taking and giving up a reference have. */
    static double time_pairs(uint64_t *word, uint64_t n) {
        struct timespec start, stop;
        clock_gettime(CLOCK_MONOTONIC, &start);
        for (uint64_t i = 0; i < n; i++) {
            pf_add_relaxed_u64(word, 1);
            pf_sub_release_u64(word, 1);
        }
        clock_gettime(CLOCK_MONOTONIC, &stop);
        return ((double)(stop.tv_sec - start.tv_sec) * 1e9
                + (double)(stop.tv_nsec - start.tv_nsec)) / (double)n;
    }
    """
    ctypedef struct fact:
        const char *name
        uint64_t value
    const fact facts[]
    const size_t fact_count
    double time_pairs(uint64_t *, uint64_t) nogil

cdef struct Reading:
    uint64_t count
    uint64_t generation
    uint64_t type_id
    uint64_t list_id


def read_slots(list frames):
    """Count, generation, type and list of each frame's slot, read without the interpreter lock."""
    cdef Py_ssize_t n = len(frames)
    cdef Py_ssize_t i
    cdef Frame frame
    cdef pf_slot **slots = <pf_slot **>calloc(n, sizeof(pf_slot *))
    cdef Reading *read = <Reading *>calloc(n, sizeof(Reading))
    try:
        if n and (slots == NULL or read == NULL):
            raise MemoryError()
        for i in range(n):
            frame = frames[i]
            if frame.slot == NULL:
                raise ValueError(f"frame {i} was dropped or moved")
            slots[i] = frame.slot
        with nogil:
            for i in range(n):
                read[i].count = pf_slot_count(slots[i])
                read[i].generation = slots[i].generation
                read[i].type_id = slots[i].type_id
                read[i].list_id = slots[i].list_id
        return [(read[i].count, read[i].generation, read[i].type_id, read[i].list_id) for i in range(n)]
    finally:
        free(slots)
        free(read)


def hold_and_release(Frame frame not None, Py_ssize_t times):
    """Take references to a frame and give them up again, as C code does; returns the highest count."""
    cdef pf_slot *slot = frame.slot
    cdef Py_ssize_t held = 0
    cdef uint64_t highest
    if slot == NULL:
        raise ValueError("the frame was dropped or moved")
    with nogil:
        while held < times and pf_slot_get(slot) == PF_OK:
            held += 1
        highest = pf_slot_count(slot)
        for _ in range(held):
            pf_slot_put(slot)
    return highest


def set_count(Arena mem not None, paddr, uint64_t count):
    """Set the count of the frame at a paddr; returns what it was."""
    return pf_exchange_u64(&pf_slot_at(&mem.a, mem.frame_at(paddr)).count, count)


def abi():
    """Sizes, offsets and constants as the C compiler has them."""
    cdef size_t i
    return {facts[i].name.decode(): facts[i].value for i in range(fact_count)}


def cython_sizes():
    """The same sizes of what Cython code sees through the .pxd files."""
    return {"sizeof(pf_slot)": sizeof(pf_slot), "storage": sizeof((<pf_slot *>NULL).storage)}


def slot_paddr(Arena mem not None, paddr):
    """Where in the arena the slot of the frame at a paddr lies."""
    return <unsigned char *>pf_slot_at(&mem.a, mem.frame_at(paddr)) - mem.a.base


def base_address(Arena mem not None):
    """Where paddr 0 lies in this process."""
    return <size_t>mem.a.base


def arena_bytes(Arena mem not None, uint64_t paddr, uint64_t size):
    """A copy of the bytes of an arena, whoever they belong to."""
    mem.check_open()
    if paddr > mem.a.size or size > mem.a.size - paddr:
        raise ValueError(f"{size} bytes at {paddr:#x} are not within the arena")
    return mem.a.base[paddr:paddr + size]


def header_checksum(Arena mem not None):
    """The checksum that an arena's header ought to have, as the headers of C compute it."""
    mem.check_open()
    return pf_header_checksum(mem.a.header)


def atomic_pair_ns(uint64_t n, int rounds=5):
    """Time of one atomic add and one subtract on one word, in ns: the best of several rounds."""
    cdef uint64_t word = 0
    cdef double best = time_pairs(&word, n)
    with nogil:
        for _ in range(rounds - 1):
            best = min(best, time_pairs(&word, n))
    return best
