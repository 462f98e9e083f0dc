# This Source Code Form is subject to the terms of the Mozilla Public
# License, v. 2.0. If a copy of the MPL was not distributed with this
# file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Address spaces: what cursors map, unmap, protect and find, and every error with nothing changed."""

import ctypes
import gc
import signal
import threading
import weakref

import numpy as np
import pytest

import pageframe as pf
from types_for_tests import Dropped, Node, Page, Raw
from vm_state import (
    NOTHING,
    PAGE,
    READ_ONLY,
    addresses,
    assert_true_to_kernel,
    flags_at,
    shown,
    state,
    unchanged,
)

GIB = 1 << 30
SIZES = {"4 KiB": 4096, "64 KiB": 65536, "2 MiB": 1 << 21}


@pytest.fixture
def vm(mem):
    """Return a space of 64 pages that has gone at the end, with all frames of its table."""
    before = pf.map_budget()
    space = pf.VmSpace(mem, 64 * PAGE)
    yield space
    gc.collect()
    space.close()
    assert pf.map_budget() == before


@pytest.fixture(params=SIZES.values(), ids=SIZES)
def arena(request):
    """Return an arena of a page size, of 64 frames and some for its own tables."""
    mem = pf.PhysicalMemory(80 * request.param, page_size=request.param)
    yield mem
    gc.collect()
    assert mem.used_frames == 0, mem.stats()
    mem.close()


def put(vm, va, frames, prop=None):
    """Map frames at an address."""
    with vm.cursor() as cursor:
        cursor.jump(va)
        cursor.map(frames, prop)


def table_levels(mem):
    """Return {level: [entries, …]} of all nodes of page tables in an arena."""
    column = mem.meta(pf.PageTableMeta)
    levels = {}
    for level, entries in zip(column["level"].compressed(), column["entries"].compressed(), strict=True):
        levels.setdefault(int(level), []).append(int(entries))
    return {level: sorted(entries) for level, entries in levels.items()}


# -- spaces ------------------------------------------------------------------------------------


def test_a_new_space_takes_addresses_and_no_frames(arena):
    with pf.VmSpace(arena, 64 * arena.page_size) as vm:
        assert vm.mem is arena
        assert vm.size == 64 * arena.page_size
        assert vm.page_size == arena.page_size
        assert vm.base % arena.page_size == 0
        assert (vm.table_frames, vm.kernel_mappings, arena.used_frames) == (0, 1, 0)
        assert [flags for _, _, flags, _ in addresses(vm.base, vm.size)] == ["---p"]
        assert not vm.closed
    assert vm.closed


def test_a_size_may_be_a_string(mem):
    with pf.VmSpace(mem, "1 GiB") as vm:
        assert vm.size == GIB


@pytest.mark.parametrize("size", [0, -PAGE, 1, PAGE + 1, 2**64 + 1, -(2**64), "0", "1"])
def test_a_size_that_is_no_positive_multiple_of_the_page_size_is_refused(mem, size):
    with unchanged(mem), pytest.raises(ValueError, match=r"positive multiple|size"):
        pf.VmSpace(mem, size)


@pytest.mark.parametrize("size", [(512**4 + 1) * PAGE, 2**64, 2**100])
def test_a_size_that_the_table_can_not_describe_is_refused(mem, size):
    with unchanged(mem), pytest.raises(ValueError, match=f"pages at the most, not {size // PAGE}"):
        pf.VmSpace(mem, size)


def test_more_addresses_than_the_process_has_are_refused(mem):
    with unchanged(mem), pytest.raises(MemoryError, match="address space"):
        pf.VmSpace(mem, 512**4 * PAGE)


@pytest.mark.parametrize("wrong", [(), (None, PAGE), ("x", PAGE), (object(), PAGE)])
def test_a_space_is_one_of_an_arena(wrong):
    with pytest.raises(TypeError):
        pf.VmSpace(*wrong)


@pytest.mark.parametrize("size", [1.5, None, b"1", [PAGE]])
def test_a_size_of_another_type_is_refused(mem, size):
    with unchanged(mem), pytest.raises(TypeError):
        pf.VmSpace(mem, size)


def test_a_closed_arena_is_refused():
    mem = pf.PhysicalMemory("1 MiB", page_size=4096)
    mem.close()
    with pytest.raises(pf.ArenaClosedError):
        pf.VmSpace(mem, PAGE)


def test_an_arena_that_can_not_be_mapped_is_refused():
    with pf.PhysicalMemory("1 MiB", mappable=False) as mem:
        with unchanged(mem), pytest.raises(TypeError, match="mappable=False"):
            pf.VmSpace(mem, PAGE)
        with unchanged(mem), pytest.raises(TypeError, match="mappable=False"):
            mem.ring(PAGE)
        frame = mem.alloc_frame()
        with unchanged(mem), pytest.raises(TypeError, match="mappable=False"):
            mem.map(frame)
        assert frame.reference_count == 1
        frame.drop()


def test_the_largest_space_that_the_system_gives_works_up_to_its_last_page(mem):
    size = 512**4 * PAGE
    while True:
        try:
            vm = pf.VmSpace(mem, size)
            break
        except MemoryError:
            size //= 2
    assert size >= 1 << 40
    with vm:
        with vm.cursor(size - 2 * PAGE) as cursor:
            cursor.map(mem.alloc_segment(2))
            assert cursor.virt_addr == size
            assert vm.table_frames == 4
            vm.view(size - PAGE)[-4:] = b"last"
            ctypes.memset(vm.base + size - 1, ord("!"), 1)
            assert bytes(vm.view(size - PAGE)[-4:]) == b"las!"
            cursor.jump(size - PAGE)
            assert cursor.unmap(PAGE) == 1
            cursor.jump(size - 2 * PAGE)
            item = cursor.query()
            assert item.va == size - 2 * PAGE
            item.frame.drop()
        assert_true_to_kernel(vm)
    assert mem.used_frames == 0


def test_a_closed_space_refuses_everything_and_closing_again_does_nothing(mem):
    vm = pf.VmSpace(mem, 4 * PAGE)
    cursor = vm.cursor(0, PAGE)
    cursor.map(mem.alloc_frame())
    vm.close()
    assert mem.used_frames == 0
    frame = mem.alloc_frame()
    for use in [
        lambda: vm.base,
        lambda: vm.size,
        lambda: vm.page_size,
        lambda: vm.table_frames,
        lambda: vm.kernel_mappings,
        lambda: vm.cursor(),
        lambda: vm.view(),
        lambda: vm.array(0, 1),
        lambda: vm.fork(),
        lambda: vm.make_writable(),
        lambda: vm.__enter__(),
        lambda: cursor.virt_addr,
        lambda: cursor.range,
        lambda: cursor.query(),
        lambda: cursor.find_next(),
        lambda: cursor.jump(0),
        lambda: cursor.map(frame),
        lambda: cursor.unmap(PAGE),
        lambda: cursor.protect(PAGE, READ_ONLY),
        lambda: cursor.__enter__(),
    ]:
        with pytest.raises(pf.SpaceClosedError, match="closed"):
            use()
    assert frame.reference_count == 1
    frame.drop()
    cursor.close()
    cursor.close()
    vm.close()
    assert vm.closed
    assert repr(vm) == "<VmSpace closed>"
    assert repr(cursor) == "<VmCursor closed>"


def test_a_closed_cursor_refuses_everything_and_leaves_the_range_to_others(mem, vm):
    with vm.cursor() as cursor:
        pass
    frame = mem.alloc_frame()
    with unchanged(mem, vm):
        for use in [
            lambda: cursor.virt_addr,
            lambda: cursor.range,
            lambda: cursor.query(),
            lambda: cursor.find_next(),
            lambda: cursor.jump(0),
            lambda: cursor.map(frame),
            lambda: cursor.unmap(PAGE),
            lambda: cursor.protect(PAGE, READ_ONLY),
            lambda: cursor.__enter__(),
        ]:
            with pytest.raises(pf.SpaceClosedError, match="cursor is closed"):
                use()
    vm.cursor().close()
    frame.drop()


def test_a_space_that_is_forgotten_gives_everything_back(mem):
    before = pf.map_budget()
    vm = pf.VmSpace(mem, 4 * PAGE)
    with vm.cursor() as cursor:
        cursor.map(mem.alloc_frames(4))
    gone = weakref.ref(vm)
    del vm, cursor
    gc.collect()
    assert gone() is None
    assert mem.used_frames == 0
    assert pf.map_budget() == before


def test_a_cursor_that_is_forgotten_gives_its_range_back(mem, vm):
    cursor = vm.cursor()
    assert cursor.space is vm
    del cursor
    vm.cursor().close()


def test_a_space_keeps_its_arena_open(mem, vm):
    put(vm, 0, mem.alloc_frame())
    with pytest.raises(pf.ArenaInUseError):
        mem.close()


def test_an_empty_space_does_not_keep_its_arena_open_and_can_be_closed_after_it():
    before = pf.map_budget()
    mem = pf.PhysicalMemory("1 MiB")
    vm = pf.VmSpace(mem, 4 * PAGE)
    cursor = vm.cursor()
    mem.close()
    for use in [lambda: vm.base, lambda: vm.cursor(), lambda: cursor.query(), lambda: cursor.unmap(PAGE)]:
        with pytest.raises(pf.ArenaClosedError):
            use()
    assert "VmSpace" in repr(vm)
    assert "VmCursor" in repr(cursor)
    cursor.close()
    vm.close()
    assert pf.map_budget() == before


def test_a_space_can_be_shown(mem, vm):
    put(vm, 0, mem.alloc_frame())
    assert repr(vm) == (
        f"<VmSpace of {64 * PAGE} bytes at {vm.base:#x}: 4 frames of page table, 2 kernel mappings>"
    )
    with vm.cursor(PAGE, 3 * PAGE) as cursor:
        assert repr(cursor) == "<VmCursor at 0x1000 in 0x1000..0x3000>"
    with vm.cursor() as cursor:
        assert repr(cursor.query()).startswith("<VmItem 0x0..0x1000 level 1 PageProperty(read=True")


# -- ranges ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        ((), (0, 64 * PAGE)),
        ((PAGE,), (PAGE, 64 * PAGE)),
        ((PAGE, 2 * PAGE), (PAGE, 2 * PAGE)),
        ((range(PAGE, 3 * PAGE),), (PAGE, 3 * PAGE)),
        ((range(63 * PAGE, 64 * PAGE),), (63 * PAGE, 64 * PAGE)),
        ((np.int64(PAGE), np.uint64(2 * PAGE)), (PAGE, 2 * PAGE)),
    ],
)
def test_a_range_is_two_addresses_or_a_range(vm, args, expected):
    with vm.cursor(*args) as cursor:
        assert cursor.range == range(*expected)
        assert cursor.virt_addr == expected[0]


@pytest.mark.parametrize("use", ["cursor", "view", "make_writable"])
@pytest.mark.parametrize(
    ("args", "error"),
    [
        ((1,), pf.NotAlignedError),
        ((0, PAGE + 1), pf.NotAlignedError),
        ((64 * PAGE + 1,), pf.NotAlignedError),  # alignment is checked first
        ((2**70 + 1,), pf.NotAlignedError),
        ((-1,), pf.NotAlignedError),
        ((-PAGE,), pf.OutOfBoundError),
        ((0, 65 * PAGE), pf.OutOfBoundError),
        ((65 * PAGE,), pf.OutOfBoundError),
        ((64 * PAGE,), pf.OutOfBoundError),
        ((2**64,), pf.OutOfBoundError),
        ((0, 2**64), pf.OutOfBoundError),
        ((0, 0), pf.OutOfBoundError),
        ((2 * PAGE, PAGE), pf.OutOfBoundError),
        ((range(0),), pf.OutOfBoundError),
        ((range(0, PAGE, 2),), ValueError),
        ((range(0, PAGE, -1),), ValueError),
        ((range(PAGE), PAGE), TypeError),
        (("0",), TypeError),
        ((1.0,), TypeError),
        ((0, 4096.0), TypeError),
        ((None,), TypeError),
    ],
)
def test_what_is_no_range_of_pages_of_the_space_is_refused(mem, vm, use, args, error):
    with unchanged(mem, vm), pytest.raises(error):
        getattr(vm, use)(*args)
    vm.cursor().close()


def test_an_overlapping_cursor_of_the_same_thread_is_refused_at_once(mem, vm):
    with vm.cursor(2 * PAGE, 4 * PAGE) as cursor:
        for args in [(), (0, 3 * PAGE), (3 * PAGE, 4 * PAGE), (2 * PAGE, 4 * PAGE), (3 * PAGE,)]:
            with unchanged(mem, vm, cursors=[cursor]):
                with pytest.raises(
                    pf.RangeLockedError, match=r"this thread has a cursor on 0x2000 \.\. 0x4000"
                ):
                    vm.cursor(*args)
                with pytest.raises(pf.RangeLockedError):
                    vm.cursor(*args, timeout=5)
        with unchanged(mem, vm, cursors=[cursor]):
            with pytest.raises(pf.RangeLockedError):
                vm.fork()
            with pytest.raises(pf.RangeLockedError):
                vm.make_writable()
        with vm.cursor(0, 2 * PAGE), vm.cursor(4 * PAGE):
            pass


def test_a_cursor_of_another_thread_is_waited_for(mem, vm):
    cursor = vm.cursor(0, 2 * PAGE)
    had = []

    def work():
        with vm.cursor(PAGE, 3 * PAGE) as mine:
            had.append(mine.range)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(0.05)
    assert not had
    cursor.close()
    thread.join(30)
    assert had == [range(PAGE, 3 * PAGE)]


@pytest.mark.parametrize("timeout", [0, 0.02])
def test_waiting_for_a_cursor_ends_with_its_time(mem, vm, timeout):
    errors = []

    def work():
        try:
            vm.cursor(timeout=timeout)
        except pf.RangeLockedError as error:
            errors.append(str(error))

    with vm.cursor(PAGE, 2 * PAGE) as cursor:
        with unchanged(mem, vm, cursors=[cursor]):
            thread = threading.Thread(target=work)
            thread.start()
            thread.join(30)
        assert errors == ["another thread has a cursor on 0x1000 .. 0x2000: close it first"]
    vm.cursor().close()


def test_time_is_that_of_all_cursors_that_are_waited_for(vm):
    """Two cursors, each of which goes before the time is out, and then comes back."""
    left = threading.Event()
    cursors = [vm.cursor(0, PAGE), vm.cursor(PAGE, 2 * PAGE)]
    errors = []

    def work():
        try:
            vm.cursor(timeout=0.5).close()
        except pf.RangeLockedError as error:
            errors.append(error)
        left.set()

    thread = threading.Thread(target=work)
    thread.start()
    for i in range(100):
        if left.wait(0.1):
            break
        cursors[i % 2].close()
        cursors[i % 2] = vm.cursor(i % 2 * PAGE, (i % 2 + 1) * PAGE)
    thread.join(30)
    for cursor in cursors:
        cursor.close()
    assert len(errors) == 1
    assert i < 50


def test_closing_a_space_wakes_threads_that_wait_for_a_range(mem):
    vm = pf.VmSpace(mem, 4 * PAGE)
    cursor = vm.cursor()
    errors = []

    def work():
        try:
            vm.cursor(timeout=5)
        except pf.PageFrameError as error:
            errors.append(type(error))

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    threads[0].join(0.05)
    vm.close()
    for thread in threads:  # who is not woken finds the range locked when its time is out
        thread.join(30)
    cursor.close()
    assert errors == [pf.SpaceClosedError] * 3


def test_threads_with_ranges_of_their_own_do_not_disturb_one_another(mem):
    with pf.VmSpace(mem, 64 * PAGE) as vm:
        failed = []

        def work(number):
            try:
                with vm.cursor(number * 8 * PAGE, (number + 1) * 8 * PAGE) as cursor:
                    for round in range(30):
                        cursor.jump(number * 8 * PAGE)
                        cursor.map(mem.alloc_frames(4))
                        cursor.map(mem.alloc_segment(4))
                        at = vm.base + number * 8 * PAGE
                        ctypes.memset(at, number + round, 8 * PAGE)
                        with memoryview(vm.view(*(cursor.range[0], cursor.range[-1] + 1))) as view:
                            assert bytes(view) == bytes([number + round]) * 8 * PAGE
                        cursor.jump(number * 8 * PAGE)
                        assert cursor.protect(8 * PAGE, READ_ONLY) == 8
                        cursor.jump(number * 8 * PAGE)
                        assert cursor.unmap(8 * PAGE) == 8
            except BaseException as error:
                failed.append(error)

        threads = [threading.Thread(target=work, args=[i]) for i in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert failed == []
        assert (vm.table_frames, vm.kernel_mappings) == (0, 1)


# -- map, query, unmap -------------------------------------------------------------------------


@pytest.mark.parametrize("make", ["alloc_frame", "alloc_segment", "alloc_frames"])
def test_a_mapping_holds_what_the_handle_held_and_shows_its_bytes(arena, make):
    count = 1 if make == "alloc_frame" else 3
    handle = getattr(arena, make)(*([] if count == 1 else [count]))
    size = arena.page_size
    other = handle.clone()
    paddrs = (
        other.paddrs.tolist()
        if make == "alloc_frames"
        else list(range(handle.start_paddr, handle.start_paddr + count * size, size))
    )
    with pf.VmSpace(arena, 64 * size) as vm:
        with vm.cursor(2 * size, 10 * size) as cursor:
            assert cursor.query() is None
            cursor.map(handle)
            assert cursor.virt_addr == (2 + count) * size
            with pytest.raises(pf.MovedError):
                handle.clone()
            cursor.jump(2 * size)
            for paddr in paddrs:
                item = cursor.query()
                assert (item.va, item.size, item.level) == (cursor.virt_addr, size, 1)
                assert item.prop == pf.PageProperty()
                assert not item.copy_on_write
                assert item.frame.start_paddr == paddr
                assert item.frame.reference_count == 3  # the clone's, the mapping's, the item's
                item.frame.drop()
                ctypes.memmove(vm.base + cursor.virt_addr, b"through", 7)
                cursor.jump(item.va + size)
            assert cursor.query() is None
            cursor.jump(2 * size)
            assert cursor.unmap(4 * size) == count
            assert cursor.virt_addr == 6 * size
        assert (vm.table_frames, vm.kernel_mappings) == (0, 1)
        with other:
            for frame in [other] if make == "alloc_frame" else other:
                assert bytes(memoryview(frame)[:7]) == b"through"
                assert frame.reference_count == (1 if make == "alloc_frame" else 2)


def test_what_is_written_at_one_address_is_read_at_every_other(mem, vm):
    frame = mem.alloc_frame()
    for va in (0, 5 * PAGE, 63 * PAGE):
        put(vm, va, frame.clone())
    other = pf.VmSpace(mem, PAGE)
    put(other, 0, frame.clone(), READ_ONLY)
    assert frame.reference_count == 5
    vm.view(5 * PAGE, 6 * PAGE)[:5] = b"hello"
    for at in (vm.base, vm.base + 5 * PAGE, vm.base + 63 * PAGE, other.base):
        assert ctypes.string_at(at, 5) == b"hello"
    assert bytes(memoryview(frame)[:5]) == b"hello"
    other.close()
    assert frame.reference_count == 4
    frame.drop()


def test_the_table_says_which_levels_it_has(mem):
    with pf.VmSpace(mem, 512**2 * PAGE) as vm:
        put(vm, 0, mem.alloc_frames(3))
        assert table_levels(mem) == {4: [1], 3: [1], 2: [1], 1: [3]}
        assert mem.stats().frames_by_type["pageframe.PageTableMeta"] == 4
        assert mem.stats().unique_frames == 4
        put(vm, 512 * PAGE, mem.alloc_frame())
        assert table_levels(mem) == {4: [1], 3: [1], 2: [2], 1: [1, 3]}
        assert vm.table_frames == 5
        nodes = mem.slots["type"] == next(i for i, t in mem.types.items() if t is pf.PageTableMeta)
        assert (
            mem.slots["count"][nodes & (mem.slots["count"] != pf.REF_COUNT_UNUSED)] == pf.REF_COUNT_UNIQUE
        ).all()
        with vm.cursor() as cursor:
            assert cursor.unmap(PAGE) == 1
            assert table_levels(mem) == {4: [1], 3: [1], 2: [2], 1: [1, 2]}
            assert cursor.unmap(511 * PAGE) == 2
            assert table_levels(mem) == {4: [1], 3: [1], 2: [1], 1: [1]}
            assert cursor.unmap(vm.size - cursor.virt_addr) == 1
        assert table_levels(mem) == {}
        assert vm.table_frames == 0


def test_a_node_can_not_be_had_by_its_address(mem, vm):
    put(vm, 0, mem.alloc_frame())
    column = mem.slots["count"]
    nodes = np.flatnonzero(column == pf.REF_COUNT_UNIQUE) * PAGE
    assert len(nodes) == 4
    for paddr in nodes.tolist():
        for take in [
            lambda paddr=paddr: pf.Frame.from_in_use(mem, paddr),
            lambda paddr=paddr: pf.Frame.from_unused(mem, paddr),
            lambda paddr=paddr: pf.UniqueFrame.from_unused(mem, paddr),
            lambda paddr=paddr: mem.inc_frame_ref_count(paddr),
            lambda paddr=paddr: pf.Frame.from_raw(mem, paddr),
            lambda paddr=paddr: pf.UniqueFrame.from_raw(mem, paddr),
        ]:
            with unchanged(mem, vm), pytest.raises(pf.PageFrameError):
                take()
    del column


@pytest.mark.parametrize("meta", [pf.PageTableMeta, pf.TicketPageMeta])
def test_frames_can_not_be_given_the_metadata_of_the_system(mem, meta):
    unique = pf.UniqueFrame.from_unused(mem, mem.total_frames * PAGE - PAGE)
    with unchanged(mem):
        for use in [
            lambda: mem.alloc_frame(meta),
            lambda: mem.alloc_frame(meta()),
            lambda: mem.alloc_frames(2, meta),
            lambda: mem.alloc_segment(2, meta),
            lambda: mem.alloc_segment(2, lambda paddr: meta()),
            lambda: mem.ring(PAGE, meta),
            lambda: pf.Frame.from_unused(mem, 200 * PAGE, meta),
            lambda: pf.UniqueFrame.from_unused(mem, 200 * PAGE, meta),
            lambda: pf.Segment.from_unused(mem, 200 * PAGE, 202 * PAGE, meta),
            lambda: unique.repurpose(meta()),
        ]:
            with pytest.raises(pf.FrameTypeError):
                use()
    unique.drop()


def test_a_type_named_like_that_of_the_system_is_another_one(mem, vm):
    class PageTableMeta(pf.FrameMeta):
        __module__ = "pageframe"
        level: pf.u32
        entries: pf.u32

    put(vm, 0, mem.alloc_frame())
    with unchanged(mem, vm):
        try:
            frame = mem.alloc_frame(PageTableMeta(level=4, entries=512))
        except pf.PageFrameError:
            frame = None
        if frame is not None:
            assert type(frame.meta) is PageTableMeta
            assert len(mem.meta(pf.PageTableMeta)["level"].compressed()) == 4
            frame.drop()


@pytest.mark.parametrize("prop", ["rw", PAGE, (True, False, False), True])
def test_a_property_of_another_type_is_refused(mem, vm, prop):
    frame = mem.alloc_frame()
    with vm.cursor() as cursor, unchanged(mem, vm, cursors=[cursor]):
        with pytest.raises(TypeError, match="PageProperty"):
            cursor.map(frame, prop)
        with pytest.raises(TypeError, match="PageProperty"):
            cursor.protect(PAGE, prop)
        with pytest.raises(TypeError, match="PageProperty"):
            cursor.protect(PAGE, None)
        with pytest.raises(TypeError, match="PageProperty"):
            mem.map(frame, prop)
    frame.drop()


@pytest.mark.parametrize(
    "what", [None, 0, "frame", b"", [], [1], object(), pf.UFrame, np.zeros(PAGE, "u1"), memoryview(b"x")]
)
def test_what_is_no_handle_is_not_mapped(mem, vm, what):
    with vm.cursor() as cursor, unchanged(mem, vm, cursors=[cursor]), pytest.raises(pf.FrameTypeError):
        cursor.map(what)


def test_other_holders_are_not_mapped(mem, vm):
    unique = pf.UniqueFrame.from_unused(mem, 250 * PAGE)
    frame = mem.alloc_frame()
    pages = pf.LinkedList(mem, Page)
    mapping = mem.map(mem.alloc_frame())
    with vm.cursor() as cursor:
        for what in (unique, frame.borrow(), pages, mapping, vm, cursor):
            with unchanged(mem, vm, cursors=[cursor]), pytest.raises(pf.FrameTypeError):
                cursor.map(what)
    unique.drop()
    assert frame.reference_count == 1
    frame.drop()
    mapping.drop()


@pytest.mark.parametrize("make", ["alloc_frame", "alloc_segment", "alloc_frames"])
def test_typed_frames_are_not_mapped(mem, vm, make):
    handle = getattr(mem, make)(*([Node()] if make == "alloc_frame" else [3, Node()]))
    typed = pytest.raises(pf.FrameTypeError, match="typed")
    with vm.cursor() as cursor, unchanged(mem, vm, cursors=[cursor]), typed:
        cursor.map(handle)
    with unchanged(mem, vm), pytest.raises(pf.FrameTypeError, match="typed"):
        mem.map(handle)
    handle.drop()


@pytest.mark.parametrize("make", ["alloc_frame", "alloc_segment", "alloc_frames"])
def test_frames_of_another_arena_are_not_mapped(mem, vm, make):
    with pf.PhysicalMemory("1 MiB") as other:
        handle = getattr(other, make)(*([] if make == "alloc_frame" else [3]))
        with (
            vm.cursor() as cursor,
            unchanged(mem, vm, cursors=[cursor]),
            unchanged(other),
            pytest.raises(pf.FrameTypeError, match="another arena"),
        ):
            cursor.map(handle)
        with unchanged(mem, vm), pytest.raises(pf.FrameTypeError, match="another arena"):
            mem.map([mem.alloc_frame(), handle])
        handle.drop()


@pytest.mark.parametrize("make", ["alloc_frame", "alloc_segment", "alloc_frames"])
def test_a_handle_that_was_dropped_or_mapped_is_not_mapped_again(mem, vm, make):
    handle = getattr(mem, make)(*([] if make == "alloc_frame" else [3]))
    with vm.cursor() as cursor:
        cursor.map(handle)
        with unchanged(mem, vm, cursors=[cursor]), pytest.raises(pf.MovedError):
            cursor.map(handle)
        with unchanged(mem, vm), pytest.raises(pf.MovedError):
            mem.map([handle])


@pytest.mark.parametrize("make", ["alloc_frame", "alloc_segment"])
def test_a_handle_with_a_view_is_not_mapped(mem, vm, make):
    handle = getattr(mem, make)(*([] if make == "alloc_frame" else [3]))
    with memoryview(handle) as view, vm.cursor() as cursor:
        with unchanged(mem, vm, cursors=[cursor]), pytest.raises(BufferError, match="views of its bytes"):
            cursor.map(handle)
        view[0] = 1
    with vm.cursor() as cursor:
        cursor.map(handle)


def test_an_address_in_use_is_refused(mem, vm):
    put(vm, 3 * PAGE, mem.alloc_frames(2))
    for va, count in [(3, 1), (4, 1), (2, 2), (0, 4), (2, 4), (4, 5)]:
        frames = mem.alloc_frames(count)
        with vm.cursor() as cursor:
            cursor.jump(va * PAGE)
            with (
                unchanged(mem, vm, cursors=[cursor]),
                pytest.raises(pf.AddressInUseError, match=f"{max(va, 3) * PAGE:#x} is in use"),
            ):
                cursor.map(frames)
        assert frames.reference_counts.tolist() == [1] * count
        frames.drop()


def test_frames_that_do_not_fit_into_the_rest_of_the_range_are_refused(mem, vm):
    frames = mem.alloc_segment(3)
    with vm.cursor(PAGE, 3 * PAGE) as cursor:
        with unchanged(mem, vm, cursors=[cursor]), pytest.raises(pf.OutOfBoundError, match="0x4000"):
            cursor.map(frames)
        cursor.map(mem.alloc_frames(2))
        assert cursor.virt_addr == 3 * PAGE
        with unchanged(mem, vm, cursors=[cursor]), pytest.raises(pf.OutOfBoundError):
            cursor.map(mem.alloc_frame())
    with vm.cursor(62 * PAGE) as cursor, unchanged(mem, vm), pytest.raises(pf.OutOfBoundError):
        cursor.map(frames)
    frames.drop()


def test_at_the_end_of_its_range_a_cursor_can_only_jump_back(mem, vm):
    with vm.cursor(0, 2 * PAGE) as cursor:
        cursor.map(mem.alloc_segment(2))
        with unchanged(mem, vm, cursors=[cursor]):
            assert cursor.virt_addr == 2 * PAGE
            with pytest.raises(pf.OutOfBoundError, match="end"):
                cursor.query()
            with pytest.raises(pf.OutOfBoundError):
                cursor.unmap(PAGE)
            with pytest.raises(pf.OutOfBoundError):
                cursor.protect(PAGE, READ_ONLY)
            with pytest.raises(pf.OutOfBoundError):
                cursor.find_next(PAGE)
            with pytest.raises(pf.OutOfBoundError):
                cursor.jump(2 * PAGE)
            assert cursor.find_next() is None
            assert cursor.unmap(0) == 0
            assert cursor.protect(0, READ_ONLY) == 0
        cursor.jump(0)
        assert cursor.query().va == 0


@pytest.mark.parametrize(
    ("va", "error"),
    [
        (PAGE + 1, pf.NotAlignedError),
        (-1, pf.NotAlignedError),
        (2**80 + 7, pf.NotAlignedError),
        (0, pf.OutOfBoundError),
        (4 * PAGE, pf.OutOfBoundError),
        (-PAGE, pf.OutOfBoundError),
        (2**64, pf.OutOfBoundError),
        (2**64 + PAGE, pf.OutOfBoundError),
        ("0", TypeError),
        (None, TypeError),
        (float(PAGE), TypeError),
    ],
)
def test_a_jump_to_no_page_of_the_range_leaves_the_cursor_where_it_was(mem, vm, va, error):
    with vm.cursor(PAGE, 4 * PAGE) as cursor:
        cursor.jump(2 * PAGE)
        with unchanged(mem, vm, cursors=[cursor]), pytest.raises(error):
            cursor.jump(va)


@pytest.mark.parametrize("use", ["unmap", "protect", "find_next"])
@pytest.mark.parametrize(
    ("nbytes", "error"),
    [
        (1, pf.NotAlignedError),
        (-1, pf.NotAlignedError),
        (2**64 + 1, pf.NotAlignedError),
        (-PAGE, pf.OutOfBoundError),
        (3 * PAGE, pf.OutOfBoundError),
        (2**64, pf.OutOfBoundError),
        (2**64 + PAGE, pf.OutOfBoundError),
        ("1", TypeError),
        (4096.0, TypeError),
        (b"", TypeError),
    ],
)
def test_a_length_that_does_not_lie_within_the_range_is_refused(mem, vm, use, nbytes, error):
    with vm.cursor(PAGE, 4 * PAGE) as cursor:
        cursor.map(mem.alloc_segment(3))
        cursor.jump(2 * PAGE)
        with unchanged(mem, vm, cursors=[cursor]), pytest.raises(error):
            getattr(cursor, use)(nbytes, *([READ_ONLY] if use == "protect" else []))


def test_unmap_skips_holes_says_how_many_pages_it_took_and_goes_on(mem, vm):
    for va in (1, 2, 5, 7):
        put(vm, va * PAGE, mem.alloc_frame())
    with vm.cursor() as cursor:
        assert cursor.unmap(PAGE) == 0
        assert cursor.virt_addr == PAGE
        assert cursor.unmap(5 * PAGE) == 3
        assert cursor.virt_addr == 6 * PAGE
        assert cursor.unmap(0) == 0
        assert cursor.virt_addr == 6 * PAGE
        assert cursor.unmap(58 * PAGE) == 1
        assert cursor.virt_addr == 64 * PAGE
    assert mem.used_frames == 0


def test_unmap_runs_on_drop_of_the_frames_that_nobody_else_holds(mem, vm):
    Dropped.seen.clear()
    kept = mem.alloc_frame(Dropped(number=1))
    put(vm, 0, kept.clone())
    put(vm, PAGE, mem.alloc_frame(Dropped(number=2)))
    put(vm, 2 * PAGE, mem.alloc_frame(Raw(number=3)))
    ctypes.memmove(vm.base + PAGE, b"abcd", 4)
    with vm.cursor() as cursor:
        assert cursor.unmap(3 * PAGE) == 3
    assert Dropped.seen == [(2, PAGE, b"abcd")]
    kept.drop()
    assert len(Dropped.seen) == 2


def test_find_next_goes_to_the_next_mapped_page_or_stays(mem, vm):
    put(vm, 3 * PAGE, mem.alloc_frame())
    put(vm, 9 * PAGE, mem.alloc_frame())
    with vm.cursor() as cursor:
        assert cursor.find_next(3 * PAGE) is None
        assert cursor.virt_addr == 0
        assert cursor.find_next(4 * PAGE) == 3 * PAGE
        assert cursor.virt_addr == 3 * PAGE
        assert cursor.find_next(PAGE) == 3 * PAGE  # the one here included
        cursor.jump(4 * PAGE)
        assert cursor.find_next(0) is None
        assert cursor.find_next(None) == 9 * PAGE
        cursor.jump(10 * PAGE)
        assert cursor.find_next() is None
        assert cursor.virt_addr == 10 * PAGE
    with vm.cursor(4 * PAGE, 9 * PAGE) as cursor:
        assert cursor.find_next() is None


def test_find_next_crosses_a_large_hole_at_once(mem):
    with pf.VmSpace(mem, 1 << 44) as vm:
        put(vm, (1 << 44) - PAGE, mem.alloc_frame())
        with vm.cursor() as cursor:
            assert cursor.find_next() == (1 << 44) - PAGE
            cursor.jump(0)
            assert cursor.unmap(1 << 44) == 1


# -- kernel mappings ---------------------------------------------------------------------------


def test_neighbours_that_are_contiguous_take_one_kernel_mapping(mem, vm):
    segment = mem.alloc_segment(6)
    parts = [segment.slice(i * PAGE, (i + 1) * PAGE) for i in range(6)]
    segment.drop()
    for i in (0, 2, 4):
        put(vm, (10 + i) * PAGE, parts[i])
    assert vm.kernel_mappings == 7
    for i in (1, 3, 5):
        put(vm, (10 + i) * PAGE, parts[i])
    assert vm.kernel_mappings == 3
    assert_true_to_kernel(vm)
    with vm.cursor(12 * PAGE, 13 * PAGE) as cursor:
        cursor.protect(PAGE, READ_ONLY)
    assert vm.kernel_mappings == 5
    assert_true_to_kernel(vm)
    with vm.cursor(12 * PAGE, 13 * PAGE) as cursor:
        cursor.protect(PAGE, pf.PageProperty())
    assert vm.kernel_mappings == 3
    with vm.cursor(12 * PAGE, 13 * PAGE) as cursor:
        cursor.unmap(PAGE)
    assert vm.kernel_mappings == 5
    assert_true_to_kernel(vm)
    with vm.cursor() as cursor:
        cursor.unmap(vm.size)
    assert vm.kernel_mappings == 1
    assert_true_to_kernel(vm)


def test_a_full_space_has_no_hole(mem):
    with pf.VmSpace(mem, 4 * PAGE) as vm:
        put(vm, 0, mem.alloc_segment(4))
        assert vm.kernel_mappings == 1
        assert len(addresses(vm.base, vm.size)) == 1
        with vm.cursor() as cursor:
            cursor.unmap(PAGE)
            assert vm.kernel_mappings == 2
            cursor.jump(3 * PAGE)
            cursor.unmap(PAGE)
        assert vm.kernel_mappings == 3
        assert_true_to_kernel(vm)


# -- properties --------------------------------------------------------------------------------


def test_a_property_says_what_it_allows():
    prop = pf.PageProperty()
    assert (prop.read, prop.write, prop.execute) == (True, True, False)
    assert pf.PageProperty(write=False) == READ_ONLY
    assert len({prop, pf.PageProperty(True, True, False), READ_ONLY}) == 2
    with pytest.raises(AttributeError):
        prop.write = False
    with pytest.raises(ValueError, match="can be read, too"):
        pf.PageProperty(read=False)
    for wrong in (1, None, "yes", 0.0):
        for name in ("read", "write", "execute"):
            with pytest.raises(TypeError, match=f"{name} must be a bool"):
                pf.PageProperty(**{name: wrong})


PROPERTIES = [
    pf.PageProperty(read, write, execute)
    for read in (True, False)
    for write in (True, False)
    for execute in (True, False)
    if read or not write
]


@pytest.mark.parametrize("prop", PROPERTIES, ids=str)
@pytest.mark.parametrize("how", ["map", "protect"])
def test_the_system_allows_what_the_property_says(arena, prop, how):
    size = arena.page_size
    with pf.VmSpace(arena, 4 * size) as vm:
        with vm.cursor(size, 3 * size) as cursor:
            if how == "map":
                cursor.map(arena.alloc_segment(2), prop)
            else:
                cursor.map(arena.alloc_segment(2))
                cursor.jump(size)
                assert cursor.protect(2 * size, prop) == 2
                assert cursor.virt_addr == 3 * size
            cursor.jump(2 * size)
            assert cursor.query().prop == prop
        flags = "".join(
            c if getattr(prop, n) else "-" for c, n in zip("rwx", ("read", "write", "execute"), strict=False)
        )
        assert flags_at(vm, size) == flags_at(vm, 3 * size - 4096) == flags + "s"
        assert flags_at(vm, 0) == flags_at(vm, 3 * size) == "---p"


def test_pages_are_not_executable_by_default(mem, vm):
    put(vm, 0, mem.alloc_frame())
    assert flags_at(vm, 0) == "rw-s"


def test_a_page_that_may_be_executed_is_executed(mem, vm):
    import platform

    code = {"x86_64": "b82a000000c3", "aarch64": "40058052c0035fd6"}[platform.machine()]
    frame = mem.alloc_frame()
    memoryview(frame)[: len(code) // 2] = bytes.fromhex(code)
    put(vm, 0, frame, pf.PageProperty(write=False, execute=True))
    assert ctypes.CFUNCTYPE(ctypes.c_int)(vm.base)() == 42


def test_protect_skips_holes_says_how_many_pages_and_goes_on(mem, vm):
    for va in (1, 2, 5):
        put(vm, va * PAGE, mem.alloc_frame())
    with vm.cursor() as cursor:
        assert cursor.protect(PAGE, READ_ONLY) == 0
        assert cursor.virt_addr == PAGE
        assert cursor.protect(4 * PAGE, READ_ONLY) == 2
        assert cursor.virt_addr == 5 * PAGE
    props = {va // PAGE: prop for va, (_, prop, _) in shown(vm).items()}
    assert props == {1: READ_ONLY, 2: READ_ONLY, 5: pf.PageProperty()}
    assert_true_to_kernel(vm)


def test_views_of_read_only_pages_are_read_only(mem, vm):
    put(vm, 0, mem.alloc_frame(), READ_ONLY)
    put(vm, PAGE, mem.alloc_frame())
    view = vm.view(0, PAGE)
    assert view.readonly
    with pytest.raises(TypeError):
        view[0] = 1
    array = vm.array(0, 512)
    with pytest.raises(ValueError, match="read-only"):
        array[0] = 1
    with pytest.raises(ValueError, match="WRITEABLE"):
        array.flags.writeable = True
    with pytest.raises(ValueError, match="WRITEABLE"):
        array[1:].flags.writeable = True
    with pytest.raises(ValueError, match=r"WRITEABLE|read-only"):
        np.frombuffer(view, "u1").flags.writeable = True
    assert vm.view(0, 2 * PAGE).readonly  # one page of them is
    assert not vm.array(0, 1024).flags.writeable
    assert not vm.view(PAGE, 2 * PAGE).readonly
    assert vm.array(PAGE, 512).flags.writeable


FAULTS = """
import ctypes, sys
import pageframe as pf
mem = pf.PhysicalMemory("1 MiB")
vm = pf.VmSpace(mem, 4 * 4096)
with vm.cursor() as cursor:
    cursor.map(mem.alloc_frame(), pf.PageProperty(write=False))
    cursor.map(mem.alloc_frame(), pf.PageProperty(read=False, write=False))
    cursor.map(mem.alloc_frame())
    cursor.jump(4096 * 2)
    if sys.argv[3] == "unmapped":
        cursor.unmap(4096)
    elif sys.argv[3] == "protected":
        cursor.protect(4096, pf.PageProperty(write=False))
    elif sys.argv[3] == "closed":
        base = vm.base
        vm.close()
        at = base + int(sys.argv[2])
if not vm.closed:
    at = vm.base + int(sys.argv[2])
print("ready", flush=True)
if sys.argv[1] == "write":
    ctypes.memset(at, 1, 1)
else:
    ctypes.string_at(at, 1)
print("done", flush=True)
"""


@pytest.mark.parametrize(
    ("access", "page", "how", "faults"),
    [
        ("read", 0, "as mapped", False),
        ("write", 0, "as mapped", True),
        ("read", 1, "as mapped", True),
        ("write", 1, "as mapped", True),
        ("write", 2, "as mapped", False),
        ("read", 3, "as mapped", True),
        ("write", 2, "unmapped", True),
        ("read", 2, "unmapped", True),
        ("write", 2, "protected", True),
        ("read", 2, "protected", False),
        ("read", 2, "closed", True),
    ],
)
def test_an_access_that_the_property_does_not_allow_faults(access, page, how, faults):
    import subprocess
    import sys

    result = subprocess.run(
        [sys.executable, "-c", FAULTS, access, str(page * PAGE), how],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert result.stdout.splitlines() == (["ready"] if faults else ["ready", "done"]), result.stderr
    assert result.returncode == (-signal.SIGSEGV if faults else 0), result.stderr


# -- views -------------------------------------------------------------------------------------


def test_a_view_or_array_is_of_mapped_pages_that_can_be_read(mem, vm):
    put(vm, 0, mem.alloc_frame())
    put(vm, 2 * PAGE, mem.alloc_frame())
    put(vm, 3 * PAGE, mem.alloc_frame(), NOTHING)
    with unchanged(mem, vm):
        for args in [(), (0, 2 * PAGE), (PAGE, 2 * PAGE), (0, 3 * PAGE), (5 * PAGE,)]:
            with pytest.raises(pf.NotMappedError, match="nothing is mapped at"):
                vm.view(*args)
        for args in [(3 * PAGE, 4 * PAGE), (2 * PAGE, 4 * PAGE)]:
            with pytest.raises(pf.NotMappedError, match="must not be read"):
                vm.view(*args)
        with pytest.raises(pf.NotMappedError):
            vm.array(PAGE, 1)
        with pytest.raises(pf.NotMappedError):
            vm.array(0, PAGE + 1, "u1")
        with pytest.raises(pf.NotMappedError):
            vm.array(3 * PAGE, 1)
        with pytest.raises(pf.NotAlignedError):
            vm.array(1, 1)
        with pytest.raises(pf.OutOfBoundError):
            vm.array(-PAGE, 1)
        with pytest.raises(pf.OutOfBoundError):
            vm.array(64 * PAGE, 1)
        with pytest.raises(pf.OutOfBoundError):
            vm.array(63 * PAGE, PAGE + 1, "u1")
        with pytest.raises(pf.OutOfBoundError):
            vm.array(0, (2**20, 2**20))
        with pytest.raises(pf.FrameTypeError):
            vm.array(0, 1, object)
        with pytest.raises(ValueError, match="negative"):
            vm.array(0, -1)
        with pytest.raises(ValueError, match="negative"):
            vm.array(0, (-1, -1))
        with pytest.raises(ValueError, match="order"):
            vm.array(0, 1, order="K")
        with pytest.raises(TypeError):
            vm.array(0, None)
        with pytest.raises(TypeError):
            vm.array("0", 1)
    with vm.cursor() as cursor:
        assert cursor.unmap(vm.size) == 3


def test_an_array_lies_where_the_pages_are(mem, vm):
    put(vm, PAGE, mem.alloc_frames(2))
    array = vm.array(PAGE, (2, 512), order="F")
    assert array.ctypes.data == vm.base + PAGE
    assert array.flags.f_contiguous
    assert not array.flags.c_contiguous
    array[...] = np.arange(1024).reshape(2, 512)
    assert (array == vm.array(PAGE, 1024).reshape(512, 2).T).all()
    assert vm.array(PAGE, ()).shape == ()
    assert vm.array(PAGE, (0, 3)).shape == (0, 3)
    assert vm.array(PAGE, 0, "V0").nbytes == 0
    assert type(array) is pf.FrameArray


@pytest.mark.parametrize("make", ["view", "array", "frombuffer"])
@pytest.mark.parametrize("prop", [pf.PageProperty(), READ_ONLY], ids=["writable", "read-only"])
def test_a_view_keeps_its_pages_mapped_and_as_they_are(mem, vm, make, prop):
    with vm.cursor() as cursor:
        cursor.map(mem.alloc_frames(4), prop)
    view = {
        "view": lambda: vm.view(PAGE, 3 * PAGE),
        "array": lambda: vm.array(PAGE, 2 * PAGE, "u1"),
        "frombuffer": lambda: np.frombuffer(vm.view(PAGE, 3 * PAGE), "u1")[5:],
    }[make]()
    with vm.cursor() as cursor:
        for at, size in [(0, 4), (0, 2), (1, 2), (2, 1), (2, 2)]:
            cursor.jump(at * PAGE)
            with unchanged(mem, vm, cursors=[cursor]):
                with pytest.raises(pf.RangeInUseError, match=r"0x1000 \.\. 0x3000 lives"):
                    cursor.unmap(size * PAGE)
                with pytest.raises(pf.RangeInUseError):
                    cursor.protect(size * PAGE, NOTHING)
                if prop.write:
                    with pytest.raises(pf.RangeInUseError):
                        cursor.protect(size * PAGE, READ_ONLY)
        cursor.jump(PAGE)
        assert cursor.protect(2 * PAGE, pf.PageProperty(True, prop.write, True)) == 2
        cursor.jump(0)
        assert cursor.unmap(PAGE) == 1
        cursor.jump(3 * PAGE)
        assert cursor.unmap(PAGE) == 1
        assert bytes(view[:1]) == b"\0"
        del view
        cursor.jump(PAGE)
        assert cursor.protect(2 * PAGE, NOTHING) == 2
        cursor.jump(PAGE)
        assert cursor.unmap(2 * PAGE) == 2


def test_fork_refuses_views_that_can_write_only(mem, vm):
    put(vm, 0, mem.alloc_frame())
    put(vm, PAGE, mem.alloc_frame(), READ_ONLY)
    reading = vm.view(PAGE, 2 * PAGE)
    view = vm.view(0, PAGE)
    with unchanged(mem, vm), pytest.raises(pf.RangeInUseError):
        vm.fork()
    view.release()
    vm.fork().close()
    reading.release()


def test_a_space_that_is_closed_goes_with_its_last_view(mem):
    before = pf.map_budget()
    vm = pf.VmSpace(mem, 4 * PAGE)
    put(vm, 0, mem.alloc_frames(2))
    first = vm.view(0, PAGE)
    array = vm.array(PAGE, 512)
    vm.close()
    assert vm.closed
    array[0] = 5
    first[0] = 1
    assert mem.used_frames == 6
    with pytest.raises(pf.ArenaInUseError):
        mem.close()
    del array
    gc.collect()
    assert mem.used_frames == 6
    assert first[0] == 1
    first.release()
    gc.collect()
    assert mem.used_frames == 0
    assert pf.map_budget() == before


# -- higher levels -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def large():
    """Return an arena with runs that level-2 entries can map, hardly any of it touched."""
    mem = pf.PhysicalMemory("64 MiB")
    yield mem
    gc.collect()
    assert mem.used_frames == 0, mem.stats()
    mem.close()


def aligned(mem, frames, pages=512):
    """Return a segment whose frames are aligned to so many."""
    return mem.alloc_segment(frames, zeroed=False, align=pages * mem.page_size)


def test_contiguous_aligned_frames_take_an_entry_of_level_2(large):
    with pf.VmSpace(large, "64 MiB") as vm:
        segment = aligned(large, 1024)
        start = segment.start_paddr
        put(vm, 512 * PAGE, segment)
        assert table_levels(large) == {4: [1], 3: [1], 2: [2]}
        with vm.cursor() as cursor:
            cursor.jump(700 * PAGE)
            item = cursor.query()
            assert (item.va, item.size, item.level) == (512 * PAGE, 512 * PAGE, 2)
            assert isinstance(item.frame, pf.USegment)
            assert (item.frame.start_paddr, item.frame.size) == (start, 512 * PAGE)
            item.frame.drop()
        with vm.cursor(600 * PAGE, 900 * PAGE) as cursor:  # the item ends with the range
            item = cursor.query()
            assert (item.va, item.size, item.level) == (600 * PAGE, 300 * PAGE, 2)
            assert item.frame.start_paddr == start + 88 * PAGE
            item.frame.drop()
        assert vm.kernel_mappings == 3


def test_scattered_handles_of_contiguous_frames_are_promoted_when_mapped_at_once(large):
    with pf.VmSpace(large, "8 MiB") as vm:
        segment = aligned(large, 512)
        frames = pf.FrameVec.from_frames(list(segment))
        segment.drop()
        put(vm, 0, frames)
        assert table_levels(large) == {4: [1], 3: [1], 2: [1]}


@pytest.mark.parametrize(("va", "offset"), [(1, 0), (0, 1), (1, 1), (511, 0)])
def test_what_is_not_aligned_takes_entries_of_level_1_and_2(large, va, offset):
    with pf.VmSpace(large, "16 MiB") as vm:
        whole = aligned(large, 2048)
        part = whole.slice(offset * PAGE, (offset + 1200) * PAGE)
        paddr = part.start_paddr
        whole.drop()
        put(vm, va * PAGE, part)
        levels = table_levels(large)
        if va % 512 == offset % 512:  # aligned to one another: entries of level 2 in the middle
            assert len(levels[1]) <= 2
            assert sum(levels[1]) == 1200 - 512
        else:
            assert sum(levels[1]) == 1200
        assert vm.kernel_mappings == (2 if va == 0 else 3)
        assert {at: page[0] for at, page in shown(vm).items()} == {
            (va + i) * PAGE: paddr + i * PAGE for i in range(1200)
        }


@pytest.mark.parametrize(("first", "count"), [(0, 1), (5, 1), (511, 1), (0, 511), (1, 510), (1, 511)])
@pytest.mark.parametrize("what", ["unmap", "protect"])
def test_a_part_of_an_entry_of_level_2_is_changed_by_splitting_it(large, what, first, count):
    with pf.VmSpace(large, "4 MiB") as vm:
        segment = aligned(large, 512)
        paddr = segment.start_paddr
        put(vm, 512 * PAGE, segment)
        with vm.cursor() as cursor:
            cursor.jump((512 + first) * PAGE)
            if what == "unmap":
                assert cursor.unmap(count * PAGE) == count
            else:
                assert cursor.protect(count * PAGE, READ_ONLY) == count
            assert cursor.virt_addr == (512 + first + count) * PAGE
        kept = 512 - count
        assert table_levels(large)[1] == [kept if what == "unmap" else 512]
        pages = shown(vm)
        changed = range(512 + first, 512 + first + count)
        for page in range(512, 1024):
            if what == "unmap" and page in changed:
                assert page * PAGE not in pages
            else:
                prop = READ_ONLY if page in changed else pf.PageProperty()
                assert pages[page * PAGE] == (paddr + (page - 512) * PAGE, prop, False)
        assert_true_to_kernel(vm)
        assert large.used_frames == vm.table_frames + (kept if what == "unmap" else 512)
    assert large.used_frames == 0


def test_protecting_a_whole_entry_of_level_2_leaves_it_one(large):
    with pf.VmSpace(large, "4 MiB") as vm:
        put(vm, 0, aligned(large, 1024))
        with vm.cursor() as cursor:
            assert cursor.protect(512 * PAGE, READ_ONLY) == 512
        assert table_levels(large) == {4: [1], 3: [1], 2: [2]}
        with vm.cursor() as cursor:
            assert cursor.query().level == 2
            assert cursor.query().prop == READ_ONLY


def test_protecting_a_whole_table_of_level_1_makes_it_an_entry_of_level_2(large):
    with pf.VmSpace(large, "4 MiB") as vm:
        segment = aligned(large, 512)
        left, right = segment.split(5 * PAGE)
        with vm.cursor() as cursor:
            cursor.map(left)
            cursor.map(right)
            assert table_levels(large) == {4: [1], 3: [1], 2: [1], 1: [512]}
            cursor.jump(0)
            assert cursor.protect(512 * PAGE, READ_ONLY) == 512
        assert table_levels(large) == {4: [1], 3: [1], 2: [1]}
        assert vm.table_frames == 3


@pytest.mark.parametrize("how", ["one by one", "at once"])
def test_an_entry_of_level_2_maps_frames_of_one_type(large, how):
    Dropped.seen.clear()
    segment = aligned(large, 512)
    start, end = segment.start_paddr, segment.end_paddr
    segment.drop()
    halves = [
        pf.USegment.from_unused(large, start, start + 256 * PAGE, Raw),
        pf.USegment.from_unused(large, start + 256 * PAGE, end, Dropped),
    ]
    if how == "at once":
        mapping = large.map(halves, reserve="4 MiB")
        assert mapping.kernel_mappings == 2
        assert table_levels(large)[1] == [512]
        mapping.drop()
        assert len(Dropped.seen) == 256
        return
    with pf.VmSpace(large, "4 MiB") as vm:
        with vm.cursor() as cursor:
            for half in halves:
                cursor.map(half)
            cursor.jump(0)
            cursor.protect(512 * PAGE, READ_ONLY)
        assert table_levels(large)[1] == [512]
        assert vm.kernel_mappings == 2
        with vm.fork():
            assert table_levels(large)[1] == [512, 512]
        with vm.cursor() as cursor:
            kept = []
            for at in (0, 255, 256, 511):
                cursor.jump(at * PAGE)
                kept.append(cursor.query().frame)
            cursor.jump(0)
            cursor.unmap(512 * PAGE)
        assert len(Dropped.seen) == 256 - 2
        assert [frame.meta_type for frame in kept] == [Raw, Raw, Dropped, Dropped]
        for frame in kept:
            frame.drop()
        assert len(Dropped.seen) == 256


def test_entries_of_level_3_map_a_gibibyte():
    """The arena is sparse: of its 3 GiB only slots are touched."""
    pages = 512 * 512
    with pf.PhysicalMemory("3 GiB") as mem, pf.VmSpace(mem, "4 GiB") as vm:
        segment = aligned(mem, pages, pages)
        paddr = segment.start_paddr
        put(vm, GIB, segment)
        assert table_levels(mem) == {4: [1], 3: [1]}
        assert (vm.table_frames, vm.kernel_mappings) == (2, 3)
        with vm.cursor(GIB + 8 * PAGE, 3 * GIB) as cursor:
            item = cursor.query()
            assert (item.va, item.size, item.level) == (GIB + 8 * PAGE, GIB - 8 * PAGE, 3)
            assert item.frame.start_paddr == paddr + 8 * PAGE
            item.frame.drop()
        vm.view(GIB, 2 * GIB)[GIB - 3 :] = b"end"
        with vm.cursor(2 * GIB - PAGE, 2 * GIB) as cursor:
            item = cursor.query()
            with memoryview(item.frame) as view:
                assert bytes(view[-3:]) == b"end"
            item.frame.drop()
            assert cursor.protect(PAGE, READ_ONLY) == 1
        assert table_levels(mem) == {4: [1], 3: [1], 2: [512], 1: [512]}
        with vm.cursor(GIB) as cursor:
            assert cursor.query().level == 2
            assert cursor.unmap(GIB - PAGE) == pages - 1
        assert table_levels(mem) == {4: [1], 3: [1], 2: [1], 1: [1]}
        assert ctypes.string_at(vm.base + 2 * GIB - 3, 3) == b"end"
        with vm.cursor(GIB) as cursor:
            assert cursor.unmap(GIB) == 1
        assert (vm.table_frames, vm.kernel_mappings, mem.used_frames) == (0, 1, 0)


@pytest.mark.parametrize("page_size", [1 << 16, 1 << 21])
def test_higher_levels_count_pages_whatever_their_size(page_size):
    mem = pf.PhysicalMemory(1400 * page_size, page_size=page_size)
    with mem, pf.VmSpace(mem, 2048 * page_size) as vm:
        put(vm, 1024 * page_size, aligned(mem, 512))
        assert table_levels(mem) == {4: [1], 3: [1], 2: [1]}
        with vm.cursor() as cursor:
            assert cursor.find_next() == 1024 * page_size
            item = cursor.query()
            assert item.size == 512 * page_size
            item.frame.drop()
            cursor.jump(1500 * page_size)
            assert cursor.unmap(page_size) == 1
        assert table_levels(mem) == {4: [1], 3: [1], 2: [1], 1: [511]}
        ctypes.memset(vm.base + 1536 * page_size - 1, 7, 1)
        with vm.cursor(1535 * page_size, 1536 * page_size) as cursor, cursor.query().frame as frame:
            assert memoryview(frame)[-1] == 7
            assert frame.map_level == 1


# -- exhaustion --------------------------------------------------------------------------------


def all_but(mem, count):
    """Take all frames but so many."""
    return mem.alloc_frames(mem.free_frames - count, zeroed=False)


@pytest.mark.parametrize("free", [0, 1, 2, 3])
def test_without_frames_for_the_table_nothing_is_mapped(mem, vm, free):
    frames = mem.alloc_frames(2)
    taken = all_but(mem, free)
    with vm.cursor() as cursor:
        with unchanged(mem, vm, cursors=[cursor]), pytest.raises(pf.OutOfFramesError, match="4 frames"):
            cursor.map(frames)
        with unchanged(mem, vm), pytest.raises(pf.OutOfFramesError):
            mem.map(frames)
        assert frames.reference_counts.tolist() == [1, 1]
        taken.drop()
        cursor.map(frames)
        assert vm.table_frames == 4
    assert_true_to_kernel(vm)


def test_exactly_the_frames_that_the_table_takes_are_enough(mem, vm):
    frames = mem.alloc_frames(2)
    taken = all_but(mem, 4)
    put(vm, 0, frames)
    assert mem.free_frames == 0
    with vm.cursor() as cursor:
        assert cursor.unmap(2 * PAGE) == 2
    assert mem.free_frames == 6
    taken.drop()


def test_only_the_nodes_that_are_missing_are_wanted(mem):
    with pf.VmSpace(mem, 1024 * PAGE) as vm:
        put(vm, 0, mem.alloc_frame())
        frames = mem.alloc_frames(3)
        taken = all_but(mem, 0)
        with vm.cursor() as cursor:
            cursor.jump(511 * PAGE)
            with unchanged(mem, vm, cursors=[cursor]), pytest.raises(pf.OutOfFramesError, match="1 frame "):
                cursor.map(frames)
            cursor.jump(PAGE)
            cursor.map(frames)
        assert vm.table_frames == 4
        taken.drop()


@pytest.mark.parametrize("what", ["unmap", "protect"])
def test_without_a_frame_to_split_an_entry_nothing_is_changed(large, what):
    with pf.VmSpace(large, "4 MiB") as vm:
        put(vm, 0, aligned(large, 512))
        taken = all_but(large, 0)
        with vm.cursor() as cursor:
            cursor.jump(PAGE)
            with unchanged(large, vm, cursors=[cursor]), pytest.raises(pf.OutOfFramesError):
                if what == "unmap":
                    cursor.unmap(PAGE)
                else:
                    cursor.protect(PAGE, READ_ONLY)
            cursor.jump(0)
            if what == "unmap":
                assert cursor.unmap(512 * PAGE) == 512
            else:
                assert cursor.protect(512 * PAGE, READ_ONLY) == 512
        taken.drop()


@pytest.mark.parametrize("free", [0, 1, 2, 3])
def test_without_frames_for_the_other_table_no_snapshot_is_made(mem, vm, free):
    put(vm, 0, mem.alloc_frames(2))
    taken = all_but(mem, free)
    with unchanged(mem, vm), pytest.raises(pf.OutOfFramesError):
        vm.fork()
    assert flags_at(vm, 0) == "rw-s"
    taken.drop()
    vm.fork().close()


def test_without_frames_for_all_copies_nothing_becomes_writable(mem, vm):
    put(vm, 0, mem.alloc_frames(3))
    with vm.fork() as snapshot:
        taken = all_but(mem, 2)
        with unchanged(mem, vm, snapshot), pytest.raises(pf.OutOfFramesError):
            vm.make_writable()
        assert vm.make_writable(0, 2 * PAGE) == 2
        with unchanged(mem, vm, snapshot), pytest.raises(pf.OutOfFramesError):
            vm.make_writable()
        taken.drop()
        assert vm.make_writable() == 1


# -- snapshots ---------------------------------------------------------------------------------


def test_a_snapshot_shares_all_frames_and_neither_side_can_write(mem, vm):
    frames = mem.alloc_frames(3)
    put(vm, PAGE, frames.clone())
    memoryview(frames[0])[:3] = b"old"
    before = shown(vm)
    with vm.fork() as snapshot:
        assert (snapshot.mem, snapshot.size, snapshot.page_size) == (mem, vm.size, PAGE)
        assert frames.reference_counts.tolist() == [3] * 3
        assert {va: page[0] for va, page in before.items()} == {va: page[0] for va, page in shown(vm).items()}
        assert shown(vm) == shown(snapshot)
        assert all(page[1:] == (READ_ONLY, True) for page in shown(snapshot).values())
        assert flags_at(vm, PAGE) == flags_at(snapshot, PAGE) == "r--s"
        for space in (vm, snapshot):
            assert space.view(PAGE, 4 * PAGE).readonly
            with (
                space.cursor(PAGE, 4 * PAGE) as cursor,
                unchanged(mem, vm, snapshot, cursors=[cursor]),
                pytest.raises(pf.CopyOnWriteError),
            ):
                cursor.protect(PAGE, pf.PageProperty())
        assert vm.make_writable(PAGE, 2 * PAGE) == 1
        vm.view(PAGE, 2 * PAGE)[:3] = b"new"
        assert bytes(snapshot.view(PAGE, 2 * PAGE)[:3]) == b"old"
        assert frames.reference_counts.tolist() == [2, 3, 3]
    assert frames.reference_counts.tolist() == [1, 2, 2]
    frames.drop()
    assert vm.make_writable() == 0  # nobody shares them any more
    assert shown(vm)[2 * PAGE] == before[2 * PAGE]
    with vm.cursor() as cursor:
        cursor.jump(2 * PAGE)
        assert not cursor.query().copy_on_write


def test_copies_are_plain_frames_unless_metadata_is_given(mem, vm):
    put(vm, 0, mem.alloc_frames(2, Raw(number=7)))
    with vm.fork() as snapshot:
        assert vm.make_writable(0, PAGE) == 1
        assert vm.make_writable(PAGE, meta=lambda paddr: Raw(number=paddr)) == 1
        with vm.cursor() as cursor:
            assert type(cursor.query().frame.meta) is pf.UntypedFrameMeta
            cursor.jump(PAGE)
            item = cursor.query()
            assert item.frame.meta.number == item.frame.start_paddr
        with snapshot.cursor() as cursor:
            assert cursor.query().frame.meta.number == 7


@pytest.mark.parametrize("meta", [Node, Node(), lambda paddr: Node(), pf.PageTableMeta, "x", 5])
def test_copies_with_metadata_of_typed_frames_are_refused(mem, vm, meta):
    put(vm, 0, mem.alloc_frames(2))
    with vm.fork() as snapshot, unchanged(mem, vm, snapshot), pytest.raises(TypeError):
        vm.make_writable(meta=meta)


def test_metadata_that_can_not_be_made_leaves_all_as_it_was(mem, vm):
    put(vm, 0, mem.alloc_frames(2))
    with vm.fork() as snapshot, unchanged(mem, vm, snapshot), pytest.raises(ZeroDivisionError):
        vm.make_writable(meta=lambda paddr: 1 / 0)


def test_a_snapshot_of_an_empty_space_is_empty(mem, vm):
    with vm.fork() as snapshot:
        assert (snapshot.table_frames, snapshot.kernel_mappings) == (0, 1)
        assert snapshot.make_writable() == 0


def test_a_snapshot_of_an_entry_of_level_2_is_one(large):
    with pf.VmSpace(large, "4 MiB") as vm:
        segment = aligned(large, 512)
        put(vm, 0, segment.clone())
        with vm.fork() as snapshot:
            assert snapshot.table_frames == 3
            with snapshot.cursor() as cursor:
                assert cursor.query().level == 2
            assert snapshot.make_writable(5 * PAGE, 6 * PAGE) == 1
            assert table_levels(large)[1] == [512]
            assert_true_to_kernel(snapshot)
            with snapshot.cursor() as cursor:
                assert cursor.query().copy_on_write
                cursor.jump(5 * PAGE)
                assert not cursor.query().copy_on_write
        segment.drop()


# -- the budget --------------------------------------------------------------------------------


@pytest.fixture
def scattered():
    """Return an arena with more frames than the budget has mappings."""
    mem = pf.PhysicalMemory((2 * pf.map_budget()[1] + 4096) * PAGE)
    yield mem
    gc.collect()
    assert mem.used_frames == 0
    mem.close()


def every_second(mem, count):
    """Take frames no two of which are contiguous."""
    frames = mem.alloc_frames(2 * count, zeroed=False)
    order = np.argsort(frames.paddrs)
    assert (np.diff(frames.paddrs[order]) == PAGE).all()
    chosen = frames[::2] if (order == np.arange(2 * count)).all() else None
    assert chosen is not None
    frames.drop()
    return chosen


def test_the_budget_is_half_of_what_the_system_allows():
    from pathlib import Path

    used, limit = pf.map_budget()
    assert limit == int(Path("/proc/sys/vm/max_map_count").read_text()) // 2
    assert 0 <= used < limit


def test_past_the_budget_nothing_is_mapped_and_room_can_be_made(scattered):
    mem = scattered
    used, limit = pf.map_budget()
    with pf.VmSpace(mem, mem.size) as vm:
        room = limit - used - 2  # the space's own mapping, and the hole behind
        frames = every_second(mem, room + 4)
        most, rest, extra = frames[:room], frames[room : room + 1], frames[room + 1 :]
        frames.drop()
        with vm.cursor() as cursor:
            with pytest.raises(pf.MapBudgetError, match=f"{room + 4} more kernel mappings wanted"):
                mem.map([most.clone(), rest.clone(), extra.clone()])
            gc.collect()
            assert pf.map_budget() == (used + 1, limit)
            cursor.map(most)
            assert pf.map_budget() == (limit - 1, limit)
            cursor.map(rest)
            assert pf.map_budget() == (limit, limit)
            assert len(addresses(vm.base, vm.size)) == vm.kernel_mappings
            here = cursor.virt_addr
            cursor.jump(here + 10 * PAGE)
            with unchanged(mem, vm, cursors=[cursor]):
                with pytest.raises(pf.MapBudgetError, match=f"wanted, {limit} of {limit} are in use"):
                    cursor.map(extra)
                with pytest.raises(pf.MapBudgetError):
                    mem.map(extra)
                with pytest.raises(pf.MapBudgetError):
                    mem.ring(PAGE)
                with pytest.raises(pf.MapBudgetError):
                    pf.VmSpace(mem, PAGE)
            assert extra.reference_counts.tolist() == [1, 1, 1]
            blocks = [bytearray(1 << 20) for _ in range(50)]  # malloc() maps each of them
            assert len(blocks) == 50
            cursor.jump(0)
            assert cursor.unmap(1000 * PAGE) == 1000
            assert pf.map_budget() == (limit - 999, limit)
            cursor.jump(here + 10 * PAGE)
            cursor.map(extra)
        with unchanged(mem, vm), pytest.raises(pf.MapBudgetError):
            vm.fork()
    assert pf.map_budget() == (used, limit)


def test_past_the_budget_a_protection_stays_as_it_was(scattered):
    mem = scattered
    used, limit = pf.map_budget()
    vm = pf.VmSpace(mem, mem.size)
    segment = mem.alloc_segment(2048, zeroed=False)
    with vm.cursor() as cursor:
        cursor.map(segment)
        cursor.map(every_second(mem, limit - pf.map_budget()[0] - 20))
        for page in range(1, 100, 2):
            cursor.jump(page * PAGE)
            before = state(mem, vm, cursors=[cursor])
            try:
                assert cursor.protect(PAGE, READ_ONLY) == 1
            except pf.MapBudgetError:
                break
        assert 5 < page < 30
        assert state(mem, vm, cursors=[cursor]) == before
        assert cursor.query().prop == pf.PageProperty()
        cursor.jump(0)
        assert cursor.protect(100 * PAGE, READ_ONLY) == 100  # takes fewer mappings
    vm.close()
    assert pf.map_budget() == (used, limit)


# -- what was read-only before a snapshot ------------------------------------------------------


def test_pages_that_were_read_only_before_a_snapshot_stay_so_unless_forced(mem, vm):
    guard = pf.PageProperty(read=False, write=False)
    for va, prop in [(0, pf.PageProperty()), (PAGE, READ_ONLY), (2 * PAGE, guard)]:
        with vm.cursor(va, va + PAGE) as cursor:
            cursor.map(mem.alloc_frame(), prop)
    with vm.fork() as snapshot, snapshot.fork():
        assert vm.make_writable() == 1
        assert [page[1] for page in shown(vm).values()] == [pf.PageProperty(), READ_ONLY, guard]
        with (
            vm.cursor(PAGE) as cursor,
            unchanged(mem, vm, cursors=[cursor]),
            pytest.raises(pf.CopyOnWriteError, match="force"),
        ):
            cursor.protect(PAGE, pf.PageProperty())
        assert snapshot.make_writable(force=True) == 3
        assert [page[1] for page in shown(snapshot).values()] == [pf.PageProperty()] * 3
        assert vm.make_writable(PAGE, force=True) == 2
    assert [page[1:] for page in shown(vm).values()] == [(pf.PageProperty(), False)] * 3


def test_pages_made_read_only_after_a_snapshot_stay_so(mem, vm):
    put(vm, 0, mem.alloc_frames(2))
    with vm.fork():
        with vm.cursor() as cursor:
            cursor.protect(PAGE, READ_ONLY)
        assert vm.make_writable() == 1
        assert [page[1] for page in shown(vm).values()] == [READ_ONLY, pf.PageProperty()]


def test_frames_of_a_range_are_those_that_were_mapped(mem, vm):
    frames = mem.alloc_frames(5)
    put(vm, PAGE, frames.clone())
    with vm.frames(2 * PAGE, 5 * PAGE) as found:
        assert found.paddrs.tolist() == frames.paddrs[1:4].tolist()
        assert found.reference_counts.tolist() == [3] * 3
    with unchanged(mem, vm):
        with pytest.raises(pf.NotMappedError, match="0x0"):
            vm.frames(0, 2 * PAGE)
        with pytest.raises(pf.NotAlignedError):
            vm.frames(range(1, PAGE))
    frames.drop()
    with pf.VmSpace(mem, "16 TiB") as large, pytest.raises(pf.NotMappedError):
        large.frames()  # looks before it makes room for as many


@pytest.mark.parametrize("call", ["fork", "make_writable"])
def test_snapshots_wait_for_cursors_of_other_threads_until_time_is_out(mem, vm, call):
    put(vm, 0, mem.alloc_frame())
    forgotten = []
    thread = threading.Thread(target=lambda: forgotten.append(vm.cursor()))
    thread.start()
    thread.join(30)
    with unchanged(mem, vm), pytest.raises(pf.RangeLockedError, match="a thread that has ended"):
        getattr(vm, call)(timeout=0.01)
    forgotten.pop().close()
    getattr(vm, call)(timeout=0.01)


def test_an_arena_that_can_not_be_closed_says_that_spaces_hold_frames(mem, vm):
    put(vm, 0, mem.alloc_frame())
    with pytest.raises(pf.ArenaInUseError, match="spaces and mappings that hold frames: 1"):
        mem.close()
