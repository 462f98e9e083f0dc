# This Source Code Form is subject to the terms of the Mozilla Public
# License, v. 2.0. If a copy of the MPL was not distributed with this
# file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Processes share an arena and are killed at random moments.

A director makes an arena and forks workers.  Each worker draws its operations from a seeded
generator and keeps a plain list of what it holds; some fork children, which go on with what
they were given.  At random moments the director kills one or two of them, has the others pause
and say what they hold, and checks (check.py) that nothing is lost, wrong or left over.

Run as ``python campaign.py --seed 1 --kills 40``, or ``--seconds 3600``; prints the counters.
"""

import argparse
import contextlib
import ctypes
import faulthandler
import gc
import json
import mmap
import os
import pickle
import random
import select
import signal
import socket
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path

import numpy as np

from pageframe import (
    AddressInUseError,
    CopyOnWriteError,
    FrameGoneError,
    FrameInUseError,
    LinkedList,
    OutOfBoundError,
    OutOfFramesError,
    PageProperty,
    PhysicalMemory,
    SpaceClosedError,
    TicketsFullError,
    UntypedFrameMeta,
    VmSpace,
    u64,
)
from steps import patterns
from steps.check import check_all_free_frames_work, check_dropped_once, check_repaired
from steps.patterns import (
    Holding,
    Life,
    Node,
    Page,
    Told,
    make,
    make_segment,
    make_unique,
    make_vector,
    new_number,
)

WORKERS = 3
PAGE = 4096
PAGES = 24  # of an address space
NODES = 4  # of its page table, once something is mapped
PLACES = 2 * WORKERS  # each worker may have one child
TTL = 0.15  # seconds that a message holds its frames
SECONDS = 15  # until a process that does not answer is given up
KILLS_A_ROUND = 10
END = -1  # instead of the number of a pause: workers are to end

OPERATIONS = [
    "allocate", "run", "vector", "clone", "part", "drop", "unique", "repurpose", "share", "push", "pop",
    "raw", "view", "send", "receive", "load_again", "check", "exhaust", "fork", "reap", "late",
    "map", "unmap", "protect", "snapshot", "make_writable", "mapping", "append", "ring",
]  # fmt: skip
COUNTED = [
    *OPERATIONS, "out of frames", "messages lost", "messages loaded late", "message gone",
    "tickets full", "not alone", "messages loaded", "children", "pages unmapped", "pages copied",
    "spaces of children", "spaces without a table",
]  # fmt: skip
# What the director knows of a worker, whatever becomes of it.
FIELDS = ["pid", "inside", "uniques", "lists", "views", "shared", "mapped", "forking", *COUNTED]
RARE = [
    "killed inside an operation", "killed between operations", "killed with unique frames",
    "killed with lists", "killed with views of dropped frames", "killed while sharing frames",
    "killed with mapped frames", "killed while forking", "killed parents whose child lived on",
    "killed children of workers", "two killed at once", "killed with messages in flight",
    "messages expired", "orphans", "adopted", "frames in doubt", "held too long", "kept frames stolen",
    "reaped by a worker",
]  # fmt: skip


class Board:
    """Memory that the director shares with all workers."""

    def __init__(self) -> None:
        self.page = mmap.mmap(-1, 8 * (1 + PLACES * len(FIELDS)))
        words = np.frombuffer(self.page, np.int64)
        self.pause = words[:1]
        self.table = words[1:].reshape(PLACES, len(FIELDS))

    def get(self, place: int, field: str) -> int:
        return int(self.table[place, FIELDS.index(field)])

    def set(self, place: int, field: str, value: int) -> None:
        self.table[place, FIELDS.index(field)] = value

    def add(self, place: int, field: str) -> None:
        self.table[place, FIELDS.index(field)] += 1

    def pids(self) -> dict[int, int]:
        """Return the processes that are at work: pid -> place."""
        return {self.get(place, "pid"): place for place in range(PLACES) if self.get(place, "pid")}


class Viewed(Holding):
    """A view of a frame whose handle was dropped."""

    alone = False

    def check(self) -> None:
        life = self.lives[0]
        assert self.handle == patterns.pattern(life.paddr, life.generation, life.number)


class Mapped(Holding):
    """An address space, a mapping or a ring, and which life each of its pages shows."""

    alone = False

    def __init__(self, handle, pages: dict[int, Life]) -> None:
        self.handle, self.pages = handle, pages

    @property
    def lives(self) -> list[Life]:
        return list(self.pages.values())

    def usable(self) -> bool:
        """Whether this process had frames for a page table when it was forked."""
        try:
            return self.handle.kernel_mappings > 0
        except SpaceClosedError:
            return False

    def nodes(self) -> int:
        """How many frames of page table it takes."""
        return NODES if self.pages and self.usable() else 0

    def check(self) -> None:
        if not self.usable():
            return
        if not isinstance(self.handle, VmSpace):
            with memoryview(self.handle) as view:
                assert len(view) == PAGE * len(self.pages)
                for page, life in self.pages.items():
                    self.check_page(life, view[page * PAGE : (page + 1) * PAGE])
            return
        for page, life in self.pages.items():
            with self.handle.view(page * PAGE, (page + 1) * PAGE) as view:
                self.check_page(life, view)
        with self.handle.cursor() as cursor:
            found = []
            while cursor.find_next() is not None:
                found.append(cursor.virt_addr // PAGE)
                if found[-1] == PAGES - 1:
                    break
                cursor.jump((found[-1] + 1) * PAGE)
        assert found == sorted(self.pages), (found, self.pages)

    @staticmethod
    def check_page(life: Life, view) -> None:
        with view:
            assert view == patterns.pattern(life.paddr, life.generation, life.number), vars(life)


def late_type():
    """Define a type that other processes have not, unless they do the same."""

    class Late(UntypedFrameMeta):
        number: u64

        def on_drop(self, reader):
            Told.on_drop(self, reader)

    return Late


class Worker:
    def __init__(self, campaign: "Round", place: int, seed: int, held: list[Holding]) -> None:
        self.campaign, self.mem, self.board = campaign, campaign.mem, campaign.board
        self.place = place
        self.rng = random.Random(seed)
        self.held = [holding for holding in held if not holding.alone]
        self.last = None  # a message that was loaded already
        self.child = 0
        self.board.set(place, "pid", os.getpid())
        if place >= WORKERS:
            for one in self.held:
                if isinstance(one, Mapped):
                    self.board.add(place, "spaces of children" if one.usable() else "spaces without a table")

    def main(self) -> None:
        """Work until told to end; what goes wrong is told to the director."""
        try:
            while not self.campaign.ending():
                if self.board.pause[0] > 0:
                    self.report()
                self.work()
            self.finish()
        except BaseException:
            self.tell("error", traceback.format_exc())
            os._exit(1)
        os._exit(0)

    def tell(self, *what) -> None:
        self.campaign.reports[1].send(pickle.dumps(what))

    def work(self) -> None:
        """Do one operation."""
        name = self.rng.choice(OPERATIONS if len(self.held) < 30 else ["drop", "drop", "send", "check"])
        self.note()
        self.board.set(self.place, "inside", 1)
        try:
            getattr(self, name)()
            self.board.add(self.place, name)
        except OutOfFramesError:
            self.board.add(self.place, "out of frames")
        except TicketsFullError:
            self.board.add(self.place, "tickets full")
        self.board.set(self.place, "inside", 0)

    def note(self) -> None:
        """Let the director know what we hold, should we be killed."""
        for field, kind in (("uniques", "UniqueFrame"), ("lists", "LinkedList"), ("views", "memoryview")):
            self.board.set(self.place, field, sum(type(h.handle).__name__ == kind for h in self.held))
        self.board.set(self.place, "shared", sum(not h.alone for h in self.held))
        self.board.set(self.place, "mapped", sum(len(h.pages) for h in self.held if isinstance(h, Mapped)))

    def report(self) -> None:
        """Check what we hold, say what it is, and wait until we may go on."""
        for holding in self.held:
            holding.check()
        alone = [life.paddr for h in self.held if h.alone for life in h.lives]
        spaces = [h for h in self.held if isinstance(h, Mapped)]
        mapped = dict(patterns.references([h for h in spaces if h.usable()]))
        nodes = sum(h.nodes() for h in spaces)
        pause = int(self.board.pause[0])
        held = dict(patterns.references(self.held))
        self.tell("holds", pause, os.getpid(), held, alone, mapped, nodes)
        while self.board.pause[0] == pause:
            time.sleep(0.001)

    def finish(self) -> None:
        """Drop everything, as an ordinary process that ends."""
        self.wait_for_child()
        while self.held:
            self.drop()
        self.mem.close()

    def wait_for_child(self) -> None:
        if self.child:
            os.waitpid(self.child, 0)
            self.child = 0

    def some(self, *kinds: str) -> Holding | None:
        found = [h for h in self.held if type(h.handle).__name__ in kinds]
        return self.rng.choice(found) if found else None

    # -- operations ----------------------------------------------------------------------------

    def allocate(self) -> None:
        self.held.append(make(self.mem, self.rng.choice([Page, Node, Told])))

    def run(self) -> None:
        self.held.append(make_segment(self.mem, self.rng.randint(1, 9), self.rng.choice([Page, Told])))

    def vector(self) -> None:
        self.held.append(make_vector(self.mem, self.rng.randint(1, 9), self.rng.choice([Page, Node])))

    def late(self) -> None:
        number = new_number()
        frame = self.mem.alloc_frame(self.campaign.late()(number=number))
        self.held.append(Holding(frame, [Life.begin(frame, number)]))

    def clone(self) -> None:
        if one := self.some("Frame", "UFrame", "Segment", "USegment", "FrameVec"):
            self.held.append(Holding(one.handle.clone(), one.lives))

    def part(self) -> None:
        if one := self.some("USegment", "Segment", "FrameVec"):
            start = self.rng.randrange(len(one.lives))
            stop = self.rng.randint(start + 1, len(one.lives))
            self.held.append(Holding(one.handle[start:stop], one.lives[start:stop]))

    def drop(self) -> None:
        if self.held:
            one = self.held.pop(self.rng.randrange(len(self.held)))
            one.check()
            if isinstance(one, Viewed):
                one.handle.release()
            elif isinstance(one.handle, VmSpace):
                one.handle.close()
            else:
                one.handle.drop()

    def unique(self) -> None:
        one = self.some("UFrame", "Frame")
        if one is None:
            self.held.append(make_unique(self.mem))
            return
        try:
            one.handle = one.handle.try_unique()
        except FrameInUseError:
            self.board.add(self.place, "not alone")

    def repurpose(self) -> None:
        if one := self.some("UniqueFrame"):
            number = new_number()
            one.handle = one.handle.repurpose(self.rng.choice([Page, Told])(number=number))
            one.lives = [Life.begin(one.handle, number)]

    def share(self) -> None:
        if one := self.some("UniqueFrame"):
            one.handle = one.handle.share()

    def push(self) -> None:
        items = self.some("LinkedList")
        if items is None:
            items = Holding(LinkedList(self.mem, Page), [])
            self.held.append(items)
        for _ in range(2):
            one = make_unique(self.mem)
            if self.rng.random() < 0.5:
                items.handle.push_back(one.handle)
                items.lives = items.lives + one.lives
            else:
                items.handle.push_front(one.handle)
                items.lives = one.lives + items.lives

    def pop(self) -> None:
        items = self.some("LinkedList")
        if items and items.lives:
            self.held.append(Holding(items.handle.pop_front(), items.lives[:1]))
            items.lives = items.lives[1:]
            items.handle.cursor_back().move_to_front()
            items.lives = items.lives[-1:] + items.lives[:-1]

    def raw(self) -> None:
        if one := self.some("UFrame", "Frame", "UniqueFrame"):
            kind = type(one.handle)
            one.handle = kind.from_raw(self.mem, one.handle.into_raw())

    def view(self) -> None:
        if one := self.some("UFrame"):
            self.held.remove(one)
            view = memoryview(one.handle)
            one.handle.drop()
            self.held.append(Viewed(view, one.lives))

    def untyped(self) -> Holding | None:
        one = self.some("UFrame", "USegment", "FrameVec")
        return None if one is None or one.lives[0].typed else one

    def space(self) -> Mapped | None:
        one = self.some("VmSpace")
        return one if one is not None and one.usable() else None

    def map(self) -> None:
        one = self.untyped()
        if one is None:
            return
        space = self.space()
        if space is None or self.rng.random() < 0.2:
            space = Mapped(VmSpace(self.mem, PAGES * PAGE), {})
            self.held.append(space)
        page = self.rng.randrange(PAGES)
        with (
            space.handle.cursor(page * PAGE) as cursor,
            contextlib.suppress(AddressInUseError, OutOfBoundError),
        ):
            cursor.map(one.handle.clone(), PageProperty(write=self.rng.random() < 0.7))
            space.pages.update(enumerate(one.lives, page))

    def unmap(self) -> None:
        if space := self.space():
            first = self.rng.randrange(PAGES)
            stop = self.rng.randint(first + 1, PAGES)
            with space.handle.cursor(first * PAGE) as cursor:
                gone = cursor.unmap((stop - first) * PAGE)
            here = [page for page in space.pages if first <= page < stop]
            assert gone == len(here)
            for page in here:
                del space.pages[page]
                self.board.add(self.place, "pages unmapped")

    def protect(self) -> None:
        if space := self.space():
            with space.handle.cursor() as cursor, contextlib.suppress(CopyOnWriteError):
                cursor.jump(self.rng.randrange(PAGES) * PAGE)
                rest = PAGES - cursor.virt_addr // PAGE
                cursor.protect(self.rng.randint(1, rest) * PAGE, PageProperty(write=self.rng.random() < 0.5))

    def snapshot(self) -> None:
        if space := self.space():
            self.held.append(Mapped(space.handle.fork(), dict(space.pages)))

    def make_writable(self) -> None:
        if space := self.space():
            copied = space.handle.make_writable(meta=Page)
            for page, life in space.pages.items():
                with space.handle.cursor(page * PAGE) as cursor:
                    frame = cursor.query().frame
                if frame.start_paddr != life.paddr:
                    space.pages[page] = Life.begin(frame, 0)
                    copied -= 1
                    self.board.add(self.place, "pages copied")
            assert copied == 0

    def mapping(self) -> None:
        if one := self.untyped():
            mapping = self.mem.map(one.handle.clone(), reserve=PAGES * PAGE)
            self.held.append(Mapped(mapping, dict(enumerate(one.lives))))

    def append(self) -> None:
        mapping, one = self.some("Mapping"), self.untyped()
        if mapping and one and mapping.usable():
            with contextlib.suppress(OutOfBoundError):
                mapping.handle.append(one.handle.clone())
                mapping.pages.update(enumerate(one.lives, len(mapping.pages)))

    def ring(self) -> None:
        ring = self.mem.ring(2 * PAGE)
        lives = [Life.begin(frame, new_number()) for frame in ring.frames[:2]]
        self.held.append(Mapped(ring, dict(enumerate(2 * lives))))

    def send(self) -> None:
        one = self.some("Frame", "UFrame", "Segment", "USegment", "FrameVec")
        if one is None:
            return
        message = pickle.dumps((pickle.dumps(one.handle), [vars(life) for life in one.lives]))
        try:
            self.rng.choice(self.campaign.inboxes)[1].send(message)
        except BlockingIOError:
            self.board.add(self.place, "messages lost")
        if self.rng.random() < 0.7:
            self.held.remove(one)
            one.handle.drop()

    def receive(self) -> None:
        try:
            message = self.campaign.inboxes[self.place][0].recv(1 << 16)
        except BlockingIOError:
            return
        self.load(message)

    def load_again(self) -> None:
        if self.last is not None:
            self.load(self.last)

    def load(self, message: bytes) -> None:
        data, lives = pickle.loads(message)
        again = message == self.last
        self.last = message
        try:
            handle = pickle.loads(data)
        except FrameGoneError:
            self.board.add(self.place, "message gone")
            return
        self.board.add(self.place, "messages loaded")
        if again:
            self.board.add(self.place, "messages loaded late")
        one = Holding(handle, [Life(**life) for life in lives])
        self.held.append(one)
        one.check()

    def check(self) -> None:
        if self.held:
            self.rng.choice(self.held).check()

    def exhaust(self) -> None:
        frames = self.mem.alloc_frames(max(1, self.mem.free_frames), zeroed=False)
        with contextlib.suppress(OutOfFramesError):
            self.mem.alloc_frame().drop()
        frames.drop()

    def reap(self) -> None:
        self.campaign.worker_reaped(self.mem.reap())

    def fork(self) -> None:
        place = self.place + WORKERS
        if self.place >= WORKERS or self.board.get(place, "pid"):
            return
        self.wait_for_child()
        self.board.set(place, "forking", 1)
        seed = self.rng.randrange(2**32)
        pid = os.fork()
        if pid == 0:
            signal.alarm(4 * SECONDS)
            self.board.set(self.place + WORKERS, "forking", 0)
            Worker(self.campaign, place, seed, self.held).main()
        self.child = pid
        self.board.add(self.place, "children")
        self.board.set(place, "pid", pid)


class Round:
    """One arena with its workers, from the director's side."""

    def __init__(self, rng: random.Random, folder: Path, counters: Counter) -> None:
        self.rng, self.counters = rng, counters
        self.board = Board()
        self.log = folder / "log"
        self.log.write_bytes(b"")
        Told.log = os.open(self.log, os.O_WRONLY | os.O_APPEND)
        self.mem = PhysicalMemory.create("3 MiB", clients=16, tickets=128, ticket_ttl=TTL)
        self.held = [
            make(self.mem),
            make_segment(self.mem, 4),
            make_vector(self.mem, 4),
            make(self.mem, Node),
        ]
        self.held += [make(self.mem, Told), make_unique(self.mem)]
        self.reports = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.inboxes = [socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM) for _ in range(PLACES)]
        for pair in self.inboxes:
            for end in pair:
                end.setblocking(False)
        self.late_class = None
        self.pauses = 0
        self.nodes = 0  # of the page tables of all workers, as they have said
        self.mapped: dict[int, Counter] = {}  # by them: pid -> paddr -> mappings

    def late(self):
        """The type that the director comes to know last."""
        if self.late_class is None:
            self.late_class = late_type()
        return self.late_class

    def ending(self) -> bool:
        return self.board.pause[0] == END

    def worker_reaped(self, report) -> None:
        if report.clients:
            self.reports[1].send(pickle.dumps(("reaped", len(report.clients))))

    def play(self, kills: int) -> None:
        """Let workers work and kill them."""
        try:
            done = 0
            while done < kills:
                for place in range(WORKERS):
                    if not self.board.get(place, "pid"):
                        self.start(place)
                time.sleep(self.rng.uniform(0.0, 0.03))
                killed = self.kill()
                done += killed
                self.check_after(killed)
                self.board.pause[0] = 0
            self.finish()
        finally:
            self.board.pause[0] = END
            for pid in set(self.board.pids()) | set(orphans()):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            reap_children()
            os.close(Told.log)
            for pair in (self.reports, *self.inboxes):
                for end in pair:
                    end.close()

    def start(self, place: int) -> None:
        seed = self.rng.randrange(2**32)
        pid = os.fork()
        if pid == 0:
            signal.alarm(4 * SECONDS)
            Worker(self, place, seed, self.held).main()
        self.board.set(place, "pid", pid)

    def kill(self) -> int:
        """Kill one or two workers; return how many."""
        found = self.board.pids()
        number = 2 if self.rng.random() < 0.2 and len(found) > 1 else 1
        victims = self.rng.sample(sorted(found), number)
        tickets = self.mem.audit().tickets
        for pid in victims:
            os.kill(pid, signal.SIGKILL)
        for pid in victims:
            wait_until_dead(pid)
        for pid in victims:
            place = found[pid]
            inside = self.board.get(place, "inside")
            self.count("killed inside an operation" if inside else "killed between operations")
            for state, field in (
                ("killed with unique frames", "uniques"),
                ("killed with lists", "lists"),
                ("killed with views of dropped frames", "views"),
                ("killed while sharing frames", "shared"),
                ("killed with mapped frames", "mapped"),
            ):
                self.count(state, self.board.get(place, field) > 0)
            child = self.board.get(place + WORKERS, "pid") if place < WORKERS else 0
            self.count("killed parents whose child lived on", bool(child) and child not in victims)
            self.count("killed children of workers", place >= WORKERS)
            if place < WORKERS:
                self.count("killed while forking", self.board.get(place + WORKERS, "forking"))
        self.count("two killed at once", number == 2)
        self.count("killed with messages in flight", tickets > 0)
        reap_children()
        for pid in victims:
            self.forget(found[pid], pid)
        return number

    def forget(self, place: int, pid: int) -> None:
        """Add up what a worker has counted, and free its place."""
        for name in COUNTED:
            self.counters[name] += self.board.get(place, name)
        if self.board.get(place, "pid") == pid:
            self.board.table[place] = 0
            if place < WORKERS:
                self.board.set(place + WORKERS, "forking", 0)

    def count(self, state: str, really: int = True) -> None:
        self.counters[state] += int(really)

    def gather(self) -> tuple[dict[int, Counter], set[int]]:
        """Have all workers pause and say what they hold."""
        self.pauses += 1
        self.board.pause[0] = self.pauses
        held: dict[int, Counter] = {}
        alone: set[int] = set()
        self.nodes = 0
        self.mapped = {}
        deadline = time.monotonic() + SECONDS
        self.reports[0].settimeout(0.02)
        # A child is looked for among the processes first: in the other order one that came to the
        # board in between would be missed.
        while set(orphans()) - set(self.board.pids()) or set(self.board.pids()) - set(held):
            if time.monotonic() > deadline:
                silent = set(self.board.pids()) - set(held)
                raise AssertionError(f"workers {silent} do not answer: {[state_of(pid) for pid in silent]}")
            with contextlib.suppress(TimeoutError):
                self.hear(held, alone)
        return held, alone

    def hear(self, held: dict[int, Counter], alone: set[int]) -> None:
        kind, *rest = pickle.loads(self.reports[0].recv(1 << 20))
        if kind == "error":
            raise AssertionError(f"a worker failed:\n{rest[0]}")
        if kind == "reaped":
            self.count("reaped by a worker", rest[0])
        elif rest[0] == self.board.pause[0]:
            _, pid, references, owned, mapped, nodes = rest
            held[pid] = Counter(references)
            self.mapped[pid] = Counter(mapped)
            self.nodes += nodes
            alone |= set(owned)

    def check_after(self, killed: int) -> None:
        """Reap, and check all that must hold after so many were killed."""
        held, alone = self.gather()
        self.reap()
        mine = patterns.references(self.held)
        for holding in self.held:
            holding.check()
        held[os.getpid()] = mine
        alone |= {life.paddr for holding in self.held if holding.alone for life in holding.lives}
        assert {client.pid for client in self.mem.clients} == set(held), (self.mem.clients, held)
        total = sum(held.values(), Counter())
        report = self.mem.audit()
        assert report.quiet, report
        assert report.damaged == (), report
        wrong = len(report.leaked) + len(report.miscounted)
        assert wrong <= killed, f"{wrong} frames held too long by {killed}: {report}"
        self.count("held too long", wrong)
        counts = self.mem.slots["count"]
        for paddr in total:
            holders = [holder for holder in self.mem.holders(paddr) if holder.handles or holder.mappings]
            by = {holder.pid: holder.handles + holder.mappings for holder in holders}
            assert by == {pid: h[paddr] for pid, h in held.items() if h[paddr]}, f"{paddr:#x}: {by}"
            by = {holder.pid: holder.mappings for holder in holders if holder.mappings}
            assert by == {pid: m[paddr] for pid, m in self.mapped.items() if m[paddr]}, f"{paddr:#x}: {by}"
            if paddr not in alone:
                assert total[paddr] <= counts[paddr // 4096] < 2**62, f"{paddr:#x} is freed too early"
        if self.rng.random() < 0.4:
            time.sleep(TTL)  # so that all messages expire
            self.reap()
            report = self.mem.audit(repair=True)
            assert report.repaired, report
            assert (report.tickets, report.damaged) == (0, ()), report
            expected = len(total) + self.nodes + report.orphans
            assert self.mem.used_frames == expected, (self.mem.stats(), expected, report)
            self.fill()
            nodes = self.mem.stats().frames_by_type.get("pageframe.PageTableMeta", 0)
            assert nodes == self.nodes, (nodes, self.nodes)
        else:
            report = self.mem.audit(repair=True)
            assert report.repaired, report
        report = self.mem.audit()
        assert report.clean, report

    def fill(self) -> None:
        """Allocate all there is, also what the lanes of others keep."""
        kept = self.mem.free_frames - free_bits(self.mem)
        check_all_free_frames_work(self.mem)
        self.count("kept frames stolen", kept > 1)  # one may be our own

    def reap(self) -> None:
        report = self.mem.reap()
        self.counters["messages expired"] += report.tickets
        self.counters["orphans"] += report.orphans
        self.counters["adopted"] += report.adopted
        self.counters["frames in doubt"] += report.in_doubt

    def finish(self) -> None:
        """Let the workers end; then nobody but us holds anything."""
        self.board.pause[0] = END
        found = self.board.pids()
        for pid in found:
            wait_until_dead(pid)
        reap_children()
        self.reports[0].settimeout(0)
        with contextlib.suppress(BlockingIOError):
            while True:
                self.hear({}, set())
        for pid, place in found.items():
            self.forget(place, pid)
        time.sleep(TTL)
        self.late()
        self.reap()
        assert len(self.mem.clients) == 1, self.mem.clients
        report = self.mem.audit()
        assert report.clean, report
        check_repaired(self.mem, self.held)
        check_all_free_frames_work(self.mem)
        for holding in self.held:
            holding.handle.drop()
        assert self.mem.used_frames == 0
        check_dropped_once(self.log)
        self.mem.close()


def wait_until_dead(pid: int) -> None:
    """Wait for a process that need not be a child."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        assert poll.poll(1000 * SECONDS), f"process {pid} does not end"
    finally:
        os.close(fd)


def state_of(pid: int) -> str:
    """Say what a process is doing, which prints where it is, too."""
    with contextlib.suppress(OSError):
        os.kill(pid, signal.SIGUSR1)
        time.sleep(0.2)
        folder = Path(f"/proc/{pid}")
        return f"{pid}: {(folder / 'stat').read_text().split()[2]} {(folder / 'wchan').read_text()}"
    return f"{pid}: gone"


def orphans() -> list[int]:
    """Return the processes whose parent we are, those that have ended aside."""
    reap_children()
    return [int(pid) for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()]


def reap_children() -> None:
    """Wait for what has ended."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def free_bits(mem) -> int:
    """Count the free bits: frames that no lane keeps."""
    [(paddr, size)] = [(paddr, size) for name, paddr, size in mem.layout if name == "bits"]
    for fd in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            if str(fd.readlink()).startswith("/memfd:pageframe-"):
                with fd.open("rb") as file:
                    file.seek(paddr)
                    return sum(byte.bit_count() for byte in bytes(0xFF ^ b for b in file.read(size)))
    raise AssertionError("the arena has no file")


def become_subreaper() -> None:
    """Let what our children leave behind become our children."""
    if ctypes.CDLL(None, use_errno=True).prctl(36, 1, 0, 0, 0) != 0:  # PR_SET_CHILD_SUBREAPER
        raise OSError(ctypes.get_errno(), "prctl")


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--kills", type=int, default=0, help="kills, or 0: until the time is over")
    parser.add_argument("--seconds", type=float, default=0)
    options = parser.parse_args()
    become_subreaper()
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR1)
    print(f"seed {options.seed}", file=sys.stderr, flush=True)
    rng = random.Random(options.seed)
    counters: Counter = Counter()
    kills = 0
    end = time.monotonic() + options.seconds
    with tempfile.TemporaryDirectory() as folder:
        while kills < options.kills or time.monotonic() < end:
            Round(rng, Path(folder), counters).play(KILLS_A_ROUND)
            gc.collect()
            kills += KILLS_A_ROUND
            counters["rounds"] += 1
            if options.seconds and counters["rounds"] % 20 == 0:
                print(
                    f"{kills} kills, {max(0, end - time.monotonic()):.0f} s to go",
                    file=sys.stderr,
                    flush=True,
                )
    print(json.dumps({name: counters[name] for name in ("rounds", *RARE, *COUNTED)}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
