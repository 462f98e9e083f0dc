# This Source Code Form is subject to the terms of the Mozilla Public
# License, v. 2.0. If a copy of the MPL was not distributed with this
# file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Taking back what dead processes held, comparing counts with holders, and who holds a frame."""

import os
import pickle
import signal
import time
from pathlib import Path

import pytest

from other_processes import ArenaFile, Child, file_of, run, unique_name
from pageframe import (
    Frame,
    OutOfFramesError,
    PhysicalMemory,
    Segment,
    UntypedFrameMeta,
    u64,
)
from pageframe._core import backing
from processes import Forked
from types_for_tests import Dropped, Node, Page

MIB = 1 << 20
HERE = {"cwd": Path(__file__).parent}  # so that scripts can import the types


@pytest.fixture
def name():
    with unique_name() as name:
        yield name


@pytest.fixture
def mem(name):
    """Return a named arena that must be whole and empty at the end."""
    mem = PhysicalMemory.create(MIB, name, clients=8)
    yield mem
    mem.reap()
    report = mem.audit()
    assert report.clean, report
    assert mem.used_frames == 0, mem.stats()
    mem.close()


def killed(name, script, *args):
    """Kill a process that is attached to an arena and has run a script; return its id and what it told."""
    script = (
        "from types_for_tests import *\nimport pickle\nmem = PhysicalMemory.attach(NAME)\n"
        + script + "\ntell('held')\nwait()"
    )  # fmt: skip
    told = []
    with Child(script, name, *args, **HERE) as child:
        while (line := child.hear()) != "held":
            told.append(line)
        child.kill()
        return child.pid, told


# -- reaping -----------------------------------------------------------------------------------

HOLD_ALL = """
frame = mem.alloc_frame(Node)
clone = frame.clone()
unique = mem.alloc_frame(Page).try_unique()
segment = mem.alloc_segment(7)
part = segment.slice(0, 8192)
vec = mem.alloc_frames(11)
array = mem.zeros((3, 1000))
pages = LinkedList(mem, Page)
for i in range(5):
    pages.push_back(mem.alloc_frame(Page(inode=i)).try_unique())
raw = mem.alloc_frame().into_raw()
"""


def test_frames_that_were_claimed_go_back_if_reaping_for_more_is_interrupted(mem, name, monkeypatch):
    with PhysicalMemory.attach(name):
        held = mem.alloc_frames(mem.free_frames - 3)

        def interrupted(*args):
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(backing, "lock", interrupted)
            with pytest.raises(KeyboardInterrupt):
                mem.alloc_frames(4)
        assert mem.free_frames == 3
        held.drop()


def test_all_that_a_killed_process_held_comes_back_and_the_report_says_what(mem, name):
    pid, _ = killed(name, HOLD_ALL)
    assert mem.used_frames == 1 + 1 + 7 + 11 + 6 + 5 + 1
    assert pid in [client.pid for client in mem.clients]
    report = mem.reap()
    [client] = report.clients
    assert (client.pid, client.name) == (pid, Path(os.sys.executable).name)
    assert abs(client.started - time.time()) < 600
    assert report.frames == 32
    assert report.references == 32 + 1 + 2
    assert (report.tickets, report.orphans, report.adopted) == (0, 0, 0)
    assert report.in_doubt == 0
    assert report.frames_by_type == {
        "types_for_tests.Node": 1,
        "types_for_tests.Page": 6,
        "pageframe.UntypedFrameMeta": 25,
    }
    assert mem.used_frames == 0
    assert [client.pid for client in mem.clients] == [os.getpid()]
    assert mem.reap() == type(report)()  # nothing is left


def test_what_others_hold_stays_with_its_bytes_and_its_count(mem, name):
    frame = mem.alloc_frame(Page(inode=5))
    memoryview(frame)[:4] = b"mine"
    killed(name, "held = [Frame.from_in_use(mem, int(ARGS[0])) for _ in range(10)]", frame.start_paddr)
    assert frame.reference_count == 11
    report = mem.reap()
    assert (report.frames, report.references, report.frames_by_type) == (0, 10, {})
    assert frame.reference_count == 1
    assert frame.meta.inode == 5
    assert bytes(memoryview(frame)[:4]) == b"mine"
    frame.drop()


def test_attaching_reaps(mem, name):
    killed(name, HOLD_ALL)
    with PhysicalMemory.attach(name):
        assert mem.used_frames == 0
        assert len(mem.clients) == 2


def test_attaching_without_reaping_leaves_that_to_a_call_that_tells_what_was_found(mem, name):
    pid, _ = killed(name, "held = mem.alloc_frames(9, Page())")
    with PhysicalMemory.attach(name, reap=False) as other:
        assert (other.used_frames, len(other.clients)) == (9, 3)
        report = other.reap()
        assert ([client.pid for client in report.clients], report.frames) == ([pid], 9)
        assert other.used_frames == 0


def test_frames_of_the_dead_are_given_out_before_they_run_out(mem, name):
    killed(name, "held = mem.alloc_frames(mem.free_frames)")
    assert mem.free_frames == 0
    vec = mem.alloc_frames(100)
    assert len(mem.clients) == 1
    vec.drop()


@pytest.mark.parametrize("alloc", ["alloc_frame()", "alloc_segment(50)", "alloc_frames(50)", "zeros(50000)"])
def test_every_allocation_reaps_before_it_gives_up(mem, name, alloc):
    killed(name, "held = mem.alloc_frames(mem.free_frames)")
    held = eval(f"mem.{alloc}")
    assert held is not None
    assert len(mem.clients) == 1


def test_frames_that_the_living_hold_run_out_all_the_same(mem):
    vec = mem.alloc_frames(mem.free_frames)
    with pytest.raises(OutOfFramesError, match=r"1 frame wanted, 0 of 256 are free"):
        mem.alloc_frame()
    vec.drop()


def test_several_dead_processes_are_reaped_at_once(mem, name):
    pids = []
    with Child("mem = PhysicalMemory.attach(NAME); f = mem.alloc_frames(3); tell('on'); wait()", name) as one:
        one.hear()
        with Child(
            "mem = PhysicalMemory.attach(NAME); f = mem.alloc_frames(4); tell('on'); wait()", name
        ) as two:
            two.hear()
            pids = [one.pid, two.pid]
    report = mem.reap()
    assert sorted(client.pid for client in report.clients) == sorted(pids)
    assert (report.frames, mem.used_frames) == (7, 0)


def test_reaping_while_others_work_takes_nothing_from_them(mem, name):
    worker = """
        mem = PhysicalMemory.attach(NAME)
        tell("on")
        wait()
        end = time.monotonic() + float(ARGS[0])
        rounds = 0
        while not rounds or time.monotonic() < end:
            vec = mem.alloc_frames(5)
            for i, frame in enumerate(vec):
                memoryview(frame)[:8] = (rounds * 8 + i).to_bytes(8, "little")
            clones = [frame.clone() for frame in vec]
            for i, frame in enumerate(vec):
                assert int.from_bytes(memoryview(frame)[:8], "little") == rounds * 8 + i
                assert frame.reference_count == 3, frame.reference_count   # the vector, the loop, the clone
            del frame
            clones.clear()
            vec.drop()
            rounds += 1
        mem.close()
        tell("done")
    """
    reaped = 0
    with Child(worker, name, 3) as one, Child(worker, name, 3) as two:
        for child in (one, two):
            child.hear()
            child.go_on()
        end = time.monotonic() + 3
        while not reaped or time.monotonic() < end - 0.5:
            killed(name, "held = mem.alloc_segment(9)")
            reaped += mem.reap().frames
        assert (one.finish(), two.finish()) == ("done", "done")
    assert reaped % 9 == 0
    assert reaped > 0


# -- on_drop -----------------------------------------------------------------------------------


def test_on_drop_of_the_frames_of_the_dead_runs_once_in_the_reaper_that_knows_the_type(mem, name):
    Dropped.seen.clear()
    killed(
        name,
        "held = [mem.alloc_frame(Dropped(number=i)) for i in range(4)]\n"
        "clone = held[0].clone()\n"
        "memoryview(held[0])[:4] = b'last'\n"
        "unique = mem.alloc_frame(Dropped(number=9)).try_unique()",
    )
    report = mem.reap()
    assert report.frames == 5
    assert report.frames_by_type == {"types_for_tests.Dropped": 5}
    assert sorted(Dropped.seen) == [(0, 4096, b"last"), *[(i, 4096, bytes(4)) for i in (1, 2, 3, 9)]]
    mem.reap()
    assert len(Dropped.seen) == 5
    Dropped.seen.clear()


def test_on_drop_of_a_shared_frame_waits_for_the_last_holder(mem, name):
    Dropped.seen.clear()
    frame = mem.alloc_frame(Dropped(number=3))
    killed(name, "held = Frame.from_in_use(mem, int(ARGS[0]))", frame.start_paddr)
    mem.reap()
    assert Dropped.seen == []
    frame.drop()
    assert [number for number, _, _ in Dropped.seen] == [3]
    Dropped.seen.clear()


OWN_TYPE = """
class Ended(UntypedFrameMeta):
    __module__ = "somewhere"
    number: u64
    def on_drop(self, reader):
        tell("ended", self.number, reader.read_bytes(3))
"""


def test_frames_whose_type_no_living_process_knows_wait_for_one_that_does(mem, name):
    killed(
        name,
        OWN_TYPE + "held = [mem.alloc_frame(Ended(number=i)) for i in (7, 8)]\n"
        "for frame in held: memoryview(frame)[:3] = b'abc'\n",
    )
    report = mem.reap()
    assert (report.frames, report.orphans, len(report.clients)) == (0, 2, 1)
    assert mem.used_frames == 2
    audit = mem.audit()
    assert (audit.orphans, audit.clean) == (2, True)
    assert mem.audit(repair=True).orphans == 2
    # A process that does not know it either changes nothing.
    run("mem = PhysicalMemory.attach(NAME); assert mem.reap().adopted == 0", name)
    told = run(
        OWN_TYPE
        + "mem = PhysicalMemory.attach(NAME)\nreport = mem.reap()\ntell(report.adopted, mem.audit().orphans)",
        name,
    )
    assert told.split("\n") == ["ended 7 b'abc'", "ended 8 b'abc'", "0 0"]
    assert mem.used_frames == 0


def test_defining_the_type_later_in_the_same_process_lets_the_next_reaping_run_it(mem, name):
    killed(name, OWN_TYPE + "held = mem.alloc_frame(Ended(number=1))")
    assert mem.reap().orphans == 1
    seen = []

    class Ended(UntypedFrameMeta):
        __module__ = "somewhere"
        __qualname__ = "Ended"
        number: u64

        def on_drop(self, reader):
            seen.append(self.number)

    report = mem.reap()
    assert (report.adopted, seen) == (1, [1])
    assert Ended.__layout__.name == "somewhere.Ended"


OTHER_TYPE = OWN_TYPE.replace("somewhere", "elsewhere")  # which this process never defines


def test_a_type_that_the_reaper_has_not_defined_shows_as_opaque(mem, name):
    _, [paddr] = killed(name, OTHER_TYPE + "held = mem.alloc_frame(Ended(number=1))\ntell(held.start_paddr)")
    frame = Frame.from_in_use(mem, int(paddr))
    assert frame.meta_type.__mro__[1].__name__ == "OpaqueMeta"
    assert "Ended" in repr(frame)
    mem.reap()
    frame.drop()  # the last handle goes in a process that can't run on_drop
    assert mem.audit().orphans == 1
    assert run(OTHER_TYPE + "PhysicalMemory.attach(NAME)", name) == "ended 1 b'\\x00\\x00\\x00'"


def test_an_on_drop_that_raises_in_the_reaper_does_not_stop_it(mem, name, monkeypatch):
    class Bad(UntypedFrameMeta):
        __module__ = "somewhere"
        __qualname__ = "Bad"

        def on_drop(self, reader):
            raise LookupError("no")

    raised = []
    monkeypatch.setattr("sys.unraisablehook", lambda info: raised.append(info.exc_type))
    killed(
        name,
        "class Bad(UntypedFrameMeta):\n __module__ = 'somewhere'\n def on_drop(self, reader): pass\n"
        "held = mem.alloc_frames(3, Bad)",
    )
    assert mem.reap().frames == 3
    assert raised == [LookupError] * 3
    assert Bad.__layout__.size == 0


# -- holders -----------------------------------------------------------------------------------


def test_the_holders_of_a_frame_are_processes_and_their_counts_add_up(mem, name):
    with mem.alloc_frame() as frame:
        clone = frame.clone()
        with Child(
            "mem = PhysicalMemory.attach(NAME)\n"
            "held = [Frame.from_in_use(mem, int(ARGS[0])) for _ in range(3)]\n"
            "import pickle\nsent = pickle.dumps(held[0])\ntell('on')\nwait()",
            name,
            frame.start_paddr,
        ) as child:
            child.hear()
            found = {holder.pid: holder for holder in mem.holders(frame)}
            assert set(found) == {os.getpid(), child.pid}
            assert (found[os.getpid()].handles, found[os.getpid()].tickets) == (2, 0)
            assert (found[child.pid].handles, found[child.pid].tickets) == (3, 1)
            assert [holder.mappings for holder in found.values()] == [0, 0]
            assert abs(found[child.pid].started - time.time()) < 600
            clients = {client.pid: client for client in mem.clients}
            for pid, holder in found.items():
                assert (holder.name, holder.started) == (clients[pid].name, clients[pid].started)
            assert mem.holders(frame.start_paddr) == mem.holders(frame) == mem.holders(frame.borrow())
            total = sum(holder.handles + holder.tickets for holder in found.values())
            assert total == frame.reference_count == 6
            child.kill()
            # Dead and not reaped: still a holder.
            assert {holder.pid for holder in mem.holders(frame)} == {os.getpid(), child.pid}
            mem.reap()
            [mine, gone] = sorted(mem.holders(frame), key=lambda holder: holder.pid != os.getpid())
            assert (mine.pid, mine.handles) == (os.getpid(), 2)
            assert (gone.pid, gone.name, gone.handles, gone.tickets) == (child.pid, "gone", 0, 1)
            assert frame.reference_count == 3
        mem.ticket_ttl = 0
        pickle.loads(pickle.dumps(frame)).drop()
        clone.drop()
    killed(name, "")  # the message of the dead is there until it expires: an hour
    assert mem.used_frames == 1
    with ArenaFile(mem, file_of(name)) as file:
        file.set_ticket(file.live_ticket(), "expires", 1)
    assert mem.reap().tickets == 1


def test_a_frame_that_nobody_holds_has_no_holders(mem):
    frame = mem.alloc_frame()
    paddr = frame.start_paddr
    frame.drop()
    assert mem.holders(paddr) == []


def test_the_owner_of_a_unique_frame_is_its_holder(mem):
    unique = mem.alloc_frame().try_unique()
    [holder] = mem.holders(unique)
    assert (holder.pid, holder.handles) == (os.getpid(), 1)


def test_a_frame_of_another_arena_or_outside_has_no_holders_to_ask_for(mem):
    with PhysicalMemory.create(MIB) as other, other.alloc_frame() as frame:  # noqa: SIM117
        with pytest.raises(ValueError, match="belongs to another arena"):
            mem.holders(frame)
    with pytest.raises(IndexError, match="0x100000 is not within"):
        mem.holders(MIB)
    with pytest.raises(ValueError, match="0x1 is not a multiple"):
        mem.holders(1)


# -- audit -------------------------------------------------------------------------------------


def test_audit_finds_nothing_at_rest(mem):
    held = [mem.alloc_frame(Node), mem.alloc_segment(9), mem.alloc_frames(20), mem.zeros(5000),
            mem.alloc_frame(Page).try_unique()]  # fmt: skip
    message = pickle.dumps(held[1])
    report = mem.audit()
    assert (report.leaked, report.miscounted, report.damaged, report.busy) == ((), (), (), 0)
    assert report.clean
    assert report.quiet
    assert not report.repaired
    assert (report.frames, report.tickets, report.orphans) == (256, 1, 0)
    assert [client.pid for client in report.clients] == [os.getpid()]
    again = mem.audit(repair=True)
    assert (again.clean, again.repaired) == (True, True)
    pickle.loads(message).drop()
    held.clear()


def test_audit_finds_a_bit_that_nobody_owns_and_clears_it(mem, name):
    gone = mem.alloc_segment(4)
    paddr = gone.start_paddr
    gone.drop()
    free = mem.free_frames
    with ArenaFile(mem, file_of(name)) as file:
        file.set_bit(paddr + 0x2000, True)
        assert mem.free_frames == free - 1
        report = mem.audit()
        assert report.leaked == (paddr + 0x2000,)
        assert sum(report.frames_by_type.values()) == 1
        assert not report.clean
        assert mem.audit() == report  # to look changes nothing
        assert mem.audit(repair=True).leaked == (paddr + 0x2000,)
        assert mem.audit().clean
    assert mem.free_frames == free


def test_audit_finds_a_frame_that_nobody_holds_and_ends_its_life(mem, name):
    Dropped.seen.clear()
    frame = mem.alloc_frame(Dropped(number=6))
    paddr = frame.start_paddr
    with ArenaFile(mem, file_of(name)) as file:
        file.set_ledger(0, paddr, 0)
        frame.into_raw()  # so that no handle of ours gives it up later
        report = mem.audit()
        assert report.leaked == (paddr,)
        assert report.frames_by_type == {"types_for_tests.Dropped": 1}
        mem.audit(repair=True)
    assert [number for number, _, _ in Dropped.seen] == [6]
    assert mem.used_frames == 0
    Dropped.seen.clear()


@pytest.mark.parametrize("more", [1, 5, 2**40])
def test_audit_finds_a_count_that_is_too_high_and_corrects_it(mem, name, more):
    frame = mem.alloc_frame()
    clone = frame.clone()
    with ArenaFile(mem, file_of(name)) as file:
        file.set_slot(frame.start_paddr, file.COUNT, 2 + more)
        assert mem.audit().miscounted == (frame.start_paddr,)
        assert mem.audit(repair=True).miscounted == (frame.start_paddr,)
        assert mem.audit().clean
    assert frame.reference_count == 2
    clone.drop()


def test_audit_finds_a_count_that_is_too_low_which_no_crash_brings_about(mem, name):
    frame = mem.alloc_frame()
    clone = frame.clone()
    with ArenaFile(mem, file_of(name)) as file:
        file.set_slot(frame.start_paddr, file.COUNT, 1)
        assert mem.audit().damaged == (frame.start_paddr,)
        mem.audit(repair=True)
        assert mem.audit().clean
    assert frame.reference_count == 2
    clone.drop()


def test_audit_finds_a_frame_in_use_whose_bit_is_clear_and_sets_it(mem, name):
    segment = mem.alloc_segment(3)
    paddr = segment.start_paddr + 4096
    with ArenaFile(mem, file_of(name)) as file:
        file.set_bit(paddr, False)
        assert mem.audit().damaged == (paddr,)
        mem.audit(repair=True)
        assert mem.audit().clean


def test_audit_repairs_nothing_while_an_operation_is_in_progress(mem, name):
    frame = mem.alloc_frame()
    with ArenaFile(mem, file_of(name)) as file:
        file.set_slot(frame.start_paddr, file.COUNT, 4)
        file.set_lane(0, 5, "op", frame.start_paddr >> 12 << 8 | 3)
        report = mem.audit(repair=True)
        assert (report.quiet, report.repaired) == (False, False)
        assert report.miscounted == (frame.start_paddr,)
        assert frame.reference_count == 4
        file.set_lane(0, 5, "op", 0)
        assert mem.audit(repair=True).repaired
    assert frame.reference_count == 1


def test_an_audit_in_which_a_client_has_left_is_not_called_quiet():
    with PhysicalMemory.create("256 MiB", clients=8) as mem:
        frames = Segment.from_unused(mem, mem.max_paddr - 9 * 4096, mem.max_paddr)  # judged last
        with Forked(audit_on_and_on, mem) as auditor:
            auditor.hear()
            for _ in range(20):
                with Forked(leave, mem, frames) as other:
                    other.hear()
                    os.kill(auditor.pid, signal.SIGSTOP)  # within an audit, most of the times
                    os.waitpid(auditor.pid, os.WUNTRACED)
                    other.say("leave")
                    other.result()
                    os.kill(auditor.pid, signal.SIGCONT)
            auditor.say("enough")
            assert auditor.result() > 0
        frames.drop()


def audit_on_and_on(conn, mem):
    """Audit until told to end; return how many audits were quiet."""
    quiet = 0
    conn.send("begins")
    while not quiet or not conn.poll():
        report = mem.audit()
        assert report.damaged == () or not report.quiet, report
        quiet += report.quiet
    return quiet


def leave(conn, mem, frames):
    conn.send("has done nothing yet")
    conn.recv()
    frames.drop()
    mem.close()


def test_one_audit_repairs_at_a_time(mem, name):
    other = PhysicalMemory.attach(name)
    found = []

    class Audited(UntypedFrameMeta):
        def on_drop(self, reader):
            found.append(other.audit(repair=True))

    frame = mem.alloc_frame(Audited)
    with ArenaFile(mem, file_of(name)) as file:
        file.set_ledger(0, frame.start_paddr, 0)
        frame.into_raw()
        assert mem.audit(repair=True).repaired
    assert [report.repaired for report in found] == [False]
    assert other.audit(repair=True).repaired
    other.close()


def test_audit_counts_the_clients_that_nobody_has_reaped(mem, name):
    pid, _ = killed(name, "held = mem.alloc_frames(5)")
    report = mem.audit()
    assert {client.pid for client in report.clients} == {os.getpid(), pid}
    assert report.clean  # the dead hold what they held
    assert {client.pid for client in mem.audit(repair=True).clients} == {os.getpid()}
