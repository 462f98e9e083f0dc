# This Source Code Form is subject to the terms of the Mozilla Public
# License, v. 2.0. If a copy of the MPL was not distributed with this
# file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Many threads on one arena, and processes that fork with one.

No frame ever has two owners: each thread stamps the bytes of what it allocates and finds
its stamp before it lets go.
"""

import os
import random
import select
import sys
import threading
import time

import numpy as np
import pytest

import pageframe as pf

PAGE = 4096


pytestmark = pytest.mark.usefixtures("switch_often")


class Plain(pf.UntypedFrameMeta):
    owner: pf.u64
    hits: pf.atomic_u32


class Item(pf.Link, pf.UntypedFrameMeta):
    owner: pf.u64


def run_threads(count, work):
    """Run work(number) in threads that begin together; the first exception is raised here."""
    errors = []
    barrier = threading.Barrier(count)

    def body(number):
        barrier.wait()
        try:
            work(number)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=body, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def stamp(buffer, word):
    """Write a word at the begin and the end of every frame of a buffer."""
    words = np.frombuffer(buffer, np.uint64).reshape(-1, PAGE // 8)
    words[:, 0] = word
    words[:, -1] = word


def check_stamp(buffer, word):
    words = np.frombuffer(buffer, np.uint64).reshape(-1, PAGE // 8)
    assert (words[:, 0] == word).all()
    assert (words[:, -1] == word).all()


def assert_all_free(mem):
    stats = mem.stats()
    assert stats.used_frames == 0
    assert stats.references == 0
    assert stats.raw_references == 0
    assert stats.free_frames + stats.reserved_frames == stats.total_frames
    counts = mem.slots["count"]
    assert (counts[mem.slots["type"] != 2] == pf.REF_COUNT_UNUSED).all()
    everything = mem.alloc_frames(stats.free_frames, zeroed=False)  # the bits say so too
    assert len(np.unique(everything.paddrs)) == stats.free_frames
    with pytest.raises(pf.OutOfFramesError):
        mem.alloc_frame()
    everything.drop()


class Worker:
    """One thread's operations on an arena that others use at the same time."""

    def __init__(self, mem, number, public, alone):
        self.mem = mem
        self.random = random.Random(number)
        self.number = number
        self.serial = number << 32
        self.held = []  # (handle, stamp)
        self.list = pf.LinkedList(mem, Item)
        self.alone = alone  # nobody takes references to frames of others
        self.public = public  # paddrs that all threads may take references to
        self.done = 0

    def word(self):
        self.serial += 1
        return self.serial

    def keep(self, handle, word):
        stamp(handle, word)
        self.held.append((handle, word))

    def step(self):
        try:
            self.random.choice(self.operations)(self)
            self.done += 1
        except pf.OutOfFramesError:
            self.let_go()
        if len(self.held) > 12:
            self.let_go()

    def alloc_frame(self):
        word = self.word()
        frame = self.mem.alloc_frame(Plain(owner=word), zeroed=self.random.random() < 0.5)
        assert frame.reference_count == 1 or not self.alone
        self.keep(frame, word)

    def alloc_segment(self):
        self.keep(self.mem.alloc_segment(self.random.choice((1, 3, 16, 70, 600)), zeroed=False), self.word())

    def alloc_many(self):
        """Enough for operations that let other threads run meanwhile."""
        if self.random.random() < 0.1:
            segment = self.mem.alloc_segment(2100, zeroed=self.random.random() < 0.2)
            word = self.word()
            stamp(segment, word)
            clone = segment.clone()
            segment.drop()
            check_stamp(clone, word)
            clone.drop()
            vec = self.mem.alloc_frames(2200, zeroed=False)
            again = vec.clone()
            vec.drop()
            assert (again.reference_counts == 1).all() or not self.alone
            again.drop()

    def alloc_frames(self):
        vec = self.mem.alloc_frames(
            self.random.choice((1, 5, 100)), lambda paddr: Plain(owner=paddr), zeroed=True
        )
        word = self.word()
        assert (vec.reference_counts == 1).all() or not self.alone
        assert (vec.meta["owner"] == vec.paddrs).all()
        frames = list(vec)
        for frame in frames:
            assert not any(frame.reader().read_bytes(16))
            stamp(frame, word)
        clone = vec.clone()
        vec.drop()
        for frame in frames:
            check_stamp(frame, word)
            assert frame.reference_count == 2 or not self.alone
            frame.drop()
        clone.drop()

    def clone(self):
        if self.held:
            handle, word = self.random.choice(self.held)
            self.held.append((handle.clone(), word))

    def claim(self):
        """A frame at a paddr that others try to claim as well."""
        paddr = self.random.randrange(self.mem.total_frames) * PAGE
        try:
            frame = pf.Frame.from_unused(self.mem, paddr)
        except (pf.FrameInUseError, pf.FrameUniqueError, pf.FrameBusyError):
            return
        assert frame.start_paddr == paddr
        self.keep(frame, self.word())

    def claim_kept(self):
        """A frame that has just been given back may be kept for somebody."""
        frame = self.mem.alloc_frame()
        paddr = frame.start_paddr
        frame.drop()
        try:
            frame = pf.UniqueFrame.from_unused(self.mem, paddr, Plain(owner=self.number))
        except (pf.FrameInUseError, pf.FrameUniqueError, pf.FrameBusyError):
            return
        frame.meta.owner = self.number + 1
        self.keep(frame.share(), self.word())

    def reference(self):
        """References by paddr to a frame that all have."""
        paddr = self.random.choice(self.public)
        frame = pf.Frame.from_in_use(self.mem, paddr)
        frame.meta.hits.fetch_add(1)
        self.mem.inc_frame_ref_count(paddr)
        pf.Frame.from_raw(self.mem, frame.into_raw()).drop()
        pf.Frame.from_raw(self.mem, paddr).drop()
        self.hits = getattr(self, "hits", 0) + 1

    def reference_any(self):
        """References by paddr to whatever is there; it may end at any moment."""
        if self.alone:
            return
        try:
            frame = pf.Frame.from_in_use(self.mem, self.random.randrange(self.mem.total_frames) * PAGE)
        except (pf.FrameUnusedError, pf.FrameUniqueError, pf.FrameBusyError):
            return
        assert frame.reference_count >= 1
        frame.drop()

    def push(self):
        frame = self.mem.alloc_frame(Item(owner=self.word()))
        try:
            self.list.push_back(frame.try_unique())
        except pf.FrameInUseError:  # reference_any() of another thread has it
            frame.drop()

    def rotate(self):
        cursor = self.list.cursor_front()
        if cursor.paddr is not None:
            cursor.move_to_back()
            first = self.list.pop_front()
            assert first.meta.owner >> 32 == self.number
            first.share().drop()

    def let_go(self):
        self.random.shuffle(self.held)
        while len(self.held) > 4:
            handle, word = self.held.pop()
            check_stamp(handle, word)
            if isinstance(handle, pf.USegment) and len(handle) > 1 and self.random.random() < 0.5:
                left, right = handle.split(len(handle) // 2 * PAGE)
                left.drop()
                check_stamp(right, word)
                right.drop()
            else:
                handle.drop()

    def finish(self):
        for handle, word in self.held:
            check_stamp(handle, word)
            handle.drop()
        self.list.drop()

    operations = (
        alloc_frame,
        alloc_frame,
        alloc_segment,
        alloc_many,
        alloc_frames,
        clone,
        claim,
        claim_kept,
        reference,
        reference_any,
        push,
        rotate,
        let_go,
    )


@pytest.mark.parametrize(("size", "alone"), [("128 MiB", True), ("24 MiB", False)], ids=["room", "crowded"])
def test_threads_never_share_what_they_own_and_all_frames_come_back(size, alone):
    mem = pf.PhysicalMemory(size)
    public = [mem.alloc_frame(Plain()) for _ in range(3)]
    workers = [Worker(mem, number + 1, [frame.start_paddr for frame in public], alone) for number in range(8)]
    stop = time.monotonic() + 4

    def work(number):
        worker = workers[number]
        while time.monotonic() < stop:
            worker.step()
        worker.finish()

    run_threads(8, work)
    assert all(worker.done > 50 for worker in workers)
    assert [frame.reference_count for frame in public] == [1, 1, 1]
    assert sum(int(frame.meta.hits) for frame in public) == sum(getattr(w, "hits", 0) for w in workers)
    assert mem.used_frames == 3
    for frame in public:
        frame.drop()
    workers.clear()
    assert_all_free(mem)
    mem.close()


def test_bulk_operations_of_many_threads_keep_their_counts():
    mem = pf.PhysicalMemory("96 MiB")
    shared = mem.alloc_segment(4096, zeroed=False)
    several = mem.alloc_frames(4096, zeroed=False)

    def work(number):
        for _ in range(30):
            with shared.clone() as segment, several.clone() as vec:
                assert (vec.reference_counts >= 2).all()
                with segment.slice(PAGE, 3000 * PAGE):
                    pass
            with mem.alloc_frames(2048, zeroed=False) as vec:
                assert (vec.reference_counts == 1).all()

    run_threads(8, work)
    assert (several.reference_counts == 1).all()
    assert shared[0].reference_count == 2  # the segment and this handle
    assert mem.used_frames == 8192
    shared.drop()
    several.drop()
    assert_all_free(mem)
    mem.close()


def test_more_threads_than_lanes_allocate_all_the_same():
    mem = pf.PhysicalMemory("16 MiB")
    everybody = threading.Barrier(80)

    def work(number):
        everybody.wait()
        for step in range(60):
            frame = mem.alloc_frame(zeroed=False)
            segment = mem.alloc_segment(4, zeroed=False)
            stamp(frame, number)
            stamp(segment, step << 32 | number)
            check_stamp(frame, number)
            frame.drop()
            check_stamp(segment, step << 32 | number)
            segment.drop()
        everybody.wait()

    run_threads(80, work)
    assert_all_free(mem)
    mem.close()


def test_lanes_of_ended_threads_are_taken_over_with_what_they_keep():
    mem = pf.PhysicalMemory("4 MiB")
    paddrs = []

    def work(_):
        frame = mem.alloc_frame()
        paddrs.append(frame.start_paddr)
        frame.drop()  # the lane keeps it

    for _ in range(200):
        thread = threading.Thread(target=work, args=(0,))
        thread.start()
        thread.join()
    assert len(paddrs) == 200
    assert len(set(paddrs)) < 10, "a lane finds the frame that the last thread left"
    assert_all_free(mem)
    mem.close()


def test_frames_that_other_lanes_keep_are_found_when_nothing_else_is_left():
    mem = pf.PhysicalMemory("1 MiB")
    kept = threading.Barrier(9)
    done = threading.Event()

    def work():
        mem.alloc_frame().drop()
        kept.wait()
        done.wait()

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    kept.wait()
    free = mem.free_frames
    segments = [mem.alloc_segment(free)]
    segments.clear()
    singles = [mem.alloc_frame() for _ in range(free)]
    assert mem.free_frames == 0
    done.set()
    for thread in threads:
        thread.join()
    singles.clear()
    assert_all_free(mem)
    mem.close()


def in_child(body):
    """Fork; run body in the child and return what it returns (a string), or raise its failure."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            answer = f"ok {body()}"
        except BaseException as error:
            answer = f"failed {error!r}"
        os.write(write, answer.encode())
        os._exit(0)
    os.close(write)
    ready, _, _ = select.select([read], [], [], 20)
    answer = os.read(read, 65536).decode() if ready else "failed: no answer"
    os.close(read)
    assert os.waitpid(pid, 0)[1] == 0
    assert answer.startswith("ok "), answer
    return answer[3:]


def test_a_forked_child_has_a_copy_and_its_drops_do_not_count_in_the_parent():
    mem = pf.PhysicalMemory("4 MiB")
    frame = mem.alloc_frame(Plain(owner=1))
    segment = mem.alloc_segment(20)
    items = pf.LinkedList(mem, Item)
    for _ in range(3):
        items.push_back(mem.alloc_frame(Item).try_unique())
    stamp(frame, 7)
    free = mem.free_frames

    def child():
        check_stamp(frame, 7)
        stamp(frame, 8)
        frame.meta.hits.fetch_add(5)
        frame.drop()
        segment.drop()
        items.drop()
        assert mem.used_frames == 0
        with mem.alloc_segment(mem.free_frames - 10):
            pass
        assert_all_free(mem)
        mem.close()
        return mem.closed

    assert in_child(child) == "True"
    assert mem.free_frames == free
    assert frame.reference_count == 1
    assert int(frame.meta.hits) == 0
    check_stamp(frame, 7)
    assert len(items) == 3
    frame.drop()
    segment.drop()
    items.drop()
    assert_all_free(mem)
    mem.close()


def test_a_child_forked_while_threads_work_can_go_on_alone():
    mem = pf.PhysicalMemory("32 MiB")
    stop = threading.Event()
    errors = []
    in_children = 70 if getattr(sys, "_is_gil_enabled", lambda: True)() else 0

    def work():
        try:
            while not stop.is_set():
                with (
                    mem.alloc_segment(40, zeroed=False),
                    mem.alloc_frames(2100, zeroed=False),
                    mem.alloc_frame(),
                ):
                    pass
        except pf.OutOfFramesError:
            pass
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()

    def child():
        """Frames that threads of the parent were holding stay away; the rest works."""
        for _ in range(200):
            with mem.alloc_frame(), mem.alloc_segment(4), mem.alloc_frames(40):
                pass
        lanes = []
        # Lanes of the threads that are gone can be had again.  CPython 3.14 without an interpreter
        # lock can't start threads in the child of a process whose threads were running.
        for _ in range(in_children):
            thread = threading.Thread(target=lambda: lanes.append(mem.alloc_frame().start_paddr))
            thread.start()
            thread.join()
        return len(lanes)

    try:
        for _ in range(5):
            assert in_child(child) == str(in_children)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert not errors, errors[0]
    assert_all_free(mem)
    mem.close()
