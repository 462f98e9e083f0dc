# This Source Code Form is subject to the terms of the Mozilla Public
# License, v. 2.0. If a copy of the MPL was not distributed with this
# file, You can obtain one at https://mozilla.org/MPL/2.0/.

import gc

import numpy as np
import pytest

from pageframe import (
    Frame,
    FrameAllocator,
    FrameInUseError,
    FrameReservedError,
    Layout,
    NotAlignedError,
    OutOfBoundError,
    OutOfFramesError,
    PhysicalMemory,
)
from types_for_tests import Dropped, Raw

PAGE = 4096


def test_every_frame_is_given_out_once(mem):
    free = mem.free_frames
    frames = [mem.alloc_frame() for _ in range(free)]
    assert len({frame.start_paddr for frame in frames}) == free
    with pytest.raises(OutOfFramesError, match="1 frame wanted, 0 of 256 are free"):
        mem.alloc_frame()
    frames.pop(100).drop()
    frames.append(mem.alloc_frame())
    assert mem.free_frames == 0
    frames.clear()
    assert mem.free_frames == free


def test_what_was_released_last_is_given_out_first(mem):
    frames = [mem.alloc_frame() for _ in range(20)]
    paddr = frames[7].start_paddr
    frames[7].drop()
    assert mem.alloc_frame().start_paddr == paddr
    del frames


def test_a_frame_kept_for_the_next_allocation_is_free_for_every_purpose(mem):
    free = mem.free_frames
    for take in (
        lambda paddr: mem.alloc_segment(free),
        lambda paddr: mem.alloc_frames(free),
        lambda paddr: Frame.from_unused(mem, paddr),
    ):
        frame = mem.alloc_frame()
        paddr = frame.start_paddr
        frame.drop()
        assert mem.free_frames == free
        with take(paddr) as taken:
            assert mem.free_frames == free - taken.size // PAGE
    assert mem.stats().longest_free_run == free


def test_an_arena_of_many_chunks_is_used_to_the_last_frame():
    with PhysicalMemory("16 MiB") as mem:
        free = mem.free_frames
        assert mem.total_frames == 4096
        frames = [mem.alloc_frame(zeroed=False) for _ in range(free)]
        with pytest.raises(OutOfFramesError):
            mem.alloc_frame()
        del frames[::2]
        assert mem.free_frames == (free + 1) // 2
        with pytest.raises(OutOfFramesError, match="the longest run has 1"):
            mem.alloc_segment(2)
        with mem.alloc_frames(mem.free_frames) as vec:
            assert len(np.unique(vec.paddrs)) == len(vec)
        frames.clear()
        with mem.alloc_segment(free) as everything:
            assert len(everything) == free


def test_runs_longer_than_a_chunk_are_found_wherever_they_begin():
    with PhysicalMemory("16 MiB") as mem:
        wall = Frame.from_unused(mem, 700 * PAGE)
        segment = mem.alloc_segment(1500)
        assert segment.start_paddr > 700 * PAGE
        aligned = mem.alloc_segment(1000, align="4 MiB")
        assert aligned.start_paddr % (4 << 20) == 0
        del wall, segment, aligned


def test_frames_of_another_page_size_are_found_too():
    with PhysicalMemory("64 MiB", page_size="1 MiB") as mem:
        frames = [mem.alloc_frame() for _ in range(mem.free_frames)]
        memoryview(frames[-1])[-1] = 3
        assert mem.free_frames == 0
        del frames


class Bitmap:
    """An allocator of the user's own, honest, first-fit."""

    def __init__(self):
        self.free = set()
        self.calls = []

    def add_free_memory(self, paddr, size):
        self.calls.append(("add", paddr, size))
        self.free.update(range(paddr, paddr + size, PAGE))

    def alloc(self, layout):
        assert isinstance(layout, Layout)
        for start in sorted(self.free):
            run = range(start, start + layout.size, PAGE)
            if start % layout.align == 0 and self.free.issuperset(run):
                self.free.difference_update(run)
                return start
        return None

    def dealloc(self, paddr, size):
        run = set(range(paddr, paddr + size, PAGE))
        assert not self.free & run
        self.free |= run


def test_an_allocator_of_the_users_own_places_every_frame():
    own = Bitmap()
    assert isinstance(own, FrameAllocator)
    mem = PhysicalMemory("1 MiB", regions=[(64 * PAGE, PAGE, "bad")], allocator=own)
    assert len(own.calls) == 2
    free = mem.free_frames
    assert len(own.free) == free
    frame = mem.alloc_frame(Raw)
    segment = mem.alloc_segment(10, align=16 * PAGE)
    vec = mem.alloc_frames(7)
    assert len(own.free) == mem.free_frames == free - 18
    part = segment[3]
    for holder in (frame, segment, vec):
        holder.drop()
    assert len(own.free) == free - 1
    part.drop()
    unique = mem.alloc_frame().try_unique()
    paddr = unique.start_paddr
    unique.reset_as_unused()
    assert paddr not in own.free, "the allocator was not told"
    own.free.add(paddr)
    with pytest.raises(OutOfFramesError):
        mem.alloc_segment(250)
    with pytest.raises(LookupError):
        mem.alloc_segment(3, lambda paddr: {}[paddr])
    with pytest.raises(OutOfFramesError):
        mem.alloc_frames(free + 1)
    assert len(own.free) == mem.free_frames == free
    mem.close()


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (1, NotAlignedError),
        (-PAGE, OutOfBoundError),
        (1 << 20, OutOfBoundError),
        (1 << 90, OutOfBoundError),
        (0, FrameReservedError),
        (200 * PAGE, FrameInUseError),
        ("here", TypeError),
        (1.0, TypeError),
    ],
)
def test_an_allocator_that_gives_what_it_must_not_is_caught_by_the_slots(answer, error):
    class Bad(Bitmap):
        def alloc(self, layout):
            return answer

    mem = PhysicalMemory("1 MiB", allocator=Bad())
    held = Frame.from_unused(mem, 200 * PAGE)
    free = mem.free_frames
    for alloc in (mem.alloc_frame, lambda: mem.alloc_frames(2), lambda: mem.alloc_segment(2)):
        with pytest.raises(error):
            alloc()
        assert mem.free_frames == free
    assert held.reference_count == 1
    del held
    mem.close()


def test_a_run_that_leaves_the_arena_overlaps_or_is_unaligned_is_caught():
    class Bad(Bitmap):
        answer = 0

        def alloc(self, layout):
            return self.answer

    own = Bad()
    mem = PhysicalMemory("1 MiB", allocator=own)
    held = Frame.from_unused(mem, 200 * PAGE)
    free = mem.free_frames
    for own.answer, align, error in (
        (255 * PAGE, None, OutOfBoundError),
        (199 * PAGE, None, FrameInUseError),
        (121 * PAGE, 2 * PAGE, NotAlignedError),
    ):
        with pytest.raises(error):
            mem.alloc_segment(2, align=align)
        assert mem.free_frames == free
    held.drop()
    mem.close()


def test_what_an_allocator_raises_reaches_who_asked_or_is_unraisable(monkeypatch):
    class Broken(Bitmap):
        def dealloc(self, paddr, size):
            raise LookupError(paddr)

    caught = []
    monkeypatch.setattr("sys.unraisablehook", caught.append)
    mem = PhysicalMemory("1 MiB", allocator=Broken())
    mem.alloc_frame().drop()
    assert [type(each.exc_value) for each in caught] == [LookupError]
    assert mem.used_frames == 0
    mem.close()
    Broken.alloc = lambda self, layout: {}[layout]
    mem = PhysicalMemory("1 MiB", allocator=Broken())
    with pytest.raises(KeyError):
        mem.alloc_frame()
    caught.clear()
    gc.collect()


@pytest.mark.parametrize("allocator", [3, object(), Dropped])
def test_what_is_no_allocator_is_refused(allocator):
    with pytest.raises(TypeError, match="no FrameAllocator"):
        PhysicalMemory("1 MiB", allocator=allocator)
