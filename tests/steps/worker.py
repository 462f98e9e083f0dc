# This Source Code Form is subject to the terms of the Mozilla Public
# License, v. 2.0. If a copy of the MPL was not distributed with this
# file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""What a process of the campaign does: operations drawn from a seeded generator.

A worker is a process.  It has one to three hands, which are threads; each draws its own
operations and keeps a plain list of what it holds.  What concerns the process as a whole (fork,
leaving the arena, saying what it holds) the first hand does, while the others wait between two
operations.  What the director has to know of a worker, whatever becomes of it, stands on the
board.
"""

import contextlib
import gc
import mmap
import os
import pickle
import random
import signal
import sys
import threading
import time
import traceback

import numpy as np

from pageframe import (
    AddressInUseError,
    ArenaFullError,
    ClientsFullError,
    CopyOnWriteError,
    Frame,
    FrameArray,
    FrameGoneError,
    FrameInUseError,
    FrameVec,
    GetFrameError,
    LinkedList,
    OutOfBoundError,
    OutOfFramesError,
    PageProperty,
    QuotaExceededError,
    SpaceClosedError,
    TicketsFullError,
    VmSpace,
)
from pageframe.adaptors import LimitAdaptor, LogAdaptor, StatisticsAdaptor
from steps import patterns
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

WORKERS = 8
HANDS = 3
PLACES = 2 * WORKERS  # each worker may have one child
PAGE = 4096
PAGES = 24  # of an address space
NODES = 4  # of its page table, once something is mapped
HOLDINGS = 16  # that a hand has at the most
QUOTA = 20  # frames
SECONDS = 60  # without a sign of life, until a process is given up
FREE_THREADED = hasattr(sys, "_is_gil_enabled") and not sys._is_gil_enabled()
END = -1  # instead of the number of a pause: workers are to end
REFUSED = 3  # exit status of a process that found no room in the arena

OPERATIONS = [
    "allocate", "run", "vector", "clone", "part", "split", "collect", "drop", "unique", "repurpose", "share",
    "push", "pop", "rework", "raw", "view", "take", "claim", "array", "send", "receive", "load_again",
    "check", "exhaust", "trim", "reap", "audit", "look", "quota", "tally", "late", "map", "unmap", "protect",
    "snapshot", "make_writable", "mapping", "append", "ring", "fork", "visit", "rejoin",
]  # fmt: skip
OF_THE_PROCESS = ["fork", "visit", "rejoin"]
MET = [
    "out of frames", "quota reached", "tickets full", "table of clients full", "file system full",
    "children without a place", "not alone", "frames refused", "frames taken", "frames trimmed",
    "messages lost", "messages loaded", "messages loaded late", "message gone", "children",
    "children of threads", "attached anew", "reaped by a worker",
    "frames in doubt", "held too long", "audits of an arena at work",
    "audits of a quiet arena", "busy frames seen", "scattered arrays", "pages unmapped", "pages copied",
    "spaces of children", "spaces without a table",
]  # fmt: skip
COUNTED = [*OPERATIONS, *MET]
FIELDS = ["pid", "op", "hands", "uniques", "lists", "views", "shared", "mapped", *COUNTED]


class Board:
    """Memory that the director shares with all workers: a row for each hand."""

    def __init__(self) -> None:
        rows = PLACES * HANDS
        self.page = mmap.mmap(-1, 8 * (1 + rows * len(FIELDS)))
        words = np.frombuffer(self.page, np.int64)
        self.pause = words[:1]
        self.table = words[1:].reshape(PLACES, HANDS, len(FIELDS))

    def get(self, place: int, field: str) -> int:
        return int(self.table[place, :, FIELDS.index(field)].sum())

    def set(self, place: int, field: str, value: int, hand: int = 0) -> None:
        self.table[place, hand, FIELDS.index(field)] = value

    def add(self, place: int, field: str, hand: int = 0, value: int = 1) -> None:
        self.table[place, hand, FIELDS.index(field)] += value

    def operations(self, place: int) -> list[str]:
        """Return what the hands of a worker are doing."""
        return [OPERATIONS[op - 1] for op in self.table[place, :, FIELDS.index("op")] if op]

    def doing(self, operation: str) -> list[tuple[int, int]]:
        """Return those that are doing something: pid and place."""
        at = self.table[:, :, FIELDS.index("op")] == OPERATIONS.index(operation) + 1
        places = map(int, np.flatnonzero(at.any(axis=1)))
        return [(pid, place) for place in places if (pid := self.get(place, "pid"))]

    def pids(self) -> dict[int, int]:
        """Return the processes that are at work: pid -> place."""
        return {pid: place for place in range(PLACES) if (pid := self.get(place, "pid"))}


class Viewed(Holding):
    """A view of a frame whose handle was dropped."""

    alone = False

    def check(self) -> None:
        life = self.lives[0]
        assert self.handle == patterns.pattern(life.paddr, life.generation, life.number)


class Arrayed(Holding):
    """A NumPy array over a run of frames."""

    alone = False

    def check(self) -> None:
        for row, life in zip(self.handle.reshape(-1, PAGE), self.lives, strict=True):
            assert row.tobytes() == patterns.pattern(life.paddr, life.generation, life.number), vars(life)


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


def let_go(holding: Holding) -> None:
    """Check a holding, and release it."""
    holding.check()
    if isinstance(holding, Viewed):
        holding.handle.release()
    elif isinstance(holding.handle, VmSpace):
        holding.handle.close()
    elif isinstance(holding, Arrayed):
        holding.handle = None
    else:
        holding.handle.drop()


def no_room_for_child(what) -> bool:
    """Whether what can't be raised is that a fork found no place for its child, which may be."""
    return isinstance(what.exc_value, (ClientsFullError, ArenaFullError))


class Worker:
    """A process: it works until it is told to end; what goes wrong it tells the director."""

    def __init__(self, campaign, place: int) -> None:
        self.campaign, self.mem, self.board, self.place = campaign, campaign.mem, campaign.board, place
        self.hands: list[Hand] = []
        self.quota = None
        self.view = None  # of the arena from outside
        self.looking = threading.Lock()
        self.child = 0
        self.waiting = False  # the first hand wants all others to wait
        self.over = False

    def unraisable(self, what) -> None:
        if not no_room_for_child(what):
            self.fail("".join(traceback.format_exception(what.exc_value)))

    def main(self, seed: int, held: list[Holding], child: bool) -> None:
        """Work until told to end; never returns."""
        try:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            sys.unraisablehook = self.unraisable
            if self.mem.closed:
                os._exit(REFUSED)
            self.begin(random.Random(seed), [holding for holding in held if not holding.alone], child)
            threads = [threading.Thread(target=hand.main) for hand in self.hands[1:]]
            for thread in threads:
                thread.start()
            while not self.campaign.ending():
                signal.alarm(4 * SECONDS)
                if not self.campaign.director_lives():
                    os._exit(1)
                if self.board.pause[0] > 0:
                    self.report()
                self.hands[0].work()
            self.over = True
            for thread in threads:
                thread.join()
            if self.child:
                os.waitpid(self.child, 0)
            self.leave()
        except BaseException:
            self.fail(traceback.format_exc())
        os._exit(0)

    def begin(self, rng: random.Random, held: list[Holding], child: bool) -> None:
        """Come to the board; some let go of what they were forked with, and attach themselves."""
        self.hands = [Hand(self, i, rng.randrange(2**32)) for i in range(rng.choice([1, 1, 2, HANDS]))]
        self.hands[0].held = held
        self.board.set(self.place, "hands", len(self.hands))
        self.board.set(self.place, "pid", os.getpid())
        for one in held:
            if child and isinstance(one, Mapped):
                self.board.add(self.place, "spaces of children" if one.usable() else "spaces without a table")
        if not child and rng.random() < 0.3:
            self.leave()
            self.attach()

    def fail(self, what: str) -> None:
        self.tell("error", f"place {self.place}, {self.board.operations(self.place)}: {what}")
        os._exit(1)

    def tell(self, *what) -> None:
        self.campaign.reports[1].send(pickle.dumps(what))

    @contextlib.contextmanager
    def others_wait(self):
        """Have the other hands wait between two operations."""
        self.waiting = True
        with contextlib.ExitStack() as stack:
            for hand in self.hands[1:]:
                stack.enter_context(hand.gate)
            self.waiting = False  # from now on the gates keep them
            yield

    def holdings(self) -> list[Holding]:
        return [holding for hand in self.hands for holding in hand.held]

    def report(self) -> None:
        """Check what we hold, say what it is, and wait until we may go on."""
        with self.others_wait():
            pause = int(self.board.pause[0])
            found = self.holdings()
            for holding in found:
                holding.check()
            alone = [life.paddr for h in found if h.alone for life in h.lives]
            spaces = [h for h in found if isinstance(h, Mapped)]
            mapped = dict(patterns.references([h for h in spaces if h.usable()]))
            nodes = sum(h.nodes() for h in spaces)
            held = dict(patterns.references(found))
            self.tell("holds", pause, os.getpid(), held, alone, mapped, nodes, not self.mem.closed)
            while self.board.pause[0] == pause:
                time.sleep(0.002)

    def leave(self) -> None:
        """Let go of all that the hands hold, and of the arena."""
        for hand in self.hands:
            while hand.held:
                let_go(hand.held.pop())
        if self.quota is not None:
            assert self.quota.used_frames == 0, self.quota.used_frames
            self.quota = None
        # Without an interpreter lock an array that another hand made, which waits, dies in a collection,
        # the view it rests on in the next, and so on.
        for _ in range(4 if FREE_THREADED else 0):
            gc.collect()
        self.mem.close()

    def attach(self) -> None:
        """Become a client anew, as soon as there is room."""
        while not self.campaign.ending():
            try:
                self.mem = self.campaign.attach()
                self.board.add(self.place, "attached anew")
                return
            except ClientsFullError:
                self.board.add(self.place, "table of clients full")
            except ArenaFullError:
                self.board.add(self.place, "file system full")
            if self.board.pause[0] > 0:
                self.report()
            time.sleep(0.005)
        self.over = True


class Hand:
    """A thread, its operations and what it holds."""

    def __init__(self, worker: Worker, number: int, seed: int) -> None:
        self.worker, self.number = worker, number
        self.rng = random.Random(seed)
        self.names = [name for name in OPERATIONS if number == 0 or name not in OF_THE_PROCESS]
        self.held: list[Holding] = []
        self.last = None  # a message that was loaded already
        self.gate = threading.RLock()  # held during an operation, or by the first hand

    @property
    def mem(self):
        return self.worker.mem

    def main(self) -> None:
        try:
            while True:
                while self.worker.waiting:
                    time.sleep(0.001)
                with self.gate:
                    if self.worker.over:
                        return
                    self.work()
        except BaseException:
            self.worker.fail(traceback.format_exc())

    def count(self, what: str, number: int = 1) -> None:
        self.worker.board.add(self.worker.place, what, self.number, number)

    def work(self) -> None:
        """Do one operation."""
        name = self.rng.choice(self.names if len(self.held) < HOLDINGS else ["drop", "drop", "send", "check"])
        self.note()
        board, place = self.worker.board, self.worker.place
        board.set(place, "op", OPERATIONS.index(name) + 1, self.number)
        try:
            getattr(self, name)()
            self.count(name)
        except QuotaExceededError:
            self.count("quota reached")
        except OutOfFramesError:
            self.count("out of frames")
        except TicketsFullError:
            self.count("tickets full")
        board.set(place, "op", 0, self.number)

    def note(self) -> None:
        """Let the director know what we hold, should we be killed."""
        board, place = self.worker.board, self.worker.place
        for field, kind in (("uniques", "UniqueFrame"), ("lists", "LinkedList"), ("views", "memoryview")):
            board.set(place, field, sum(type(h.handle).__name__ == kind for h in self.held), self.number)
        board.set(place, "shared", sum(not h.alone for h in self.held), self.number)
        mapped = sum(len(h.pages) for h in self.held if isinstance(h, Mapped))
        board.set(place, "mapped", mapped, self.number)

    def some(self, *kinds: str) -> Holding | None:
        found = [h for h in self.held if type(h.handle).__name__ in kinds]
        return self.rng.choice(found) if found else None

    # -- frames --------------------------------------------------------------------------------

    def allocate(self) -> None:
        self.held.append(make(self.mem, self.rng.choice([Page, Node, Told])))

    def run(self) -> None:
        self.held.append(make_segment(self.mem, self.rng.randint(1, 9), self.rng.choice([Page, Told])))

    def vector(self) -> None:
        self.held.append(make_vector(self.mem, self.rng.randint(1, 9), self.rng.choice([Page, Node])))

    def late(self) -> None:
        number = new_number()
        frame = self.mem.alloc_frame(self.worker.campaign.late()(number=number))
        self.held.append(Holding(frame, [Life.begin(frame, number)]))

    def clone(self) -> None:
        if one := self.some("Frame", "UFrame", "Segment", "USegment", "FrameVec"):
            self.held.append(Holding(one.handle.clone(), one.lives))

    def part(self) -> None:
        if one := self.some("USegment", "Segment", "FrameVec"):
            start = self.rng.randrange(len(one.lives))
            stop = self.rng.randint(start + 1, len(one.lives))
            self.held.append(Holding(one.handle[start:stop], one.lives[start:stop]))

    def split(self) -> None:
        one = self.some("USegment", "Segment")
        if one and len(one.lives) > 1:
            at = self.rng.randrange(1, len(one.lives))
            self.held.remove(one)
            parts = one.handle.split(at * PAGE)
            self.held += map(Holding, parts, (one.lives[:at], one.lives[at:]))

    def collect(self) -> None:
        """Make a vector of frames of one type."""
        if one := self.some("Frame", "UFrame"):
            kind = one.handle.meta_type
            found = [h for h in self.held if isinstance(h.handle, Frame) and h.handle.meta_type is kind]
            vector = FrameVec.from_frames([h.handle for h in found])
            self.held.append(Holding(vector, [life for h in found for life in h.lives]))

    def drop(self) -> None:
        if self.held:
            let_go(self.held.pop(self.rng.randrange(len(self.held))))

    def unique(self) -> None:
        one = self.some("UFrame", "Frame")
        if one is None:
            self.held.append(make_unique(self.mem))
            return
        try:
            one.handle = one.handle.try_unique()
        except FrameInUseError:
            self.count("not alone")

    def repurpose(self) -> None:
        if one := self.some("UniqueFrame"):
            number = new_number()
            one.handle = one.handle.repurpose(self.rng.choice([Page, Told])(number=number))
            one.lives = [Life.begin(one.handle, number)]

    def share(self) -> None:
        if one := self.some("UniqueFrame"):
            one.handle = one.handle.share()

    def raw(self) -> None:
        if one := self.some("UFrame", "Frame", "UniqueFrame", "Segment", "USegment"):
            kind = type(one.handle)
            raw = one.handle.into_raw()
            one.handle = kind.from_raw(self.mem, *(raw if isinstance(raw, tuple) else (raw,)))
        if one := self.some("UFrame", "Frame"):
            self.mem.inc_frame_ref_count(one.lives[0].paddr)
            self.held.append(Holding(Frame.from_raw(self.mem, one.lives[0].paddr), one.lives))

    def view(self) -> None:
        if one := self.some("UFrame"):
            self.held.remove(one)
            view = memoryview(one.handle)
            one.handle.drop()
            self.held.append(Viewed(view, one.lives))

    def take(self) -> None:
        """Take a reference to any frame, whoever holds it."""
        try:
            frame = Frame.from_in_use(self.mem, self.rng.randrange(self.mem.total_frames) * PAGE)
        except GetFrameError:
            self.count("frames refused")
            return
        with frame:
            life = frame.start_paddr, frame.generation
            with frame.clone() as other:
                assert (other.start_paddr, other.generation) == life
            assert (frame.start_paddr, frame.generation) == life
        self.count("frames taken")

    def claim(self) -> None:
        """Claim a frame by its address, if it is free."""
        number = new_number()
        paddr = self.rng.randrange(self.mem.total_frames) * PAGE
        with contextlib.suppress(GetFrameError):
            frame = Frame.from_unused(self.mem, paddr, Page(number=number))
            self.held.append(Holding(frame, [Life.begin(frame, number)]))

    # -- lists ---------------------------------------------------------------------------------

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

    def rework(self) -> None:
        """Take a frame out of a list, begin another life with it and put it back."""
        items = self.some("LinkedList")
        if items and items.lives:
            at = self.rng.randrange(len(items.lives))
            cursor = items.handle.cursor_at(items.lives[at].paddr)
            number = new_number()
            frame = cursor.take_current().repurpose(Page(number=number))
            life = Life.begin(frame, number)
            cursor.insert_before(frame)
            items.lives = [*items.lives[:at], life, *items.lives[at + 1 :]]

    # -- arrays and address spaces -------------------------------------------------------------

    def array(self) -> None:
        """Allocate an array; where it lies is told by its address."""
        with self.mem.alloc_frame() as frame:
            base = np.frombuffer(frame, np.uint8).ctypes.data - frame.start_paddr
        array = self.mem.array((self.rng.randint(1, 5), PAGE), np.uint8, zeroed=self.rng.random() < 0.5)
        first = array.ctypes.data - base
        if not 0 <= first < self.mem.max_paddr:
            self.count("scattered arrays")
            return
        lives = []
        for i in range(len(array)):
            with Frame.from_in_use(self.mem, first + i * PAGE) as frame:
                lives.append(Life.begin(frame, 0))
        self.held.append(Arrayed(array, lives))

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
                self.count("pages unmapped")

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
                    self.count("pages copied")
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

    # -- messages ------------------------------------------------------------------------------

    def send(self) -> None:
        one = self.some("Frame", "UFrame", "Segment", "USegment", "FrameVec", "FrameArray")
        if one is None:
            return
        message = pickle.dumps((pickle.dumps(one.handle), [vars(life) for life in one.lives]))
        try:
            self.rng.choice(self.worker.campaign.inboxes)[1].send(message)
        except BlockingIOError:
            self.count("messages lost")
        if self.rng.random() < 0.7:
            self.held.remove(one)
            let_go(one)

    def receive(self) -> None:
        try:
            message = self.worker.campaign.inboxes[self.worker.place][0].recv(1 << 16)
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
            self.count("message gone")
            return
        self.count("messages loaded")
        if again:
            self.count("messages loaded late")
        kind = Arrayed if isinstance(handle, FrameArray) else Holding
        one = kind(handle, [Life(**life) for life in lives])
        self.held.append(one)
        one.check()

    # -- the arena -----------------------------------------------------------------------------

    def check(self) -> None:
        if self.held:
            self.rng.choice(self.held).check()

    def exhaust(self) -> None:
        frames = self.mem.alloc_frames(max(1, self.mem.free_frames), zeroed=False)
        with contextlib.suppress(OutOfFramesError):
            self.mem.alloc_frame().drop()
        frames.drop()

    def trim(self) -> None:
        """Give memory back: what is held stays, and what is free reads as zero."""
        self.count("frames trimmed", self.mem.trim())
        for holding in self.held:
            holding.check()
        with self.mem.alloc_frame() as frame, memoryview(frame) as view:
            assert view == bytes(PAGE)

    def reap(self) -> None:
        report = self.mem.reap()
        self.count("reaped by a worker", bool(report.clients))
        self.count("frames in doubt", report.in_doubt)

    def audit(self) -> None:
        """Audit, and repair, while others work: it must do no harm."""
        report = self.mem.audit(repair=self.rng.random() < 0.7)
        self.count("audits of a quiet arena" if report.quiet else "audits of an arena at work")
        assert report.damaged == () or not report.quiet, report
        if report.quiet:
            self.count("held too long", len(report.leaked) + len(report.miscounted))

    def look(self) -> None:
        """Look from outside: what is seen is what can be, and we are there."""
        with self.worker.looking:  # finding the arena anew each time would take most of the time
            if self.worker.view is None or self.rng.random() < 0.02:
                self.worker.view = self.worker.campaign.view()
            view = self.worker.view
            stats = view.stats()
            assert 0 <= stats.used_frames + stats.reserved_frames <= stats.total_frames == view.total_frames
            assert os.getpid() in {client.pid for client in view.clients}
            held = dict(view.held_by(os.getpid()).tolist())
            for paddr, references in patterns.references(self.held).items():
                assert held[paddr] >= references, f"{paddr:#x}: {held[paddr]} of {references}"
            if self.held and self.held[0].lives:
                holders = view.holders(self.held[0].lives[0].paddr)
                assert os.getpid() in {holder.pid for holder in holders}
            report = view.audit()
            assert report.damaged == () or not report.quiet, report
            self.count("busy frames seen", stats.busy_frames > 0)
            if "trace" in view.debug:
                times = view.events(os.getpid())["time"]
                assert (times[1:] >= times[:-1]).all()

    def quota(self) -> None:
        """Allocate through adaptors."""
        worker = self.worker
        if worker.quota is None:
            log = LogAdaptor(self.mem, os.devnull)
            worker.quota = LimitAdaptor(StatisticsAdaptor(log), QUOTA * PAGE)
        assert worker.quota.used_frames <= QUOTA
        self.held.append(make_vector(worker.quota, self.rng.randint(1, 9)))

    def tally(self) -> None:
        """Count in a field that all share."""
        with Frame.from_in_use(self.mem, self.worker.campaign.tally) as frame:
            frame.meta.total.fetch_add(1)

    # -- the process ---------------------------------------------------------------------------

    def fork(self) -> None:
        worker, board = self.worker, self.worker.board
        place = worker.place + WORKERS
        if worker.place >= WORKERS or board.get(place, "pid"):
            return
        if worker.child:
            os.waitpid(worker.child, 0)
            worker.child = 0
        seed = self.rng.randrange(2**32)
        with worker.others_wait():
            pid = os.fork()
            if pid == 0:
                Worker(worker.campaign, place).main(seed, worker.holdings(), True)
        # It has a place on the board before we say what we hold.
        worker.child = pid
        while board.get(place, "pid") != pid:
            found, status = os.waitpid(pid, os.WNOHANG)
            if found:
                worker.child = 0
                self.count("children without a place", os.waitstatus_to_exitcode(status) == REFUSED)
                return
            time.sleep(0.001)
        self.count("children")
        self.count("children of threads", len(worker.hands) > 1)

    def visit(self) -> None:
        """Be two clients for a while."""
        if self.rng.random() < 0.8:
            return
        with self.worker.others_wait():
            try:
                mem = self.worker.campaign.attach()
            except ClientsFullError:
                self.count("table of clients full")
                return
            except ArenaFullError:
                self.count("file system full")
                return
            try:
                with contextlib.suppress(OutOfFramesError):
                    one = make(mem)
                    one.check()
                    one.handle.drop()
            finally:
                mem.close()

    def rejoin(self) -> None:
        """Leave the arena, and come back."""
        if self.rng.random() < 0.2:
            with self.worker.others_wait():
                self.last = None
                self.worker.leave()
                self.worker.attach()
