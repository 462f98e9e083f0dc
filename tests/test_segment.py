# This Source Code Form is subject to the terms of the Mozilla Public
# License, v. 2.0. If a copy of the MPL was not distributed with this
# file, You can obtain one at https://mozilla.org/MPL/2.0/.

import numpy as np
import pytest

from pageframe import (
    Frame,
    FrameInUseError,
    FrameReservedError,
    FrameTypeError,
    MovedError,
    NotAlignedError,
    NotRawError,
    OutOfBoundError,
    OutOfFramesError,
    Segment,
    USegment,
)
from types_for_tests import Dropped, Node, Page, Raw

PAGE = 4096
FREE = 0x80000


def counts(mem, segment):
    first = segment.start_paddr // PAGE
    return mem.slots["count"][first : first + len(segment)].tolist()


def test_a_segment_is_contiguous_and_of_the_exact_size(mem):
    for n in (1, 2, 3, 63, 64, 65, 100, 127, 129, 200):
        with mem.alloc_segment(n) as segment:
            assert (len(segment), segment.size, mem.used_frames) == (n, n * PAGE, n)
            assert segment.end_paddr - segment.start_paddr == n * PAGE


@pytest.mark.parametrize("align", [PAGE, 2 * PAGE, 16 * PAGE, 64 * PAGE, "256 KiB", 128 * PAGE])
def test_a_segment_begins_at_a_multiple_of_its_alignment(mem, align):
    held = [mem.alloc_segment(3, align=align) for _ in range(1)]
    nbytes = align if isinstance(align, int) else 256 << 10
    assert held[0].start_paddr % nbytes == 0
    with pytest.raises(OutOfFramesError, match="a run of 1 frame"):
        for _ in range(300):
            held.append(mem.alloc_segment(1, align=align))
            assert held[-1].start_paddr % nbytes == 0
    del held


@pytest.mark.parametrize(
    ("align", "error"),
    [(3 * PAGE, ValueError), (0, ValueError), (2048, NotAlignedError), (-PAGE, ValueError)],
)
def test_an_alignment_that_makes_no_sense_is_refused(mem, align, error):
    with pytest.raises(error):
        mem.alloc_segment(1, align=align)


@pytest.mark.parametrize("n", [0, -1])
def test_a_segment_has_at_least_one_frame(mem, n):
    with pytest.raises(ValueError, match="at least one frame"):
        mem.alloc_segment(n)
    with pytest.raises(TypeError):
        mem.alloc_segment(1.5)


def test_exhausted_memory_is_told_with_figures_and_takes_nothing(mem):
    free = mem.free_frames
    with pytest.raises(OutOfFramesError, match=f"a run of {free + 1} frames wanted, {free} of 256 are free"):
        mem.alloc_segment(free + 1)
    with pytest.raises(OutOfFramesError):
        mem.alloc_segment(1 << 80)
    wall = Frame.from_unused(mem, 128 * PAGE)
    with pytest.raises(OutOfFramesError, match=f"the longest run has {256 - 129}"):
        mem.alloc_segment(free - 1)
    assert mem.free_frames == free - 1
    wall.drop()
    with mem.alloc_segment(free) as everything:
        assert len(everything) == free
        assert mem.free_frames == 0


def test_meta_fn_is_called_with_each_address(mem):
    seen = []

    def meta_fn(paddr):
        seen.append(paddr)
        return Page(inode=paddr)

    with mem.alloc_segment(5, meta_fn) as segment:
        assert seen == list(range(segment.start_paddr, segment.end_paddr, PAGE))
        assert segment.meta["inode"].tolist() == seen
        assert [frame.meta.inode for frame in segment] == seen


@pytest.mark.parametrize("alloc", ["alloc_segment", "alloc_frames"])
def test_a_meta_fn_that_fails_leaves_everything_as_it_was(mem, alloc):
    Dropped.seen.clear()
    left = mem.free_frames

    def fails(paddr):
        if calls.append(paddr) or len(calls) == 4:
            raise LookupError("no")
        return Dropped(number=1)

    calls = []
    with pytest.raises(LookupError):
        getattr(mem, alloc)(6, fails)
    kinds = iter([Page(), Page(), Raw()])
    with pytest.raises(FrameTypeError, match="one type: Page, then Raw"):
        getattr(mem, alloc)(3, lambda paddr: next(kinds))
    with pytest.raises(FrameTypeError, match="must be a FrameMeta"):
        getattr(mem, alloc)(3, lambda paddr: paddr)
    assert mem.free_frames == left
    assert Dropped.seen == [], "these frames never lived"
    with mem.alloc_segment(left) as everything:
        assert len(everything) == left


def test_from_unused_takes_all_frames_or_none(mem):
    wall = Frame.from_unused(mem, FREE + 70 * PAGE)
    before = mem.slots["count"].tolist()
    with pytest.raises(FrameInUseError, match=hex(FREE + 70 * PAGE)):
        Segment.from_unused(mem, FREE, FREE + 100 * PAGE)
    with pytest.raises(FrameReservedError):
        Segment.from_unused(mem, 0, FREE)
    with pytest.raises(LookupError):
        Segment.from_unused(mem, FREE, FREE + 4 * PAGE, lambda paddr: {}[paddr])
    assert mem.slots["count"].tolist() == before
    segment = Segment.from_unused(mem, FREE, FREE + 70 * PAGE, Page)
    assert type(segment) is USegment
    assert len(segment) == 70
    del segment, wall


@pytest.mark.parametrize(
    ("start", "stop", "error"),
    [
        (FREE + 1, FREE + PAGE, NotAlignedError),
        (FREE, FREE + PAGE + 1, NotAlignedError),
        (FREE, FREE, OutOfBoundError),
        (FREE + PAGE, FREE, OutOfBoundError),
        (FREE, (1 << 20) + PAGE, OutOfBoundError),
        (-PAGE, FREE, OutOfBoundError),
        (1 << 20, 1 << 20, OutOfBoundError),
    ],
)
def test_a_range_that_makes_no_sense_is_refused(mem, start, stop, error):
    for make in (Segment.from_unused, Segment.from_raw):
        with pytest.raises(error):
            make(mem, start, stop)


def test_a_range_may_end_where_the_arena_ends(mem):
    with Segment.from_unused(mem, (1 << 20) - 2 * PAGE, 1 << 20) as segment:
        assert segment.end_paddr == mem.max_paddr


def test_typed_segments_never_export_their_bytes(mem):
    with mem.alloc_segment(2, Node) as segment:
        assert type(segment) is Segment
        with pytest.raises(TypeError):
            memoryview(segment)
        with pytest.raises(FrameTypeError):
            segment.reader()
    for meta in (Node, lambda paddr: Node()):
        before = mem.slots["count"].tolist()
        with pytest.raises(FrameTypeError):
            USegment.from_unused(mem, FREE, FREE + PAGE, meta)
        assert mem.slots["count"].tolist() == before


def test_split_moves_the_frames_into_two_segments(mem):
    segment = mem.alloc_segment(10, Page)
    start = segment.start_paddr
    for offset, error in ((0, OutOfBoundError), (10 * PAGE, OutOfBoundError), (11 * PAGE, OutOfBoundError),
                          (-PAGE, OutOfBoundError), (5, NotAlignedError)):  # fmt: skip
        with pytest.raises(error):
            segment.split(offset)
    left, right = segment.split(4 * PAGE)
    assert (left.start_paddr, left.end_paddr, right.end_paddr) == (start, start + 4 * PAGE, start + 10 * PAGE)
    assert counts(mem, left) + counts(mem, right) == [1] * 10
    with pytest.raises(MovedError):
        segment.start_paddr
    left.drop()
    assert mem.used_frames == 6
    right.drop()


def test_slice_holds_references_of_its_own(mem):
    segment = mem.alloc_segment(10)
    part = segment.slice(2 * PAGE, 5 * PAGE)
    assert (part.start_paddr, len(part)) == (segment.start_paddr + 2 * PAGE, 3)
    assert counts(mem, segment) == [1, 1, 2, 2, 2, 1, 1, 1, 1, 1]
    segment.drop()
    assert mem.used_frames == 3
    for start, stop, error in (
        (0, 4 * PAGE, OutOfBoundError),
        (PAGE, PAGE, OutOfBoundError),
        (1, PAGE, NotAlignedError),
        (2 * PAGE, PAGE, OutOfBoundError),
        (-PAGE, PAGE, OutOfBoundError),
        (0, 1 << 80, OutOfBoundError),
    ):
        with pytest.raises(error):
            part.slice(start, stop)
    assert counts(mem, part) == [1, 1, 1]
    part.drop()


def test_a_segment_is_a_sequence_of_frames(mem):
    with mem.alloc_segment(5, lambda paddr: Raw(number=paddr)) as segment:
        assert [frame.start_paddr for frame in segment] == segment.meta["number"].tolist()
        assert segment[-1].start_paddr == segment.end_paddr - PAGE
        assert len(segment[1:3]) == 2
        assert segment[2] in segment
        assert segment[1:] != segment
        assert segment[:] == segment
        for index in (5, -6, 1 << 70, -(1 << 70)):
            with pytest.raises(IndexError):
                segment[index]
        with pytest.raises(ValueError, match="step"):
            segment[::2]
        with pytest.raises(OutOfBoundError):
            segment[3:3]
        assert counts(mem, segment) == [1] * 5


def test_clone_adds_a_reference_to_every_frame(mem):
    segment = mem.alloc_segment(100)
    clone = segment.clone()
    assert clone == segment
    assert hash(clone) == hash(segment)
    assert counts(mem, segment) == [2] * 100
    segment.drop()
    assert counts(mem, clone) == [1] * 100
    clone.drop()
    assert mem.used_frames == 0


def test_frames_of_a_segment_outlive_it(mem):
    with mem.alloc_segment(70) as segment:
        kept = [segment[0], segment[63], segment[64], segment[69]]
    assert mem.used_frames == 4
    with mem.alloc_segment(60) as other:
        assert not {frame.start_paddr for frame in kept} & set(
            range(other.start_paddr, other.end_paddr, PAGE)
        )
    del kept


def test_a_frame_becomes_a_segment(mem):
    frame = mem.alloc_frame(Page(inode=3))
    view = memoryview(frame)
    with pytest.raises(BufferError):
        Segment.from_frame(frame)
    view.release()
    segment = Segment.from_frame(frame)
    assert type(segment) is USegment
    assert (len(segment), segment[0].meta.inode) == (1, 3)
    with pytest.raises(MovedError):
        frame.size
    with pytest.raises(MovedError):
        Segment.from_frame(frame)
    segment.drop()
    with pytest.raises(TypeError):
        Segment.from_frame(None)


def test_raw_segments_come_back_whole_or_not_at_all(mem):
    segment = mem.alloc_segment(6, Page)
    start, stop = segment.into_raw()
    with pytest.raises(MovedError):
        segment.size
    Frame.from_raw(mem, start + 2 * PAGE).drop()
    with pytest.raises(NotRawError):
        Segment.from_raw(mem, start, stop)
    parts = [Segment.from_raw(mem, start, start + 2 * PAGE), Segment.from_raw(mem, start + 3 * PAGE, stop)]
    assert mem.used_frames == 5
    del parts
    assert mem.used_frames == 0
    typed = mem.alloc_segment(2, Node).into_raw()
    with pytest.raises(FrameTypeError):
        USegment.from_raw(mem, *typed)
    Segment.from_raw(mem, *typed).drop()


def test_raw_frames_of_several_types_make_no_segment(mem):
    first = Frame.from_unused(mem, FREE, Page).into_raw()
    Frame.from_unused(mem, FREE + PAGE, Raw).into_raw()
    with pytest.raises(FrameTypeError, match="not of one type"):
        Segment.from_raw(mem, first, first + 2 * PAGE)
    assert mem.stats().raw_references == 2
    Frame.from_raw(mem, first).drop()
    Frame.from_raw(mem, first + PAGE).drop()


def test_the_bytes_of_a_segment_are_one_buffer(mem):
    segment = mem.alloc_segment(3)
    array = np.frombuffer(segment, np.uint32)
    array[:] = np.arange(array.size)
    assert np.frombuffer(segment[1], np.uint32)[0] == 1024
    assert np.from_dlpack(segment).size == 3 * PAGE
    for move in (lambda: segment.split(PAGE), segment.into_raw):
        with pytest.raises(BufferError, match="views"):
            move()
    segment.drop()
    assert mem.used_frames == 3
    assert array[-1] == array.size - 1
    del array
    assert mem.used_frames == 0


def test_on_drop_runs_for_every_frame_of_a_segment(mem):
    Dropped.seen.clear()
    segment = mem.alloc_segment(4, lambda paddr: Dropped(number=paddr))
    kept = segment[1]
    segment.drop()
    assert len(Dropped.seen) == 3
    kept.drop()
    assert sorted(number for number, _, _ in Dropped.seen) == sorted(
        {number for number, _, _ in Dropped.seen}
    )
    assert len(Dropped.seen) == 4


def test_a_moved_segment_refuses_everything(mem):
    segment = mem.alloc_segment(2)
    segment.drop()
    for use in (
        lambda: segment.start_paddr,
        lambda: segment.end_paddr,
        lambda: segment.size,
        lambda: segment.meta,
        lambda: segment.meta_type,
        lambda: segment[0],
        lambda: list(segment),
        lambda: len(segment),
        lambda: segment.slice(0, PAGE),
        lambda: segment.split(PAGE),
        lambda: memoryview(segment),
        lambda: hash(segment),
        lambda: segment.cast(Page),
        segment.clone,
        segment.drop,
        segment.into_raw,
        segment.reader,
    ):
        with pytest.raises(MovedError):
            use()
    assert repr(segment) == "<USegment moved>"


def test_metadata_of_a_segment_is_a_live_view_that_holds_its_frames(mem):
    segment = mem.alloc_segment(3, Page)
    hits = segment.meta["hits"]
    segment[1].meta.hits.store(7)
    assert hits.tolist() == [0, 7, 0]
    assert not hits.flags.writeable
    segment.drop()
    assert mem.used_frames == 3
    del hits
    assert mem.used_frames == 0
