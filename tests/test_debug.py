# This Source Code Form is subject to the terms of the Mozilla Public
# License, v. 2.0. If a copy of the MPL was not distributed with this
# file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""PAGEFRAME_DEBUG: released frames that are poisoned, and the trace of what was done to frames."""

import ctypes
import gc
import os
import pickle
import random
import re
import struct
import sys
import threading
import warnings
from pathlib import Path

import numpy as np
import pytest

import pageframe as pf
from other_processes import ArenaFile, Child, file_of
from other_processes import unique_name as passing_name
from pageframe import Frame, PhysicalMemory, Segment, UniqueFrame, WriteAfterReleaseWarning
from pageframe._core import backing
from processes import Forked, assert_quiet
from types_for_tests import Dropped, Node, Page

PAGE = 4096
POISON = 0xAA
KINDS = {
    "private": lambda **options: PhysicalMemory("1 MiB", **options),
    "anonymous": lambda **options: PhysicalMemory("1 MiB", mappable=False, **options),
    "shared": lambda **options: PhysicalMemory.create("1 MiB", clients=8, **options),
}


@pytest.fixture(autouse=True)
def _debug(monkeypatch):
    monkeypatch.setenv("PAGEFRAME_DEBUG", "poison,trace")


@pytest.fixture(params=KINDS)
def mem(request):
    """Return an arena that must be empty and whole at the end."""
    arena = KINDS[request.param]()
    yield arena
    gc.collect()
    if arena.shared:
        assert_quiet(arena)
    assert arena.used_frames == 0, arena.stats()
    arena.close()


@pytest.fixture
def shared():
    arena = KINDS["shared"]()
    yield arena
    assert_quiet(arena)
    arena.close()


def address(frame):
    """Where the bytes of a frame are: whoever keeps this may write when it no longer holds the frame."""
    return np.frombuffer(frame, np.uint8).ctypes.data


def write_stale(where, data=b"stale"):
    ctypes.memmove(where, data, len(data))


def write_to_all_free(mem):
    """Use all free frames, let go of them, and then write to each; return how many."""
    vec = mem.alloc_frames(mem.free_frames)
    places = [address(frame) for frame in vec]
    del vec
    for place in places:
        write_stale(place)
    return len(places)


def use_all(mem):
    """Use and release all free frames: a frame that was written to is told of."""
    mem.alloc_frames(mem.free_frames).drop()


# -- the environment ---------------------------------------------------------------------------


@pytest.mark.parametrize("make", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize(
    ("words", "debug"),
    [
        ("", set()),
        ("poison", {"poison"}),
        ("trace", {"trace"}),
        ("poison,trace", {"poison", "trace"}),
        (" trace , poison,", {"poison", "trace"}),
    ],
)
def test_the_environment_says_what_an_arena_keeps(monkeypatch, make, words, debug):
    monkeypatch.setenv("PAGEFRAME_DEBUG", words)
    with make() as mem:
        monkeypatch.setenv("PAGEFRAME_DEBUG", "poison" if words == "trace" else "trace")
        assert mem.debug == debug  # as it was when the arena was made


@pytest.mark.parametrize("make", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("words", ["posion", "poison trace", "trace,1"])
def test_an_unknown_word_is_refused_and_the_known_ones_are_named(monkeypatch, make, words):
    monkeypatch.setenv("PAGEFRAME_DEBUG", words)
    with pytest.raises(ValueError, match=r"poison and trace.*" + repr(words.split(",")[-1])):
        make()


def test_who_attaches_does_as_the_arena_says_whatever_its_own_environment(monkeypatch):
    script = """
        mem = PhysicalMemory.attach(NAME)
        tell(*sorted(mem.debug))
        frame = mem.alloc_frame()
        tell(frame.start_paddr)
        frame.drop()
    """
    with passing_name() as name, PhysicalMemory.create("1 MiB", name, clients=4) as mem:
        with Child(script, name, env={**os.environ, "PAGEFRAME_DEBUG": ""}) as child:
            assert child.hear() == "poison trace"
            paddr = int(child.hear())
            child.finish()
        assert [(e["event"], e["paddr"]) for e in mem.events(child.pid)] == [
            ("claim", paddr),
            ("free", paddr),
        ]
        with Frame.from_unused(mem, paddr) as frame:
            assert bytes(memoryview(frame)) == bytes([POISON]) * PAGE
    monkeypatch.setenv("PAGEFRAME_DEBUG", "")
    with passing_name() as name, PhysicalMemory.create("1 MiB", name, clients=4) as mem:
        with Child(script, name, env={**os.environ, "PAGEFRAME_DEBUG": "poison,trace"}) as child:
            assert child.hear() == ""
            paddr = int(child.hear())
            child.finish()
        with Frame.from_unused(mem, paddr) as frame:
            assert bytes(memoryview(frame)) == bytes(PAGE)


def test_an_arena_that_says_it_is_traced_and_has_no_room_for_rings_is_refused(monkeypatch):
    monkeypatch.setenv("PAGEFRAME_DEBUG", "")
    with passing_name() as name:
        PhysicalMemory.create("1 MiB", name, unlink_on_last=False).close()
        with file_of(name).open("r+b") as file:
            data = bytearray(file.read(backing.HEADER_SIZE))
            (flags,) = struct.unpack_from("=I", data, 212)
            struct.pack_into("=I", data, 212, flags | backing.TRACE)
            struct.pack_into("=Q", data, backing.CHECKED, backing.fnv1a(data[: backing.CHECKED]))
            file.seek(0)
            file.write(data)
        with pytest.raises(pf.ArenaDamagedError, match="contradict"):
            PhysicalMemory.attach(name)


# -- poison ------------------------------------------------------------------------------------


def test_a_write_after_release_is_told_with_all_that_is_known(mem):
    frame = mem.alloc_frame(Page)
    paddr, where = frame.start_paddr, address(frame)
    frame.drop()
    write_stale(where + 16, b"\1\2\3")
    write_stale(where + 100, b"\4")
    with pytest.warns(WriteAfterReleaseWarning) as told:
        frame = mem.alloc_frame()
    frame.drop()
    (warning,) = told
    name = f" ({Path(sys.argv[0]).name})" if mem.shared else ""
    assert re.fullmatch(
        rf"frame {paddr:#x} was written after its release: 4 of its bytes differ from the fill, the first at "
        rf"offset 0x10, from where on it has 01 02 03 aa aa aa aa aa; it was Page, last held by process "
        rf"{os.getpid()}{re.escape(name)}, and released \d+\.\d{{6}} s ago",
        str(warning.message),
    )
    assert warning.filename == __file__


@pytest.mark.parametrize("offset", [0, 7, 8, PAGE - 1])
def test_one_byte_is_enough_wherever_it_is(mem, offset):
    frame = mem.alloc_frame()
    where = address(frame)
    frame.drop()
    write_stale(where + offset, b"\xab")
    with pytest.warns(WriteAfterReleaseWarning, match=rf"1 of its bytes.* offset {offset:#x},"):
        mem.alloc_frame().drop()


def linked(mem):
    pages = pf.LinkedList(mem, Page)
    pages.push_back(mem.alloc_frame(Page).try_unique())
    return pages


USES = {
    "frame": (1, lambda mem, paddr: mem.alloc_frame()),
    "frame with metadata": (1, lambda mem, paddr: mem.alloc_frame(Node(level=2))),
    "frame at an address": (1, Frame.from_unused),
    "unique frame at an address": (1, UniqueFrame.from_unused),
    "list": (1, lambda mem, paddr: linked(mem)),
    "vector": (5, lambda mem, paddr: mem.alloc_frames(5)),
    "vector with metadata of each": (5, lambda mem, paddr: mem.alloc_frames(5, lambda p: Page(inode=p))),
    "segment": (3, lambda mem, paddr: mem.alloc_segment(3)),
    "segment with metadata of each": (3, lambda mem, paddr: mem.alloc_segment(3, lambda p: Page(inode=p))),
    "segment at an address": (2, lambda mem, paddr: Segment.from_unused(mem, paddr, paddr + 2 * PAGE)),
    "array": (2, lambda mem, paddr: mem.zeros(PAGE + 1, "u1")),
}


@pytest.fixture(params=USES)
def use(request):
    return USES[request.param]


def test_every_way_to_a_frame_tells_of_each_that_was_written(mem, use):
    frames, make = use
    write_to_all_free(mem)
    paddr = mem.size - 2 * PAGE
    with pytest.warns(WriteAfterReleaseWarning) as told:
        held = make(mem, paddr)
    assert len({str(warning.message).split()[1] for warning in told}) == len(told) == frames
    del held
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", WriteAfterReleaseWarning)
        use_all(mem)


def test_a_warning_that_is_an_error_loses_nothing(mem, use):
    _, make = use
    frames = write_to_all_free(mem)
    before = mem.stats()
    with pytest.raises(WriteAfterReleaseWarning):
        make(mem, mem.size - 2 * PAGE)
    assert mem.stats() == before
    if mem.shared:
        assert mem.audit().clean
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always", WriteAfterReleaseWarning)
        use_all(mem)
    assert len(told) == frames - 1  # each write is told once
    use_all(mem)


def test_many_frames_are_checked_in_one_call():
    with PhysicalMemory("32 MiB") as mem:
        frames = write_to_all_free(mem)
        assert frames > 4096  # so many that other threads may run meanwhile
        with pytest.warns(WriteAfterReleaseWarning) as told:
            mem.alloc_segment(4000).drop()
        assert len(told) == 4000
        with pytest.warns(WriteAfterReleaseWarning) as told:
            use_all(mem)
        assert len(told) == frames - 4000


def test_nodes_of_a_page_table_and_lists_of_messages_are_checked_too(shared):
    segment = shared.alloc_segment(2)
    vec = shared.alloc_frames(2)
    write_to_all_free(shared)
    with pytest.warns(WriteAfterReleaseWarning) as told:
        mapping = shared.map(segment)
    assert len(told) == 4  # levels
    assert bytes(memoryview(mapping)) == bytes(2 * PAGE)
    mapping.drop()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", WriteAfterReleaseWarning)
        write_to_all_free(shared)
    with pytest.warns(WriteAfterReleaseWarning) as told:
        message = pickle.dumps(vec)
    assert len(told) == 1
    pickle.loads(message).drop()
    del vec
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", WriteAfterReleaseWarning)
        use_all(shared)


def test_zeroed_frames_are_zero_and_others_show_the_fill(mem):
    use_all(mem)
    with mem.alloc_frame() as frame, mem.alloc_frame(zeroed=False) as other:
        assert bytes(memoryview(frame)) == bytes(PAGE)
        assert bytes(memoryview(other)) == bytes([POISON]) * PAGE
    with mem.alloc_segment(3) as segment, mem.alloc_segment(3, zeroed=False) as other:
        assert bytes(memoryview(segment)) == bytes(3 * PAGE)
        assert bytes(memoryview(other)) == bytes([POISON]) * 3 * PAGE
    assert (mem.zeros(PAGE, "u1") == 0).all()
    assert (mem.empty(PAGE, "u1") == POISON).all()


def test_a_frame_that_was_written_is_given_out_as_asked_for(mem):
    use_all(mem)
    for zeroed in (True, False):
        write_to_all_free(mem)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", WriteAfterReleaseWarning)
            with mem.alloc_frame(zeroed=zeroed) as frame:
                assert bytes(memoryview(frame)) == bytes([0 if zeroed else POISON]) * PAGE
            use_all(mem)


def test_frames_that_nobody_has_used_and_trimmed_ones_are_no_alarm(mem):
    use_all(mem)
    write_to_all_free(mem)
    mem.trim()
    use_all(mem)


def test_on_drop_and_a_life_that_was_given_another_purpose_see_their_own_bytes(mem):
    Dropped.seen.clear()
    frame = mem.alloc_frame(Dropped(number=3)).try_unique()
    memoryview(frame)[:4] = b"abcd"
    frame = frame.repurpose(Dropped(number=4))
    assert bytes(memoryview(frame)[:4]) == b"abcd"
    frame.drop()
    assert Dropped.seen == [(3, PAGE, b"abcd"), (4, PAGE, b"abcd")]
    use_all(mem)


def test_a_process_that_writes_after_it_has_let_go_is_told_of_in_another(shared):
    def work(conn):
        frame = shared.alloc_frame()
        paddr, where = frame.start_paddr, address(frame)
        frame.drop()
        write_stale(where)
        return paddr

    with Forked(work) as child:
        paddr = child.result()
    with pytest.warns(
        WriteAfterReleaseWarning, match=rf"frame {paddr:#x} .*last held by process {child.pid} "
    ):
        Frame.from_unused(shared, paddr).drop()


def test_the_last_holder_is_told_though_it_was_killed_and_another_one_reaped_it(shared):
    def work(conn):
        frames = [shared.alloc_frame(), shared.alloc_frame(Page).try_unique()]
        conn.send([(frame.start_paddr, address(frame)) for frame in frames])
        conn.recv()

    with Forked(work) as child:
        places = child.hear()
        child.kill()
    shared.reap()
    for paddr, where in places:
        write_stale(where)  # a fork: the arena is at the same addresses
        with pytest.warns(
            WriteAfterReleaseWarning, match=rf"frame {paddr:#x} .*last held by process {child.pid} \("
        ):
            Frame.from_unused(shared, paddr).drop()


def test_who_leaves_without_letting_go_leaves_no_false_alarm(shared):
    def work(conn):
        held.append(shared.alloc_frames(20))
        memoryview(held[0][0])[:] = bytes(range(256)) * 16

    held = []
    with Forked(work) as child:
        child.result()
    shared.reap()
    use_all(shared)


@pytest.mark.parametrize("kind", ["private", "anonymous"])
def test_a_forked_childs_copy_has_the_fill_and_the_writes_of_before(kind):
    def work(conn):
        with pytest.warns(WriteAfterReleaseWarning) as told:
            use_all(mem)
        return [str(warning.message) for warning in told]

    with KINDS[kind]() as mem:
        use_all(mem)
        frame = mem.alloc_frame()
        paddr, where = frame.start_paddr, address(frame)
        frame.drop()
        write_stale(where)
        with Forked(work) as child:
            (told,) = child.result()
        assert told.startswith(f"frame {paddr:#x} was written")
        assert f"process {os.getpid()}," in told
        with pytest.warns(WriteAfterReleaseWarning, match=f"{paddr:#x}"):
            use_all(mem)


class Bump:
    """An allocator of the user's own that remembers what it gave."""

    def __init__(self):
        self.free, self.given = [], set()

    def alloc(self, layout):
        paddr = next(p for p in self.free if p not in self.given)
        self.given.add(paddr)
        return paddr

    def dealloc(self, paddr, size):
        self.given.remove(paddr)

    def add_free_memory(self, paddr, size):
        self.free += range(paddr, paddr + size, PAGE)


def test_an_allocator_of_the_users_own_has_its_frames_back_when_a_warning_is_an_error():
    allocator = Bump()
    with PhysicalMemory("1 MiB", allocator=allocator) as mem:
        for make, last in (
            (mem.alloc_frame, 0),
            (lambda: mem.alloc_frames(3), 2),
            (lambda: mem.alloc_segment(1), 0),
        ):
            places = [address(frame) for frame in mem.alloc_frames(4)]
            assert not allocator.given
            write_stale(places[last])
            with pytest.raises(WriteAfterReleaseWarning):
                make()
            assert not allocator.given
            assert mem.used_frames == 0
            make().drop()


def tell_by(monkeypatch, hook):
    """Have a hook of the user's own shown warnings."""
    monkeypatch.setattr(warnings, "showwarning", hook)
    warnings.simplefilter("always", WriteAfterReleaseWarning)


def test_a_warning_may_allocate_and_release(monkeypatch, mem, use):
    def hook(*args):
        told.append(args)
        if len(told) < 50:
            mem.alloc_frames(2).drop()
            mem.alloc_frame().drop()

    told = []
    _, make = use
    write_to_all_free(mem)
    with warnings.catch_warnings():
        tell_by(monkeypatch, hook)
        held = make(mem, mem.size - 2 * PAGE)
        assert told
        assert mem.used_frames >= 1
        del held
        use_all(mem)


def test_a_warning_cant_close_the_arena_under_the_allocation(monkeypatch, mem, use):
    def hook(*args):
        try:
            mem.close()
        except pf.ArenaInUseError as error:
            refused.append(error)

    refused = []
    _, make = use
    write_to_all_free(mem)
    with warnings.catch_warnings():
        tell_by(monkeypatch, hook)
        held = make(mem, mem.size - 2 * PAGE)
        del held
        assert refused
        assert not mem.closed
        use_all(mem)


def test_a_warning_may_fork_and_the_frames_stay_with_the_parent(monkeypatch, shared):
    """They are claimed, and not yet anybody's reference: the child has none of them."""
    parent = os.getpid()
    children = []

    def hook(*args):
        pid = os.fork()
        if pid:
            children.append(pid)

    write_to_all_free(shared)
    with warnings.catch_warnings():
        tell_by(monkeypatch, hook)
        code = 1
        try:
            frame = shared.alloc_frame()
            frame.drop()
        except pf.MovedError:
            code = 0
        finally:
            if os.getpid() != parent:
                os._exit(code)
    (pid,) = children
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    shared.reap()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", WriteAfterReleaseWarning)
        use_all(shared)


# -- trace -------------------------------------------------------------------------------------


def since(mem, before):
    """What was done after some events were had: (event, paddr in frames)."""
    return [(str(e["event"]), int(e["paddr"]) // PAGE) for e in mem.events()[len(before) :]]


def test_events_tell_in_order_what_was_done_to_a_frame(mem):
    before = mem.events()
    frame = mem.alloc_frame(Page)
    n = frame.start_paddr // PAGE
    clone = frame.clone()
    clone.drop()
    unique = frame.try_unique().repurpose(Page)
    unique.share().drop()
    assert since(mem, before) == [
        ("claim", n), ("more", n), ("less", n), ("unique", n), ("repurpose", n), ("share", n), ("free", n),
    ]  # fmt: skip


def test_events_tell_each_frame_of_segments_and_vectors(mem):
    before = mem.events()
    segment = mem.alloc_segment(70)  # crosses a word of the bitfield
    first = segment.start_paddr // PAGE
    segment.drop()
    run = range(first, first + 70)
    done = since(mem, before)
    assert done[:70] == [("claim", n) for n in run]
    assert sorted(done[70:]) == [("free", n) for n in run]
    before = mem.events()
    vec = mem.alloc_frames(3)
    numbers = [int(paddr) // PAGE for paddr in vec.paddrs]
    vec.clone().drop()
    vec.drop()
    assert since(mem, before) == [
        (event, n) for event in ("claim", "more", "less", "free") for n in numbers
    ]  # fmt: skip


def test_events_tell_what_is_mapped_and_sent(shared):
    frame = shared.alloc_frame()
    n = frame.start_paddr // PAGE
    before = shared.events()
    mapping = shared.map([frame.clone()])
    assert ("map", n) in since(shared, before)
    mapping.drop()
    before = shared.events()
    loaded = pickle.loads(pickle.dumps(frame))
    assert since(shared, before) == [("more", n), ("send", n), ("load", n), ("more", n)]
    loaded.drop()
    frame.drop()


def test_unmapping_is_told():
    with PhysicalMemory("1 MiB") as mem, pf.VmSpace(mem, "1 MiB") as vm:
        frame = mem.alloc_frame()
        n = frame.start_paddr // PAGE
        with vm.cursor() as cursor:
            cursor.map(frame)
            before = mem.events()
            cursor.jump(0)
            cursor.unmap(PAGE)
        assert ("unmap", n) in since(mem, before)


def test_events_have_their_fields_and_the_order_of_time(mem):
    mem.alloc_frame().drop()
    events = mem.events()
    assert events.dtype.names == ("time", "pid", "lane", "event", "paddr")
    assert (np.diff(events["time"].astype("i8")) >= 0).all()
    assert set(events["pid"]) == {os.getpid()}
    assert len(set(events["lane"])) == 1
    assert (events["paddr"] % PAGE == 0).all()
    assert len(mem.events(os.getpid())) == len(events)
    for other in (0, -1, 2**40):
        assert len(mem.events(other)) == 0
    with pytest.raises(TypeError):
        mem.events("1")


def test_a_ring_keeps_the_last_256_events(mem):
    for _ in range(200):
        mem.alloc_frame().drop()
    with mem.alloc_frame() as frame:
        for _ in range(100):
            frame.clone().drop()
        events = mem.events()
    assert len(events) == 256
    assert list(events["event"][-200:]) == ["more", "less"] * 100
    assert list(events["event"][:55]) == ["free", "claim"] * 27 + ["free"]


def test_each_thread_has_a_ring_of_its_own(mem):
    def work(n):
        barrier.wait(30)
        with mem.alloc_frame() as frame:
            for _ in range(20):
                frame.clone().drop()
            paddrs[n] = frame.start_paddr
            barrier.wait(30)

    paddrs = {}
    barrier = threading.Barrier(2)
    threads = [threading.Thread(target=work, args=(n,)) for n in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    events = mem.events()
    lanes = {int(e["lane"]) for e in events if e["paddr"] in paddrs.values()}
    assert len(lanes) == 2
    for paddr in paddrs.values():
        own = events[events["paddr"] == paddr]
        assert len(set(own["lane"])) == 1
        assert list(own["event"]) == ["claim", *["more", "less"] * 20, "free"]


def test_threads_beyond_the_lanes_are_not_traced(mem):
    def work():
        with mem.alloc_frame():
            barrier.wait(30)

    barrier = threading.Barrier(80)
    threads = [threading.Thread(target=work) for _ in range(80)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert 32 <= len(set(mem.events()["lane"])) <= 64


def test_the_events_of_a_killed_process_are_there_before_and_after_it_is_reaped(shared):
    def work(conn):
        frame = shared.alloc_frame()
        conn.send(frame.start_paddr)
        while True:
            frame.clone().drop()

    def other(conn):
        shared.alloc_frame().drop()

    with Forked(work) as child:
        paddr = child.hear()
        while len(shared.events(child.pid)) < 256:
            pass
        child.kill()
    before = shared.events(child.pid)
    assert len(before) in (255, 256)  # one may be torn
    assert set(before["event"]) <= {"more", "less", "claim"}
    assert set(before["paddr"]) == {paddr}
    report = shared.reap()
    # Killed between a count and the ledger it leaves the frame in doubt, which an audit settles.
    assert report.frames + report.in_doubt == 1
    assert shared.audit(repair=True).repaired
    assert (shared.events(child.pid) == before).all()
    assert "free" in list(shared.events(os.getpid())["event"])  # who reaped it
    with Forked(other) as second:  # takes the place
        second.result()
    assert list(shared.events(second.pid)["event"]) == ["claim", "free"]
    assert 256 >= len(before) > len(shared.events(child.pid)) >= len(before) - 3


def test_a_view_from_outside_shows_the_events_too():
    with passing_name() as name, PhysicalMemory.create("1 MiB", name, clients=4) as mem:
        mem.alloc_frame().drop()
        with pf.ArenaView(name) as view:
            assert view.debug == {"poison", "trace"}
            assert (view.events() == mem.events()).all()
            assert list(view.events(os.getpid())["event"]) == ["claim", "free"]
        with pytest.raises(pf.ArenaClosedError):
            view.events()


@pytest.mark.parametrize("make", KINDS.values(), ids=KINDS)
def test_an_arena_without_a_trace_says_so(monkeypatch, make):
    monkeypatch.setenv("PAGEFRAME_DEBUG", "poison")
    with make() as mem, pytest.raises(TypeError, match="PAGEFRAME_DEBUG=trace"):
        mem.events()
    with pytest.raises(pf.ArenaClosedError):
        mem.events()


def test_to_look_takes_no_memory():
    with passing_name() as name, PhysicalMemory.create("1 MiB", name, clients=64) as mem:
        mem.alloc_frame().drop()
        before = file_of(name).stat().st_blocks
        assert len(mem.events()) >= 2
        assert file_of(name).stat().st_blocks == before


def rings_of(mem, file, client):
    """Where the rings of a client lie in the file."""
    return file.tables["areas"][0] + (client + 1) * file.area_size - backing.RINGS_SIZE


@pytest.mark.parametrize("seed", range(6))
def test_damaged_rings_are_read_without_harm(seed):
    rng = random.Random(seed)
    with passing_name() as name, PhysicalMemory.create("1 MiB", name, clients=4) as mem:
        mem.alloc_frame().drop()
        with ArenaFile(mem, file_of(name)) as file:
            for client in range(4):
                at = rings_of(mem, file, client)
                if seed == 0:
                    data = b"\xff" * backing.RINGS_SIZE
                elif seed == 1:  # serial numbers that fit, and nonsense else
                    data = b"".join(
                        struct.pack("=QQQQ", place or 256, *(rng.getrandbits(64) for _ in range(3)))
                        for _ in range(64)
                        for place in range(256)
                    )
                else:
                    data = rng.randbytes(backing.RINGS_SIZE)
                file.map[at : at + backing.RINGS_SIZE] = data
        events = mem.events()
        assert (events["paddr"] < mem.size).all()
        assert "" not in events["event"]
        mem.alloc_frame().drop()
        assert list(mem.events(os.getpid())["event"][-2:]) == ["claim", "free"]


def test_an_event_that_was_cut_or_lies_elsewhere_than_its_number_says_is_left_out():
    with passing_name() as name, PhysicalMemory.create("1 MiB", name, clients=4) as mem:
        mem.alloc_frame().drop()
        mem.alloc_frame().drop()
        assert list(mem.events()["event"]) == ["claim", "free"] * 2
        lane = int(mem.events()["lane"][0])
        with ArenaFile(mem, file_of(name)) as file:
            ring = rings_of(mem, file, 0) + lane * 256 * 32
            assert [file.read(ring + 32 * i, "Q") for i in range(6)] == [0, 1, 2, 3, 4, 0]
            file.write(ring + 32 * 2, "Q", 0)
            assert list(mem.events()["event"]) == ["claim", "claim", "free"]
            file.write(ring + 32 * 3, "Q", 4)
            assert list(mem.events()["event"]) == ["claim", "free"]


def test_a_forked_childs_copy_of_a_private_arena_goes_on_with_the_trace():
    def work(conn):
        mem.alloc_frame().drop()
        return [(int(e["pid"]), str(e["event"])) for e in mem.events()]

    with PhysicalMemory("1 MiB") as mem:
        mem.alloc_frame().drop()
        with Forked(work) as child:
            done = child.result()
        assert done == [(pid, event) for pid in (os.getpid(), child.pid) for event in ("claim", "free")]
        assert set(mem.events()["pid"]) == {os.getpid()}
