# This Source Code Form is subject to the terms of the Mozilla Public
# License, v. 2.0. If a copy of the MPL was not distributed with this
# file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Looking at an arena without being its client, and the census of all there is in one."""

import gc
import os
import pickle
import random
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

import pageframe
from amount import LONG, chosen_seed
from other_processes import TIMEOUT, ArenaFile, Child, file_of, run, unique_name
from pageframe import (
    REF_COUNT_UNUSED,
    ArenaClosedError,
    ArenaInUseError,
    ArenaNameError,
    ArenaNotFoundError,
    ArenaView,
    BadArenaError,
    ClientsFullError,
    FrameMeta,
    FrameTypeError,
    Link,
    LinkedList,
    NotAlignedError,
    OutOfBoundError,
    OutOfFramesError,
    PhysicalMemory,
    Segment,
    UFrame,
    UniqueFrame,
    VmSpace,
)
from pageframe._core import backing
from processes import Forked
from types_for_tests import Node, Page

MIB = 1 << 20
SEED = chosen_seed(20261)


class Linked(Link, FrameMeta):
    """Frames that can be in a list."""


@pytest.fixture
def name():
    with unique_name() as name:
        yield name


@pytest.fixture
def shared(name):
    """Return a named arena of 256 frames that must be empty again at the end."""
    arena = PhysicalMemory.create(MIB, name, clients=4)
    yield arena
    gc.collect()
    assert arena.used_frames == 0, arena.stats()
    arena.close()


@pytest.fixture
def view(shared):
    with ArenaView(shared.name) as view:
        yield view


# -- a view changes nothing --------------------------------------------------------------------


def test_a_view_takes_no_client_s_place_and_changes_no_byte(shared):
    held = shared.alloc_frames(20), shared.alloc_segment(3, Page), shared.alloc_frame(Page)
    mapping = shared.map(shared.alloc_frames(3))
    message = pickle.dumps(held[2])
    paddr = held[2].start_paddr
    before = file_of(shared.name).read_bytes()
    with ArenaView(shared.name) as view:
        view.stats()
        view.audit()
        view.holders(paddr)
        view.held_by(os.getpid())
        assert len(view.clients) == 1
        assert view.slots["count"][paddr // 4096] == 2
        assert view.meta(Page)["inode"].count() == 4
        view.types
        repr(view)
        assert view.free_frames + view.used_frames + view.reserved_frames == view.total_frames
        PhysicalMemory.list(all=True)
        gc.collect()
    assert file_of(shared.name).read_bytes() == before
    assert len(shared.clients) == 1
    pickle.loads(message).drop()
    mapping.drop()
    for handle in held:
        handle.drop()


def test_a_view_of_an_arena_whose_clients_are_as_many_as_can_be(shared):
    more = [PhysicalMemory.attach(shared.name) for _ in range(3)]
    with pytest.raises(ClientsFullError):
        PhysicalMemory.attach(shared.name)
    with ArenaView(shared.name) as view:
        assert len(view.clients) == len(view.stats().clients) == 4
    for mem in more:
        mem.close()


def test_a_view_does_not_keep_the_arena_from_going_with_its_last_client(name):
    mem = PhysicalMemory.create(MIB, name)
    with ArenaView(name) as view:
        mem.close()
        assert not file_of(name).exists()
        assert view.stats().clients == ()
        assert view.used_frames == 0
        with pytest.raises(ArenaNotFoundError):
            ArenaView(name)


USES = {
    "UFrame.from_unused": lambda view: UFrame.from_unused(view, 0x80000),
    "UFrame.from_in_use": lambda view: UFrame.from_in_use(view, 0x80000),
    "UFrame.from_raw": lambda view: UFrame.from_raw(view, 0x80000),
    "UniqueFrame.from_unused": lambda view: UniqueFrame.from_unused(view, 0x80000),
    "UniqueFrame.from_raw": lambda view: UniqueFrame.from_raw(view, 0x80000),
    "Segment.from_unused": lambda view: Segment.from_unused(view, 0x80000, 0x81000),
    "Segment.from_raw": lambda view: Segment.from_raw(view, 0x80000, 0x81000),
    "LinkedList": lambda view: LinkedList(view, Node),
    "VmSpace": lambda view: VmSpace(view, MIB),
}


@pytest.mark.parametrize("use", USES)
def test_no_frame_can_be_had_from_a_view(shared, view, use):
    with pytest.raises(TypeError, match="only shows the arena"):
        USES[use](view)
    assert shared.used_frames == 0


def test_the_arrays_of_a_view_can_not_be_written(view):
    with pytest.raises(ValueError, match="read-only"):
        view.slots["count"][0] = 7
    with pytest.raises(ValueError, match="WRITEABLE"):
        view.slots.flags.writeable = True


def test_a_view_can_not_be_pickled(view):
    with pytest.raises(TypeError):
        pickle.dumps(view)


def test_a_forked_child_can_look_through_its_parent_s_view(shared, view):
    frame = shared.alloc_frame()
    pid = os.fork()
    if pid == 0:
        good = view.used_frames == 1 and len(view.holders(frame.start_paddr)) == 2
        os._exit(0 if good else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    shared.reap()
    frame.drop()


# -- closing -----------------------------------------------------------------------------------


def test_a_closed_view_shows_nothing_more(shared):
    view = ArenaView(shared.name)
    view.close()
    view.close()
    assert view.closed
    assert repr(view) == "<ArenaView closed>"
    for use in (view.stats, view.audit, lambda: view.slots, lambda: view.clients, lambda: view.free_frames,
                lambda: view.holders(0), lambda: view.held_by(1), lambda: view.meta(Page), view.__enter__,
                lambda: view.id, lambda: view.created):  # fmt: skip
        with pytest.raises(ArenaClosedError):
            use()
    assert shared.closed is False


def test_arrays_keep_a_view_open(shared):
    view = ArenaView(shared.name)
    slots = view.slots
    with pytest.raises(ArenaInUseError, match="1 arrays over its tables live"):
        view.close()
    assert slots["count"][-1] == REF_COUNT_UNUSED
    del slots
    view.close()


def test_views_leave_no_descriptors_and_no_mappings_behind(shared):
    def left():
        maps = Path("/proc/self/maps").read_text()
        return len(list(Path("/proc/self/fd").iterdir())), maps.count(shared.name)

    with ArenaView(shared.name):
        pass
    before = left()
    for _ in range(50):
        with ArenaView(shared.name) as view:
            view.stats()
        ArenaView(shared.name)  # dropped unclosed
        with pytest.raises(ArenaNotFoundError):
            ArenaView(shared.name + "-none")
    del view
    gc.collect()
    assert left() == before


# -- which arena -------------------------------------------------------------------------------


def test_an_arena_without_a_name_is_found_by_the_first_digits_of_its_id():
    with PhysicalMemory.create(MIB) as mem, ArenaView(id=mem.id[:12]) as view:
        assert (view.id, view.name, view.path) == (mem.id, None, None)
        frame = mem.alloc_frame()
        assert view.used_frames == 1
        frame.drop()


def test_an_arena_without_a_name_can_be_attached_to_by_the_first_digits_of_its_id():
    with PhysicalMemory.create(MIB) as mem:
        with PhysicalMemory.attach(id=mem.id[:12].upper()) as other, other.alloc_frame():
            assert (other.id, other.name, len(mem.clients), mem.used_frames) == (mem.id, None, 2, 1)
        assert (len(mem.clients), mem.used_frames) == (1, 0)
        for words in ({"name": "a", "id": mem.id}, {"path": "/a", "id": mem.id}, {}):
            with pytest.raises(TypeError):
                PhysicalMemory.attach(**words)


def test_an_id_that_more_arenas_have_is_refused():
    with (
        PhysicalMemory.create(MIB),
        PhysicalMemory.create(MIB),
        pytest.raises(ArenaNameError, match="begins"),
    ):
        ArenaView(id="")


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({}, TypeError),
        ({"name": "a", "path": "/b"}, TypeError),
        ({"name": "a", "id": "b"}, TypeError),
        ({"id": 7}, TypeError),
        ({"name": 7}, TypeError),
        ({"name": "a/b"}, ArenaNameError),
        ({"path": "/dev/shm/no-such-arena"}, ArenaNotFoundError),
        ({"id": "nothing begins so"}, ArenaNotFoundError),
    ],
)
def test_what_names_no_arena(arguments, error):
    with pytest.raises(error):
        ArenaView(**arguments)


def test_a_view_is_opened_once(view):
    with pytest.raises(TypeError, match="initialised already"):
        view.__init__(view.name)


def test_a_view_that_was_never_opened_is_closed():
    view = ArenaView.__new__(ArenaView)
    assert view.closed
    with pytest.raises(ArenaClosedError):
        view.stats()


@pytest.mark.parametrize("pid", ["1", 1.0, None])
def test_what_is_no_pid_is_refused(view, pid):
    with pytest.raises(TypeError):
        view.held_by(pid)
    assert len(view.held_by(-1)) == len(view.held_by(1 << 100)) == 0


def test_addresses_are_checked_as_those_of_frames(view):
    with pytest.raises(NotAlignedError):
        view.holders(1)
    with pytest.raises(OutOfBoundError):
        view.holders(view.size)
    with pytest.raises(FrameTypeError):
        view.meta(int)


def test_the_file_of_a_view_is_open_for_reading_only(view):
    modes = []
    for entry in Path("/proc/self/fd").iterdir():
        if entry.exists() and entry.samefile(view.path):
            flags = next(
                line for line in Path("/proc/self/fdinfo", entry.name).read_text().splitlines()
                if line.startswith("flags")
            )  # fmt: skip
            modes.append(int(flags.split()[1], 8) & os.O_ACCMODE)
    assert os.O_RDONLY in modes


# -- the census --------------------------------------------------------------------------------


def blocks_of(free):
    """Cut runs of free frames into aligned blocks, one after another: Linux's buddyinfo in plain words."""
    found = Counter()
    frame = 0
    while frame < len(free):
        if not free[frame]:
            frame += 1
            continue
        order = 0
        while frame % (2 << order) == 0 and free[frame : frame + (2 << order)].count(True) == 2 << order:
            order += 1
        found[order] += 1
        frame += 1 << order
    return found


def test_figures_are_those_of_a_plain_count():
    reached = Counter()
    for number in range(60 * LONG):
        print(f"PAGEFRAME_TEST_SEED={SEED}, round {number}")
        compare_figures(random.Random(f"{SEED} {number}"), reached)
    states = (
        "out of frames",
        "taken",
        "tickets full",
        "sent",
        "cloned",
        "dropped",
        "mapped",
        "unique",
        "fragmented",
    )
    assert all(reached[state] > 0 for state in states), (SEED, reached)


def compare_figures(rng, reached):
    """Do this and that in an arena, and compare its figures with those of a plain count."""
    with PhysicalMemory.create("700 KiB", tickets=8) as mem:
        held, messages = [], []
        makers = [
            lambda: mem.alloc_frame(Page),
            lambda: mem.alloc_segment(rng.randint(1, 9)),
            lambda: mem.alloc_frames(rng.randint(1, 30)),
            lambda: mem.map(mem.alloc_frames(rng.randint(1, 5))),
            lambda: UniqueFrame.from_unused(mem, rng.randrange(mem.total_frames) * 4096, Node),
        ]
        for _ in range(rng.randint(0, 60)):
            shareable = [handle for handle in held if hasattr(handle, "clone")]
            step = rng.choice(["make", "make", "send", "clone", "drop"])
            try:
                if step == "make":
                    held.append(rng.choice(makers)())
                elif step == "send" and shareable:
                    messages.append(pickle.dumps(rng.choice(shareable)))
                elif step == "clone" and shareable:
                    held.append(rng.choice(shareable).clone())
                    reached["cloned"] += 1
                elif step == "drop" and held:
                    held.pop(rng.randrange(len(held))).drop()
                    reached["dropped"] += 1
            except OutOfFramesError:
                reached["out of frames"] += 1
            except pageframe.GetFrameError:
                reached["taken"] += 1
            except pageframe.TicketsFullError:
                reached["tickets full"] += 1
        with ArenaView(id=mem.id) as view:
            stats = view.stats()
            slots = view.slots.copy()
        assert stats.clients[0].tickets == len(stats.tickets)
        count = slots["count"]
        free = (count == REF_COUNT_UNUSED).tolist()
        assert sum(free) == stats.free_frames == mem.free_frames
        found = blocks_of(free)
        assert {i: n for i, n in enumerate(stats.free_runs) if n} == found
        runs = "".join("x" if is_free else " " for is_free in free).split()
        assert stats.longest_free_run == max(map(len, runs), default=0)
        assert stats.unusable(0) == 0
        unique = count == REF_COUNT_UNUSED - 1
        own = np.isin(slots["type"], [i for i, cls in mem.types.items() if cls is pageframe.MetaPageMeta])
        used = ~np.array(free) & ~own
        assert (stats.used_frames, stats.unique_frames) == (used.sum(), unique.sum())
        assert stats.shared_frames == (used & ~unique).sum()
        assert (stats.busy_frames, stats.orphan_frames) == (0, 0)
        for state, mask in (("shared", used & ~unique), ("unique", unique)):
            types = Counter(mem.types[number].__layout__.name for number in slots["type"][mask].tolist())
            assert stats.frames_by_state.get(state, {}) == types
        [client] = stats.clients
        mine = mem.held_by(os.getpid())
        assert (client.frames, client.handles + client.mappings) == (len(mine), mine["references"].sum())
        total = count[used & ~unique].sum() + unique.sum()
        sent = sum(ticket.frames for ticket in stats.tickets)
        pages = stats.frames_by_type.get("pageframe.TicketPageMeta", 0)  # the tickets' own
        assert stats.references == total == client.handles + client.mappings + sent + pages
        reached["sent"] += len(stats.tickets)
        reached["mapped"] += client.mappings
        reached["unique"] += stats.unique_frames
        reached["fragmented"] += stats.fragmentation > 0
        for message in messages:
            pickle.loads(message).drop()
        for handle in held:
            handle.drop()


def test_states_that_are_rare_are_counted_by_their_names(shared, view):
    pages = LinkedList(shared, Linked)
    for _ in range(3):
        pages.push_back(shared.alloc_frame(Linked).try_unique())
    alone = shared.alloc_frame(Node).try_unique()
    paddr = alone.start_paddr
    with ArenaFile(shared, file_of(shared.name)) as file:
        file.set_slot(paddr, file.COUNT, 0)
        stats = view.stats()
        assert stats.frames_by_state["busy"] == {"types_for_tests.Node": 1}
        assert stats.frames_by_state["in a list"] == {"test_arena_view.Linked": 3}
        assert (stats.busy_frames, stats.unique_frames) == (1, 3)
        file.set_slot(paddr, file.COUNT, 2**64 - 3)
        stats = view.stats()
        assert stats.frames_by_state["orphan"] == {"types_for_tests.Node": 1}
        assert (stats.orphan_frames, stats.used_frames) == (1, 4)
        file.set_slot(paddr, file.COUNT, 2**64 - 2)
    alone.drop()
    pages.drop()


def test_a_frame_that_is_being_built_is_busy(shared, view):
    paddr = shared.size - shared.page_size
    with ArenaFile(shared, file_of(shared.name)) as file:
        file.set_bit(paddr, True)
        stats = view.stats()
        assert (stats.busy_frames, stats.used_frames) == (1, 1)
        file.set_bit(paddr, False)
    shared.alloc_frame().drop()  # which the lane keeps: free, though its bit is set
    stats = view.stats()
    assert (stats.busy_frames, stats.used_frames) == (0, 0)


def test_private_arenas_have_figures_and_no_clients():
    with PhysicalMemory(MIB) as mem:
        frames = mem.alloc_frames(10)
        stats = mem.stats()
        assert (stats.used_frames, stats.clients, stats.tickets) == (10, (), ())
        assert (mem.id, mem.path, mem.shared) == (None, None, False)
        assert abs(mem.created - time.time()) < 60
        with pytest.raises(TypeError, match="is for shared arenas"):
            mem.held_by(os.getpid())
        frames.drop()


def test_fragmentation_says_how_much_of_the_free_memory_is_not_in_one_run():
    with PhysicalMemory(MIB) as mem:
        frames = mem.alloc_frames(mem.free_frames)
        assert mem.stats().fragmentation == 0.0
        kept = frames[::2]
        frames.drop()
        stats = mem.stats()
        assert stats.longest_free_run == 1
        assert stats.free_runs[0] == stats.free_frames
        assert stats.unusable(1) == 1.0
        assert stats.fragmentation == 1 - 1 / stats.free_frames
        kept.drop()


HOLD = """
mem = PhysicalMemory.attach(NAME)
frames = mem.alloc_frames(30)
shared = Frame.from_in_use(mem, int(ARGS[0]))
mapping = mem.map(mem.alloc_frames(7))
tell(mem.used_frames)
wait()
"""


def test_each_client_is_shown_with_what_it_holds_and_whether_it_lives(shared, view):
    frame = shared.alloc_frame()
    with Child(HOLD, shared.name, frame.start_paddr) as child:
        child.hear()
        mine, other = view.stats().clients
        assert (mine.pid, mine.alive, mine.frames, mine.handles, mine.mappings) == (
            os.getpid(),
            True,
            1,
            1,
            0,
        )
        assert (other.pid, other.alive, other.handles, other.mappings) == (child.pid, True, 31 + 4, 7)
        assert (other.frames, other.bytes) == (42, 42 * 4096)
        held = view.held_by(child.pid)
        assert held["references"].sum() == 42
        assert frame.start_paddr in held["paddr"]
        assert [holder.pid for holder in view.holders(frame.start_paddr)] == [os.getpid(), child.pid]
        child.kill()
        dead = view.stats().clients[1]
        assert (dead.pid, dead.alive, dead.frames) == (child.pid, False, 42)
        assert view.held_by(child.pid)["references"].sum() == 42
    shared.reap()
    assert [client.pid for client in view.stats().clients] == [os.getpid()]
    assert len(view.held_by(child.pid)) == 0
    frame.drop()


def test_what_a_process_holds_all_the_time_is_seen_while_other_frames_come_and_go(shared):
    last = shared.size - 4096

    def work(conn):
        with UFrame.from_unused(shared, last):
            conn.send("holds it")
            while not conn.poll():
                shared.alloc_frames(200, zeroed=False).drop()

    with Forked(work) as child:
        child.hear()
        sizes = set()
        for _ in range(2000):
            held = shared.held_by(child.pid)
            assert held["paddr"][-1] == last
            assert held["references"].min() == 1
            sizes.add(len(held))
        child.say()
        child.result()
    assert len(sizes) > 2
    shared.reap()


def test_what_a_process_holds_as_two_clients_is_added_up(shared):
    again = PhysicalMemory.attach(shared.name)
    frame = shared.alloc_frame()
    same = UFrame.from_in_use(again, frame.start_paddr)
    other = again.alloc_frame()
    assert shared.held_by(os.getpid()).tolist() == sorted([(frame.start_paddr, 2), (other.start_paddr, 1)])
    for handle in (frame, same, other):
        handle.drop()
    again.close()


def test_messages_in_transit_are_shown_with_sender_age_and_frames(shared, view):
    segment = shared.alloc_segment(5)
    first, second = pickle.dumps(segment), pickle.dumps(shared.alloc_frame())
    old, new = view.stats().tickets
    assert old.serial < new.serial
    assert (old.pid, old.state, old.frames, old.bytes) == (os.getpid(), "in transit", 5, 5 * 4096)
    assert (old.paddr, old.name) == (segment.start_paddr, shared.clients[0].name)
    assert 0 <= new.age <= old.age < 60
    assert 3500 < old.expires <= 3600
    pickle.loads(first).drop()
    pickle.loads(second).drop()
    assert view.stats().tickets == ()
    segment.drop()


def test_the_message_of_a_sender_that_has_left_says_so(shared, view):
    run("""
        import pickle
        mem = PhysicalMemory.attach(NAME)
        pickle.dumps(mem.alloc_frame())
        mem.close()
        """, shared.name)  # fmt: skip
    [ticket] = view.stats().tickets
    assert ticket.name == "gone"
    shared.ticket_ttl = 0
    with ArenaFile(shared, file_of(shared.name)) as file:
        file.set_ticket(file.live_ticket(), "expires", 1)
    assert shared.reap().tickets == 1


# -- the list of arenas ------------------------------------------------------------------------


def listed(name):
    return next((info for info in PhysicalMemory.list(all=True) if info.name == name), None)


def test_an_arena_is_listed_with_its_figures(shared):
    frames = shared.alloc_frames(9)
    info = listed(shared.name)
    assert (info.size, info.page_size, info.total_frames, info.used_frames) == (MIB, 4096, 256, 9)
    assert (info.clients, info.dead, info.stale, info.problem) == (1, 0, False, None)
    assert (info.id, info.owner, info.created) == (shared.id, os.geteuid(), shared.created)
    frames.drop()


LEAVE = "mem = PhysicalMemory.create('1 MiB', NAME, {})\nframe = mem.alloc_frame()\ntell('on')\nwait()"


def test_what_killed_processes_have_left_is_listed_as_stale_and_stays_if_all_are_asked_for(name):
    with Child(LEAVE.format(""), name) as child:
        child.hear()
        assert listed(name).stale is False
        child.kill()
    info = listed(name)
    assert (info.clients, info.dead, info.stale, info.used_frames) == (0, 1, True, 1)
    assert file_of(name).exists()
    PhysicalMemory.list()
    assert not file_of(name).exists()


def test_an_arena_that_is_to_stay_is_idle_not_stale(name):
    PhysicalMemory.create(MIB, name, unlink_on_last=False).close()
    info = listed(name)
    assert (info.clients, info.dead, info.stale) == (0, 0, False)
    PhysicalMemory.list()
    assert file_of(name).exists()


def test_a_damaged_arena_is_listed_with_its_problem_and_never_among_those_that_can_be_used(name):
    PhysicalMemory.create(MIB, name, unlink_on_last=False).close()
    with file_of(name).open("r+b") as file:
        file.seek(100)
        file.write(b"\xff")
    info = listed(name)
    assert "checksum" in info.problem
    assert (info.size > MIB, info.total_frames, info.id) == (True, 0, "")
    assert name not in [info.name for info in PhysicalMemory.list()]


def test_arenas_that_go_while_they_are_listed_are_left_out(shared, monkeypatch):
    gone = file_of(shared.name + "-gone")
    monkeypatch.setattr(backing, "named_files", lambda: [gone, file_of(shared.name)])
    monkeypatch.setattr(backing, "unnamed_ids", lambda: {b"\xff" * 16})
    assert [info.name for info in PhysicalMemory.list(all=True)] == [shared.name]


# -- change and damage under a view ------------------------------------------------------------

CHURN = """
import pickle, random
mem = PhysicalMemory.attach(NAME)
rng = random.Random(int(ARGS[0]))
tell("on")
held, sent = [], []
while True:
    try:
        held.append(rng.choice((mem.alloc_frame, lambda: mem.alloc_segment(3), lambda: mem.alloc_frames(9),
                                lambda: mem.map(mem.alloc_frames(2))))())
        if rng.random() < 0.3 and len(sent) < 10:
            sent.append(pickle.dumps(mem.alloc_frame()))
    except OutOfFramesError:
        held.clear()
    if held and rng.random() < 0.5:
        held.pop(rng.randrange(len(held))).drop()
    if sent and rng.random() < 0.3:
        pickle.loads(sent.pop())
"""


def test_a_living_arena_is_looked_at_while_processes_work_in_it(name):
    mem = PhysicalMemory.create(MIB, name, clients=8, unlink_on_last=True)
    seen = Counter()
    with Child(CHURN, name, 1) as one, Child(CHURN, name, 2) as two, ArenaView(name) as view:
        one.hear(), two.hear()
        begin, kinds = time.monotonic(), {"held", "messages", "mapped", "audits", "used"}
        while time.monotonic() < begin + (2 if all(seen[kind] for kind in kinds) else TIMEOUT):
            stats = view.stats()
            assert stats.free_frames + stats.used_frames + stats.reserved_frames == stats.total_frames
            assert len(stats.clients) == 3
            held = view.held_by(one.pid)
            if len(held):
                seen["held"] += bool(view.holders(int(held["paddr"][-1])))
            seen["messages"] += bool(stats.tickets)
            seen["mapped"] += any(client.mappings for client in stats.clients)
            seen["audits"] += view.audit().frames == 256
            seen["used"] += stats.used_frames > 0
        one.kill(), two.kill()
    mem.reap()
    assert all(seen[kind] for kind in kinds), seen
    mem.close()


@pytest.mark.parametrize(
    "table", ["types", "clients", "tickets", "bits", "chunks", "slots", "areas", "nodes"]
)
def test_a_view_of_an_arena_with_damaged_tables_gives_figures_or_an_error(name, table):
    rng = random.Random(f"{SEED} {table}")
    mem = PhysicalMemory.create(MIB, name, clients=4, unlink_on_last=False)
    held = [mem.alloc_frames(20, Page), mem.map(mem.alloc_frames(5)), mem.alloc_segment(4)]
    messages = [pickle.dumps(held[0]), pickle.dumps(held[2])]
    size = {row[0]: row[2] for row in mem.layout}
    values = 0, 1, 2**32 - 1, 2**63, 2**64 - 1
    nodes = np.flatnonzero(mem.slots["type"] == next(
        number for number, cls in mem.types.items() if cls is pageframe.PageTableMeta))  # fmt: skip
    gc.collect()
    with ArenaFile(mem, file_of(name)) as file:
        if table == "nodes":
            parts = [(int(node) * 4096, 4096) for node in nodes]
        else:
            parts = [(file.tables[table][0], min(size[table], file.area_size))]
        sound = [bytes(file.map[start : start + length]) for start, length in parts]
        outcomes = Counter()
        for attempt in range(60):
            for start, length in parts:
                for _ in range(rng.choice((1, 3, 40))):
                    at = start + rng.randrange(length // 8) * 8
                    value = rng.choice((*values, rng.getrandbits(64), 1 << rng.randrange(64)))
                    file.write(at, "Q", value)
            try:
                with ArenaView(name) as view:
                    view.stats()
                    view.audit()
                    for paddr in (0, held[2].start_paddr, mem.size - 4096):
                        view.holders(paddr)
                    view.held_by(os.getpid())
                    view.meta(Page)["inode"].count()
                if attempt % 20 == 0:
                    PhysicalMemory.list(all=True)
                outcomes["figures"] += 1
            except BadArenaError:
                outcomes["refused"] += 1
            for (start, length), data in zip(parts, sound, strict=True):
                file.map[start : start + length] = data
    assert outcomes["figures"] > 0, (SEED, outcomes)
    for message in messages:
        pickle.loads(message).drop()
    for handle in held:
        handle.drop()
    mem.close()


def test_an_arena_whose_name_was_removed_is_listed_and_found_by_its_id_while_it_is_used(name):
    with PhysicalMemory.create(MIB, name) as mem, mem.alloc_frame():
        arena_id = mem.id
        PhysicalMemory.unlink(name)
        [info] = [info for info in PhysicalMemory.list(all=True) if info.id == mem.id]
        assert (info.name, info.path, info.clients, info.used_frames) == (None, None, 1, 1)
        with ArenaView(id=mem.id) as view:
            assert view.used_frames == 1
        with PhysicalMemory.attach(id=mem.id) as again:
            assert len(again.clients) == 2
    assert arena_id not in [info.id for info in PhysicalMemory.list(all=True)]
