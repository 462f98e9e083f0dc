# This Source Code Form is subject to the terms of the Mozilla Public
# License, v. 2.0. If a copy of the MPL was not distributed with this
# file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Nothing leaks: neither frames, nor references to Python objects, nor memory."""

import gc
import os
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

import pageframe as pf

PAGE = 4096
ROUNDS = 30_000
OPERATIONS_A_ROUND = 34


class Plain(pf.UntypedFrameMeta):
    number: pf.u64
    hits: pf.atomic_u32


class Item(pf.Link, pf.UntypedFrameMeta):
    number: pf.u64


class Ended(pf.FrameMeta):
    number: pf.u64

    def on_drop(self, reader):
        assert reader.remain == PAGE


VALUE = Plain(number=3)
ITEM = Item(number=4)
ENDED = Ended(number=5)


def round_of_operations(mem, items, paddr):
    """Some of every operation, failing ones too; leaves everything as it was."""
    frame = mem.alloc_frame(VALUE)
    clone = frame.clone()
    ref = clone.borrow()
    assert frame.meta.number == 3
    frame.meta.hits.fetch_add(1)
    view = memoryview(frame)
    view[0] = 1
    frame.drop()
    view.release()
    pf.Frame.from_raw(mem, clone.into_raw()).drop()
    try:
        ref.clone()
    except pf.FrameGoneError:
        pass
    else:
        raise AssertionError("the frame is gone")
    unique = pf.UniqueFrame.from_unused(mem, paddr, ITEM)
    unique.meta.number = 9
    items.push_back(unique)
    items.cursor_at(paddr).move_to_front()
    again = items.pop_front().repurpose(VALUE).share()
    segment = pf.Segment.from_frame(again)
    segment[0].drop()
    segment.drop()
    segment = mem.alloc_segment(4, VALUE, False)
    left, right = segment.split(PAGE)
    right.slice(0, PAGE).drop()
    del left
    right.clone().drop()
    del right
    vec = mem.alloc_frames(4, None, False)
    vec[::2].drop()
    vec.drop()
    mem.alloc_frame(ENDED).drop()
    try:
        pf.Frame.from_unused(mem, 0)
    except pf.FrameReservedError:
        pass
    else:
        raise AssertionError("frame 0 is the arena's own")


def rare_operations(mem):
    """What is slower, and need not run as often."""
    with mem.alloc_frames(8, lambda paddr: Plain(number=paddr)) as vec:
        assert (vec.meta["number"] == vec.paddrs).all()
        pf.FrameVec.from_frames(list(vec)).drop()
        assert len(vec.reference_counts) == 8

    def fails(paddr):
        raise LookupError(paddr)

    for call in (mem.alloc_segment, mem.alloc_frames):
        with pytest.raises(LookupError):
            call(3, fails)
    with mem.alloc_segment(3) as segment:
        array = np.frombuffer(segment, np.uint8)
        segment.writer().write(b"abc")
        assert bytes(array[:3]) == b"abc"
        assert segment.reader().read_bytes(3) == b"abc"
        assert np.from_dlpack(segment)[0] == ord("a")
        column = segment.meta
        first, stop = segment.clone().into_raw()
        pf.Segment.from_raw(mem, first, stop).drop()
        del array, column
    items = pf.LinkedList(mem, Item)
    for _ in range(4):
        items.push_front(mem.alloc_frame(Item).try_unique())
    cursor = items.cursor_front()
    while (meta := cursor.current_meta) is not None:
        meta.number += 1
        cursor.move_next()
    items.cursor_back().take_current().drop()
    items.drop()
    assert mem.slots["count"][0] == 1
    mem.stats()
    mem.trim()
    with pytest.raises(pf.OutOfFramesError):
        mem.alloc_segment(mem.total_frames)


def referents(mem):
    """How often the things that operations touch are referred to."""
    things = (
        None,
        mem,
        Plain,
        Item,
        Ended,
        VALUE,
        ITEM,
        ENDED,
        pf.UFrame,
        pf.UniqueFrame,
        pf.USegment,
        pf.FrameVec,
        pf.LinkedList,
        pf.FrameRef,
        type(mem),
        True,
        False,
        (),
        np.uint64,
        pf.FrameGoneError,
    )
    return [sys.getrefcount(thing) for thing in things]


def resident():
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE


@pytest.mark.skipif("PAGEFRAME_SANITIZE" in os.environ, reason="AddressSanitizer keeps what is freed")
def test_nothing_leaks_in_a_million_operations():
    mem = pf.PhysicalMemory("4 MiB", populate=True)
    items = pf.LinkedList(mem, Item)
    paddr = (mem.total_frames - 1) * PAGE
    for _ in range(500):
        round_of_operations(mem, items, paddr)
        rare_operations(mem)
    gc.collect()
    before, objects_before = referents(mem), len(gc.get_objects())
    bytes_before = resident()
    gc.disable()  # nothing may depend on the cycle collector
    try:
        for number in range(ROUNDS):
            round_of_operations(mem, items, paddr)
            if number % 100 == 0:
                rare_operations(mem)
        bytes_grown = resident() - bytes_before
        grown = len(gc.get_objects()) - objects_before
    finally:
        gc.enable()
    gc.collect()  # without an interpreter lock it adds up what each thread has counted of a type
    after = referents(mem)
    assert ROUNDS * OPERATIONS_A_ROUND >= 10**6
    assert max(abs(a - b) for a, b in zip(before, after, strict=True)) < 20, (before, after)
    assert grown < ROUNDS / 100
    assert bytes_grown < 2**20, "a leak of two bytes an operation would show"
    items.drop()
    stats = mem.stats()
    assert (stats.used_frames, stats.references, stats.raw_references) == (0, 0, 0)
    assert stats.free_frames + stats.reserved_frames == stats.total_frames
    mem.close()


def test_the_python_heap_does_not_grow():
    mem = pf.PhysicalMemory("4 MiB")
    items = pf.LinkedList(mem, Item)
    paddr = (mem.total_frames - 1) * PAGE

    def rounds(count):
        for _ in range(count):
            round_of_operations(mem, items, paddr)
            rare_operations(mem)
        gc.collect()

    rounds(50)
    tracemalloc.start()
    try:
        rounds(20)
        before = tracemalloc.get_traced_memory()[0]
        rounds(200)
        after = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert after - before < 200 * 16, "less than one object a round"
    items.drop()
    mem.close()


def test_arenas_give_back_all_they_had():
    def arena():
        mem = pf.PhysicalMemory("8 MiB", populate=True)
        frame = mem.alloc_frame(VALUE)
        mem.alloc_segment(100)
        frame.drop()
        mem.close()

    for _ in range(5):
        arena()
    gc.collect()
    before, mappings = resident(), len(Path("/proc/self/maps").read_text().splitlines())
    for _ in range(100):
        arena()
    assert resident() - before < 2**23, "less than one arena of a hundred"
    assert len(Path("/proc/self/maps").read_text().splitlines()) - mappings < 10


def test_an_arena_left_open_goes_with_its_last_handle():
    before = resident()
    for _ in range(50):
        mem = pf.PhysicalMemory("8 MiB", populate=True)
        frame = mem.alloc_frame()
        view = memoryview(frame)
        del mem, frame
        view[0] = 1
        del view
    assert resident() - before < 2**24
