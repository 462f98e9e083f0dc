# This Source Code Form is subject to the terms of the Mozilla Public
# License, v. 2.0. If a copy of the MPL was not distributed with this
# file, You can obtain one at https://mozilla.org/MPL/2.0/.

import pytest

from pageframe import (
    REF_COUNT_UNIQUE,
    Cursor,
    Frame,
    FrameGoneError,
    FrameMeta,
    FrameTypeError,
    FrameUniqueError,
    Link,
    LinkedList,
    MovedError,
    PhysicalMemory,
    u64,
)
from types_for_tests import Node, Page

PAGE = 4096


class Dying(Link, FrameMeta):
    """Typed, in a list, tells of its end."""

    number: u64

    def on_drop(self, reader):
        """Remember."""
        ended.append(self.number)


ended = []


@pytest.fixture
def filled(mem):
    """A list of five pages, inode 0 at the front."""
    lru = LinkedList(mem, Page)
    for inode in range(5):
        lru.push_back(mem.alloc_frame(Page(inode=inode)).try_unique())
    yield lru
    if repr(lru) != "<LinkedList dropped>":
        lru.drop()


def inodes(lru):
    """Front to back, and back to front must agree."""
    forward, backward = [], []
    cursor = lru.cursor_front()
    while (meta := cursor.current_meta) is not None:
        forward.append(meta.inode)
        cursor.move_next()
    cursor = lru.cursor_back()
    while (meta := cursor.current_meta) is not None:
        backward.append(meta.inode)
        cursor.move_prev()
    assert forward == backward[::-1]
    assert len(lru) == len(forward)
    return forward


def paddr_of(mem, lru, inode):
    return next(paddr for paddr in lru if lru.cursor_at(paddr).current_meta.inode == inode)


def test_pushed_frames_belong_to_the_list(mem, filled):
    unique = mem.alloc_frame(Page(inode=9)).try_unique()
    paddr = unique.start_paddr
    filled.push_front(unique)
    with pytest.raises(MovedError):
        unique.meta
    assert inodes(filled) == [9, 0, 1, 2, 3, 4]
    assert paddr in filled
    slot = mem.slots[paddr // PAGE]
    assert slot["count"] == REF_COUNT_UNIQUE
    assert slot["list"] != 0
    with pytest.raises(FrameUniqueError):
        Frame.from_in_use(mem, paddr)


def test_pop_gives_the_ends_and_none_when_empty(filled, mem):
    first, last = filled.pop_front(), filled.pop_back()
    assert (first.meta.inode, last.meta.inode) == (0, 4)
    assert first.start_paddr not in filled
    assert mem.slots["list"][first.start_paddr // PAGE] == 0
    while len(filled):
        filled.pop_back()
    assert filled.pop_front() is filled.pop_back() is None
    assert inodes(filled) == []
    filled.push_front(last)
    filled.push_front(first)
    assert inodes(filled) == [0, 4]


def test_the_ghost_lies_past_the_end_and_before_the_front(filled):
    cursor = filled.cursor_front()
    cursor.move_prev()
    assert cursor.current_meta is cursor.paddr is cursor.take_current() is None
    cursor.move_prev()
    assert cursor.current_meta.inode == 4
    cursor.move_next()
    assert cursor.current_meta is None
    cursor.move_next()
    assert cursor.current_meta.inode == 0
    cursor.move_prev()
    cursor.move_to_front()
    cursor.move_to_back()
    assert inodes(filled) == [0, 1, 2, 3, 4]


def test_take_current_moves_on_to_the_next(filled, mem):
    cursor = filled.cursor_at(paddr_of(mem, filled, 1))
    taken = [cursor.take_current(), cursor.take_current()]
    assert [frame.meta.inode for frame in taken] == [1, 2]
    assert cursor.current_meta.inode == 3
    cursor.move_next()
    taken.append(cursor.take_current())
    assert cursor.current_meta is None
    assert inodes(filled) == [0, 3]
    cursor.move_prev()
    assert cursor.take_current().meta.inode == 3
    assert inodes(filled) == [0]


def test_insert_before_the_current_frame_and_at_the_ghost(filled, mem):
    def fresh(inode):
        return mem.alloc_frame(Page(inode=inode)).try_unique()

    cursor = filled.cursor_at(paddr_of(mem, filled, 2))
    cursor.insert_before(fresh(10))
    assert cursor.current_meta.inode == 2
    filled.cursor_front().insert_before(fresh(11))
    cursor = filled.cursor_back()
    cursor.move_next()
    cursor.insert_before(fresh(12))
    assert inodes(filled) == [11, 0, 1, 10, 2, 3, 4, 12]
    empty = LinkedList(mem, Page)
    empty.cursor_front().insert_before(fresh(13))
    assert inodes(empty) == [13]
    empty.drop()


def test_cursor_at_finds_frames_of_this_list_only(filled, mem):
    other = LinkedList(mem, Page)
    other.push_back(mem.alloc_frame(Page).try_unique())
    stranger = mem.alloc_frame(Page)
    for paddr in (
        next(iter(other)),
        stranger.start_paddr,
        0,
        1,
        -PAGE,
        1 << 20,
        1 << 80,
        PAGE + 1,
    ):
        assert filled.cursor_at(paddr) is None
        assert paddr not in filled
    for paddr in filled:
        assert filled.cursor_at(paddr).paddr == paddr
    other.drop()
    stranger.drop()


@pytest.mark.parametrize("inode", range(5))
def test_a_frame_moves_to_either_end(filled, mem, inode):
    rest = [each for each in range(5) if each != inode]
    filled.cursor_at(paddr_of(mem, filled, inode)).move_to_front()
    assert inodes(filled) == [inode, *rest]
    filled.cursor_at(paddr_of(mem, filled, inode)).move_to_back()
    assert inodes(filled) == [*rest, inode]


def test_a_cursor_whose_frame_was_taken_another_way_refuses(filled):
    cursor, other = filled.cursor_front(), filled.cursor_front()
    meta = cursor.current_meta
    taken = other.take_current()
    for use in (
        cursor.move_next,
        cursor.move_prev,
        cursor.take_current,
        cursor.move_to_front,
        lambda: cursor.current_meta,
        lambda: cursor.paddr,
        lambda: cursor.insert_before(taken),
    ):
        with pytest.raises(MovedError):
            use()
    with pytest.raises(FrameGoneError):
        meta.inode = 3
    assert taken.meta.inode == 0


def test_metadata_under_a_cursor_is_mutable_but_never_the_links(filled):
    filled.cursor_front().current_meta.inode = 77
    assert inodes(filled) == [77, 1, 2, 3, 4]
    assert [field.name for field in Page.__layout__.fields] == ["inode", "dirty", "tag", "hits"]


def test_a_frame_that_does_not_belong_is_refused_and_stays(filled, mem):
    with PhysicalMemory("1 MiB") as other:
        foreign = other.alloc_frame(Page).try_unique()
        node = mem.alloc_frame(Node).try_unique()
        dying = mem.alloc_frame(Dying).try_unique()
        page = mem.alloc_frame(Page).try_unique()
        view = memoryview(page)
        for push in (filled.push_front, filled.push_back, filled.cursor_front().insert_before):
            for frame in (foreign, node, dying):
                with pytest.raises(FrameTypeError):
                    push(frame)
                assert frame.size == PAGE
            with pytest.raises(BufferError):
                push(page)
            with pytest.raises(TypeError):
                push(mem.alloc_frame(Page))
            with pytest.raises(TypeError):
                push(None)
        view.release()
        assert inodes(filled) == [0, 1, 2, 3, 4]
        foreign.drop()


def test_a_list_takes_types_that_mix_in_link(mem):
    for wrong in (Node, int, None):
        with pytest.raises(FrameTypeError):
            LinkedList(mem, wrong)
    with pytest.raises(TypeError):
        LinkedList(None, Page)


def test_dropping_the_list_frees_its_frames_front_first(mem):
    ended.clear()
    lru = LinkedList(mem, Dying)
    for number in range(4):
        lru.push_back(mem.alloc_frame(Dying(number=number)).try_unique())
    cursor = lru.cursor_front()
    lru.drop()
    assert ended == [0, 1, 2, 3]
    assert mem.used_frames == 0
    for use in (
        lambda: len(lru),
        lru.pop_front,
        lru.drop,
        lru.cursor_front,
        lambda: 0 in lru,
        lambda: list(lru),
        lambda: cursor.paddr,
    ):
        with pytest.raises(MovedError):
            use()
    with LinkedList(mem, Dying) as other:
        other.push_back(mem.alloc_frame(Dying(number=9)).try_unique())
    LinkedList(mem, Dying)
    assert ended == [0, 1, 2, 3, 9]


def test_a_list_survives_an_on_drop_that_meddles_with_it(mem):
    class Meddles(Link, FrameMeta):
        def on_drop(self, reader):
            for use in (lru.drop, lru.pop_front, lambda: len(lru)):
                try:
                    use()
                except MovedError:
                    refused.append(1)

    refused = []
    lru = LinkedList(mem, Meddles)
    for _ in range(3):
        lru.push_back(mem.alloc_frame(Meddles).try_unique())
    lru.drop()
    assert len(refused) == 9
    assert mem.used_frames == 0
    first, second = LinkedList(mem, Page), LinkedList(mem, Page)
    first.push_back(mem.alloc_frame(Page).try_unique())
    assert next(iter(first)) not in second, "every list has an id of its own"
    first.drop()


def test_ids_of_dropped_lists_are_used_again(mem):
    for _ in range(3):
        lists = [LinkedList(mem, Page) for _ in range(10)]
        for each in lists:
            each.push_back(mem.alloc_frame(Page).try_unique())
        ids = {int(mem.slots["list"][next(iter(each)) // PAGE]) for each in lists}
        assert len(ids) == 10
        assert max(ids) <= 10
        for each in lists:
            each.drop()


def test_a_cursor_is_had_from_a_list():
    with pytest.raises(TypeError):
        Cursor()
    with pytest.raises(MovedError):
        Cursor.__new__(Cursor).paddr


def test_iteration_gives_addresses_front_first(mem, filled):
    assert [filled.cursor_at(paddr).current_meta.inode for paddr in filled] == [0, 1, 2, 3, 4]
    assert repr(filled) == "<LinkedList of 5 frames Page>"
    assert filled.meta_type is Page
