# This Source Code Form is subject to the terms of the Mozilla Public
# License, v. 2.0. If a copy of the MPL was not distributed with this
# file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Address spaces and processes: kill, holders, fork, private arenas, messages."""

import ctypes
import faulthandler
import gc
import multiprocessing as mp
import os
import pickle
import signal
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

import pageframe as pf
from other_processes import Child
from processes import LIMIT, Forked, assert_quiet, run_program, shared_arena, unique_name
from types_for_tests import Raw

# Forking with threads is what some of these tests are about.
pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")

PAGE = 4096
READ_ONLY = pf.PageProperty(write=False)
NODES = 4  # of the table of a space that shows little
HERE = {"cwd": Path(__file__).parent}  # so that scripts can import the types


@pytest.fixture
def shared():
    """Return a shared arena without a name; at the end nothing may be held, and nobody else be there."""
    with shared_arena() as mem:
        yield mem


@pytest.fixture(params=["shared", "private"])
def arena(request):
    """Return an arena, of which a forked child is a client or has a copy; empty at the end."""
    if request.param == "shared":
        with shared_arena() as mem:
            yield mem
    else:
        mem = pf.PhysicalMemory("1 MiB")
        yield mem
        gc.collect()
        assert mem.used_frames == 0, mem.stats()
        mem.close()


def who(mem, frame):
    """What each process has of a frame: pid -> (handles, mappings, tickets)."""
    return {h.pid: (h.handles, h.mappings, h.tickets) for h in mem.holders(frame)}


def count_of(mem, paddr):
    return int(mem.slots["count"][paddr // mem.page_size])


def table_frames(mem):
    """How many frames of the arena are nodes of page tables."""
    return sum(n for name, n in mem.stats().frames_by_type.items() if name.endswith("PageTableMeta"))


def fill(buffer, value):
    np.frombuffer(buffer, np.uint8)[:] = value


def holds(buffer, value):
    return bool((np.frombuffer(buffer, np.uint8) == value).all())


def filled(handle, value):
    """Return an untyped handle whose bytes are all the same."""
    for frame in handle if isinstance(handle, pf.FrameVec) else [handle]:
        fill(frame, value)
    return handle


@contextmanager
def scattered(mem):
    """Leave no two free frames side by side."""
    frames = mem.alloc_frames(mem.free_frames, zeroed=False)
    keep = frames[::2]
    frames.drop()
    try:
        yield
    finally:
        keep.drop()


class Spaces:
    """One of each thing that maps frames, with known bytes; frames of their own each.

    space: pages 0 | 2..5 | 8..10 read-only.  snapshot: of pages 1, 2 of another space, the
    first of which was copied since.
    """

    def __init__(self, mem):
        self.mem = mem
        self.space = pf.VmSpace(mem, 64 * PAGE)
        with self.space.cursor() as cursor:
            cursor.map(filled(mem.alloc_frame(Raw(number=1)), 1))
            cursor.jump(2 * PAGE)
            cursor.map(filled(mem.alloc_segment(4), 2))
            cursor.jump(8 * PAGE)
            cursor.map(filled(mem.alloc_frames(3), 3), READ_ONLY)
        self.other = pf.VmSpace(mem, 8 * PAGE)
        with self.other.cursor(PAGE) as cursor:
            cursor.map(filled(mem.alloc_segment(2), 4))
        self.snapshot = self.other.fork()
        assert self.other.make_writable(PAGE, 2 * PAGE) == 1
        fill(self.other.view(PAGE, 2 * PAGE), 5)
        self.mapping = mem.map([filled(mem.alloc_frames(3), 6), filled(mem.alloc_segment(2), 6)])
        self.ring = mem.ring(2 * PAGE)
        self.ring.window(PAGE + 10, 2 * PAGE)[:] = b"\7" * 2 * PAGE
        with scattered(mem):
            self.array = mem.zeros((3, PAGE), np.uint8)
        self.array[...] = 8

    FRAMES = 8 + 3 + 5 + 2 + 3
    REFERENCES = 8 + 4 + 5 + 4 + 3
    TABLES = 6 * NODES

    def check(self, *, sevens=7):
        """All is there, through every address."""
        space = self.space
        assert holds(space.view(0, PAGE), 1)
        assert holds(space.view(2 * PAGE, 6 * PAGE), 2)
        view = space.view(8 * PAGE, 11 * PAGE)
        assert view.readonly
        assert holds(view, 3)
        view.release()
        with space.cursor() as cursor:
            item = cursor.query()
            assert item.frame.meta.number == 1
            assert holds(item.frame, 1)
            found = []
            while (va := cursor.find_next()) is not None:
                found.append(va // PAGE)
                if va == 63 * PAGE:
                    break
                cursor.jump(va + PAGE)
        assert found == [0, 2, 3, 4, 5, 8, 9, 10]
        assert holds(self.other.view(PAGE, 2 * PAGE), 5)
        assert holds(self.other.view(2 * PAGE, 3 * PAGE), 4)
        assert holds(self.snapshot.view(PAGE, 3 * PAGE), 4)
        assert self.snapshot.view(PAGE, 3 * PAGE).readonly
        assert holds(self.mapping, 6)
        assert all(holds(frame, 6) for frame in self.mapping.frames)
        assert holds(self.ring, sevens)
        assert (self.array == 8).all()

    def work(self):
        """Use all that a space can do, and leave it as it was."""
        space = self.space
        with space.cursor() as cursor:
            cursor.jump(32 * PAGE)
            cursor.map(filled(self.mem.alloc_frames(3), 9))
            assert holds(space.view(32 * PAGE, 35 * PAGE), 9)
            cursor.jump(32 * PAGE)
            assert cursor.unmap(8 * PAGE) == 3
            cursor.jump(2 * PAGE)
            assert cursor.protect(2 * PAGE, READ_ONLY) == 2
            cursor.jump(2 * PAGE)
            assert cursor.protect(2 * PAGE, pf.PageProperty()) == 2
        with pf.VmSpace(self.mem, 8 * PAGE) as one:
            with one.cursor() as cursor:
                cursor.map(filled(self.mem.alloc_segment(2), 9))
            with one.fork() as copy:
                assert copy.view(0, 2 * PAGE).readonly
                assert copy.make_writable(0, PAGE) == 1
                fill(copy.view(0, PAGE), 8)
                assert holds(one.view(0, 2 * PAGE), 9)
        self.mem.map(filled(self.mem.alloc_frame(), 1)).drop()
        self.mem.ring(PAGE).drop()

    def drop(self):
        self.space.close()
        self.other.close()
        self.snapshot.close()
        self.mapping.drop()
        self.ring.drop()
        del self.array
        gc.collect()


# -- kill ------------------------------------------------------------------------------------------

MAP_ALL = """
import numpy as np
from test_vm_processes import Spaces, READ_ONLY, PAGE
mem = PhysicalMemory.attach(NAME)
spaces = Spaces(mem)
"""


def killed(name, script):
    """Kill a process that has run a script; return its id."""
    with Child(script + "\ntell('held')\nwait()", name, **HERE) as child:
        assert child.hear() == "held"
        child.kill()
        return child.pid


def test_all_that_a_killed_process_had_mapped_comes_back_and_the_report_says_what():
    name = unique_name()
    with shared_arena(name=name) as mem:
        pid = killed(name, MAP_ALL)
        assert mem.used_frames == Spaces.FRAMES + Spaces.TABLES
        assert table_frames(mem) == Spaces.TABLES
        report = mem.reap()
        assert [client.pid for client in report.clients] == [pid]
        assert report.frames == Spaces.FRAMES + Spaces.TABLES
        assert report.references == Spaces.REFERENCES + Spaces.TABLES
        assert report.in_doubt == 0
        assert report.frames_by_type == {
            "pageframe.PageTableMeta": Spaces.TABLES,
            "types_for_tests.Raw": 1,
            "pageframe.UntypedFrameMeta": Spaces.FRAMES - 1,
        }
        assert mem.used_frames == 0


def test_open_cursors_views_and_closed_spaces_of_a_killed_process_come_back_too():
    script = """
    first, second = VmSpace(mem, 4 << 20), VmSpace(mem, 4 << 20)
    cursor = first.cursor()
    cursor.map(mem.alloc_segment(5))
    later = second.cursor(2 << 20)
    later.map(mem.alloc_frames(3))
    later.close()
    view, array = first.view(0, PAGE), second.array((2 << 20), 100, "u1")
    second.close()
    mapping = mem.map(mem.alloc_frames(2))
    kept = mapping.array()
    mapping.drop()
    raw = first.cursor
    """
    name = unique_name()
    with shared_arena(name=name) as mem:
        killed(name, MAP_ALL.replace("spaces = Spaces(mem)", "") + script.replace("\n    ", "\n"))
        assert table_frames(mem) == 3 * NODES
        report = mem.reap()
        assert (report.frames, report.in_doubt) == (5 + 3 + 2 + 3 * NODES, 0)
        assert mem.used_frames == 0


def test_frames_that_others_hold_stay_when_a_process_that_maps_them_is_killed():
    script = """
    import pickle
    frame, segment = pickle.loads(bytes.fromhex(ARGS[0]))
    space = VmSpace(mem, 1 << 20)
    with space.cursor() as cursor:
        cursor.map(frame)
        cursor.map(segment.clone())
        cursor.map(segment)
    copy = space.fork()
    space.make_writable(0, PAGE)
    """
    script = MAP_ALL.replace("spaces = Spaces(mem)", "") + script.replace("\n    ", "\n")
    name = unique_name()
    with shared_arena(name=name) as mem:
        frame, segment = filled(mem.alloc_frame(), 1), filled(mem.alloc_segment(3), 2)
        data = pickle.dumps((frame, segment)).hex()
        with Child(script + "\ntell('held')\nwait()", name, data, **HERE) as child:
            assert child.hear() == "held"
            assert who(mem, frame) == {os.getpid(): (1, 0, 0), child.pid: (0, 1, 0)}
            assert who(mem, segment.start_paddr) == {os.getpid(): (1, 0, 0), child.pid: (0, 4, 0)}
            child.kill()
        report = mem.reap()
        assert report.frames == 1 + 2 * NODES
        assert report.references == 1 + 1 + 3 * 4 + 2 * NODES
        assert (frame.reference_count, segment[0].reference_count) == (1, 2)
        assert holds(frame, 1)
        assert holds(segment, 2)
        frame.drop()
        segment.drop()


def test_a_table_with_entries_of_higher_levels_comes_back_and_holds_what_it_maps():
    script = """
    space = VmSpace(mem, 8 << 20)
    segment = mem.alloc_segment(1024, align=2 << 20)
    paddr = segment.start_paddr
    with space.cursor(2 << 20) as cursor:
        cursor.map(segment)
    tell(paddr)
    wait()
    with space.cursor(2 << 20) as cursor:
        cursor.protect(PAGE, READ_ONLY)
    """
    script = MAP_ALL.replace("spaces = Spaces(mem)", "") + script.replace("\n    ", "\n")
    name = unique_name()
    with shared_arena("8 MiB", name=name) as mem:
        with Child(script + "\ntell('split')\nwait()", name, **HERE) as child:
            paddr = int(child.hear())
            assert table_frames(mem) == 3
            for offset in (0, PAGE, 1023 * PAGE):
                assert who(mem, paddr + offset) == {child.pid: (0, 1, 0)}
            assert who(mem, paddr - PAGE) == {}
            child.go_on()
            assert child.hear() == "split"
            assert table_frames(mem) == 4
            for offset in (0, PAGE, 511 * PAGE, 512 * PAGE, 1023 * PAGE):
                assert who(mem, paddr + offset) == {child.pid: (0, 1, 0)}
            child.kill()
        report = mem.reap()
        assert report.frames_by_type == {
            "pageframe.PageTableMeta": 4,
            "pageframe.UntypedFrameMeta": 1024,
        }
        assert mem.used_frames == 0


GRAB = """
mem = PhysicalMemory.attach(NAME)
tell("ready")
grabbed = 0
end = time.monotonic() + 1.5
while time.monotonic() < end:
    for paddr in map(int, ARGS):
        try:
            Frame.from_in_use(mem, paddr).drop()
            grabbed += 1
        except GetFrameError:
            pass
tell(grabbed)
"""


def test_nobody_can_take_a_reference_to_a_frame_that_becomes_a_node_of_a_table():
    name = unique_name()
    with shared_arena(name=name) as mem:
        space = pf.VmSpace(mem, 8 * PAGE)
        rest = mem.alloc_frames(mem.free_frames - NODES - 1)
        frame = mem.alloc_frame()
        paddrs = [i * PAGE for i in range(256) if count_of(mem, i * PAGE) > 2**63 - 1]
        assert len(paddrs) == NODES
        with Child(GRAB, name, *paddrs, **HERE) as child:
            assert child.hear() == "ready"
            end = time.monotonic() + 1.5
            while time.monotonic() < end:
                with space.cursor() as cursor:
                    cursor.map(frame.clone())
                    cursor.jump(0)
                    assert cursor.query() is not None
                    assert cursor.unmap(PAGE) == 1
            assert child.hear() == "0"
            child.finish()
        for one in (frame, rest):
            one.drop()
        space.close()


# -- holders ---------------------------------------------------------------------------------------


def test_holders_shows_mappings_and_handles_and_tickets_which_add_up_to_the_count(shared):
    frame = shared.alloc_frame()
    space = pf.VmSpace(shared, 8 * PAGE)
    with space.cursor() as cursor:
        cursor.map(frame.clone())
        cursor.map(frame.clone())
    data = pickle.dumps(frame)

    def look(conn):
        mine = frame.clone()
        conn.send(who(shared, frame))
        conn.recv()
        mine.drop()

    assert who(shared, frame) == {os.getpid(): (1, 2, 1)}
    with Forked(look) as child:
        expected = {os.getpid(): (1, 2, 1), child.pid: (2, 2, 0)}
        assert child.hear() == expected
        assert who(shared, frame) == expected
        assert frame.reference_count == sum(map(sum, expected.values()))
        child.say()
        child.result()
    shared.reap()
    with space.cursor(PAGE) as cursor:
        cursor.unmap(PAGE)
    pickle.loads(data).drop()
    assert who(shared, frame) == {os.getpid(): (1, 1, 0)}
    paddr = frame.start_paddr
    frame.drop()
    assert who(shared, paddr) == {os.getpid(): (0, 1, 0)}
    space.close()
    assert who(shared, paddr) == {}


def test_a_frame_of_a_ring_has_two_mappings_and_one_of_a_snapshot_one_a_space(shared):
    ring, space = shared.ring(PAGE), pf.VmSpace(shared, PAGE)
    paddr = ring.frames.paddrs[0].item()
    with space.cursor() as cursor:
        cursor.map(shared.alloc_frame())
        cursor.jump(0)
        other = cursor.query().frame.start_paddr
    copy = space.fork()
    more = copy.fork()

    def look(conn):
        return who(shared, paddr), who(shared, other)

    with Forked(look) as child:
        me = os.getpid()
        assert child.result() == (
            {me: (0, 2, 0), child.pid: (0, 2, 0)},
            {me: (0, 3, 0), child.pid: (0, 3, 0)},
        )
    shared.reap()
    assert copy.make_writable() == 1
    assert who(shared, other) == {me: (0, 2, 0)}
    for one in (space, copy, more):
        one.close()
    ring.drop()


def test_mappings_of_several_clients_of_one_process_are_added_up():
    name = unique_name()
    with shared_arena(name=name) as mem:
        frame = mem.alloc_frame()
        with pf.PhysicalMemory.attach(name) as second:
            assert second is not mem
            mine = mem.map(frame.clone())
            theirs = pf.VmSpace(second, PAGE)
            with theirs.cursor() as cursor:
                cursor.map(pf.Frame.from_in_use(second, frame.start_paddr))
            clone = pf.Frame.from_in_use(second, frame.start_paddr)
            assert who(mem, frame) == who(second, clone) == {os.getpid(): (2, 2, 0)}
            with pytest.raises(pf.FrameTypeError):
                mem.map(clone)
            clone.drop()
            theirs.close()
            assert who(mem, frame) == {os.getpid(): (1, 1, 0)}
        mine.drop()
        frame.drop()


def test_a_closed_space_is_a_holder_until_its_last_view_goes(shared):
    frame = shared.alloc_frame()
    space, mapping = pf.VmSpace(shared, PAGE), shared.map(frame.clone())
    with space.cursor() as cursor:
        cursor.map(frame.clone())
    views = [space.view(), mapping.array()]
    space.close()
    mapping.drop()
    assert who(shared, frame) == {os.getpid(): (1, 2, 0)}
    views.pop(0).release()
    assert who(shared, frame) == {os.getpid(): (1, 1, 0)}
    views.clear()
    assert who(shared, frame) == {os.getpid(): (1, 0, 0)}
    frame.drop()


# -- fork ------------------------------------------------------------------------------------------


def test_in_a_forked_child_all_spaces_mappings_and_arrays_work_on(arena):
    spaces = Spaces(arena)
    used = arena.used_frames
    assert used == Spaces.FRAMES + Spaces.TABLES

    def work(conn):
        spaces.check()
        spaces.work()
        spaces.check()
        spaces.drop()
        return arena.used_frames

    with Forked(work) as child:
        assert child.result() == (used if arena.clients else 0)
    if arena.clients:
        assert arena.reap().references == 0  # it had dropped everything
    assert arena.used_frames == used
    spaces.check()
    spaces.work()
    spaces.check()
    spaces.drop()


def test_a_child_that_is_killed_with_all_of_them_leaves_its_parent_as_it_was(shared):
    spaces = Spaces(shared)

    def work(conn):
        with spaces.space.cursor(16 * PAGE) as cursor:
            cursor.map(shared.alloc_segment(3))
        more = spaces.space.fork()
        spaces.mapping.append(shared.alloc_frames(2))
        conn.send(more.table_frames)
        signal.pause()

    with Forked(work) as child:
        assert child.hear() == NODES
        assert shared.used_frames == Spaces.FRAMES + 2 * Spaces.TABLES + NODES + 5
        child.kill()
    report = shared.reap()
    assert report.frames == Spaces.TABLES + NODES + 5
    assert report.references == Spaces.REFERENCES + Spaces.TABLES + NODES + 8 + 3 + 5
    assert report.in_doubt == 0
    assert shared.used_frames == Spaces.FRAMES + Spaces.TABLES
    spaces.check()
    spaces.drop()


def test_a_child_holds_all_that_is_mapped_after_its_parent_has_let_it_go(shared):
    spaces = Spaces(shared)

    def work(conn):
        conn.recv()
        assert shared.used_frames == Spaces.FRAMES + Spaces.TABLES
        spaces.check()
        spaces.work()
        spaces.drop()
        return shared.used_frames

    with Forked(work) as child:
        spaces.drop()
        assert shared.used_frames == Spaces.FRAMES + Spaces.TABLES
        child.say()
        assert child.result() == 0


def test_parent_and_child_have_tables_of_their_own_and_the_same_memory(shared):
    space = pf.VmSpace(shared, 4 * PAGE)
    with space.cursor() as cursor:
        cursor.map(shared.alloc_segment(2))
        cursor.jump(0)
        paddr = cursor.query().frame.start_paddr
    fill(space.view(0, 2 * PAGE), 1)

    def work(conn):
        fill(space.view(0, PAGE), 2)
        with space.cursor() as cursor:
            assert cursor.unmap(2 * PAGE) == 2
            cursor.jump(0)
            cursor.map(filled(shared.alloc_frame(), 3))
        conn.send(who(shared, paddr))
        conn.recv()
        return bytes(space.view(0, PAGE)[:1])

    with Forked(work) as child:
        assert child.hear() == {os.getpid(): (0, 1, 0)}
        assert holds(space.view(0, PAGE), 2)
        assert holds(space.view(PAGE, 2 * PAGE), 1)
        with space.cursor() as cursor:
            cursor.unmap(PAGE)
        child.say()
        assert child.result() == b"\3"
    space.close()


def test_what_a_child_makes_writable_is_copied_since_its_parent_holds_it_too(shared):
    space = pf.VmSpace(shared, 4 * PAGE)
    with space.cursor() as cursor:
        cursor.map(filled(shared.alloc_segment(2), 1))
    space.fork().close()  # leaves it read-only
    assert space.view(0, PAGE).readonly

    def work(conn):
        copied = space.make_writable(0, 2 * PAGE)
        fill(space.view(0, 2 * PAGE), 2)
        return copied

    with Forked(work) as child:
        assert child.result() == 2
    shared.reap()
    assert holds(space.view(0, 2 * PAGE), 1)
    assert space.make_writable() == 0
    fill(space.view(0, 2 * PAGE), 3)
    space.close()


def test_views_and_arrays_of_a_space_that_is_closed_go_on_in_the_child(arena):
    space = pf.VmSpace(arena, 8 * PAGE)
    with space.cursor() as cursor:
        cursor.map(filled(arena.alloc_segment(3), 1))
    mapping = arena.map(filled(arena.alloc_frames(2), 2))
    views = [space.view(0, PAGE), space.array(PAGE, 100, "u1"), mapping.array(), memoryview(mapping)]
    space.close()
    mapping.drop()
    used = arena.used_frames

    def work(conn):
        assert space.closed
        with pytest.raises(pf.SpaceClosedError):
            space.view(0, PAGE)
        with pytest.raises(pf.MovedError):
            mapping.array()
        assert [holds(view, value) for view, value in zip(views, (1, 1, 2, 2), strict=True)] == 4 * [True]
        fill(views[2], 4)
        assert holds(views[3], 4)
        conn.send(None)
        conn.recv()
        views.clear()
        return arena.used_frames

    with Forked(work) as child:
        child.hear()
        if arena.clients:
            assert arena.used_frames == used + 2 * NODES
            assert holds(views[3], 4)
        else:
            assert holds(views[3], 2)
        child.say()
        assert child.result() == (used if arena.clients else 0)
    assert arena.used_frames == used
    assert holds(views[0], 1)
    views.clear()


def test_the_cursor_of_the_thread_that_forks_goes_on_in_both(arena):
    space = pf.VmSpace(arena, 8 * PAGE)
    cursor = space.cursor(PAGE, 5 * PAGE)
    cursor.map(filled(arena.alloc_frame(), 1))

    def work(conn):
        assert cursor.virt_addr == 2 * PAGE
        cursor.map(filled(arena.alloc_frame(), 2))
        with pytest.raises(pf.RangeLockedError):
            space.cursor()
        cursor.close()
        with space.cursor(PAGE) as other:
            assert other.unmap(7 * PAGE) == 2

    with Forked(work) as child:
        child.result()
    cursor.map(filled(arena.alloc_frame(), 3))
    assert holds(space.view(PAGE, 2 * PAGE), 1)
    assert holds(space.view(2 * PAGE, 3 * PAGE), 3)
    cursor.close()
    space.close()


def test_a_cursor_of_another_thread_does_not_lock_the_child_out(arena):
    space = pf.VmSpace(arena, 8 * PAGE)
    locked, done = threading.Event(), threading.Event()

    def other():
        with space.cursor() as cursor:
            cursor.map(filled(arena.alloc_frame(), 1))
            locked.set()
            done.wait(LIMIT)

    def work(conn):
        with space.cursor(timeout=0) as cursor:
            assert cursor.unmap(8 * PAGE) == 1
        space.close()
        return True

    thread = threading.Thread(target=other)
    thread.start()
    assert locked.wait(LIMIT)
    try:
        with Forked(work) as child:
            assert child.result()
        with pytest.raises(pf.RangeLockedError):
            space.cursor(timeout=0)
    finally:
        done.set()
        thread.join()
    assert holds(space.view(0, PAGE), 1)
    space.close()


def usable_in_child(one):
    """Whether a space or mapping works; if not it says why."""
    try:
        return one.kernel_mappings > 0
    except pf.SpaceClosedError:
        with pytest.raises(pf.SpaceClosedError, match="no memory for a page table of its own"):
            _ = one.kernel_mappings
        return False


def test_without_frames_for_its_page_tables_a_child_can_only_read_and_loses_nothing(shared):
    spaces = Spaces(shared)
    rest = shared.alloc_frames(shared.free_frames - NODES - 1)
    rested = {paddr // PAGE for paddr in rest.paddrs.tolist()}

    def work(conn):
        usable = []
        for one in (spaces.space, spaces.other, spaces.snapshot, spaces.mapping, spaces.ring):
            if usable_in_child(one):
                usable.append(one)
        assert all((view == value) for view, value in shown())
        assert (spaces.array == 8).all()
        spaces.array[...] = 9
        for view in views:
            view.release()
        spaces.drop()
        assert not any(os.getpid() in who(shared, i * PAGE) for i in range(256) if i not in rested)
        return len(usable)

    views = [spaces.space.view(0, PAGE), memoryview(spaces.mapping), memoryview(spaces.ring)]

    def shown():
        return [(view[0], value) for view, value in zip(views, (1, 6, 7), strict=True)]

    with Forked(work) as child:
        # One of the six, the array included, had frames for its table.
        assert child.result() in (0, 1)
    report = shared.reap()
    assert report.in_doubt == 0
    assert (spaces.array == 9).all()
    spaces.array[...] = 8
    for view in views:
        view.release()
    rest.drop()
    assert shared.audit().clean
    spaces.check()
    spaces.drop()


def test_a_space_that_can_not_be_used_in_the_child_can_be_closed_there(shared):
    space = pf.VmSpace(shared, 8 * PAGE)
    with space.cursor() as cursor:
        cursor.map(shared.alloc_frame())
        cursor.jump(0)
        paddr = cursor.query().frame.start_paddr
    view = space.view(0, PAGE)
    rest = shared.alloc_frames(shared.free_frames)

    def work(conn):
        with pytest.raises(pf.SpaceClosedError):
            space.cursor()
        with pytest.raises(pf.SpaceClosedError):
            space.fork()
        assert who(shared, paddr)[os.getpid()] == (1, 0, 0)
        view.release()
        space.close()
        assert space.closed
        assert os.getpid() not in who(shared, paddr)  # it held what it showed
        rest.drop()
        conn.send(None)
        conn.recv()
        with pf.VmSpace(shared, PAGE) as mine, mine.cursor() as cursor:
            cursor.map(shared.alloc_frame())
        return True

    with Forked(work) as child:
        child.hear()
        rest.drop()
        child.say()
        assert child.result()
    view.release()
    shared.reap()
    space.close()


def test_a_space_that_can_not_be_used_in_the_child_can_be_in_a_child_of_that(shared):
    space = pf.VmSpace(shared, 8 * PAGE)
    with space.cursor() as cursor:
        cursor.map(filled(shared.alloc_frame(), 1))
    rest = shared.alloc_frames(shared.free_frames)

    def grandchild(conn):
        assert holds(space.view(0, PAGE), 1)
        with space.cursor() as cursor:
            assert cursor.unmap(PAGE) == 1
        space.close()
        shared.close()
        return True

    def work(conn):
        rest.drop()
        conn.send(None)
        conn.recv()
        with Forked(grandchild) as child:
            assert child.result()
        with pytest.raises(pf.SpaceClosedError):
            space.view(0, PAGE)
        space.close()
        shared.close()
        return True

    with Forked(work) as child:
        child.hear()
        rest.drop()
        child.say()
        assert child.result()
    assert holds(space.view(0, PAGE), 1)
    space.close()


def test_in_a_child_for_which_the_table_of_clients_was_full_views_still_read():
    unraisable = []
    with shared_arena(clients=1) as mem:
        spaces = Spaces(mem)
        view = spaces.space.view(0, PAGE)

        def work(conn):
            assert mem.closed
            assert holds(view, 1)
            assert (spaces.array == 8).all()
            for use in (
                lambda: spaces.space.cursor(),
                lambda: spaces.space.view(0, PAGE),
                lambda: spaces.space.fork(),
                lambda: spaces.space.make_writable(),
                lambda: spaces.mapping.array(),
                lambda: spaces.mapping.frames,
                lambda: spaces.ring.window(0),
                lambda: pf.VmSpace(mem, PAGE),
            ):
                with pytest.raises(pf.ArenaClosedError, match="table of clients was full"):
                    use()
            view.release()
            spaces.drop()
            return True

        hook, sys.unraisablehook = sys.unraisablehook, unraisable.append
        try:
            with Forked(work) as child:
                assert child.result()
        finally:
            sys.unraisablehook = hook
        assert [u.exc_type for u in unraisable] == [pf.ClientsFullError]
        unraisable.clear()
        view.release()
        spaces.check()
        spaces.drop()


def test_forks_of_forks_have_what_was_mapped(arena):
    spaces = Spaces(arena)

    def generation(conn, depth):
        spaces.check()
        spaces.work()
        if depth < 3:
            with Forked(generation, depth + 1) as child:
                child.result()
            spaces.check()
        spaces.drop()
        return True

    with Forked(generation, 1) as child:
        assert child.result()
    spaces.check()
    spaces.drop()


FORKED_BETWEEN = """
import os, sys
made = []
def before():
    if made == [None]:
        import pageframe as pf
        made[:] = [pf.VmSpace(mem, 8192)]
        with made[0].cursor() as cursor:
            frame = mem.alloc_frame()
            memoryview(frame)[:] = bytes([7]) * 4096
            cursor.map(frame)
os.register_at_fork(before=before)      # before pageframe, so it is called after its own
import pageframe as pf
mem = pf.PhysicalMemory.create("1 MiB") if sys.argv[1] == "shared" else pf.PhysicalMemory("1 MiB")
made.append(None)
pid = os.fork()
if pid == 0:
    try:
        space, = made
        assert bytes(space.view(0, 4096)) == bytes([7]) * 4096
        with space.cursor() as cursor:
            assert cursor.unmap(4096) == 1
        space.close()
        os._exit(0)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        os._exit(1)
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
space, = made
assert bytes(space.view(0, 4096)) == bytes([7]) * 4096
space.close()
assert mem.used_frames == 0
print("good")
"""


@pytest.mark.parametrize("kind", ["shared", "private"])
def test_a_space_made_between_the_hooks_of_a_fork_works_in_the_child(kind):
    assert run_program(FORKED_BETWEEN, kind) == b"good\n"


def while_threads_run(work, count, body):
    """Run body while threads repeat work(number); what a thread raises is raised here."""
    stop, errors = threading.Event(), []

    def loop(number):
        try:
            while not stop.is_set():
                work(number)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=loop, args=(number,)) for number in range(count)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        for thread in threads:
            thread.start()
        body()
    finally:
        stop.set()
        sys.setswitchinterval(interval)
        for thread in threads:
            thread.join()
    if errors:
        raise errors[0]


def test_a_child_forked_while_threads_map_and_unmap_shows_what_it_holds(arena):
    # Whatever another thread does: each page of the child's spaces shows a frame that the child
    # holds, with the bytes that were put into it before it was mapped.
    spaces = [pf.VmSpace(arena, 16 * PAGE) for _ in range(2)]
    mappings = [arena.map(filled(arena.alloc_frame(), 40 + i)) for i in range(2)]

    def work(number):
        space = spaces[number]
        with space.cursor() as cursor:
            for page in range(4):
                cursor.map(filled(arena.alloc_frame(), 10 * number + page))
            cursor.jump(0)
            cursor.protect(2 * PAGE, READ_ONLY)
            cursor.jump(0)
            cursor.unmap(16 * PAGE)
        mappings[number].append(filled(arena.alloc_frame(), 40 + number))
        if mappings[number].size > 20 * PAGE:
            old, mappings[number] = mappings[number], arena.map(filled(arena.alloc_frame(), 40 + number))
            old.drop()

    def child(conn):
        for number, space in enumerate(spaces):
            with space.cursor(timeout=0) as cursor:
                while (va := cursor.find_next()) is not None:
                    frame = cursor.query().frame
                    assert holds(frame, 10 * number + va // PAGE)
                    assert holds(space.view(va, va + PAGE), 10 * number + va // PAGE)
                    if arena.clients:
                        assert who(arena, frame)[os.getpid()] == (1, 1, 0)
                    else:
                        assert frame.reference_count == 2
                    del frame
                    assert cursor.unmap(PAGE) == 1
            space.close()
            with mappings[number] as mapping:
                assert holds(mapping, 40 + number)

    def forks():
        for _ in range(40):
            with Forked(child) as process:
                process.result()
            if arena.clients:
                assert arena.reap().in_doubt == 0

    while_threads_run(work, 2, forks)
    for one in (*spaces, *mappings):
        (one.close if isinstance(one, pf.VmSpace) else one.drop)()


def test_threads_that_fork_at_once_each_have_children_with_all_spaces(arena):
    space = pf.VmSpace(arena, 8 * PAGE)
    with space.cursor() as cursor:
        cursor.map(filled(arena.alloc_segment(2), 1))

    def work(conn):
        assert holds(space.view(0, 2 * PAGE), 1)
        with space.cursor() as cursor:
            return cursor.unmap(2 * PAGE)

    def fork_one(number):
        with Forked(work) as child:
            assert child.result() == 2

    def body():
        end = time.monotonic() + 1.5
        while time.monotonic() < end:
            fork_one(9)

    while_threads_run(fork_one, 3, body)
    assert holds(space.view(0, 2 * PAGE), 1)
    space.close()


@pytest.mark.parametrize("how", ["unmap", "close"])
def test_an_on_drop_that_forks_while_its_frame_is_unmapped_disturbs_neither_process(arena, how):
    class Forking(pf.UntypedFrameMeta):
        number: pf.u64

        def on_drop(self, reader):
            if self.number and pids[0] is None:
                pids[0] = os.fork()

    pids = [None]
    space = pf.VmSpace(arena, 2048 * PAGE)
    with space.cursor() as cursor:
        cursor.map(filled(arena.alloc_frame(), 1))
        cursor.map(arena.alloc_frame(Forking(number=1)))
        cursor.map(arena.alloc_frame())
        cursor.jump(1024 * PAGE)  # another node
        cursor.map(arena.alloc_frame(Forking))
    me = os.getpid()
    done, result = os.pipe()
    if how == "unmap":
        with space.cursor() as cursor:
            cursor.unmap(2048 * PAGE)
    space.close()
    if os.getpid() != me:
        try:
            # All that the child has is what the fork gave it and it could not know of.
            ok = arena.used_frames <= 4 if arena.clients == () else arena.audit().damaged == ()
            with pf.VmSpace(arena, PAGE) as mine, mine.cursor() as cursor:
                cursor.map(filled(arena.alloc_frame(), 5))
                ok = ok and holds(mine.view(), 5)
            os.write(result, b"y" if ok else b"n")
        finally:
            os._exit(0)
    try:
        assert os.waitpid(pids[0], 0)[1] == 0
        os.close(result)
        assert os.read(done, 1) == b"y"
    finally:
        os.close(done)
    assert arena.used_frames == 0 or arena.clients
    if arena.clients:
        assert_quiet(arena)


@pytest.mark.parametrize("end", ["sys.exit(3)", "os._exit(0)", "os.kill(os.getpid(), signal.SIGKILL)"])
def test_what_a_child_mapped_comes_back_however_it_ends(end):
    program = f"""
import os, signal, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
import pageframe as pf
from test_vm_processes import Spaces
mem = pf.PhysicalMemory.attach(sys.argv[1])
spaces = Spaces(mem)
pid = os.fork()
if pid == 0:
    spaces.work()
    mine = pf.VmSpace(mem, "1 MiB")
    with mine.cursor() as cursor:
        cursor.map(mem.alloc_segment(3))
    {end}
os.waitpid(pid, 0)
report = mem.reap()
assert report.in_doubt == 0
spaces.check()
print(mem.used_frames, mem.audit().clean, len(mem.clients))
"""
    name = unique_name()
    with shared_arena(name=name):
        expected = f"{Spaces.FRAMES + Spaces.TABLES} True 2\n".encode()
        assert run_program(program, name) == expected


# -- private arenas --------------------------------------------------------------------------------


def memfds():
    """The files of private arenas that this process has open."""
    found = []
    for fd in Path("/proc/self/fd").iterdir():
        try:
            if str(fd.readlink()).startswith("/memfd:pageframe"):
                found.append(int(fd.name))
        except FileNotFoundError:  # that of the folder itself
            continue
    return found


def test_what_a_child_writes_into_its_copy_its_parent_does_not_see_through_any_address_nor_the_reverse(mem):
    frame = filled(mem.alloc_frame(), 1)
    space = pf.VmSpace(mem, 4 * PAGE)
    with space.cursor(PAGE) as cursor:
        cursor.map(frame.clone())
    mapping, ring = mem.map([frame.clone(), frame.clone()]), mem.ring(PAGE)
    fill(ring, 1)
    views = [
        memoryview(frame), space.view(PAGE, 2 * PAGE), mapping.array(), memoryview(mapping), ring.window(100),
    ]  # fmt: skip

    def later():
        return [memoryview(frame), space.view(PAGE, 2 * PAGE), mapping.array(), memoryview(ring)]

    def work(conn):
        assert all(holds(view, 1) for view in (*views, *later()))
        conn.send(frame.reference_count)
        conn.recv()  # the parent has written
        assert all(holds(view, 1) for view in (*views, *later()))
        for i, view in enumerate(views):
            fill(view, 10 + i)
            shared_view = views[:4] if i < 4 else views[4:]
            assert all(holds(other, 10 + i) for other in shared_view)
        assert holds(ring, 14)
        conn.send(None)
        conn.recv()
        return all(holds(view, 13) for view in views[:4]) and holds(ring, 14)

    with Forked(work) as child:
        assert child.hear() == frame.reference_count == 4
        fill(views[1], 2)
        fill(views[4], 2)
        child.say()
        child.hear()
        assert all(holds(view, 2) for view in (*views, *later()))
        child.say()
        assert child.result()
    views.clear()
    gc.collect()
    for handle in (frame, mapping, ring):
        handle.drop()
    space.close()


def test_in_a_copy_the_counts_are_those_of_the_child_alone(mem):
    space = pf.VmSpace(mem, 4 * PAGE)
    with space.cursor() as cursor:
        cursor.map(filled(mem.alloc_segment(3), 1))
    copy = space.fork()
    used = mem.used_frames

    def work(conn):
        copy.close()
        copied = space.make_writable()  # nobody else holds them here
        fill(space.view(0, 3 * PAGE), 2)
        left = mem.used_frames
        space.close()
        done = mem.used_frames
        mem.close()
        return copied, left, done

    with Forked(work) as child:
        assert child.result() == (0, 3 + NODES, 0)
    assert mem.used_frames == used
    assert space.make_writable() == 3
    assert holds(space.view(0, 3 * PAGE), 1)
    space.close()
    copy.close()


def test_a_large_arena_of_which_little_is_used_forks_without_filling_memory():
    mem = pf.PhysicalMemory("16 GiB", page_size=65536)
    with mem.alloc_segment(1024) as gone:  # 64 MiB that are free again
        fill(gone, 1)
    frames = mem.alloc_segment(20)
    fill(frames[19], 2)
    mapping = mem.map(frames[19:20].clone())

    def blocks():
        largest = max(map(os.fstat, memfds()), key=lambda file: file.st_size)  # other tests may leave some
        return largest.st_blocks * 512

    def work(conn):
        taken = blocks()
        assert holds(mapping, 2)
        with mem.alloc_segment(1024) as again:
            assert holds(again, 0)
        return taken

    start = time.monotonic()
    with Forked(work) as child:
        taken = child.result()
    assert time.monotonic() - start < 10  # 16 GiB take longer, if the machine has them at all
    tables = mem.layout[-1][1] + mem.layout[-1][2]
    assert taken < tables + (32 << 20)
    assert blocks() > 64 << 20
    mapping.drop()
    frames.drop()
    mem.close()


def test_each_of_many_private_arenas_is_copied():
    arenas = [pf.PhysicalMemory("1 MiB") for _ in range(20)]
    mappings = [mem.map(filled(mem.alloc_frame(), i)) for i, mem in enumerate(arenas)]
    files = len(memfds())

    def work(conn):
        good = [holds(mapping, i) for i, mapping in enumerate(mappings)]
        for mapping in mappings:
            fill(mapping, 99)
            mapping.drop()
        for mem in arenas:
            mem.close()
        return all(good), len(memfds())

    for _ in range(3):
        with Forked(work) as child:
            assert child.result() == (True, files - 20)
    assert len(memfds()) == files
    assert all(holds(mapping, i) for i, mapping in enumerate(mappings))
    for mapping, mem in zip(mappings, arenas, strict=True):
        mapping.drop()
        mem.close()


NO_COPY = """
import os, resource, signal, sys
kind = sys.argv[1]
told = []
sys.unraisablehook = lambda u: told.append(u.exc_type.__name__)

def limit(what, value):
    resource.setrlimit(what, (value, resource.getrlimit(what)[1]))

def before():       # called after pageframe's own
    if kind == "write":
        limit(resource.RLIMIT_FSIZE, 4096)

os.register_at_fork(before=before)
import pageframe as pf
mem = pf.PhysicalMemory("4 MiB")
frame = mem.alloc_frame()
memoryview(frame)[:] = bytes([7]) * 4096
space, mapping, array = pf.VmSpace(mem, 8192), mem.map(frame.clone()), mem.zeros(10)
array[...] = 7
with space.cursor() as cursor:
    cursor.map(frame.clone())
views = [memoryview(frame), space.view(0, 4096), memoryview(mapping), mapping.array()]
used = mem.used_frames
files, sizes = resource.getrlimit(resource.RLIMIT_NOFILE)[0], resource.getrlimit(resource.RLIMIT_FSIZE)[0]
if kind == "descriptor":
    limit(resource.RLIMIT_NOFILE, 1 + max(map(int, os.listdir("/proc/self/fd")[:-1])))
elif kind == "size":
    limit(resource.RLIMIT_FSIZE, 4096)
pid = os.fork()
if pid == 0:
    try:
        assert mem.closed
        for use in (mem.alloc_frame, lambda: memoryview(frame), lambda: space.view(0, 4096), space.fork,
                    space.cursor, mapping.array, lambda: mem.used_frames, frame.clone):
            try:
                use()
            except pf.ArenaClosedError as error:
                assert "when this process was forked" in str(error), error
            else:
                raise AssertionError(use)
        assert all(bytes(view) == bytes(4096) for view in views)
        views[0][0] = views[1][0] = views[2][0] = 1         # nobody sees it
        assert (array == 0).all()
        for view in views[:3]:
            view.release()
        views.clear()
        frame.drop()
        mapping.drop()
        space.close()
        del array
        mem.close()
        os._exit(0)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        os._exit(1)
status = os.waitpid(pid, 0)[1]
limit(resource.RLIMIT_NOFILE, files)
limit(resource.RLIMIT_FSIZE, sizes)
kind, was = "", kind    # the next fork is to go well
assert os.waitstatus_to_exitcode(status) == 0
assert all(bytes(view) == bytes([7]) * 4096 for view in views)
assert (array == 7).all()
assert mem.used_frames == used
pid = os.fork()
if pid == 0:
    os._exit(not all(bytes(view) == bytes([7]) * 4096 for view in views))
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
print(was, len(told))
"""


@pytest.mark.parametrize(("kind", "told"), [("descriptor", 1), ("size", 1), ("write", 0)])
def test_a_child_for_which_no_copy_could_be_made_finds_the_arena_closed_and_its_parent_goes_on(kind, told):
    assert run_program(NO_COPY, kind) == f"{kind} {told}\n".encode()


def test_a_copy_made_while_threads_run_bulk_operations_gives_no_frame_twice():
    mem = pf.PhysicalMemory("64 MiB")
    kept = filled(mem.alloc_segment(100), 7)
    mapping = mem.map(filled(mem.alloc_frames(50), 8))

    def work(number):
        with mem.alloc_frames(3000, zeroed=False) as vec, vec.clone():
            filled(vec[:2], number)
        with mem.alloc_segment(2500, zeroed=False) as segment:
            fill(segment, number)

    def child(conn):
        taken = mem.alloc_frames(mem.free_frames, zeroed=False)
        mine = taken.paddrs.tolist()
        held = {*kept_paddrs, *mapping.frames.paddrs.tolist()}
        filled(taken, 9)
        assert len(set(mine)) == len(mine)
        assert not held & set(mine)
        assert holds(kept, 7)
        assert holds(mapping, 8)
        return mem.free_frames

    kept_paddrs = [frame.start_paddr for frame in kept]

    def forks():
        for _ in range(12):
            with Forked(child) as process:
                assert process.result() == 0

    while_threads_run(work, 2, forks)
    kept.drop()
    mapping.drop()
    mem.close()


def test_an_arena_that_can_not_be_mapped_is_copied_by_the_kernel():
    before = memfds()
    mem = pf.PhysicalMemory("1 MiB", mappable=False)
    frame = filled(mem.alloc_frame(), 1)
    assert memfds() == before

    def work(conn):
        assert holds(frame, 1)
        fill(frame, 2)
        with pytest.raises(TypeError, match="mappable=False"):
            mem.map(frame)
        frame.drop()
        return mem.used_frames

    with Forked(work) as child:
        assert child.result() == 0
    assert holds(frame, 1)
    frame.drop()
    mem.close()


held_by_workers = {}


def use_mapping(number):
    """In a worker of a pool: write into its copy, see what it held."""
    mapping = held_by_workers["mapping"]
    before = int(mapping.array()[0])
    fill(mapping, 100 + number)
    same = holds(mapping, 100 + number) and holds(held_by_workers["space"].view(0, PAGE), 100 + number)
    fill(mapping, before)
    return before, same


def test_workers_of_a_pool_that_forks_have_copies_of_a_private_arena(mem):
    frame = filled(mem.alloc_frame(), 1)
    space = pf.VmSpace(mem, PAGE)
    with space.cursor() as cursor:
        cursor.map(frame.clone())
    held_by_workers.update(mapping=mem.map(frame.clone()), space=space)
    with mp.get_context("fork").Pool(2) as pool:
        answers = pool.map_async(use_mapping, range(8)).get(LIMIT)
        pool.close()
        pool.join()
    assert answers == [(1, True)] * 8
    assert holds(frame, 1)
    held_by_workers.pop("mapping").drop()
    held_by_workers.pop("space").close()
    frame.drop()


# -- messages --------------------------------------------------------------------------------------

SENDER = """
import pickle
import numpy as np
import pageframe as pf
from test_vm_processes import scattered, PAGE
mem = PhysicalMemory.attach(NAME)
with scattered(mem):
    array = mem.zeros((int(ARGS[0]), PAGE), np.uint8)
array[...] = np.arange(len(array))[:, None]
"""


def test_an_array_over_scattered_frames_that_is_sent_is_the_same_memory():
    script = (
        SENDER + "tell(pickle.dumps(array[1:]).hex())\nwait()\ntell(array[:, 0].tolist())\narray[5] = 50\n"
    )
    name = unique_name()
    with shared_arena(name=name) as mem:
        with Child(script + "tell('written')\nwait()", name, 12, **HERE) as child:
            loaded = pickle.loads(bytes.fromhex(child.hear()))
            assert loaded.shape == (11, PAGE)
            assert (loaded == np.arange(1, 12)[:, None]).all()
            assert not loaded.flags.owndata
            loaded[0] = 77
            child.go_on()
            assert child.hear() == str([0, 77, *range(2, 12)])
            assert child.hear() == "written"
            assert (loaded[4] == 50).all()
            child.kill()
        report = mem.reap()
        assert report.frames == 1 + NODES  # the page that was not sent, and its page table
        assert (loaded[0] == 77).all()
        assert mem.used_frames == 11 + NODES
        del loaded


@pytest.mark.parametrize("end", ["exit", "kill"])
def test_an_array_over_scattered_frames_arrives_when_its_sender_is_gone(end):
    name = unique_name()
    with shared_arena(name=name) as mem:
        with Child(SENDER + "tell(pickle.dumps(array).hex())\nwait()", name, 10, **HERE) as child:
            data = bytes.fromhex(child.hear())
            if end == "exit":
                child.go_on()
                child.finish()
            else:
                child.kill()
        assert len(mem.reap().clients) == (end == "kill")
        assert mem.used_frames == 10 + 1  # so many scattered frames are listed in one more
        loaded = pickle.loads(data)
        assert (loaded == np.arange(10)[:, None]).all()
        loaded += 1
        assert (loaded == np.arange(1, 11)[:, None]).all()
        del loaded


def write_by_c(conn, address):
    faulthandler.disable()
    ctypes.memset(address, 1, 1)


def test_an_array_over_scattered_frames_that_is_read_only_stays_so_for_c_too():
    name = unique_name()
    with shared_arena(name=name) as mem:
        script = SENDER + "tell(pickle.dumps(pf.readonly(array)).hex())\nwait()"
        with Child(script, name, 10, **HERE) as child:
            loaded = pickle.loads(bytes.fromhex(child.hear()))
        assert not loaded.flags.writeable
        with pytest.raises(ValueError, match="WRITEABLE"):
            loaded.flags.writeable = True
        with pytest.raises(ValueError, match="read-only"):
            loaded[0] = 1

        with Forked(write_by_c, loaded.ctypes.data) as writer:
            assert writer.wait() == -signal.SIGSEGV
        again = pickle.loads(pickle.dumps(loaded))
        assert not again.flags.writeable
        assert (again == np.arange(10)[:, None]).all()
        mem.reap()
        del loaded, again


@pytest.mark.parametrize(("frames", "again"), [(6, True), (20, False)])
def test_the_message_of_an_array_over_scattered_frames_can_be_loaded_twice_if_it_names_them_all(
    frames, again
):
    name = unique_name()
    with shared_arena(name=name) as mem:
        with Child(SENDER + "tell(pickle.dumps(array).hex())\nwait()", name, frames, **HERE) as child:
            data = bytes.fromhex(child.hear())
            first = pickle.loads(data)
            if again:
                second = pickle.loads(data)
                first[3] = 33
                assert (second[3] == 33).all()
                del second
            else:
                with pytest.raises(pf.FrameGoneError):
                    pickle.loads(data)
                assert (first == np.arange(frames)[:, None]).all()
        mem.reap()
        assert mem.used_frames == frames + NODES
        del first
        gc.collect()
        assert mem.used_frames == 0
        with pytest.raises(pf.FrameGoneError):
            pickle.loads(data)


def double(array):
    """In another process."""
    array *= 2
    return array[1:3], int(array[:, 0].sum())


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_process_pool_takes_and_gives_arrays_over_scattered_frames(method):
    with shared_arena() as mem:
        with scattered(mem):
            array = mem.zeros((5, PAGE), np.uint8)
        array[...] = np.arange(5)[:, None]
        with mp.get_context(method).Pool(1) as pool:
            part, total = pool.apply_async(double, (array,)).get(LIMIT)
            pool.close()
            pool.join()
        assert total == 20
        assert (part == array[1:3]).all()
        part[0] = 9
        assert (array[1] == 9).all()
        del part, array
