# This Source Code Form is subject to the terms of the Mozilla Public
# License, v. 2.0. If a copy of the MPL was not distributed with this
# file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""What a victim does until it is killed.

Each scenario is a function of a `World`; the victim was forked from the survivor and
has what that holds, sole ownership aside.  Between them they pass every step.
"""

import contextlib
import os
import pickle
import signal
from dataclasses import dataclass, field

from pageframe import (
    Frame,
    FrameGoneError,
    FrameVec,
    LinkedList,
    OutOfFramesError,
    PageProperty,
    PhysicalMemory,
    UniqueFrame,
    UntypedFrameMeta,
    VmSpace,
    u64,
)
from pageframe._core.memory import leave_all
from steps.control import Steps, in_child
from steps.patterns import (
    Holding,
    Node,
    Page,
    Told,
    late_type,
    make,
    make_list,
    make_segment,
    make_unique,
    make_vector,
    new_number,
)

PAGE = 4096
READ_ONLY = PageProperty(write=False)
CLIENTS = 3  # the survivor, the victim, and a child of the victim


@dataclass
class World:
    """What a victim has to work with."""

    mem: PhysicalMemory
    steps: Steps
    held: list[Holding]  # the survivor's, as the fork has passed it on
    stopped: list = field(default_factory=list)  # the survivor's part, each time the victim stops
    children: int = 0

    def child(self, work, step=None, after=0) -> None:
        """Fork a child, which does something and is killed, at a step or at the end; wait for it.

        Without work it is killed at a step of the fork itself.
        """
        self.children += 1
        target = 1 + self.children
        if work is None:
            in_child.append(lambda: self.steps.arm(target, step, after))
        pid = os.fork()
        if pid == 0:
            signal.alarm(30)
            with contextlib.suppress(BaseException):
                if work is not None:
                    self.steps.arm(target, step, after)
                    work()
                if step is None:
                    os.kill(os.getpid(), signal.SIGKILL)
            os._exit(3)
        in_child.clear()
        _, status = os.waitpid(pid, 0)
        if not (os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL):
            raise AssertionError(f"child {self.children} was not killed: {status}")

    def drop_all(self) -> None:
        """Drop what the fork has passed on."""
        for holding in self.held:
            if not holding.alone:
                holding.handle.drop()
        self.held = []

    def shared(self) -> list:
        return [holding for holding in self.held if not holding.alone]


def frames(w: World) -> None:
    """Single frames: allocated, cloned, found by paddr, dropped in all orders."""
    one = make(w.mem)
    two = one.handle.clone()
    three = Frame.from_in_use(w.mem, one.lives[0].paddr)
    one.handle.drop()
    two.drop()
    three.drop()
    again = make(w.mem, Told)
    more = [make(w.mem, Node) for _ in range(3)]
    again.handle.drop()
    for holding in w.shared():
        clone = holding.handle.clone()
        holding.handle.drop()
        clone.drop()
    paddr = more[0].handle.into_raw()
    w.mem.inc_frame_ref_count(paddr)
    Frame.from_raw(w.mem, paddr).drop()
    Frame.from_raw(w.mem, paddr).drop()
    for holding in more[1:]:
        holding.handle.drop()


def runs(w: World) -> None:
    """Segments and vectors."""
    segment = make_segment(w.mem, 70)
    part = segment.handle.slice(0x1000, 0x4000)
    segment.handle.drop()
    vector = make_vector(w.mem, 70)
    some = vector.handle[::2]
    vector.handle.drop()
    told = make_segment(w.mem, 3, Told)
    FrameVec.from_frames(list(told.handle)).drop()
    told.handle.drop()
    some.drop()
    part.drop()


def unique(w: World) -> None:
    """Unique frames and lists."""
    one = make_unique(w.mem, Told).handle
    one = one.repurpose(Page(number=1))
    frame = one.share()
    one = frame.try_unique()
    items = make_list(w.mem, 4).handle
    items.push_front(one)
    cursor = items.cursor_back()
    cursor.move_to_front()
    cursor = items.cursor_front()
    cursor.move_next()
    taken = cursor.take_current()
    cursor.insert_before(make_unique(w.mem).handle)
    items.pop_front().drop()
    items.pop_back().reset_as_unused()
    other = LinkedList(w.mem, Page)
    other.push_back(taken)
    items.drop()
    paddr = make(w.mem)
    paddr.handle.drop()
    again = UniqueFrame.from_unused(w.mem, paddr.lives[0].paddr, Page)
    other.push_front(again)
    other.drop()


def exhaust(w: World) -> None:
    """All frames there are, the one that the survivor's lane keeps, too; then trimmed."""
    some = w.mem.alloc_frames(w.mem.free_frames - 2, zeroed=False)
    taken = []
    with contextlib.suppress(OutOfFramesError):
        while True:
            taken.append(w.mem.alloc_frame(zeroed=False))
    if w.mem.free_frames:
        raise AssertionError("there are frames left")
    for frame in taken:
        frame.drop()
    some.drop()
    w.mem.trim()


def messages(w: World) -> None:
    """Handles sent, loaded once, twice, or never."""
    one, run, many = make(w.mem), make_segment(w.mem, 5), make_vector(w.mem, 6)
    for holding in (one, run, many, make(w.mem, Told)):
        data = pickle.dumps(holding.handle)
        holding.handle.drop()
        handle = pickle.loads(data)
        Holding(handle, holding.lives).check()
        with contextlib.suppress(FrameGoneError):
            pickle.loads(data).drop()
        lost = pickle.dumps(handle)
        handle.drop()
        del lost
    array = w.mem.array((3, 1000))
    data = pickle.dumps(array)
    del array
    pickle.loads(data)[:] = 1
    for holding in w.shared():
        pickle.loads(pickle.dumps(holding.handle)).drop()
    w.mem.reap()  # time to live is 0


def listed(w: World) -> None:
    """A vector sent from an arena whose free frames are as the kernel gave them."""
    pickle.loads(pickle.dumps(make_vector(w.mem, 6).handle)).drop()


def death(w: World, step=None, after=0) -> None:
    """A child dies that holds a bit of everything; the victim reaps it."""

    def work():
        nonlocal keep
        keep = [make(w.mem), make_segment(w.mem, 3), make_vector(w.mem, 3), make_unique(w.mem)]
        keep += [make_list(w.mem, 3), make(w.mem, Told), make_unique(w.mem, Told), make(w.mem, Node)]
        keep += [holding.handle.clone() for holding in w.shared()]
        keep += [pickle.dumps(keep[1].handle), pickle.dumps(keep[2].handle)]
        keep += [make(w.mem) for _ in range(70)]  # its lane has a chunk of its own
        make(w.mem).handle.drop()  # and keeps a frame
        with contextlib.suppress(OutOfFramesError):
            some = w.mem.alloc_frames(w.mem.free_frames)
            some.drop()
        keep.append(make(w.mem))

    keep = []
    w.child(work, step, after)
    w.mem.reap()


def death_loading(w: World) -> None:
    """Children die that send, load and give up messages; the victim goes on with that."""

    def work():
        many = make_vector(w.mem, 6)
        data = pickle.dumps(many.handle)
        many.handle.drop()
        pickle.loads(data).drop()

    for step, after in (("ticket_count", 3), ("redeem_done", 3), ("release_done", 0)):
        w.child(work, step, after)
        w.mem.reap()


def orphans(w: World) -> None:
    """Frames of a type that only a dead process knew; then the victim comes to know it."""
    sender, receiver = os.pipe()[::-1]

    def work():
        late = late_type()
        frame, *more = [w.mem.alloc_frame(late(number=new_number())) for _ in range(3)]
        os.write(sender, pickle.dumps(frame))
        frame.drop()
        more[0].clone()
        os.kill(os.getpid(), signal.SIGKILL)

    w.child(work)
    pickle.loads(os.read(receiver, 4096)).drop()  # the last reference, of a type that is opaque here
    w.mem.reap()
    late = late_type()
    w.mem.reap()
    w.mem.alloc_frame(late(number=new_number())).drop()


def types(w: World) -> None:
    """Types that are registered, and one that a process has registered before."""

    def work():
        w.mem.alloc_frame(late_type()(number=new_number()))

    w.child(work)
    dict(w.mem.types)  # makes it known, as opaque
    late = late_type()
    w.mem.alloc_frame(late(number=new_number())).drop()

    class Other(UntypedFrameMeta):
        number: u64

    w.mem.alloc_frame(Other).drop()


def forks(w: World) -> None:
    """Children, which drop what they were given, and leave it."""
    one, many, alone = make(w.mem), make_vector(w.mem, 3), make_unique(w.mem)
    clone = one.handle.clone()
    for leave in (False, True):
        pid = os.fork()
        if pid == 0:
            signal.alarm(30)
            clone.drop()
            w.shared()[0].handle.drop()
            if leave:
                leave_all()
            os._exit(0)
        os.waitpid(pid, 0)
    w.mem.reap()
    for handle in (one.handle, many.handle, alone.handle, clone):
        handle.drop()


def spaces(w: World) -> None:
    """An address space: mapped, split, protected, unmapped; its snapshots, and what is copied."""
    big = w.mem.alloc_segment(512, align=512 * PAGE)
    vm = VmSpace(w.mem, 2048 * PAGE)
    with vm.cursor() as cursor:
        cursor.map(make(w.mem, Told).handle)
        cursor.map(make_segment(w.mem, 3).handle)
        cursor.map(make_vector(w.mem, 4).handle)
        for holding in w.shared():
            if not holding.lives[0].typed:
                cursor.map(holding.handle.clone())
        cursor.jump(1024 * PAGE)
        cursor.map(big)
        cursor.jump(1024 * PAGE)
        if cursor.query().level != 2:
            raise AssertionError("no entry of a higher level")
        cursor.jump(1025 * PAGE)
        cursor.protect(PAGE, READ_ONLY)  # splits that entry
        cursor.jump(2 * PAGE)
        cursor.protect(1030 * PAGE, READ_ONLY)
    copy = vm.fork()
    third = copy.fork()
    if vm.make_writable(0, 8 * PAGE, force=True, meta=Page) != 8:
        raise AssertionError("the first eight pages were shared")
    with copy.cursor() as cursor:
        cursor.unmap(4 * PAGE)
    copy.close()
    third.make_writable(4 * PAGE, 9 * PAGE, force=True)
    with vm.cursor(PAGE) as cursor:
        cursor.unmap(3 * PAGE)
        cursor.jump(1030 * PAGE)
        cursor.unmap(600 * PAGE)
    view = third.view(0, 2 * PAGE)
    third.close()
    view.release()
    vm.close()


def mappings(w: World) -> None:
    """Mappings that grow, rings, and arrays over scattered frames that are passed on."""
    mapping = w.mem.map(make_vector(w.mem, 3, Told).handle)
    mapping.append([make(w.mem).handle, make_segment(w.mem, 2).handle])
    mapping.append([h.handle.clone() for h in w.shared() if not h.lives[0].typed])
    array = mapping.array()
    mapping.drop()
    ring = w.mem.ring(3 * PAGE)
    ring.window(2 * PAGE)[:] = bytes(3 * PAGE)
    del array
    with w.mem.alloc_frames(w.mem.free_frames) as some:
        keep = some[::2]
    scattered = w.mem.zeros(9 * PAGE, "u1")
    data = pickle.dumps(scattered[PAGE:])
    del scattered
    loaded = pickle.loads(data)
    loaded[:] = 1
    del loaded
    keep.drop()
    ring.drop()


def forked_spaces(w: World) -> None:
    """Children that have the spaces of the victim, too: one unmaps, one leaves, one is killed."""
    vm = VmSpace(w.mem, 16 * PAGE)
    with vm.cursor() as cursor:
        cursor.map(make(w.mem, Told).handle)
        cursor.map(make_vector(w.mem, 3).handle)
        cursor.map(w.shared()[0].handle.clone())
    copy = vm.fork()
    mapping, ring = w.mem.map(make(w.mem).handle), w.mem.ring(PAGE)
    view = mapping.array()
    mapping.drop()
    for end in ("exit", "leave", "kill"):
        pid = os.fork()
        if pid == 0:
            signal.alarm(30)
            with vm.cursor() as cursor:
                cursor.unmap(2 * PAGE)
                cursor.jump(0)
                cursor.map(make(w.mem).handle)
            copy.make_writable()
            ring.drop()
            if end == "leave":
                leave_all()
            if end == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            os._exit(0)
        os.waitpid(pid, 0)
        w.mem.reap()
    del view
    vm.close()
    copy.close()
    ring.drop()


def death_mapped(w: World) -> None:
    """A child dies that has mapped a bit of everything; the victim reaps it."""

    def work():
        vm = VmSpace(w.mem, 2048 * PAGE)
        with vm.cursor(1024 * PAGE) as cursor:
            cursor.map(w.mem.alloc_segment(512, align=512 * PAGE))
        with vm.cursor() as cursor:
            cursor.map(make(w.mem, Told).handle)
            cursor.map(w.shared()[0].handle.clone())
        keep.extend([vm, vm.fork(), w.mem.ring(PAGE), w.mem.map(make_vector(w.mem, 3, Told).handle)])
        keep.append(vm.cursor())

    keep = []
    w.child(work)
    w.mem.reap()


def death_forked(w: World) -> None:
    """Children die while they make page tables of their own, within the fork."""
    vm = VmSpace(w.mem, 16 * PAGE)
    with vm.cursor() as cursor:
        cursor.map(make_vector(w.mem, 3).handle)
        cursor.map(w.shared()[0].handle.clone())
    ring = w.mem.ring(PAGE)
    for step, after in (("claim_bit", 1), ("begin_storage", 2), ("publish", 0), ("publish", 5)):
        w.child(None, step, after)
        w.mem.reap()
    vm.close()
    ring.drop()


def attach(w: World) -> None:
    """Detaches and attaches again; then takes the place of a dead client, since all others are used."""
    name = w.mem.name
    w.drop_all()
    w.mem.close()
    w.mem = PhysicalMemory.attach(name)
    make(w.mem, Told).handle.drop()
    keep = []

    def work():
        keep.extend([make(w.mem), make_vector(w.mem, 3), make(w.mem, Told), make_unique(w.mem)])
        make(w.mem, Node).handle.drop()

    w.child(work)
    other = PhysicalMemory.attach(name)
    make(other)
    other.close()


def leave(w: World) -> None:
    """Ends while it holds things: the end of an ordinary process."""
    keep = [make(w.mem), make_segment(w.mem, 3), make_unique(w.mem, Told), make_list(w.mem, 2)]
    keep.append(pickle.dumps(keep[0].handle))
    make(w.mem).handle.drop()
    leave_all()


def audit(w: World) -> None:
    """Children die inside operations, each at another point; the victim repairs."""

    def more():
        w.shared()[0].handle.clone()

    def claim():
        make(w.mem)

    def lose():
        data = pickle.dumps(make(w.mem).handle)
        w.mem.reap()
        del data

    def load():
        one = make(w.mem)
        data = pickle.dumps(one.handle)
        one.handle.drop()
        pickle.loads(data)

    w.child(more, "inc_ledger")
    w.child(claim, "claim_ledger")
    w.child(lose, "put_mark")
    w.child(load, "redeem_ledger")
    w.mem.reap()
    if not w.mem.audit(repair=True).repaired:
        raise AssertionError("not repaired")


def last_of_two(w: World) -> None:
    """The survivor drops its reference while the victim gives up its own, not as the last one."""
    w.steps.arm(1, "put_ledger", sent=signal.SIGSTOP)
    w.shared()[0].handle.drop()


def last_of_dead(w: World) -> None:
    """The survivor drops its reference while the victim reaps the other one."""
    first, *others = w.shared()
    for holding in others:
        holding.handle.drop()
    w.held = [first]
    w.child(lambda: None)
    first.handle.drop()
    w.steps.arm(1, "reap_sub", sent=signal.SIGSTOP)
    w.mem.reap()


SCENARIOS = {
    work.__name__: work
    for work in (
        frames, runs, unique, exhaust, messages, listed, death, death_loading, orphans, types, forks,
        spaces, mappings, forked_spaces, death_mapped, death_forked, attach, leave, audit, last_of_two,
        last_of_dead,
    )
}  # fmt: skip
MAPPED = tuple(
    work.__name__ for work in (spaces, mappings, forked_spaces, death_mapped, death_forked)
)  # that have address spaces
STOPS = (last_of_two.__name__, last_of_dead.__name__)  # where the survivor drops its first holding
NAMED = (attach.__name__,)  # where the arena needs a name
