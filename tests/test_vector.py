# This Source Code Form is subject to the terms of the Mozilla Public
# License, v. 2.0. If a copy of the MPL was not distributed with this
# file, You can obtain one at https://mozilla.org/MPL/2.0/.

import numpy as np
import pytest

from pageframe import Frame, FrameTypeError, FrameVec, MovedError, OutOfFramesError, PhysicalMemory
from types_for_tests import Dropped, Node, Page, Raw

PAGE = 4096


def test_a_vector_takes_frames_wherever_they_are(mem):
    walls = [Frame.from_unused(mem, number * PAGE) for number in range(12, 250, 2)]
    free = mem.free_frames
    vec = mem.alloc_frames(free, Page)
    assert len(vec) == free
    assert len(set(vec.paddrs.tolist())) == free
    assert mem.free_frames == 0
    assert not set(vec.paddrs.tolist()) & {wall.start_paddr for wall in walls}
    vec.drop()
    assert mem.free_frames == free
    del walls


@pytest.mark.parametrize(
    ("n", "error"), [(0, ValueError), (-5, ValueError), (1.5, TypeError), ("3", TypeError)]
)
def test_a_number_of_frames_that_makes_no_sense_is_refused(mem, n, error):
    with pytest.raises(error):
        mem.alloc_frames(n)


def test_exhausted_memory_takes_nothing(mem):
    free = mem.free_frames
    for n in (free + 1, 257, 1 << 70):
        with pytest.raises(OutOfFramesError, match=f"{n} frames wanted"):
            mem.alloc_frames(n)
        assert mem.free_frames == free


def test_vectors_work_beyond_the_size_where_other_threads_run():
    with PhysicalMemory("64 MiB") as mem, mem.alloc_frames(10_000, Raw(number=3)) as vec:
        assert (vec.meta["number"] == 3).all()
        with vec.clone() as clone:
            assert (clone.reference_counts == 2).all()
        assert (vec.reference_counts == 1).all()


def test_indexing_slicing_and_iteration_hold_references_of_their_own(mem):
    vec = mem.alloc_frames(10, lambda paddr: Raw(number=paddr))
    one, some = vec[3], vec[8:2:-2]
    assert one.meta.number == one.start_paddr == vec.paddrs[3]
    assert some.paddrs.tolist() == vec.paddrs[8:2:-2].tolist()
    assert vec.reference_counts.tolist() == [1, 1, 1, 2, 2, 1, 2, 1, 2, 1]
    assert [frame.start_paddr for frame in vec] == vec.paddrs.tolist()
    assert vec[-1].start_paddr == vec.paddrs[-1]
    for index in (10, -11, 1 << 70):
        with pytest.raises(IndexError):
            vec[index]
    with pytest.raises(IndexError, match="at least one"):
        vec[3:3]
    vec.drop()
    assert mem.used_frames == 4
    del one, some
    assert mem.used_frames == 0


def test_metadata_of_evenly_spaced_frames_is_a_view_and_else_a_copy(mem):
    vec = mem.alloc_frames(6, lambda paddr: Page(inode=paddr))
    hits = vec.meta["hits"]
    assert vec.meta["inode"].tolist() == vec.paddrs.tolist()
    vec[0].meta.hits.store(4)
    assert hits[0] == 4
    odd = FrameVec.from_frames([vec[5], vec[0], vec[1]])
    copied = odd.meta["hits"]
    assert copied.tolist() == [0, 4, 0]
    vec[0].meta.hits.store(5)
    assert copied.tolist() == [0, 4, 0]
    assert odd.meta["hits"].tolist() == [0, 5, 0]
    assert not copied.flags.writeable
    backwards = vec[::-1]
    assert backwards.meta["inode"].tolist() == vec.paddrs[::-1].tolist()
    assert vec[::2].meta["inode"].tolist() == vec.paddrs[::2].tolist()
    del vec, hits, odd, copied, backwards


def test_from_frames_adds_references_and_leaves_the_frames(mem):
    frames = [mem.alloc_frame(Page) for _ in range(3)]
    vec = FrameVec.from_frames([*frames, frames[0]])
    assert vec.reference_counts.tolist() == [3, 2, 2, 3]
    for frame in frames:
        frame.drop()
    assert mem.used_frames == 3
    vec.drop()


def test_from_frames_refuses_what_does_not_belong_together(mem):
    page, raw, dropped = mem.alloc_frame(Page), mem.alloc_frame(Raw), mem.alloc_frame(Page)
    dropped.drop()
    with PhysicalMemory("1 MiB") as other, other.alloc_frame(Page) as foreign:
        for frames, error in (
            ([], ValueError),
            ([page, raw], FrameTypeError),
            ([page, foreign], FrameTypeError),
            ([page, 3], FrameTypeError),
            ([page, page.borrow()], FrameTypeError),
            ([page, dropped], MovedError),
        ):
            with pytest.raises(error):
                FrameVec.from_frames(frames)
        assert page.reference_count == 1
    del page, raw, frames


def test_on_drop_runs_for_every_frame_of_a_vector(mem):
    Dropped.seen.clear()
    vec = mem.alloc_frames(5, lambda paddr: Dropped(number=paddr))
    expected = vec.paddrs.tolist()
    vec.drop()
    assert [number for number, _, _ in Dropped.seen] == expected


def test_a_dropped_vector_refuses_everything(mem):
    vec = mem.alloc_frames(3, Node)
    vec.drop()
    for use in (
        lambda: vec.paddrs,
        lambda: vec.size,
        lambda: vec.meta,
        lambda: vec.meta_type,
        lambda: vec.reference_counts,
        lambda: vec[0],
        lambda: vec[:1],
        lambda: list(vec),
        lambda: len(vec),
        lambda: vec.cast(Node),
        vec.clone,
        vec.drop,
    ):
        with pytest.raises(MovedError):
            use()
    assert repr(vec) == "<FrameVec moved>"


def test_cast_of_a_vector(mem):
    with mem.alloc_frames(3, Node) as vec:
        assert vec.cast(Node) is vec
        with pytest.raises(FrameTypeError):
            vec.cast(Page)
        with pytest.raises(FrameTypeError, match="does not export"):
            vec.reader()


def test_addresses_are_a_copy(mem):
    vec = mem.alloc_frames(3)
    paddrs = vec.paddrs
    vec.drop()
    assert paddrs.dtype == np.uint64
    assert len(paddrs) == 3
