# This Source Code Form is subject to the terms of the Mozilla Public
# License, v. 2.0. If a copy of the MPL was not distributed with this
# file, You can obtain one at https://mozilla.org/MPL/2.0/.

import gc
import sys

import numpy as np
import pytest

from pageframe import (
    REF_COUNT_UNIQUE,
    Frame,
    FrameGoneError,
    FrameInUseError,
    FrameReservedError,
    FrameTypeError,
    FrameUniqueError,
    FrameUnusedError,
    GetFrameError,
    MovedError,
    NotAlignedError,
    NotRawError,
    OutOfBoundError,
    PhysicalMemory,
    UFrame,
    UniqueFrame,
    UntypedFrameMeta,
)
from types_for_tests import Dropped, Node, Page, Raw

PAGE = 4096
FREE = 0x80000  # an address no test allocates by chance
GONE = [  # every way to use a handle
    lambda f: f.start_paddr,
    lambda f: f.size,
    lambda f: f.map_level,
    lambda f: f.meta,
    lambda f: f.meta_type,
    lambda f: f.generation,
    lambda f: f.drop(),
    lambda f: f.into_raw(),
    lambda f: f.cast(Page),
    lambda f: hash(f),
    lambda f: memoryview(f),
    lambda f: f.reader(),
    lambda f: f.writer(),
    lambda f: f.readonly(),
    lambda f: np.from_dlpack(f),
]
FRAME_GONE = [
    *GONE,
    lambda f: f.reference_count,
    lambda f: f.clone(),
    lambda f: f.borrow(),
    lambda f: f.try_unique(),
]
UNIQUE_GONE = [*GONE, lambda f: f.share(), lambda f: f.repurpose(Page), lambda f: f.reset_as_unused()]


def held(mem):
    """What a failure must not change."""
    return mem.slots["count"].tolist(), mem.slots["generation"].tolist(), mem.slots["type"].tolist()


@pytest.fixture
def unchanged(mem):
    """Check that a failing call leaves every slot as it was."""

    def check(error, call, match=None):
        before = held(mem)
        with pytest.raises(error, match=match) as caught:
            call()
        assert type(caught.value) is error
        assert held(mem) == before

    return check


@pytest.mark.parametrize("make", [Frame.from_unused, UFrame.from_unused, UniqueFrame.from_unused])
@pytest.mark.parametrize(
    ("paddr", "error"),
    [
        (1, NotAlignedError),
        (FREE + 8, NotAlignedError),
        ((1 << 20) + 1, NotAlignedError),  # alignment is checked first
        (-1, NotAlignedError),
        (1 << 20, OutOfBoundError),
        (1 << 70, OutOfBoundError),
        (-PAGE, OutOfBoundError),
        (0, FrameReservedError),
    ],
)
def test_from_unused_refuses_what_is_no_free_frame(mem, unchanged, make, paddr, error):
    unchanged(error, lambda: make(mem, paddr, Page))


@pytest.mark.parametrize("paddr", [None, 1.0, "0"])
def test_an_address_is_an_integer(mem, paddr):
    with pytest.raises(TypeError):
        Frame.from_unused(mem, paddr)


@pytest.mark.parametrize("arena", [None, 1, object()])
def test_an_arena_is_a_physical_memory(arena):
    for make in (Frame.from_unused, Frame.from_in_use, Frame.from_raw, UniqueFrame.from_unused):
        with pytest.raises(TypeError):
            make(arena, 0)


def test_from_unused_claims_the_frame_from_the_allocator(mem):
    frame = Frame.from_unused(mem, FREE, Page(inode=2))
    assert (frame.start_paddr, frame.meta.inode, frame.reference_count) == (FREE, 2, 1)
    with mem.alloc_frames(mem.free_frames) as rest:
        assert FREE not in rest.paddrs
    frame.drop()
    with mem.alloc_frames(mem.free_frames) as rest:
        assert FREE in rest.paddrs


def test_from_unused_claims_a_frame_that_was_just_released(mem):
    frame = mem.alloc_frame()
    paddr = frame.start_paddr
    frame.drop()
    again = Frame.from_unused(mem, paddr)
    with mem.alloc_frame() as other:
        assert other.start_paddr != paddr
    again.drop()


def test_a_frame_has_one_owner(mem, unchanged):
    frame = Frame.from_unused(mem, FREE)
    unchanged(FrameInUseError, lambda: Frame.from_unused(mem, FREE), "its count is 1")
    unique = frame.try_unique()
    unchanged(FrameUniqueError, lambda: Frame.from_unused(mem, FREE))
    unchanged(FrameUniqueError, lambda: Frame.from_in_use(mem, FREE))
    unchanged(FrameUniqueError, lambda: mem.inc_frame_ref_count(FREE))
    unique.drop()
    unchanged(FrameUnusedError, lambda: Frame.from_in_use(mem, FREE))
    unchanged(FrameUnusedError, lambda: mem.inc_frame_ref_count(FREE))


def test_a_frame_is_busy_while_it_is_torn_down(mem):
    seen = []

    class Looks(UntypedFrameMeta):
        def on_drop(self, reader):
            for call in (Frame.from_unused, Frame.from_in_use):
                try:
                    call(mem, FREE)
                except GetFrameError as error:
                    seen.append(type(error).__name__)

    Frame.from_unused(mem, FREE, Looks).drop()
    assert seen == ["FrameBusyError", "FrameBusyError"]


def test_from_in_use_adds_a_reference(mem):
    frame = mem.alloc_frame(Page(inode=8))
    other = Frame.from_in_use(mem, frame.start_paddr)
    assert other == frame
    assert other is not frame
    assert hash(other) == hash(frame)
    assert frame.reference_count == other.reference_count == 2
    frame.drop()
    assert other.meta.inode == 8
    other.drop()


def test_handles_of_other_frames_and_arenas_differ(mem):
    with PhysicalMemory("1 MiB") as other:
        a, b, c = (
            Frame.from_unused(mem, FREE),
            Frame.from_unused(mem, FREE + PAGE),
            Frame.from_unused(other, FREE),
        )
        assert len({a, b, c, a.clone()}) == 3
        assert a != FREE
        del a, b, c


def test_a_handle_that_was_dropped_refuses_everything(mem):
    frame = mem.alloc_frame(Page)
    keeper = frame.clone()
    frame.drop()
    for use in FRAME_GONE:
        with pytest.raises(MovedError):
            use(frame)
    assert repr(frame) == "<UFrame moved>"
    assert frame != keeper
    assert keeper.reference_count == 1


@pytest.mark.parametrize("move", [Frame.into_raw, Frame.try_unique])
def test_a_handle_that_was_moved_refuses_everything(mem, move):
    frame = mem.alloc_frame(Page)
    paddr = frame.start_paddr
    moved = move(frame)
    for use in FRAME_GONE:
        with pytest.raises(MovedError):
            use(frame)
    UniqueFrame.drop(moved) if isinstance(moved, UniqueFrame) else Frame.from_raw(mem, paddr).drop()


def test_a_handle_that_never_had_a_frame_refuses_everything():
    for cls in (Frame, UFrame):
        for use in FRAME_GONE:
            with pytest.raises((MovedError, FrameTypeError, TypeError)):
                use(cls.__new__(cls))
        with pytest.raises(TypeError, match="is had from"):
            cls()


def test_the_last_drop_releases_the_frame(mem):
    frame = mem.alloc_frame()
    clones = [frame.clone() for _ in range(9)]
    assert frame.reference_count == 10
    frame.drop()
    assert mem.used_frames == 1
    del clones[1:]
    assert clones[0].reference_count == 1
    del clones
    assert mem.used_frames == 0


def test_with_releases_the_frame_at_its_end(mem):
    with mem.alloc_frame() as frame:
        assert mem.used_frames == 1
    assert mem.used_frames == 0
    with mem.alloc_frame() as frame:
        frame.drop()
    with pytest.raises(MovedError):
        frame.size


def test_typed_frames_never_export_their_bytes(mem):
    with mem.alloc_frame(Node) as frame:
        assert type(frame) is Frame
        for use in (frame.reader, frame.writer, frame.readonly, frame.__dlpack__, frame.__dlpack_device__):
            with pytest.raises(FrameTypeError, match="does not export"):
                use()
        with pytest.raises(TypeError):
            memoryview(frame)
        with pytest.raises(FrameTypeError):
            memoryview(frame.borrow())
        with pytest.raises(FrameTypeError):
            UFrame.from_in_use(mem, frame.start_paddr)
        assert frame.reference_count == 1
        unique = frame.try_unique()
        with pytest.raises(FrameTypeError):
            memoryview(unique)
        unique.drop()
    with pytest.raises(FrameTypeError):
        UFrame.from_unused(mem, FREE, Node)


def test_untyped_frames_export_writable_bytes(mem):
    with mem.alloc_frame() as frame:
        assert type(frame) is UFrame
        view = memoryview(frame)
        assert (view.nbytes, view.readonly, view.format, view.ndim) == (PAGE, False, "B", 1)
        view[:3] = b"abc"
        array = np.frombuffer(frame, np.uint8)
        assert array[:3].tobytes() == b"abc"
        array[0] = ord("x")
        assert bytes(view[:3]) == b"xbc"
        assert np.from_dlpack(frame)[0] == ord("x")
        read_only = frame.readonly()
        assert read_only.readonly
        with pytest.raises(TypeError):
            read_only[0] = 1
        assert not np.frombuffer(read_only, np.uint8).flags.writeable
        del view, array, read_only


def test_a_view_keeps_its_frame_alive(mem):
    array = np.frombuffer(mem.alloc_frame(), np.uint8)
    gc.collect()
    assert mem.used_frames == 1
    array[:] = 7
    with mem.alloc_frames(mem.free_frames) as rest:
        for frame in rest:
            np.frombuffer(frame, np.uint8)[:] = 9
    assert (array == 7).all()
    del array, frame
    assert mem.used_frames == 0


@pytest.mark.parametrize("unique", [False, True])
def test_dropping_a_handle_takes_effect_when_the_last_view_goes(mem, unique):
    Dropped.seen.clear()
    frame = mem.alloc_frame(Dropped(number=3))
    if unique:
        frame = frame.try_unique()
    view, other = memoryview(frame), memoryview(frame)
    frame.drop()
    with pytest.raises(MovedError):
        frame.start_paddr
    view[0] = 1
    view.release()
    assert mem.used_frames == 1
    assert Dropped.seen == []
    other.release()
    assert mem.used_frames == 0
    assert len(Dropped.seen) == 1


def test_a_frame_with_live_views_is_not_moved(mem, unchanged):
    frame = mem.alloc_frame()
    view = memoryview(frame)
    for move in (frame.into_raw, frame.try_unique):
        unchanged(BufferError, move, "1 views")
    view.release()
    unique = frame.try_unique()
    view = memoryview(unique)
    for move in (unique.into_raw, unique.share, unique.repurpose, unique.reset_as_unused):
        unchanged(BufferError, move, "1 views")
    view.release()
    unique.drop()


def test_cast_gives_the_frame_or_leaves_it(mem):
    with mem.alloc_frame(Page) as frame, mem.alloc_frame(Node) as node:
        assert frame.cast(Page) is frame.cast(UntypedFrameMeta) is frame
        for wrong in (Node, Raw):
            with pytest.raises(FrameTypeError, match=f"type Page, not {wrong.__name__}"):
                frame.cast(wrong)
        with pytest.raises(FrameTypeError):
            node.cast(UntypedFrameMeta)
        assert frame.meta == Page()
        with pytest.raises(TypeError):
            frame.cast(3)


def test_a_borrowed_frame_works_without_a_reference_until_it_is_gone(mem):
    frame = mem.alloc_frame(Page(inode=4))
    ref = frame.borrow()
    assert (ref.reference_count, ref.meta.inode, ref.start_paddr) == (1, 4, frame.start_paddr)
    assert ref == frame
    assert ref.borrow() is ref
    assert ref.cast(Page) is ref
    memoryview(ref)[0] = 5
    assert memoryview(frame)[0] == 5
    clone = ref.clone()
    assert type(clone) is UFrame
    frame.drop()
    assert ref.reference_count == 1
    meta = ref.meta
    clone.drop()
    for use in (
        lambda: ref.start_paddr,
        ref.clone,
        ref.borrow,
        lambda: ref.meta,
        lambda: meta.inode,
        lambda: memoryview(ref),
    ):
        with pytest.raises(FrameGoneError):
            use()
    assert repr(ref).endswith(" gone>")


def test_a_borrowed_frame_is_not_fooled_by_the_next_life(mem):
    frame = Frame.from_unused(mem, FREE, Page(inode=4))
    ref = frame.borrow()
    frame.drop()
    again = Frame.from_unused(mem, FREE, Page(inode=5))
    for use in (ref.clone, lambda: ref.meta, lambda: ref.reference_count, lambda: memoryview(ref)):
        with pytest.raises(FrameGoneError):
            use()
    assert again.reference_count == 1
    again.drop()


def test_a_borrowed_frame_holds_a_reference_while_a_view_lives(mem):
    frame = mem.alloc_frame()
    view = memoryview(frame.borrow())
    assert frame.reference_count == 2
    frame.drop()
    view[0] = 1
    view.release()
    assert mem.used_frames == 0


def test_raw_references_are_taken_back_as_often_as_given(mem, unchanged):
    frame = mem.alloc_frame()
    paddr = frame.start_paddr
    unchanged(NotRawError, lambda: Frame.from_raw(mem, paddr))
    mem.inc_frame_ref_count(paddr)
    mem.inc_frame_ref_count(paddr)
    assert frame.reference_count == 3
    assert frame.into_raw() == paddr
    back = [Frame.from_raw(mem, paddr) for _ in range(3)]
    assert back[0].reference_count == 3
    unchanged(NotRawError, lambda: Frame.from_raw(mem, paddr))
    del back
    unchanged(NotRawError, lambda: Frame.from_raw(mem, paddr))


def test_a_raw_reference_comes_back_as_what_it_was(mem, unchanged):
    unique = mem.alloc_frame(Page(inode=2)).try_unique()
    paddr = unique.into_raw()
    unchanged(FrameUniqueError, lambda: Frame.from_raw(mem, paddr))
    unique = UniqueFrame.from_raw(mem, paddr)
    assert unique.meta.inode == 2
    assert unique.share().into_raw() == paddr
    unchanged(FrameInUseError, lambda: UniqueFrame.from_raw(mem, paddr))
    Frame.from_raw(mem, paddr).drop()
    typed = mem.alloc_frame(Node).into_raw()
    unchanged(FrameTypeError, lambda: UFrame.from_raw(mem, typed))
    Frame.from_raw(mem, typed).drop()


def test_try_unique_needs_the_only_reference(mem, unchanged):
    frame = mem.alloc_frame()
    clone = frame.clone()
    unchanged(FrameInUseError, frame.try_unique, "its count is 2")
    clone.drop()
    unique = frame.try_unique()
    assert mem.slots["count"][unique.start_paddr // PAGE] == REF_COUNT_UNIQUE
    unique.drop()


def test_a_unique_frame_that_was_moved_refuses_everything(mem):
    for move in (UniqueFrame.share, UniqueFrame.repurpose, UniqueFrame.drop, UniqueFrame.reset_as_unused):
        unique = mem.alloc_frame(Page).try_unique()
        kept = move(unique)
        for use in UNIQUE_GONE:
            with pytest.raises(MovedError):
                use(unique)
        del kept


def test_repurpose_begins_another_life_with_the_same_bytes(mem, unchanged):
    Dropped.seen.clear()
    unique = mem.alloc_frame(Dropped(number=1)).try_unique()
    memoryview(unique)[:4] = b"stay"
    generation = unique.generation
    unchanged(FrameTypeError, lambda: unique.repurpose(3))
    again = unique.repurpose(Page(inode=9))
    assert Dropped.seen == [(1, PAGE, b"stay")]
    assert (again.meta.inode, again.generation) == (9, generation + 1)
    assert bytes(memoryview(again)[:4]) == b"stay"
    again.drop()
    assert len(Dropped.seen) == 1


def test_reset_as_unused_frees_the_frame(mem):
    Dropped.seen.clear()
    unique = mem.alloc_frame(Dropped(number=1)).try_unique()
    paddr = unique.start_paddr
    unique.reset_as_unused()
    assert mem.used_frames == 0
    assert len(Dropped.seen) == 1
    Frame.from_unused(mem, paddr).drop()


def test_every_life_has_a_generation_of_its_own(mem):
    generations = []
    for _ in range(5):
        with Frame.from_unused(mem, FREE) as frame:
            generations.append(frame.generation)
    assert generations == list(range(generations[0], generations[0] + 5))


def test_handles_are_not_pickled_nor_copied(mem):
    import copy
    import pickle

    with mem.alloc_frame() as frame:
        for thing in (frame, frame.borrow(), mem, mem.alloc_segment(1), mem.alloc_frames(1)):
            for use in (pickle.dumps, copy.copy, copy.deepcopy):
                with pytest.raises(TypeError, match="can't be pickled"):
                    use(thing)
        del thing


def test_map_level_and_size(mem):
    with mem.alloc_frame() as frame:
        assert (frame.map_level, frame.size) == (1, PAGE)


def test_a_handle_costs_one_reference_to_its_arena(mem):
    before = sys.getrefcount(mem)
    frames = [mem.alloc_frame() for _ in range(10)]
    assert sys.getrefcount(mem) == before + 10
    for frame in frames:
        frame.drop()
    del frames, frame
    assert sys.getrefcount(mem) == before
