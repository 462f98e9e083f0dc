# This Source Code Form is subject to the terms of the Mozilla Public
# License, v. 2.0. If a copy of the MPL was not distributed with this
# file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Processes that fork while they share an arena, and all ways in which Python starts processes."""

import gc
import multiprocessing as mp
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import pageframe as pf
from pageframe._core import backing
from processes import (
    LIMIT,
    Forked,
    assert_quiet,
    run_program,
    shared_arena,
    unique_name,
    wait_for,
    wait_until,
)
from types_for_tests import Node, Page, Raw

# Forking with threads is what some of these tests are about.
pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")

PAGE = 4096
METHODS = ("fork", "spawn", "forkserver")


@pytest.fixture
def shared():
    """Return a shared arena without a name; at the end nothing may be held, and nobody else be there."""
    with shared_arena() as mem:
        yield mem


def fill(buffer, value):
    np.frombuffer(buffer, np.uint8)[:] = value


def holds(buffer, value):
    return bool((np.frombuffer(buffer, np.uint8) == value).all())


def handles_of(mem, paddr):
    """How many references each process has to a frame."""
    return {holder.pid: holder.handles for holder in mem.holders(paddr)}


def all_kinds(mem):
    """One handle of each kind that a child shares with its parent, each over frames of its own."""
    frame, segment = mem.alloc_frame(Raw(number=7)), mem.alloc_segment(3)
    vec, array = mem.alloc_frames(4), mem.zeros((5, PAGE), np.uint8)
    fill(frame, 1)
    fill(segment, 2)
    for member in vec:
        fill(member, 3)
    array[...] = 4
    return {
        "frame": frame,
        "typed": mem.alloc_frame(Node(level=9)),
        "clone": frame.clone(),
        "segment": segment,
        "vec": vec,
        "array": array,
    }


def check_all_kinds(kinds):
    assert kinds["frame"].meta.number == 7
    assert holds(kinds["frame"], 1)
    assert holds(kinds["clone"], 1)
    assert kinds["typed"].meta.level == 9
    assert holds(kinds["segment"], 2)
    assert all(holds(frame, 3) for frame in kinds["vec"])
    assert (kinds["array"] == 4).all()


def drop_all_kinds(kinds):
    kinds.pop("array")
    for handle in kinds.values():
        handle.drop()
    kinds.clear()


# -- what a child is and holds ---------------------------------------------------------------------


def test_a_child_is_a_client_of_its_own_until_it_ends(shared):
    def work(conn):
        return os.getpid(), [client.pid for client in shared.clients]

    with Forked(work) as child:
        pid, pids = child.result()
    assert pids == [os.getpid(), pid]
    assert [client.pid for client in shared.reap().clients] == [pid]
    assert [client.pid for client in shared.clients] == [os.getpid()]


def test_a_child_holds_what_its_parent_held_and_all_kinds_of_handles_work_in_it(shared):
    kinds = all_kinds(shared)
    paddrs = kinds["vec"].paddrs.tolist()

    def work(conn):
        check_all_kinds(kinds)
        counts = kinds["frame"].reference_count, kinds["segment"][0].reference_count
        with kinds["segment"].slice(PAGE, 2 * PAGE) as part, kinds["vec"].clone() as more:
            assert holds(part, 2)
            assert len(more) == 4
        halves = kinds["segment"].split(PAGE)
        assert [len(half) for half in halves] == [1, 2]
        fill(kinds["clone"], 9)
        conn.send((counts, kinds["typed"].reference_count))
        conn.recv()

    with Forked(work) as child:
        assert child.hear() == ((4, 3), 2)  # segment[0] is a handle, too
        for paddr in (*paddrs, kinds["typed"].start_paddr):
            assert handles_of(shared, paddr) == {os.getpid(): 1, child.pid: 1}
        assert handles_of(shared, kinds["frame"].start_paddr) == {os.getpid(): 2, child.pid: 2}
        assert holds(kinds["frame"], 9)  # one memory
        child.say()
        child.result()
    shared.reap()
    assert kinds["frame"].reference_count == 2
    fill(kinds["frame"], 1)
    check_all_kinds(kinds)
    drop_all_kinds(kinds)


def test_what_a_child_drops_does_not_count_for_its_parent(shared):
    kinds = all_kinds(shared)
    used = shared.used_frames

    def work(conn):
        drop_all_kinds(kinds)
        gc.collect()
        return [handles for handles in shared.holders(frame_paddr) if handles.pid == os.getpid()]

    frame_paddr = kinds["frame"].start_paddr
    with Forked(work) as child:
        assert child.result() == []
    assert shared.used_frames == used
    assert kinds["frame"].reference_count == 2
    assert kinds["vec"].reference_counts.tolist() == [1] * 4
    check_all_kinds(kinds)
    drop_all_kinds(kinds)


def test_what_a_parent_drops_does_not_count_for_its_child(shared):
    kinds = all_kinds(shared)
    used = shared.used_frames

    def work(conn):
        conn.recv()
        check_all_kinds(kinds)
        drop_all_kinds(kinds)
        gc.collect()
        return shared.used_frames

    with Forked(work) as child:
        drop_all_kinds(kinds)
        gc.collect()
        assert shared.used_frames == used
        child.say()
        assert child.result() == 0


def test_what_either_allocates_after_the_fork_is_its_own(shared):
    def work(conn):
        mine = shared.alloc_segment(8)
        fill(mine, 5)
        conn.send(mine.start_paddr)
        conn.recv()
        assert holds(mine, 5)
        mine.drop()

    with Forked(work) as child:
        theirs = child.hear()
        with shared.alloc_segment(8) as mine:
            fill(mine, 6)
            assert abs(mine.start_paddr - theirs) >= 8 * PAGE
            assert handles_of(shared, theirs) == {child.pid: 1}
            child.say()
            child.result()
            assert holds(mine, 6)


def test_the_same_frame_of_parent_and_child_is_equal_and_untyped_bytes_are_one_memory(shared):
    frame = shared.alloc_frame()

    def work(conn):
        memoryview(frame)[:5] = b"child"
        return frame.start_paddr, hash(frame.start_paddr)

    with Forked(work) as child:
        assert child.result() == (frame.start_paddr, hash(frame.start_paddr))
    assert bytes(memoryview(frame)[:5]) == b"child"
    frame.drop()


def test_unique_frames_and_lists_stay_with_the_parent(shared):
    unique = pf.UniqueFrame.from_unused(shared, shared.size - PAGE, Page(inode=1))
    lst = pf.LinkedList(shared, Page)
    for inode in range(3):
        lst.push_back(shared.alloc_frame(Page(inode=inode)).try_unique())
    cursor = lst.cursor_front()
    used = shared.used_frames

    def work(conn):
        for use in (
            lambda: unique.meta,
            lambda: unique.share(),
            lambda: unique.start_paddr,
            lambda: unique.into_raw(),
            lambda: unique.repurpose(Page()),
            lambda: memoryview(unique),
            lambda: unique.drop(),
            lambda: len(lst),
            lambda: lst.pop_front(),
            lambda: lst.cursor_back(),
            lambda: lst.drop(),
            lambda: list(lst),
            lambda: cursor.current_meta,
            lambda: cursor.take_current(),
            lambda: cursor.move_next(),
        ):
            with pytest.raises(pf.MovedError):
                use()
        return [h.pid for h in shared.holders(used_paddr)]

    used_paddr = unique.start_paddr
    with Forked(work) as child:
        assert child.result() == [os.getpid()]
    shared.reap()
    assert shared.used_frames == used
    unique.meta.inode = 8
    assert [lst.cursor_at(paddr).current_meta.inode for paddr in lst] == [0, 1, 2]
    unique.drop()
    lst.drop()


def test_a_list_made_in_a_child_and_one_made_in_its_parent_are_two(shared):
    pf.LinkedList(shared, Page).drop()  # leaves a number that could be used again

    def work(conn):
        mine = pf.LinkedList(shared, Page)
        mine.push_back(shared.alloc_frame(Page(inode=5)).try_unique())
        conn.send(next(iter(mine)))
        conn.recv()
        assert len(mine) == 1
        mine.drop()

    with Forked(work) as child:
        theirs = child.hear()
        lst = pf.LinkedList(shared, Page)
        lst.push_back(shared.alloc_frame(Page(inode=6)).try_unique())
        assert theirs not in lst
        assert lst.cursor_at(theirs) is None
        child.say()
        child.result()
        lst.drop()


def test_raw_references_of_shared_frames_work_in_both(shared):
    frame = shared.alloc_frame(Raw(number=3))
    segment = shared.alloc_segment(2)
    fill(segment, 8)
    raw, run = frame.into_raw(), segment.into_raw()

    def work(conn):
        with pf.Frame.from_raw(shared, raw) as mine:
            assert mine.meta.number == 3
            assert mine.reference_count == 2
        with pytest.raises(pf.NotRawError):
            pf.Frame.from_raw(shared, raw)
        conn.send(None)
        conn.recv()
        with pf.Segment.from_raw(shared, *as_range(run)) as mine:
            assert holds(mine, 8)

    def as_range(value):
        return value if isinstance(value, tuple) else (value, 2 * PAGE)

    with Forked(work) as child:
        child.hear()
        with pf.Segment.from_raw(shared, *as_range(run)) as mine:
            assert holds(mine, 8)
        with pf.Frame.from_raw(shared, raw) as mine:
            assert mine.reference_count == 1
        child.say()
        child.result()


def test_raw_references_of_unique_frames_stay_with_the_parent(shared):
    raw = pf.UniqueFrame.from_unused(shared, shared.size - PAGE, Raw(number=3)).into_raw()

    def work(conn):
        with pytest.raises(pf.NotRawError):
            pf.UniqueFrame.from_raw(shared, raw)

    with Forked(work) as child:
        child.result()
    with pf.UniqueFrame.from_raw(shared, raw) as unique:
        assert unique.meta.number == 3


def test_views_live_through_a_fork_in_both_even_of_handles_that_were_dropped(shared):
    frame, segment = shared.alloc_frame(), shared.alloc_segment(2)
    fill(frame, 1)
    fill(segment, 2)
    views = [memoryview(frame), np.frombuffer(segment, np.uint8), frame.reader(), segment.readonly()]
    frame.drop()  # takes effect with the last view
    paddr = segment.start_paddr

    def check():
        assert holds(views[0], 1)
        assert (views[1] == 2).all()
        assert views[2].read_bytes(3) == b"\1\1\1"
        assert holds(views[3], 2)

    def work(conn):
        conn.recv()  # the parent's are gone
        check()
        segment.drop()
        assert handles_of(shared, paddr) == {os.getpid(): 1}  # its views live
        views.clear()
        gc.collect()
        return shared.used_frames

    with Forked(work) as child:
        check()
        views.clear()
        segment.drop()
        gc.collect()
        assert shared.used_frames == 3
        child.say()
        assert child.result() == 0


def test_borrowed_frames_and_metadata_views_work_in_a_child(shared):
    frame = shared.alloc_frame(Page(inode=4))
    ref, meta = frame.borrow(), frame.meta

    def work(conn):
        assert ref.meta.inode == 4
        meta.hits.fetch_add(2)
        frame.drop()
        conn.send(None)
        conn.recv()
        with pytest.raises(pf.FrameGoneError):
            _ = ref.meta

    with Forked(work) as child:
        child.hear()
        assert ref.meta.hits.load() == 2
        frame.drop()
        child.say()
        child.result()


# -- who ends first --------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["exit", "kill"])
def test_a_child_goes_on_when_its_parent_ends_first(shared, how):
    def parent(conn):
        frame = shared.alloc_frame(Raw(number=11))
        fill(frame, 11)
        child = os.fork()
        if child == 0:
            try:
                conn.recv()
                assert frame.meta.number == 11
                conn.send((holds(frame, 11), frame.reference_count))
                conn.recv()
            finally:
                os._exit(0)
        conn.send((child, frame.start_paddr))
        if how == "exit":
            os._exit(0)
        signal.pause()

    with Forked(parent) as process:
        grandchild, paddr = process.hear()
        if how == "kill":
            process.kill()
        else:
            assert process.wait() == 0
        # Until then the grandchild may still have the file that holds its parent's lock.
        wait_until(lambda: grandchild in handles_of(shared, paddr))
        assert [client.pid for client in shared.reap().clients] == [process.pid]
        assert handles_of(shared, paddr) == {grandchild: 1}
        process.say()
        assert process.hear() == (True, 1)
        process.say()
        wait_until(lambda: shared.reap().frames == 1)  # it is no child of ours to wait for


@pytest.mark.parametrize("name", [None, "named"])
def test_the_creator_of_an_arena_is_reaped_while_its_child_lives(name):
    name = name and unique_name()

    def creator(conn):
        mem = pf.PhysicalMemory.create("1 MiB", name)
        frame, other = mem.alloc_frame(), mem.alloc_segment(5)
        child = os.fork()
        if child == 0:
            try:
                other.drop()
                conn.recv()
                report = mem.reap()
                conn.send((len(mem.clients), report.frames, report.references, frame.reference_count))
                conn.recv()
                frame.drop()
                mem.close()
                conn.send(None)
            finally:
                os._exit(0)
        conn.send(None)
        signal.pause()

    with Forked(creator) as process:
        process.hear()
        process.kill()
        process.say()
        assert process.hear() == (1, 5, 6, 1)
        process.say()
        process.hear()
        if name:
            with pytest.raises(pf.ArenaNotFoundError):  # it went with the last client
                pf.PhysicalMemory.attach(name)


def test_what_a_killed_child_held_comes_back_and_its_parent_keeps_its_own(shared):
    kinds = all_kinds(shared)
    used = shared.used_frames

    def work(conn):
        more = shared.alloc_frames(20), shared.alloc_segment(10), kinds["segment"].clone()
        conn.send(len(more))
        signal.pause()

    with Forked(work) as child:
        child.hear()
        assert shared.used_frames == used + 30
        child.kill()
    report = shared.reap()
    assert [client.pid for client in report.clients] == [child.pid]
    assert report.frames == 30
    # Its own, what the fork gave it (14 frames, one of them held twice), and the clone.
    assert report.references == 30 + 15 + 3
    assert report.in_doubt == 0
    assert shared.used_frames == used
    check_all_kinds(kinds)
    drop_all_kinds(kinds)


def test_a_child_that_executes_another_program_is_no_client_any_more(shared):
    frame = shared.alloc_frame()
    ready, done = os.pipe(), os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.dup2(done[0], 0)
            os.dup2(ready[1], 1)
            os.execv(sys.executable, [sys.executable, "-S", "-c", "print(1, flush=True); input()"])
        finally:
            os._exit(1)
    try:
        assert os.read(ready[0], 1) == b"1"
        assert [client.pid for client in shared.reap().clients] == [pid]
        assert frame.reference_count == 1
        os.write(done[1], b"\n")
        assert wait_for(pid) == 0
    finally:
        for fd in (*ready, *done):
            os.close(fd)
    frame.drop()


def test_forks_of_forks_hold_what_was_held(shared):
    frame = shared.alloc_frame()
    fill(frame, 1)

    def generation(conn, depth):
        own = shared.alloc_frame(Raw(number=depth))
        if depth == 4:
            return [holder.handles for holder in shared.holders(frame)], [own.meta.number]
        with Forked(generation, depth + 1) as child:
            handles, numbers = child.result()
        assert holds(frame, 1)
        frame.drop()
        return handles, [*numbers, own.meta.number]

    with Forked(generation, 1) as child:
        assert child.result() == ([1] * 5, [4, 3, 2, 1])
    report = shared.reap()
    assert len(report.clients) == 4
    # Each has dropped its own, but its descendants, which held it, too, have just ended.
    assert report.frames == 3
    assert frame.reference_count == 1
    frame.drop()


def test_a_child_of_a_full_client_table_finds_the_arena_closed_and_its_parent_goes_on():
    unraisable = []
    with shared_arena(clients=2) as mem:
        frame = mem.alloc_frame()
        fill(frame, 1)
        view = memoryview(frame)
        segment, vec = mem.alloc_segment(3), mem.alloc_frames(3)

        def idle(conn):
            conn.recv()

        def work(conn):
            assert mem.closed
            for use in (
                lambda: frame.meta,
                frame.clone,
                frame.borrow,
                lambda: memoryview(frame),
                segment.clone,
                lambda: segment[0],
                lambda: segment.slice(0, PAGE),
                lambda: memoryview(segment),
                vec.clone,
                lambda: vec[0],
                lambda: vec[:2],
                lambda: pf.FrameVec.from_frames([frame]),
                lambda: pf.Segment.from_frame(frame),
                frame.into_raw,
                frame.try_unique,
                mem.alloc_frame,
                lambda: mem.alloc_segment(2),
                lambda: mem.alloc_frames(2),
                lambda: mem.zeros(3),
                lambda: mem.inc_frame_ref_count(paddr),
                lambda: pf.Frame.from_in_use(mem, paddr),
                lambda: mem.holders(paddr),
                lambda: mem.used_frames,
                mem.audit,
                mem.reap,
                lambda: pickle.dumps(frame),
            ):
                with pytest.raises(pf.ArenaClosedError, match="table of clients was full"):
                    use()
            for handle in (frame, segment, vec):
                handle.drop()
            return bytes(view[:2])

        paddr = frame.start_paddr

        with Forked(idle) as other:
            hook, sys.unraisablehook = sys.unraisablehook, unraisable.append
            try:
                with Forked(work) as child:
                    assert child.result() == b"\1\1"
            finally:
                sys.unraisablehook = hook
            assert [u.exc_type for u in unraisable] == [pf.ClientsFullError]
            unraisable.clear()
            assert handles_of(mem, frame) == {os.getpid(): 1, other.pid: 1}
            assert segment[0].reference_count == 3  # of which one is this very handle's
            assert len(mem.clients) == 2
            other.say()
            other.result()
        mem.reap()
        with Forked(lambda conn: frame.reference_count) as child:  # there is room again
            assert child.result() == 2
        view = None
        for handle in (frame, segment, vec):
            handle.drop()


def test_a_fork_whose_preparation_is_interrupted_takes_nothing_from_the_parent(shared, monkeypatch):
    unraisable, opened = [], []

    def interrupted(fd, open_again=backing.open_again):
        opened.append(fd)
        if len(opened) == 2:
            raise KeyboardInterrupt
        return open_again(fd)

    with shared_arena() as other:
        frames = [mem.alloc_frame() for mem in (shared, other)]

        def work(conn):
            found = [frame.mem.closed or frame.reference_count for frame in frames]
            for frame in frames:
                frame.drop()
            return found

        monkeypatch.setattr(backing, "open_again", interrupted)
        monkeypatch.setattr(sys, "unraisablehook", unraisable.append)
        with Forked(work) as child:
            assert child.result() == [2, True]
        monkeypatch.undo()
        assert [u.exc_type for u in unraisable] == [KeyboardInterrupt]
        unraisable.clear()
        for frame in frames:
            frame.mem.reap()
            assert frame.mem.audit().clean
            assert frame.reference_count == 1
            frame.drop()


def test_forking_with_several_arenas_gives_the_child_each_of_them(shared):
    with shared_arena("2 MiB") as second, shared_arena(clients=3) as third:
        frames = [mem.alloc_frame(Raw(number=i)) for i, mem in enumerate((shared, second, third))]

        def work(conn):
            frames.reverse()
            return [frame.reference_count for frame in frames], [frame.meta.number for frame in frames]

        with Forked(work) as child:
            assert child.result() == ([2, 2, 2], [2, 1, 0])
        for mem in (shared, second, third):
            assert len(mem.reap().clients) == 1
        for frame in frames:
            frame.drop()


def test_a_private_arena_is_copied_and_has_no_part_in_it(mem):
    frame = mem.alloc_frame()
    fill(frame, 1)

    def work(conn):
        fill(frame, 2)
        frame.drop()
        return mem.used_frames

    with Forked(work) as child:
        assert child.result() == 0
    assert holds(frame, 1)
    assert frame.reference_count == 1
    assert mem.clients == ()
    frame.drop()


def test_an_arena_made_in_a_child_is_its_own(shared):
    def work(conn):
        with pf.PhysicalMemory.create("1 MiB") as mine:
            with mine.alloc_frame() as frame:
                assert frame.reference_count == 1
            return len(mine.clients), len(shared.clients)

    with Forked(work) as child:
        assert child.result() == (1, 2)


def test_an_arena_closed_before_the_fork_stays_closed_in_the_child():
    mem = pf.PhysicalMemory.create("1 MiB")
    mem.close()

    def work(conn):
        with pytest.raises(pf.ArenaClosedError):
            mem.alloc_frame()

    with Forked(work) as child:
        child.result()


def test_a_child_may_close_the_arena_and_its_parent_goes_on(shared):
    frame = shared.alloc_frame()

    def work(conn):
        with pytest.raises(pf.ArenaInUseError):
            shared.close()
        frame.drop()
        shared.close()

    with Forked(work) as child:
        child.result()
    assert len(shared.clients) == 1  # it has left, nobody need reap it
    frame.drop()


# -- how a child ends ------------------------------------------------------------------------------

ENDS = """
import gc, os, sys, signal
import pageframe as pf
mem = pf.PhysicalMemory.attach(sys.argv[1])
frame = mem.alloc_frame()
pid = os.fork()
if pid == 0:
    mine = mem.alloc_segment(3)
    {end}
_, status = os.waitpid(pid, 0)
clients = len(mem.clients)
reaped = mem.reap()
print(clients, reaped.frames, reaped.references, frame.reference_count)
"""


@pytest.mark.parametrize(
    ("end", "expected"),
    [
        ("sys.exit(3)", b"2 0 0 1\n"),  # it leaves, and gives all back
        ("raise SystemExit", b"2 0 0 1\n"),
        ("os._exit(0)", b"3 3 4 1\n"),
        ("os.kill(os.getpid(), signal.SIGKILL)", b"3 3 4 1\n"),
        ("os.abort()", b"3 3 4 1\n"),
        ("os.execv('/bin/true', ['true'])", b"3 3 4 1\n"),
    ],
)
def test_what_a_child_held_comes_back_however_it_ends(end, expected):
    name = unique_name()
    with shared_arena(name=name):
        assert run_program(ENDS.format(end=end), name) == expected


TWICE = """
import sys
import pageframe as pf
first, second = pf.PhysicalMemory.attach(sys.argv[1]), pf.PhysicalMemory.attach(sys.argv[1])
frames = first.alloc_frame(), second.alloc_frame()
print(len(first.clients))
"""


def test_a_process_that_is_two_clients_of_an_arena_leaves_as_both_at_its_end():
    name = unique_name()
    with shared_arena(name=name) as mem:
        assert run_program(TWICE, name) == b"3\n"
        assert len(mem.clients) == 1


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("allocate", ["alloc_frames", "alloc_segment"])
def test_frames_stay_with_the_parent_though_the_metadata_callable_of_them_forks(shared, allocate, fails):
    parent, children = os.getpid(), []

    def meta(paddr):
        if not children:
            children.append(os.fork())
        if fails and os.getpid() != parent:
            raise LookupError
        return Raw(number=paddr)

    try:
        handle = getattr(shared, allocate)(4, meta)
    except BaseException as error:
        if os.getpid() == parent:
            raise
        wanted = LookupError if fails else pf.MovedError
        os._exit(0 if isinstance(error, wanted) and len(shared.held_by(os.getpid())) == 0 else 2)
    if os.getpid() != parent:
        os._exit(1)
    assert wait_for(children[0]) == 0
    shared.reap()
    with handle, shared.alloc_frames(8) as others:
        paddrs = [frame.start_paddr for frame in handle]
        assert set(others.paddrs.tolist()).isdisjoint(paddrs)
        assert [frame.meta.number for frame in handle] == paddrs
        assert shared.audit().clean


# -- forking while threads work --------------------------------------------------------------------


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


def test_forks_while_threads_run_bulk_operations_take_nothing_from_the_parent():
    with shared_arena("256 MiB") as mem:
        kept = mem.alloc_segment(100)
        fill(kept, 7)

        def work(number):
            with mem.alloc_frames(3000, zeroed=False) as vec, vec.clone() as more:
                assert more.reference_counts.min() >= 2
            with mem.alloc_segment(2500, zeroed=False) as segment, segment.clone():
                fill(segment, number)
                assert holds(segment, number)

        def child(conn):
            with mem.alloc_frames(50) as vec, mem.alloc_segment(1000) as segment:
                fill(segment, 9)
                assert (vec.reference_counts == 1).all()
                assert holds(kept, 7)
            kept.drop()

        def forks():
            for _ in range(15):
                with Forked(child) as process:
                    process.result()
                mem.reap()
                assert kept[0].reference_count == 2

        while_threads_run(work, 2, forks)
        kept.drop()


def test_a_child_forked_while_threads_allocate_holds_exactly_the_handles_it_has(shared):
    # Whatever another thread does last before the fork: what the child finds it holds, and
    # dropping it takes nothing from the parent.
    slots = [[None] * 8 for _ in range(2)]

    def work(number):
        mine = slots[number]
        for i in range(8):
            mine[i] = shared.alloc_frame(zeroed=False)
        for i in range(8):
            mine[i] = mine[i].clone()

    def child(conn):
        wrong = 0
        for mine in slots:
            for i in range(8):
                if mine[i] is not None:
                    paddr = mine[i].start_paddr
                    wrong += handles_of(shared, paddr).get(os.getpid(), 0) < 1
                    mine[i] = None
        return wrong

    def forks():
        for _ in range(60):
            with Forked(child) as process:
                assert process.result() == 0
            shared.reap()

    while_threads_run(work, 2, forks)
    slots.clear()


@pytest.mark.parametrize("kind", ["shared", "private", "unmappable"])
def test_what_only_another_thread_refers_to_ends_in_the_child_alone(kind):
    # A child clears what the threads of its parent referred to before it calls any hook of Python's.
    options = {} if kind == "shared" else {"mappable": kind == "private"}
    mem = (pf.PhysicalMemory.create if kind == "shared" else pf.PhysicalMemory)("4 MiB", **options)
    local, ready, end, errors = threading.local(), threading.Event(), threading.Event(), []

    def refer():
        # Plain handles stay with the thread's own calls; whatever is here goes with the thread.
        local.kinds = all_kinds(mem)
        local.view = memoryview(local.kinds["segment"])
        local.unique = mem.alloc_frame(Raw(number=3)).try_unique()
        local.items = pf.LinkedList(mem, Page)
        local.items.push_back(mem.alloc_frame(Page(inode=5)).try_unique())
        if kind != "unmappable":
            local.space = pf.VmSpace(mem, 8 * PAGE)
            with local.space.cursor() as cursor:
                cursor.map(mem.alloc_segment(3))
            local.shown = mem.map([local.kinds["clone"].clone()])

    def check():
        check_all_kinds(local.kinds)
        assert holds(local.view, 2)
        assert (local.unique.meta.number, local.items.cursor_front().current_meta.inode) == (3, 5)
        if kind != "unmappable":
            with local.space.view(0, 3 * PAGE) as view:
                assert bytes(view) == bytes(3 * PAGE)
            assert holds(local.shown, 1)

    def work():
        refer()
        ready.set()
        end.wait(LIMIT)
        try:
            check()
        except BaseException as error:
            errors.append(error)

    def child(conn):
        with mem.alloc_segment(20) as segment:
            fill(segment, 9)
        if kind == "shared":
            assert mem.audit().clean
            return mem.held_by(os.getpid()).tolist()
        return mem.used_frames

    def look():
        found = mem.stats()
        return found.used_frames, found.references, mem.slots["count"].tolist()

    thread = threading.Thread(target=work)
    thread.start()
    assert ready.wait(LIMIT)
    before = look()
    with Forked(child) as process:
        assert process.result() == ([] if kind == "shared" else 0)
    if kind == "shared":
        mem.reap()
        assert mem.audit().clean
    assert look() == before
    end.set()
    thread.join()
    assert errors == []
    gc.collect()
    assert mem.used_frames == 0
    mem.close()


def test_a_child_forked_while_a_thread_leaves_keeps_no_lock_of_its_parents(monkeypatch):
    # It would make everybody wait who attaches or leaves, as long as it lives.
    name = unique_name()
    with pf.PhysicalMemory.create("1 MiB", name) as mem:
        leaving = pf.PhysicalMemory.attach(name)
        inside, go_on = threading.Event(), threading.Event()

        def locked(fd, offset, size, locked=backing.locked):
            if threading.current_thread() is thread:
                inside.set()
                go_on.wait(LIMIT)
            return locked(fd, offset, size)

        thread = threading.Thread(target=leaving.close)
        monkeypatch.setattr(backing, "locked", locked)
        thread.start()
        assert inside.wait(LIMIT)
        with Forked(lambda conn: conn.recv()) as child:
            go_on.set()
            thread.join()
            with Forked(lambda conn: pf.PhysicalMemory.attach(name).close()) as other:
                other.result()
            assert [client.pid for client in mem.clients][:1] == [os.getpid()]
            child.say()
            child.result()
        mem.reap()


@pytest.mark.parametrize("copied", [True, False])
def test_nothing_that_runs_in_a_child_writes_to_the_private_frames_of_its_parent(mem, monkeypatch, copied):
    local, ready, end = threading.local(), threading.Event(), threading.Event()
    parent, ran = os.getpid(), []
    mapped, segment = mem.map([mem.alloc_frame(), mem.alloc_frame()]), mem.alloc_segment(1)
    arrays = [np.frombuffer(handle, np.uint8) for handle in (mapped, segment)]

    class Late:
        def __del__(self):
            if os.getpid() != parent:
                ran.append(True)
                for array in arrays:
                    array[:] = 9

    def work():
        local.late = Late()
        ready.set()
        end.wait(LIMIT)

    def no_memory(size):
        raise MemoryError

    thread = threading.Thread(target=work)
    thread.start()
    assert ready.wait(LIMIT)
    if not copied:
        monkeypatch.setattr(backing, "create_private", no_memory)
        monkeypatch.setattr(sys, "unraisablehook", lambda what: None)
    with Forked(lambda conn: (len(ran), mem.closed)) as child:
        assert child.result() == (1, not copied)
    monkeypatch.undo()
    assert [int(array.max()) for array in arrays] == [0, 0]
    end.set()
    thread.join()
    arrays.clear()


def test_a_fork_within_the_hooks_of_another_takes_nothing_from_the_parent():
    told = run_program("""if True:
        import os, threading, warnings

        warnings.simplefilter("ignore")
        within = []

        def fork_within():
            if within:
                within.clear()
                pid = os.fork()
                if pid == 0:
                    os._exit(0)
                os.waitpid(pid, 0)

        os.register_at_fork(before=fork_within)  # and run behind those of pageframe
        import pageframe as pf

        mem = pf.PhysicalMemory.create("1 MiB")
        local, ready, end = threading.local(), threading.Event(), threading.Event()
        frame = mem.alloc_frame()

        def work():
            local.clone = frame.clone()
            ready.set()
            end.wait()

        thread = threading.Thread(target=work)
        thread.start()
        ready.wait()
        within.append(True)
        pid = os.fork()
        if pid == 0:
            os._exit(0)
        os.waitpid(pid, 0)
        mem.reap()
        print(within, frame.reference_count, mem.held_by(os.getpid())["references"].sum(), mem.audit().clean)
        end.set()
        thread.join()
        """)
    assert told.split() == [b"[]", b"2", b"2", b"True"]


def test_a_fork_that_is_interrupted_before_its_turn_takes_no_place_from_another_threads_child():
    told = run_program("""if True:
        import os, signal, sys, threading, warnings

        warnings.simplefilter("ignore")
        waiting, over = threading.Event(), threading.Event()

        def wait():
            if threading.current_thread() is thread:
                waiting.set()
                over.wait()

        os.register_at_fork(before=wait)
        import pageframe as pf

        mem = pf.PhysicalMemory.create("1 MiB")
        frame = mem.alloc_frame()
        space = pf.VmSpace(mem, 4096)

        def interrupted(*args):
            raise KeyboardInterrupt

        def child():
            pid = os.fork()
            if pid == 0:
                print(mem.closed, frame.reference_count, flush=True)
                os._exit(0)
            os.waitpid(pid, 0)

        signal.signal(signal.SIGALRM, interrupted)
        seen = []
        sys.unraisablehook = lambda what: seen.append(what.exc_type.__name__)
        thread = threading.Thread(target=child)
        thread.start()
        waiting.wait()
        signal.setitimer(signal.ITIMER_REAL, 1)
        pid = os.fork()
        if pid == 0:
            os._exit(mem.closed)
        closed = os.waitpid(pid, 0)[1] >> 8
        over.set()
        thread.join()
        mem.reap()
        print(closed, seen, frame.reference_count, mem.audit().clean)
        """)
    assert told.decode().split("\n")[:2] == ["False 2", "1 ['KeyboardInterrupt'] 1 True"]


def test_threads_that_fork_at_once_each_get_a_client_for_their_child(shared):
    frame = shared.alloc_frame()

    def fork_one(number):
        def work(conn):
            with shared.alloc_frame() as mine:
                fill(mine, number)
                conn.send(os.getpid())
                conn.recv()
                return holds(mine, number), handles_of(shared, frame.start_paddr)[os.getpid()]

        with Forked(work) as process:
            assert process.hear() == process.pid
            assert process.pid in [client.pid for client in shared.clients]
            process.say()
            assert process.result() == (True, 1)

    def body():
        end = time.monotonic() + 1
        while time.monotonic() < end:
            fork_one(9)

    while_threads_run(fork_one, 3, body)
    shared.reap()
    assert len(shared.clients) == 1
    assert frame.reference_count == 1
    frame.drop()


# -- everything that starts processes --------------------------------------------------------------


def double(array, frame):
    """Double an array where it lies; return its sum, and what the frame says."""
    array *= 2
    return int(array.sum()), frame.meta.number, len(frame.mem.clients)


def report_to(queue, mem, frame, segment, vec, array):
    """Use one of each, and send a frame and an array back."""
    assert frame.mem is mem
    result = mem.alloc_frame(Raw(number=int(array.sum())))
    fill(result, 5)
    made = mem.zeros(10, np.int64)
    made += 3
    queue.put((frame.meta.number, holds(segment, 2), len(vec), result, made))
    queue.close()
    queue.join_thread()


def make_square(mem, number):
    array = mem.empty((number, PAGE), np.uint8)
    array[...] = number
    return array


def sum_of(array):
    return type(array).__name__, int(array.sum())


@pytest.mark.parametrize("method", METHODS)
def test_a_process_of_multiprocessing_gets_handles_and_sends_handles(shared, method):
    context = mp.get_context(method)
    queue = context.Queue()
    frame, segment = shared.alloc_frame(Raw(number=3)), shared.alloc_segment(2)
    vec, array = shared.alloc_frames(4), shared.zeros(6, np.int64)
    fill(segment, 2)
    array += 7
    process = context.Process(target=report_to, args=(queue, shared, frame, segment, vec, array))
    process.start()
    number, same, length, result, made = queue.get(timeout=LIMIT)
    process.join(LIMIT)
    assert process.exitcode == 0
    assert (number, same, length) == (3, True, 4)
    assert result.meta.number == 42
    assert holds(result, 5)
    assert isinstance(made, np.ndarray)
    assert made.tolist() == [3] * 10
    assert len(shared.clients) == 1  # it has left by itself
    for handle in (frame, segment, vec, result):
        assert handle.meta_type is not None
        handle.drop()
    queue.close()
    queue.join_thread()
    process.close()


@pytest.mark.parametrize("method", METHODS)
def test_a_process_pool_executor_takes_handles_and_gives_handles(shared, method):
    array, frame = shared.zeros(100, np.int64), shared.alloc_frame(Raw(number=8))
    array += 1
    with ProcessPoolExecutor(2, mp_context=mp.get_context(method)) as pool:
        total, number, clients = pool.submit(double, array, frame).result(LIMIT)
        squares = list(pool.map(make_square, [shared] * 5, range(1, 6), timeout=LIMIT))
        sums = list(pool.map(sum_of, squares, timeout=LIMIT))
    assert (total, number) == (200, 8)
    assert clients >= 2
    assert (array == 2).all()
    assert [square.shape for square in squares] == [(n, PAGE) for n in range(1, 6)]
    assert all((square == n).all() for n, square in enumerate(squares, 1))
    assert sums == [("FrameArray", n * n * PAGE) for n in range(1, 6)]
    assert len(shared.clients) == 1
    frame.drop()


@pytest.mark.parametrize("method", METHODS)
def test_a_multiprocessing_pool_takes_handles_and_gives_handles(shared, method):
    with mp.get_context(method).Pool(2) as pool:
        squares = pool.starmap_async(make_square, [(shared, n) for n in range(1, 6)]).get(LIMIT)
        sums = pool.map_async(sum_of, squares).get(LIMIT)
        pool.close()
        pool.join()
    assert sums == [("FrameArray", n * n * PAGE) for n in range(1, 6)]
    del squares


@pytest.mark.parametrize("method", METHODS)
def test_a_pool_that_is_terminated_leaves_nothing(shared, method):
    pool = mp.get_context(method).Pool(2)
    arrays = pool.starmap_async(make_square, [(shared, 2)] * 4).get(LIMIT)
    pool.terminate()
    pool.join()
    assert all((array == 2).all() for array in arrays)


PROGRAM = """
import pickle, sys
import pageframe as pf
array, name = pickle.load(sys.stdin.buffer)
mem = pf.PhysicalMemory.attach(name)
assert type(array) is pf.FrameArray
array += 1
frame = mem.alloc_frame()
memoryview(frame)[:2] = b"hi"
sys.stdout.buffer.write(pickle.dumps(frame))
"""


def test_a_program_of_its_own_gets_handles_by_its_input_and_sends_them_by_its_output():
    name = unique_name()
    with shared_arena(name=name) as mem:
        array = mem.zeros(1000, np.int32)
        answer = run_program(PROGRAM, input=pickle.dumps((array, name)))
        assert (array == 1).all()
        assert len(mem.clients) == 1
        with pickle.loads(answer) as frame:
            assert bytes(memoryview(frame)[:2]) == b"hi"
            assert frame.mem is mem
            assert frame.reference_count == 1
        del array


def test_a_program_started_without_a_fork_of_pythons_own_keeps_no_arena_alive(shared):
    frame = shared.alloc_frame()
    (frame_fd,) = (fd.name for fd in Path("/proc/self/fd").iterdir() if shared.id in read_link(fd))
    with subprocess.Popen(
        [sys.executable, "-S", "-c", "input()"], stdin=subprocess.PIPE, close_fds=False
    ) as process:
        try:
            assert len(shared.clients) == 1
            shared_file = f"/proc/{process.pid}/fd/{frame_fd}"
            wait_until(lambda: not Path(shared_file).exists())  # once it executes the program
        finally:
            process.communicate(b"\n", timeout=LIMIT)
    frame.drop()


def read_link(path):
    """What a descriptor is of; nothing if it has been closed."""
    try:
        return str(Path(path).readlink())
    except FileNotFoundError:
        return ""


def test_no_descriptor_is_left_by_forks(shared):
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(5):
        with Forked(lambda conn: len(list(Path("/proc/self/fd").iterdir()))) as child:
            assert child.result() <= before + 2
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    assert_quiet(shared)
