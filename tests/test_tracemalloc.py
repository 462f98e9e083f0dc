# This Source Code Form is subject to the terms of the Mozilla Public
# License, v. 2.0. If a copy of the MPL was not distributed with this
# file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""tracemalloc shows the frames that this process holds, and the line that got each."""

import gc
import pickle
import sys
import threading
import tracemalloc
from pathlib import Path

import pytest

import pageframe as pf
from pageframe._core import backing
from processes import LIMIT, Forked, run_program, shared_arena
from types_for_tests import Dropped, Node, Page

PAGE = 4096
HERE = tracemalloc.DomainFilter(True, pf.TRACEMALLOC_DOMAIN)


@pytest.fixture(autouse=True)
def tracing():
    """Trace, and leave no trace of a frame."""
    tracemalloc.start()
    yield
    gc.collect()
    left = lines()
    tracemalloc.stop()
    assert left == {}


def lines():
    """Return the lines that hold frames, as the text behind their last ``#``: text -> frames."""
    found = {}
    for stat in tracemalloc.take_snapshot().filter_traces([HERE]).statistics("lineno"):
        where = stat.traceback[0]
        assert where.filename == __file__
        assert stat.size == stat.count * PAGE
        text = Path(__file__).read_text().splitlines()[where.lineno - 1].rpartition("#")[2].strip()
        found[text] = found.get(text, 0) + stat.count
    return found


WAYS = {
    "alloc_frame": (1, lambda mem: mem.alloc_frame()),  # here
    "typed": (1, lambda mem: mem.alloc_frame(Node(level=2))),  # here
    "alloc_frames": (5, lambda mem: mem.alloc_frames(5)),  # here
    "alloc_frames, each its own": (5, lambda mem: mem.alloc_frames(5, lambda _: Node())),  # here
    "alloc_segment": (7, lambda mem: mem.alloc_segment(7)),  # here
    "Frame.from_unused": (1, lambda mem: pf.Frame.from_unused(mem, 0x40000)),  # here
    "UniqueFrame.from_unused": (1, lambda mem: pf.UniqueFrame.from_unused(mem, 0x40000)),  # here
    "Segment.from_unused": (2, lambda mem: pf.Segment.from_unused(mem, 0x40000, 0x42000)),  # here
    "array": (3, lambda mem: mem.zeros(2 * PAGE + 1, "u1")),  # here
    "asarray": (1, lambda mem: mem.asarray([1, 2, 3])),  # here
}


@pytest.mark.parametrize("way", WAYS)
def test_frames_show_with_the_line_that_got_them_until_they_go(mem, way):
    frames, get = WAYS[way]
    handle = get(mem)
    assert lines() == {"here": frames}
    del handle
    assert lines() == {}


def test_page_tables_and_rings_show(mem):
    ring = mem.ring(4 * PAGE)  # ring and its nodes
    used = mem.used_frames
    assert used > 4
    assert lines() == {"ring and its nodes": used}
    ring.drop()
    assert lines() == {}


def test_every_way_of_letting_go_ends_the_trace(mem):
    mem.alloc_frame().drop()
    mem.alloc_frames(70).drop()
    mem.alloc_segment(70).drop()
    pf.UniqueFrame.from_unused(mem, 0x40000).reset_as_unused()
    pages = pf.LinkedList(mem, Page)
    pages.push_back(pf.UniqueFrame.from_unused(mem, 0x41000, Page()))  # in a list
    assert lines() == {"in a list": 1}
    pages.drop()
    with mem.alloc_frame(Dropped(number=1)), mem.alloc_segment(3, Dropped(number=2)):  # on_drop
        assert lines() == {"on_drop": 4}
    view = memoryview(mem.alloc_frame())  # a view
    assert lines() == {"a view": 1}
    view.release()
    Dropped.seen.clear()
    assert lines() == {}


def test_handles_do_not_count_but_frames(mem):
    frames = mem.alloc_frames(10)  # got
    clone, first, part = frames.clone(), frames[0], frames[2:5]
    paddr = first.start_paddr
    again = pf.Frame.from_in_use(mem, paddr)
    frames.drop()
    assert lines() == {"got": 10}
    clone.drop()
    assert lines() == {"got": 4}
    part.drop()
    first.drop()
    assert lines() == {"got": 1}
    raw = again.into_raw()
    assert lines() == {"got": 1}
    again = pf.UniqueFrame.share(pf.Frame.from_raw(mem, raw).try_unique().repurpose(Node()))
    assert lines() == {"got": 1}
    again.drop()


def test_what_fails_leaves_no_trace(mem):
    def fail(paddr):
        raise KeyError(paddr)

    for attempt in (
        lambda: mem.alloc_frames(3, fail),
        lambda: mem.alloc_segment(3, fail),
        lambda: mem.alloc_frames(300),
        lambda: pf.Frame.from_unused(mem, 0),
    ):
        with pytest.raises((KeyError, pf.PageFrameError)):
            attempt()
        assert lines() == {}


def test_starting_and_stopping_at_any_time_shows_what_was_got_since(mem):
    before = mem.alloc_frames(3)  # before
    tracemalloc.stop()
    unseen = mem.alloc_frames(4)
    before[0].drop()
    tracemalloc.start()
    after = mem.alloc_frames(5)  # after
    assert lines() == {"after": 5}
    before.drop()
    unseen.drop()
    assert lines() == {"after": 5}
    tracemalloc.stop()
    after.drop()
    tracemalloc.start()
    assert lines() == {}


def test_bulk_that_runs_without_the_interpreter_lock_ends_its_traces():
    with pf.PhysicalMemory("40 MiB") as mem:
        frames, segment = mem.alloc_frames(3000), mem.alloc_segment(5000)  # many
        assert lines() == {"many": 8000}
        frames.drop()
        assert lines() == {"many": 5000}
        segment.drop()


def test_threads_allocate_and_release_while_traces_are_taken():
    """Traces end without the interpreter lock: nothing may wait for one that waits for it."""
    with pf.PhysicalMemory("64 MiB") as mem:
        failed = []

        def work():
            try:
                for i in range(30):
                    mem.alloc_frames(2100 + i).drop()
                    mem.alloc_frame().drop()
            except BaseException as error:
                failed.append(error)
                raise

        threads = [threading.Thread(target=work, daemon=True) for _ in range(3)]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            tracemalloc.take_snapshot()
            threads[0].join(0.01)
        for thread in threads:
            thread.join(LIMIT)
            assert not thread.is_alive()
        assert not failed
        assert lines() == {}


def test_an_arena_that_goes_leaves_no_trace_of_raw_references():
    mem = pf.PhysicalMemory("1 MiB")
    mem.alloc_frame().into_raw()  # raw
    assert lines() == {"raw": 1}
    del mem
    gc.collect()
    assert lines() == {}
    mem = pf.PhysicalMemory.create("1 MiB")
    mem.alloc_frame().into_raw()  # raw
    mem.alloc_frame(Dropped()).into_raw()  # raw
    assert lines() == {"raw": 2}
    del mem
    gc.collect()
    Dropped.seen.clear()
    assert lines() == {}


# -- shared arenas -----------------------------------------------------------------------------


def keep(conn, data):
    """Hold what was sent until told to let go."""
    handle = pickle.loads(data)
    conn.send("held")
    conn.recv()
    handle.drop()


@pytest.mark.parametrize("many", [False, True])
def test_a_frame_that_others_alone_hold_is_no_longer_traced(many):
    with shared_arena() as mem:
        handle = mem.alloc_frames(9) if many else mem.alloc_frame()  # got
        with Forked(keep, pickle.dumps(handle)) as other:
            assert other.hear() == "held"
            # The child holds it by the fork, too; it lets go of that with its end.
            assert lines() == {"got": 9 if many else 1}
            handle.drop()
            assert lines() == {}
            assert mem.used_frames == (9 if many else 1)
            other.say()
            other.result()


def send_some(conn, mem):
    """Send a frame, a segment and a vector, and hold them."""
    handles = mem.alloc_frame(), mem.alloc_segment(2), mem.alloc_frames(4)
    conn.send([handle.start_paddr for handle in handles[:2]])
    conn.send([pickle.dumps(handle) for handle in handles])
    conn.recv()


def test_what_is_loaded_or_taken_by_paddr_shows_with_that_line():
    with shared_arena() as mem, Forked(send_some, mem) as other:
        paddrs, messages = other.hear(), other.hear()
        assert lines() == {}
        taken = pf.Frame.from_in_use(mem, paddrs[0])  # taken
        assert lines() == {"taken": 1}
        loaded = [pickle.loads(data) for data in messages]  # loaded
        assert lines() == {"taken": 1, "loaded": 6}
        again = [pickle.loads(data) for data in messages[:2]]
        ref = taken.borrow()
        taken.drop()
        assert lines() == {"taken": 1, "loaded": 6}
        loaded[0].drop()
        again[0].drop()
        assert lines() == {"loaded": 6}
        clone = ref.clone()  # cloned
        assert lines() == {"loaded": 6, "cloned": 1}
        del loaded, again
        gc.collect()
        assert lines() == {"cloned": 1}
        clone.drop()
        mem.inc_frame_ref_count(paddrs[1])  # raw
        assert lines() == {"raw": 1}
        pf.Frame.from_raw(mem, paddrs[1]).drop()
        other.say()
        other.result()


def define_and_send(conn, mem):
    """Send a frame whose on_drop nobody else knows."""

    class Mine(pf.UntypedFrameMeta):
        def on_drop(self, reader):
            pass

    frame = mem.alloc_frame(Mine)
    data = pickle.dumps(frame)
    frame.drop()
    conn.send(data)
    conn.recv()
    return mem.reap().adopted


def test_an_orphan_is_no_longer_traced():
    with shared_arena() as mem, Forked(define_and_send, mem) as other:
        frame = pickle.loads(other.hear())  # opaque
        assert lines() == {"opaque": 1}
        frame.drop()
        assert lines() == {}
        assert mem.used_frames == 1
        other.say()
        assert other.result() == 1


def test_a_client_that_leaves_has_no_trace_of_what_others_hold_on():
    mem = pf.PhysicalMemory.create("1 MiB")
    frame = mem.alloc_frame()  # held by two
    with Forked(keep, pickle.dumps(frame)) as other:
        assert other.hear() == "held"
        frame.into_raw()
        del frame
        assert lines() == {"held by two": 1}
        del mem
        gc.collect()
        assert lines() == {}
        other.say()
        other.result()


def count_traces(conn):
    conn.send(lines())


def test_a_forked_child_has_the_traces_of_what_it_holds():
    """What is UNIQUE stays with the parent."""
    with shared_arena() as mem, mem.alloc_frames(3):  # both
        unique = mem.alloc_frame().try_unique()  # the parent alone
        with Forked(count_traces) as child:
            assert child.hear() == {"both": 3}
            child.result()
        assert lines() == {"both": 3, "the parent alone": 1}
        unique.drop()


def test_a_child_that_finds_the_table_of_clients_full_has_no_trace(monkeypatch):
    monkeypatch.setattr(sys, "unraisablehook", lambda failed: None)
    with shared_arena(clients=1) as mem, mem.alloc_frame():  # the parent alone
        with Forked(count_traces) as child:
            assert child.hear() == {}
            child.result()
        assert lines() == {"the parent alone": 1}


def test_a_child_without_a_copy_of_a_private_arena_has_no_trace(monkeypatch, mem):
    def fail(size):
        raise OSError("no memory")

    monkeypatch.setattr(sys, "unraisablehook", lambda failed: None)
    monkeypatch.setattr(backing, "create_private", fail)
    with mem.alloc_frame():  # the parent alone
        with Forked(count_traces) as child:
            assert child.hear() == {}
            child.result()
        assert lines() == {"the parent alone": 1}


def test_reaping_a_killed_holder_changes_no_trace_here():
    with shared_arena() as mem, mem.alloc_frames(3):  # kept
        with Forked(send_some, mem) as other:
            other.hear()
            messages = other.hear()
            other.kill()
        assert mem.reap().references == 3 + 7  # those of the fork, and its own
        assert lines() == {"kept": 3}
        for data in messages:
            pickle.loads(data).drop()
        assert lines() == {"kept": 3}


def test_a_process_that_never_traces_reports_nothing_and_one_that_does_from_its_start_all(monkeypatch):
    source = (
        "import tracemalloc, pageframe as pf\n"
        "frames = pf.PhysicalMemory('1 MiB').alloc_frames(3)\n"
        "D = tracemalloc.DomainFilter(True, pf.TRACEMALLOC_DOMAIN)\n"
        "if tracemalloc.is_tracing():\n"
        "    print(len(tracemalloc.take_snapshot().filter_traces([D]).traces))\n"
    )
    assert run_program(source) == b""
    monkeypatch.setenv("PYTHONTRACEMALLOC", "1")
    assert run_program(source) == b"3\n"


def test_the_domain_is_a_constant_of_its_own():
    assert isinstance(pf.TRACEMALLOC_DOMAIN, int)
    assert pf.TRACEMALLOC_DOMAIN not in (0, 389047)  # Python's own, NumPy's
