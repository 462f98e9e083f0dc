# This Source Code Form is subject to the terms of the Mozilla Public
# License, v. 2.0. If a copy of the MPL was not distributed with this
# file, You can obtain one at https://mozilla.org/MPL/2.0/.

import itertools
from pathlib import Path

import numpy as np
import pytest

from pageframe import (
    REF_COUNT_UNUSED,
    ArenaClosedError,
    ArenaInUseError,
    Frame,
    FrameReservedError,
    MemoryRegion,
    MetaPageMeta,
    OutOfFramesError,
    PhysicalMemory,
    ReservedMemoryMeta,
    UnusableMemoryMeta,
)
from types_for_tests import Page, Raw

PAGE = 4096


@pytest.mark.parametrize(
    ("size", "nbytes"),
    [(1 << 20, 1 << 20), ("1 MiB", 1 << 20), ("1M", 1 << 20), ("0.5 MiB", 1 << 19), ("1024 KiB", 1 << 20)],
)
def test_a_size_is_a_number_of_bytes_or_says_its_unit(size, nbytes):
    assert PhysicalMemory(size).max_paddr == nbytes


@pytest.mark.parametrize("size", ["", "1 MB", "one", "-1 MiB", "1.3 B", 0, -4096, 4097, "1 EiB"])
def test_a_size_that_makes_no_sense_is_refused(size):
    with pytest.raises(ValueError, match=r"size|multiple|whole number"):
        PhysicalMemory(size)


@pytest.mark.parametrize("size", [None, 1.5, True, b"1 MiB"])
def test_a_size_of_another_type_is_refused(size):
    with pytest.raises(TypeError, match="size must be"):
        PhysicalMemory(size)


def test_a_size_the_system_has_not_got_is_refused_at_once():
    with pytest.raises((MemoryError, ValueError)):
        PhysicalMemory("4096 TiB")
    with pytest.raises(MemoryError):
        PhysicalMemory("1024 TiB", page_size="1 MiB")


@pytest.mark.parametrize("page_size", [4096, 8192, "64 KiB", "2 MiB"])
@pytest.mark.parametrize("slot_size", [64, 128, 256])
def test_any_page_and_slot_size_works(page_size, slot_size):
    with PhysicalMemory("16 MiB", page_size=page_size, slot_size=slot_size) as mem:
        assert mem.slot_size == slot_size
        assert mem.total_frames == mem.size // mem.page_size
        with mem.alloc_segment(mem.free_frames) as all_frames:
            view = memoryview(all_frames)
            view[0] = view[-1] = 7
            del view
            assert all_frames.size == mem.used_frames * mem.page_size


@pytest.mark.parametrize("page_size", [0, 1, 2048, 4097, 12288, "2 GiB"])
def test_a_page_size_that_is_no_power_of_two_in_range_is_refused(page_size):
    with pytest.raises(ValueError, match="page_size must be a power of two"):
        PhysicalMemory("16 GiB", page_size=page_size)


@pytest.mark.parametrize("slot_size", [0, 32, 96, 512])
def test_a_slot_size_other_than_64_128_256_is_refused(slot_size):
    with pytest.raises(ValueError, match="slot_size must be a power of two"):
        PhysicalMemory("1 MiB", slot_size=slot_size)


def test_an_arena_too_small_for_its_own_tables_is_refused():
    with pytest.raises(ValueError, match="tables"):
        PhysicalMemory(PAGE)
    with pytest.raises(ValueError, match="tables"):
        PhysicalMemory(8 * PAGE)
    assert PhysicalMemory(16 * PAGE).free_frames > 0


def test_free_used_and_reserved_frames_are_the_arena(mem):
    held = [mem.alloc_frame(), mem.alloc_frames(5), mem.alloc_segment(7)]
    assert mem.used_frames == 13
    assert mem.free_frames + mem.used_frames + mem.reserved_frames == mem.total_frames == 256
    del held


def test_the_tables_lie_in_frames_that_carry_meta_page_meta(mem):
    for _, paddr, size in mem.layout:
        for start in range(paddr - paddr % PAGE, paddr + size, PAGE):
            with Frame.from_in_use(mem, start) as frame:
                assert frame.meta_type is MetaPageMeta
                assert not hasattr(frame, "__buffer__")
                with pytest.raises(TypeError):
                    memoryview(frame)


def test_reserved_and_bad_regions_are_never_allocated():
    regions = [MemoryRegion(64 * PAGE, 3 * PAGE, "reserved"), (100 * PAGE, PAGE, "bad")]
    with PhysicalMemory("1 MiB", regions=regions) as mem:
        own = {
            64: ReservedMemoryMeta,
            65: ReservedMemoryMeta,
            66: ReservedMemoryMeta,
            100: UnusableMemoryMeta,
        }
        with mem.alloc_frames(mem.free_frames) as everything:
            assert not set(own) & set((everything.paddrs // PAGE).tolist())
        for number, meta_type in own.items():
            with Frame.from_in_use(mem, number * PAGE) as frame:
                assert frame.meta_type is meta_type
                assert frame.reference_count == 2
            with pytest.raises(FrameReservedError, match=meta_type.__name__):
                Frame.from_unused(mem, number * PAGE)
        assert mem.stats().frames_by_type["pageframe.ReservedMemoryMeta"] == 3
        with pytest.raises(OutOfFramesError, match="longest"):
            mem.alloc_segment(200)


def test_tables_go_round_a_region_that_is_in_their_way():
    with PhysicalMemory("1 MiB", regions=[(2 * PAGE, PAGE, "bad"), (4 * PAGE, 2 * PAGE, "reserved")]) as mem:
        spans = [(paddr, paddr + size) for _, paddr, size in mem.layout if size]
        for start, stop in spans:
            assert stop <= 2 * PAGE or start >= 3 * PAGE
            assert stop <= 4 * PAGE or start >= 6 * PAGE
        spans.sort()
        assert all(a[1] <= b[0] for a, b in itertools.pairwise(spans))
        with mem.alloc_frames(mem.free_frames) as everything:
            assert len(everything) == 256 - mem.reserved_frames


@pytest.mark.parametrize(
    ("regions", "message"),
    [
        ([(0, PAGE, "bad")], "paddr 0"),
        ([(1, PAGE, "bad")], "page size"),
        ([(PAGE, 100, "bad")], "page size"),
        ([(PAGE, 0, "bad")], "empty"),
        ([(-PAGE, PAGE, "bad")], "not within"),
        ([(1 << 20, PAGE, "bad")], "not within"),
        ([(8 * PAGE, 2 * PAGE, "bad"), (9 * PAGE, PAGE, "reserved")], "overlaps"),
        ([(8 * PAGE, PAGE, "broken")], "kind"),
        ([(PAGE, 255 * PAGE, "bad")], "tables"),
    ],
)
def test_regions_that_make_no_sense_are_refused(regions, message):
    with pytest.raises(ValueError, match=message):
        PhysicalMemory("1 MiB", regions=regions)


def test_populate_gives_the_memory_at_once():
    def resident():
        return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE

    before = resident()
    with PhysicalMemory("64 MiB", populate=True):
        assert resident() - before > 60 << 20
    assert resident() - before < 30 << 20


def test_close_refuses_while_frames_are_held_and_says_how_many():
    mem = PhysicalMemory("1 MiB")
    frame = mem.alloc_frame()
    other = frame.clone()
    segment = mem.alloc_segment(3)
    with pytest.raises(ArenaInUseError, match="4 frames are held by 5 references, 0 of them raw"):
        mem.close()
    assert not mem.closed
    other.drop()
    segment.drop()
    paddr = frame.into_raw()
    with pytest.raises(ArenaInUseError, match="1 frames are held by 1 references, 1 of them raw"):
        mem.close()
    Frame.from_raw(mem, paddr).drop()
    mem.close()
    assert mem.closed


def test_close_refuses_while_views_live():
    mem = PhysicalMemory("1 MiB")
    array = np.frombuffer(mem.alloc_frame(), np.uint8)
    with pytest.raises(ArenaInUseError, match="1 frames"):
        mem.close()
    del array
    slots = mem.slots
    with pytest.raises(ArenaInUseError, match="1 arrays"):
        mem.close()
    del slots
    mem.close()
    mem.close()


def test_a_frame_of_a_region_that_is_held_keeps_the_arena_open():
    mem = PhysicalMemory("1 MiB", regions=[(64 * PAGE, PAGE, "reserved")])
    frame = Frame.from_in_use(mem, 64 * PAGE)
    with pytest.raises(ArenaInUseError, match="1 references"):
        mem.close()
    frame.drop()
    mem.close()


def test_a_closed_arena_refuses_everything():
    mem = PhysicalMemory("1 MiB")
    ref = mem.alloc_frame().borrow()
    mem.close()
    for use in (
        mem.alloc_frame,
        lambda: mem.alloc_frames(2),
        lambda: mem.alloc_segment(2),
        lambda: Frame.from_unused(mem, 0),
        lambda: mem.slots,
        lambda: mem.meta(Raw),
        lambda: mem.free_frames,
        mem.stats,
        mem.trim,
        mem.__enter__,
        lambda: mem.inc_frame_ref_count(0),
        lambda: ref.start_paddr,
    ):
        with pytest.raises(ArenaClosedError):
            use()
    assert repr(mem) == "<PhysicalMemory closed>"


def test_an_arena_that_was_never_made_refuses_everything():
    mem = PhysicalMemory.__new__(PhysicalMemory)
    for use in (mem.alloc_frame, mem.stats, lambda: mem.slots, lambda: mem.meta(Page)):
        with pytest.raises(ArenaClosedError):
            use()
    mem.close()


def test_an_arena_is_made_once():
    mem = PhysicalMemory("1 MiB")
    with pytest.raises(TypeError, match="already"):
        mem.__init__("2 MiB")
    assert mem.size == 1 << 20


def test_with_does_not_hide_what_was_raised_inside():
    with pytest.raises(KeyError), PhysicalMemory("1 MiB") as mem:
        frame = mem.alloc_frame()
        raise KeyError(frame)
    assert not mem.closed


def test_with_refuses_to_leave_frames_behind():
    with pytest.raises(ArenaInUseError), PhysicalMemory("1 MiB") as mem:
        frame = mem.alloc_frame()
    frame.drop()
    mem.close()


def test_slots_show_count_type_generation_and_list_of_every_frame(mem):
    frame = mem.alloc_frame(Page(inode=5))
    number = frame.start_paddr // PAGE
    slots = mem.slots
    assert slots.shape == (256,)
    assert not slots.flags.writeable
    assert mem.types[int(slots[number]["type"])] is Page
    assert slots[number]["count"] == 1
    clone = frame.clone()
    assert slots[number]["count"] == 2, "the array is live"
    generation = int(slots[number]["generation"])
    clone.drop()
    frame.drop()
    assert slots[number]["count"] == REF_COUNT_UNUSED
    assert slots[number]["generation"] == generation + 1


def test_metadata_of_all_frames_of_a_type_is_a_masked_live_column(mem):
    pages = mem.alloc_frames(5, lambda paddr: Page(inode=paddr))
    raws = mem.alloc_frames(3, Raw)
    table = mem.meta(Page)
    assert table["inode"].compressed().tolist() == pages.paddrs.tolist()
    assert table["inode"].count() == 5
    assert mem.meta(Raw)["number"].count() == 3
    pages[2].meta.hits.store(9)
    assert table["hits"].sum() == 9
    assert np.shares_memory(table.data, mem.slots)
    del pages, raws, table


def test_stats_count_frames_by_state_and_type(mem):
    shared = mem.alloc_frames(4, Page)
    unique = mem.alloc_frame(Raw).try_unique()
    clone = shared[0]
    stats = mem.stats()
    assert (stats.shared_frames, stats.unique_frames, stats.references) == (4, 1, 6)
    assert stats.used_frames == 5
    assert stats.frames_by_type[f"{Page.__module__}.Page"] == 4
    assert stats.free_frames + stats.used_frames + stats.reserved_frames == stats.total_frames
    assert stats.overhead == sum(size for _, _, size in mem.layout)
    del shared, unique, clone


def test_trimmed_frames_read_as_zero_and_stay_allocatable(mem):
    with mem.alloc_segment(100) as segment:
        np.frombuffer(segment, np.uint8)[:] = 0xAA
    assert mem.trim() == 100
    assert mem.trim() == 0
    with mem.alloc_segment(100, zeroed=False) as segment:
        assert not np.frombuffer(segment, np.uint8).any()
    assert mem.free_frames == mem.total_frames - mem.reserved_frames


def test_zeroed_frames_never_show_what_another_left(mem):
    with mem.alloc_frames(mem.free_frames) as everything:
        for frame in everything:
            np.frombuffer(frame, np.uint8)[:] = 0x55
    with mem.alloc_frame() as frame:
        assert not np.frombuffer(frame, np.uint8).any()
    with mem.alloc_frames(20) as vec:
        assert not any(np.frombuffer(frame, np.uint8).any() for frame in vec)
    with mem.alloc_segment(20) as segment:
        assert not np.frombuffer(segment, np.uint8).any()
    with mem.alloc_frame(zeroed=False) as frame:
        assert frame.size == PAGE
