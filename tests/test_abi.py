# This Source Code Form is subject to the terms of the Mozilla Public
# License, v. 2.0. If a copy of the MPL was not distributed with this
# file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""What lies in an arena, byte by byte: what every process that opens one must find."""

import struct
import sys

import numpy as np
import pytest

import pageframe
from pageframe import (
    REF_COUNT_MAX,
    REF_COUNT_UNIQUE,
    REF_COUNT_UNUSED,
    FrameMeta,
    FrameTypeError,
    Link,
    LinkedList,
    MemoryRegion,
    MetaPageMeta,
    PhysicalMemory,
    UniqueFrame,
    bytes_,
    u64,
)

MIB = 1 << 20
STORAGE = 24
STORAGE_SIZE = {64: 40, 128: 104, 256: 232}

ARENAS = {
    "ordinary": {},
    "slots of 128": {"slot_size": 128},
    "slots of 256": {"slot_size": 256},
    "pages of 64 KiB": {"page_size": 65536},
    "a hole that tables go round": {
        "regions": [MemoryRegion(0x3000, 0x40000, "reserved"), MemoryRegion(0x60000, 0x2000, "bad")]
    },
    "a part of a chunk": {"size": 4 * MIB + 5 * 4096},
}


@pytest.fixture(params=ARENAS.values(), ids=ARENAS)
def mem(request):
    with PhysicalMemory(**{"size": 4 * MIB, **request.param}) as mem:
        yield mem


@pytest.fixture(scope="module")
def abi(probe):
    return probe.abi()


def frames_of(mem, start, size):
    return range(start // mem.page_size, -(-(start + size) // mem.page_size))


# -- structures --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fact", "value"),
    {
        "sizeof(pf_slot)": 64,
        "pf_slot.count": 0,
        "pf_slot.generation": 8,
        "pf_slot.type_id": 16,
        "pf_slot.list_id": 20,
        "pf_slot.storage": STORAGE,
        "PF_SLOT_HEADER": STORAGE,
        "PF_SLOT_MAX": 256,
        "sizeof(pf_header)": 576,
        "sizeof(pf_table)": 16,
        "pf_header.magic": 0,
        "pf_header.version": 8,
        "pf_header.byte_order": 12,
        "pf_header.size": 16,
        "pf_header.frames": 24,
        "pf_header.page_size": 32,
        "pf_header.slot_size": 36,
        "pf_header.type_capacity": 40,
        "pf_header.client_capacity": 44,
        "pf_header.tables": 48,
        "pf_header.checksum": 224,
        "pf_header.type_count": 256,
        "pf_header.last_list_id": 320,
        "sizeof(pf_type)": 256,
        "pf_type.fingerprint": 0,
        "pf_type.size": 8,
        "pf_type.flags": 12,
        "pf_type.name": 32,
        "PF_TYPE_NAME": 224,
        "sizeof(pf_chunk)": 8,
        "sizeof(pf_lane)": 64,
        "PF_CHUNK": 512,
        "PF_CHUNK_WORDS": 8,
        "PF_TABLE_ALIGN": 4096,
        "PF_VERSION": 3,
        "PF_BYTE_ORDER": 0x01020304,
    }.items(),
)
def test_the_layout_is_version_3(abi, fact, value):
    assert abi[fact] == value


def test_the_magic_number_reads_pgframe(abi):
    assert abi["PF_MAGIC"].to_bytes(8, "little") == b"PGFRAME\0"


def test_cython_code_sees_the_sizes_that_c_code_sees(abi, probe):
    assert probe.cython_sizes() == {"sizeof(pf_slot)": abi["sizeof(pf_slot)"], "storage": 64 - STORAGE}


def test_what_changes_in_the_header_shares_no_cache_line(abi):
    lines = [
        abi[name] // 64 for name in ("pf_header.checksum", "pf_header.type_count", "pf_header.last_list_id")
    ]
    assert lines == sorted(set(lines))


def test_the_count_has_room_above_its_maximum_for_increments_that_race(abi):
    assert REF_COUNT_MAX == 2**63 - 1
    assert REF_COUNT_UNIQUE == 2**64 - 2
    assert REF_COUNT_UNUSED == 2**64 - 1


# -- the header --------------------------------------------------------------------------------


def fnv1a(data):
    value = 0xCBF29CE484222325
    for byte in data:
        value = (value ^ byte) * 0x100000001B3 % 2**64
    return value


def test_the_header_is_at_paddr_0_and_describes_the_arena(mem, abi, probe):
    data = probe.arena_bytes(mem, 0, abi["sizeof(pf_header)"])
    magic, version, byte_order, size, frames = struct.unpack_from("=QIIQQ", data)
    page_size, slot_size, type_capacity, clients = struct.unpack_from("=IIII", data, 32)
    assert (magic, version, byte_order) == (abi["PF_MAGIC"], 3, 0x01020304)
    assert (size, frames) == (mem.size, mem.total_frames)
    assert (page_size, slot_size) == (mem.page_size, mem.slot_size)
    assert type_capacity * abi["sizeof(pf_type)"] == dict(sizes(mem))["types"]
    assert clients == 0


def sizes(mem):
    return [(name, size) for name, _, size in mem.layout]


def test_the_header_says_where_the_tables_are(mem, probe):
    words = struct.unpack_from("=16Q", probe.arena_bytes(mem, 48, 128))
    assert list(zip(words[::2], words[1::2], strict=True)) == [(start, size) for _, start, size in mem.layout]
    assert [name for name, _, _ in mem.layout] == [
        "header",
        "types",
        "clients",
        "tickets",
        "bits",
        "chunks",
        "slots",
        "areas",
    ]


def test_the_checksum_covers_all_of_the_header_before_it(mem, abi, probe):
    at = abi["pf_header.checksum"]
    (checksum,) = struct.unpack("=Q", probe.arena_bytes(mem, at, 8))
    assert checksum == fnv1a(probe.arena_bytes(mem, 0, at)) == probe.header_checksum(mem)


def test_the_checksum_stays_right_while_the_arena_lives(mem, abi, probe):
    class Page(Link):
        inode: u64 = 0

    with LinkedList(mem, Page) as pages:
        frame = mem.alloc_frame(Page).try_unique()
        pages.push_back(frame)
        (checksum,) = struct.unpack("=Q", probe.arena_bytes(mem, abi["pf_header.checksum"], 8))
        (lists,) = struct.unpack("=I", probe.arena_bytes(mem, abi["pf_header.last_list_id"], 4))
        assert checksum == probe.header_checksum(mem)
        assert lists == 1


# -- the tables --------------------------------------------------------------------------------


def test_the_tables_lie_within_the_arena_and_do_not_overlap(mem, abi):
    end = 0
    for _, start, size in sorted((entry for entry in mem.layout if entry[2]), key=lambda entry: entry[1]):
        assert start >= end
        assert start % abi["PF_TABLE_ALIGN"] == 0
        end = start + size
    assert 0 < end <= mem.max_paddr


def test_the_frames_of_the_tables_and_no_others_carry_meta_page_meta(mem):
    (meta_page,) = [number for number, cls in mem.types.items() if cls is MetaPageMeta]
    of_tables = {frame for _, start, size in mem.layout if size for frame in frames_of(mem, start, size)}
    marked = {int(frame) for frame in np.flatnonzero(mem.slots["type"] == meta_page)}
    assert marked == of_tables
    assert 0 in marked


def test_the_frames_of_the_tables_are_held_for_good(mem):
    for _, start, size in mem.layout:
        for frame in frames_of(mem, start, size) if size else ():
            assert mem.slots["count"][frame] == 1


def test_the_tables_avoid_regions_that_are_not_usable():
    regions = [MemoryRegion(0x3000, 0x40000, "reserved"), MemoryRegion(0x60000, 0x2000, "bad")]
    with PhysicalMemory(4 * MIB, regions=regions) as mem:
        for _, start, size in mem.layout:
            for region in regions:
                assert start + size <= region.start or start >= region.stop or size == 0


def test_there_is_a_bit_and_a_slot_for_every_frame_and_a_counter_for_every_chunk(mem, abi):
    chunks = -(-mem.total_frames // abi["PF_CHUNK"])
    table = dict(sizes(mem))
    assert table["bits"] == chunks * abi["PF_CHUNK"] // 8
    assert table["chunks"] == chunks * abi["sizeof(pf_chunk)"]
    assert table["slots"] == mem.total_frames * mem.slot_size


def test_a_bit_is_set_while_its_frame_is_not_free(mem, probe):
    held = mem.alloc_segment(33)
    start = next(start for name, start, _ in mem.layout if name == "bits")
    size = dict(sizes(mem))["bits"]
    data = np.frombuffer(probe.arena_bytes(mem, start, size), np.uint8)
    bits = np.unpackbits(data, bitorder="little")
    assert np.array_equal(bits[: mem.total_frames] == 0, mem.slots["count"] == REF_COUNT_UNUSED)
    assert bits[mem.total_frames :].all()
    assert (bits[: mem.total_frames] == 0).sum() == mem.free_frames
    first = held.start_paddr // mem.page_size
    assert bits[first : first + 33].all()


def test_a_registry_entry_holds_the_name_and_the_size_of_a_type(mem, abi, probe):
    class Page(FrameMeta):
        inode: u64 = 0

    frame = mem.alloc_frame(Page)
    number = max(mem.types)
    start = next(start for name, start, _ in mem.layout if name == "types")
    entry = probe.arena_bytes(mem, start + (number - 1) * 256, 256)
    fingerprint, size, _ = struct.unpack_from("=QII", entry)
    (count,) = struct.unpack("=I", probe.arena_bytes(mem, abi["pf_header.type_count"], 4))
    assert mem.types[number] is frame.meta_type is Page
    assert fingerprint == Page.__layout__.fingerprint
    assert size == 8
    assert entry[32:].split(b"\0", 1)[0].decode() == f"{__name__}.{Page.__qualname__}"
    assert count == number


def test_nothing_in_the_tables_is_an_address(mem, probe):
    class Page(Link):
        inode: u64 = 0

    pages = LinkedList(mem, Page)
    for _ in range(3):
        pages.push_back(mem.alloc_frame(Page).try_unique())
    kept = [mem.alloc_segment(3), mem.alloc_frames(5), mem.alloc_frame(Page)]
    base = probe.base_address(mem)
    for name, start, size in mem.layout:
        words = np.frombuffer(probe.arena_bytes(mem, start, size), np.uint64)
        inside = (words >= base) & (words < base + mem.size)
        assert not inside.any(), name
    assert all(kept)
    pages.drop()


# -- slots -------------------------------------------------------------------------------------


def test_slot_and_frame_follow_from_one_another_by_arithmetic(mem, probe):
    start = next(start for name, start, _ in mem.layout if name == "slots")
    for frame in (0, 1, mem.total_frames // 2, mem.total_frames - 1):
        assert probe.slot_paddr(mem, frame * mem.page_size) == start + frame * mem.slot_size


def test_the_storage_begins_after_24_bytes_and_fills_the_rest_of_the_slot(mem, probe):
    room = STORAGE_SIZE[mem.slot_size]

    class Page(FrameMeta):
        fill: bytes_[room]

    payload = bytes(range(1, room + 1))
    frame = mem.alloc_frame(Page(fill=payload))
    slot = probe.arena_bytes(mem, probe.slot_paddr(mem, frame.start_paddr), mem.slot_size)
    assert STORAGE + room == mem.slot_size
    assert slot[STORAGE:] == payload
    count, generation, type_id, list_id = struct.unpack_from("=QQII", slot)
    assert (count, generation, mem.types[type_id], list_id) == (1, frame.generation, Page, 0)


def test_a_type_with_one_byte_more_than_the_slot_has_is_refused(mem):
    room = STORAGE_SIZE[mem.slot_size]

    def use():
        class Page(FrameMeta):
            fill: bytes_[room + 1]

        mem.alloc_frame(Page)

    with pytest.raises(FrameTypeError, match=f"bytes, .* has {room}"):
        use()
    assert mem.used_frames == 0


def test_fields_lie_at_their_natural_alignment_in_the_slot(mem, probe):
    class Page(FrameMeta):
        flag: pageframe.u8
        inode: u64
        tag: pageframe.u16
        score: pageframe.f32

    frame = mem.alloc_frame(Page(flag=0x11, inode=0x2233445566778899, tag=0xAABB, score=0.5))
    storage = probe.arena_bytes(mem, probe.slot_paddr(mem, frame.start_paddr) + STORAGE, 24)
    assert storage == struct.pack("@BQHf", 0x11, 0x2233445566778899, 0xAABB, 0.5)


def test_the_links_of_a_list_are_frame_numbers_at_the_start_of_the_storage(mem, probe):
    class Page(Link):
        inode: u64 = 0

    pages = LinkedList(mem, Page)
    frames = [mem.alloc_frame(Page).try_unique() for _ in range(3)]
    paddrs = [frame.start_paddr for frame in frames]
    numbers = [paddr // mem.page_size for paddr in paddrs]
    for frame in frames:
        pages.push_back(frame)
    links = [
        struct.unpack("=II", probe.arena_bytes(mem, probe.slot_paddr(mem, paddr) + STORAGE, 8))
        for paddr in paddrs
    ]
    assert links == [(0, numbers[1]), (numbers[0], numbers[2]), (numbers[1], 0)]
    assert len({int(mem.slots["list"][number]) for number in numbers} - {0}) == 1
    pages.drop()


def test_a_slot_shows_the_state_of_its_frame(mem):
    unique = UniqueFrame.from_unused(mem, mem.max_paddr - mem.page_size)
    slots = mem.slots
    assert slots["count"][-1] == REF_COUNT_UNIQUE
    frame = unique.share()
    assert slots["count"][-1] == 1
    clone = frame.clone()
    assert slots["count"][-1] == 2
    generation = int(slots["generation"][-1])
    clone.drop()
    frame.drop()
    assert slots["count"][-1] == REF_COUNT_UNUSED
    assert slots["generation"][-1] == generation + 1


def test_integers_are_in_the_order_of_the_machine(mem, probe):
    assert probe.arena_bytes(mem, 12, 4) == (0x01020304).to_bytes(4, sys.byteorder)
