# This Source Code Form is subject to the terms of the Mozilla Public
# License, v. 2.0. If a copy of the MPL was not distributed with this
# file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""What a hostile or careless program may try: it gets an exception, and no frame two owners."""

import gc
import sys
import threading

import pytest

import pageframe as pf
from types_for_tests import Node, Page, Raw

PAGE = 4096


class Lies(int):
    """An integer that computes as it likes."""

    def __add__(self, other):
        return 1 << 20

    def __and__(self, other):
        return 0

    def __index__(self):
        return self

    __radd__ = __add__


def collecting(action):
    """Run an action whenever the collector runs, and have it run often."""

    class Collecting:
        def __enter__(self):
            self.callback = lambda phase, info: action() if phase == "start" else None
            self.threshold = gc.get_threshold()
            gc.callbacks.append(self.callback)
            gc.set_threshold(1)

        def __exit__(self, *exc_info):
            gc.set_threshold(*self.threshold)
            gc.callbacks.remove(self.callback)

    return Collecting()


def once(action):
    """Do something the first time only."""
    done = []

    def act():
        if not done:
            done.append(1)
            action()

    return act


def test_an_arena_does_not_close_over_a_frame_that_was_allocated_meanwhile():
    mem = pf.PhysicalMemory("1 MiB")
    frames = []

    def allocate():
        if not mem.closed:
            frames.append(mem.alloc_frame())

    with collecting(once(allocate)):
        try:
            mem.close()
        except pf.ArenaInUseError:
            assert frames
    assert mem.closed != bool(frames)
    for frame in frames:
        assert frame.meta == pf.UntypedFrameMeta()


def test_closing_beside_threads_that_allocate_leaves_nobody_with_a_frame():
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for _ in range(30):
            mem = pf.PhysicalMemory("1 MiB")
            kept = []

            def work(mem=mem, kept=kept):
                try:
                    for _ in range(100):
                        mem.alloc_frame().drop()
                    kept.append(mem.alloc_frame())
                except pf.ArenaClosedError:
                    return

            threads = [threading.Thread(target=work) for _ in range(3)]
            for thread in threads:
                thread.start()
            while not mem.closed and any(thread.is_alive() for thread in threads):
                try:
                    mem.close()
                except pf.ArenaInUseError:
                    continue
            for thread in threads:
                thread.join()
            assert not (mem.closed and kept)
            for frame in kept:
                assert frame.reference_count == 1
    finally:
        sys.setswitchinterval(interval)


@pytest.mark.parametrize("make", ["alloc_frames", "alloc_segment"])
def test_metadata_columns_outlive_a_handle_that_is_dropped_meanwhile(mem, make):
    for _ in range(5):
        handle = getattr(mem, make)(4, Raw(number=3))
        with collecting(once(handle.drop)):
            try:
                column = handle.meta["number"]
            except pf.MovedError:
                continue
        assert column.tolist() == [3] * 4
        del column


@pytest.mark.parametrize("move", [pf.Segment.into_raw, lambda segment: segment.split(PAGE)])
def test_a_segment_dropped_while_it_is_moved_has_one_owner(mem, move):
    for _ in range(5):
        segment = mem.alloc_segment(3)
        others = []

        def steal(segment=segment, others=others):
            try:
                segment.drop()
            except pf.MovedError:
                return
            others.append(mem.alloc_segment(3))

        with collecting(once(steal)):
            try:
                moved = move(segment)
            except pf.MovedError:
                moved = None
        assert moved is None or not others
        if isinstance(moved, tuple) and isinstance(moved[0], int):
            pf.Segment.from_raw(mem, *moved).drop()
        del moved, others, segment


def test_the_links_of_a_list_are_no_fields(mem):
    class Plain(pf.FrameMeta):
        words: pf.u64

    with pf.LinkedList(mem, Page) as pages:
        pages.push_back(mem.alloc_frame(Page).try_unique())
        view = pages.cursor_front().current_meta
        with pytest.raises(pf.FrameTypeError):
            Plain.words.__set__(view, (1 << 63) - 1)
        with pytest.raises(TypeError, match="is fixed"):
            view.__class__ = Plain
        pages.pop_front().drop()


def test_a_view_does_not_revive_in_another_list(mem):
    first = pf.LinkedList(mem, Page)
    first.push_back(mem.alloc_frame(Page).try_unique())
    view = first.cursor_front().current_meta
    unique = first.pop_front()
    first.drop()
    second = pf.LinkedList(mem, Page)
    second.push_back(unique)
    with pytest.raises(pf.FrameGoneError):
        view.inode = 3
    second.drop()


def test_a_class_that_was_refused_has_no_instances():
    made = []

    class Base(pf.FrameMeta):
        def __init_subclass__(cls):
            made.append(cls)

    class Mix:
        pass

    with pytest.raises(pf.FrameTypeError, match="__slots__"):
        type(Base)("Bad", (Base, Mix), {"__annotations__": {"x": pf.u8}})
    for _ in range(100):
        with pytest.raises(pf.FrameTypeError, match="has no layout"):
            made[0]()


def test_a_class_with_room_of_its_own_is_refused():
    class Wide(pf.FrameMeta.__mro__[2]):
        __slots__ = tuple("abcdefgh")

    with pytest.raises(pf.FrameTypeError, match="attributes of their own"):
        type(pf.FrameMeta)("Mixed", (pf.FrameMeta, Wide), {})


def test_bytes_are_as_long_as_they_are():
    class Short(bytes):
        def __len__(self):
            return 1

    class Gives(bytes):
        def __bytes__(self):
            return Short(1000)

    value = Page()
    for bad in (Short(1000), Gives(b"x")):
        with pytest.raises(ValueError, match="1000 bytes are too many"):
            value.tag = bad


def test_an_integer_that_computes_as_it_likes_reaches_nothing_outside(mem):
    class Bad:
        def add_free_memory(self, paddr, size):
            pass

        def alloc(self, layout):
            return Lies(250 * PAGE)

        def dealloc(self, paddr, size):
            pass

    arena = pf.PhysicalMemory("1 MiB", allocator=Bad())
    with pytest.raises(pf.OutOfBoundError):
        arena.alloc_segment(20)
    assert arena.used_frames == 0
    with pf.PhysicalMemory("1 MiB", regions=[(Lies(200 * PAGE), Lies(PAGE), "bad")]) as arena:
        assert arena.total_frames == arena.free_frames + arena.reserved_frames
    with pytest.raises(pf.NotAlignedError):
        pf.Frame.from_unused(mem, Lies(3))
    assert mem.alloc_segment(Lies(3)).size == 3 * PAGE


def test_an_arena_is_made_once_even_from_within():
    mem = pf.PhysicalMemory.__new__(pf.PhysicalMemory)

    def regions():
        mem.__init__("2 MiB")
        yield 200 * PAGE, PAGE, "bad"

    with pytest.raises(TypeError, match="already"):
        mem.__init__("1 MiB", regions=regions())
    with mem.alloc_frame() as frame:
        assert frame.start_paddr < mem.size == 2 << 20


def test_what_only_says_that_it_is_metadata_is_refused(mem):
    class Liar:
        __class__ = Page
        __layout__ = Page.__layout__

    class LiarType(type):
        __class__ = type(Page)
        __layout__ = Page.__layout__

    lying = LiarType("Lying", (), {})
    for bad in (Liar(), lying, lying()):
        with pytest.raises(pf.FrameTypeError):
            mem.alloc_frame(bad)
        with pytest.raises(pf.FrameTypeError):
            mem.meta(bad)


def test_a_copy_method_of_the_users_own_is_not_asked(mem):
    class Copies(pf.UntypedFrameMeta):
        number: pf.u64

        def __copy__(self):
            return type(self).__new__(type(self))

    with mem.alloc_frame(Copies(number=6)) as frame, mem.alloc_frame(frame.meta) as other:
        assert other.meta.number == 6


def test_fields_and_atomics_that_were_never_made_do_nothing():
    for thing in (Page.inode, Page().hits, pf.u8):
        cls = type(thing)
        empty = cls.__new__(cls)
        for use in (
            lambda empty=empty: empty.load(),
            lambda empty=empty: empty.fetch_add(1),
            lambda empty=empty: empty.__get__(Page(), Page),
            lambda empty=empty: empty.__set__(Page(), 1),
            lambda empty=empty: type(pf.FrameMeta)("T", (pf.FrameMeta,), {"__annotations__": {"x": empty}}),
        ):
            with pytest.raises((TypeError, AttributeError, pf.MovedError)):
                use()


def test_a_list_is_made_once(mem):
    pages = pf.LinkedList(mem, Page)
    with pytest.raises(TypeError, match="already"):
        pages.__init__(mem, Page)
    pages.drop()
    with pytest.raises(TypeError, match="already"):
        pages.__init__(mem, Page)


def test_the_arenas_own_types_can_not_be_taken_over(mem):
    spoof = type(pf.FrameMeta)(
        "MetaPageMeta", (pf.FrameMeta,), {"__module__": "pageframe", "__qualname__": "MetaPageMeta"}
    )
    mem.alloc_frame(spoof).drop()
    assert mem.types[2] is pf.MetaPageMeta
    assert mem.stats().references == 0


def test_types_of_one_name_are_counted_together(mem):
    first = type(pf.FrameMeta)("Same", (pf.FrameMeta,), {"__annotations__": {"x": pf.u8}})
    second = type(pf.FrameMeta)("Same", (pf.FrameMeta,), {"__annotations__": {"x": pf.u16}})
    held = [mem.alloc_frame(first), mem.alloc_frames(2, second)]
    stats = mem.stats()
    assert sum(stats.frames_by_type.values()) == stats.used_frames + stats.reserved_frames
    del held


def test_a_meta_fn_may_give_one_value_again_and_again(mem):
    value = Raw()

    def meta_fn(paddr):
        value.number = paddr
        return value

    with mem.alloc_segment(3, meta_fn) as segment, mem.alloc_frames(3, meta_fn) as vec:
        assert segment.meta["number"].tolist() == [frame.start_paddr for frame in segment]
        assert vec.meta["number"].tolist() == vec.paddrs.tolist()


def test_a_view_of_a_table_in_a_cycle_lets_the_arena_close():
    mem = pf.PhysicalMemory("1 MiB")
    cycle = [mem.slots]
    cycle.append(cycle)
    del cycle
    gc.collect()
    mem.close()


def test_an_arena_whose_allocator_refused_is_closed():
    class Refuses:
        def add_free_memory(self, paddr, size):
            raise LookupError("no")

        def alloc(self, layout):
            return None

        def dealloc(self, paddr, size):
            return None

    mem = pf.PhysicalMemory.__new__(pf.PhysicalMemory)
    with pytest.raises(LookupError):
        mem.__init__("1 MiB", allocator=Refuses())
    assert mem.closed


def test_a_borrowed_frame_is_no_context_manager(mem):
    with mem.alloc_frame(Node) as frame, pytest.raises((TypeError, AttributeError)), frame.borrow():
        raise AssertionError("entered")
