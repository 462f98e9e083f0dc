# This Source Code Form is subject to the terms of the Mozilla Public
# License, v. 2.0. If a copy of the MPL was not distributed with this
# file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Threads that share one handle, list, mapping, space or arena, and all want it at once.

With an interpreter lock they come between each other's calls; without one they are in the
calls at the same time.  Things are made in rounds, and the threads go over those of a round
in opposite directions, so that they meet.  A round in which more than one of them has done
something is one in which they met; where there is no lock, some must be.
"""

import itertools
import os
import pickle
import sys
import threading
import time
import uuid

import numpy as np
import pytest

import pageframe as pf
from pageframe.adaptors import LimitAdaptor

PAGE = 4096
MANY = 48  # things of a round
FREE_THREADED = hasattr(sys, "_is_gil_enabled") and not sys._is_gil_enabled()

GONE = (pf.MovedError, pf.FrameGoneError)
REFUSED = (pf.MovedError, pf.FrameGoneError, pf.FrameInUseError, BufferError)


pytestmark = pytest.mark.usefixtures("switch_often")


class Plain(pf.UntypedFrameMeta):
    owner: pf.u64
    hits: pf.atomic_u64


class Item(pf.Link, pf.UntypedFrameMeta):
    owner: pf.u64


class Counted(pf.FrameMeta):
    owner: pf.u64
    ended = itertools.count()

    def on_drop(self, reader):
        next(Counted.ended)


@pytest.fixture
def mem():
    """Return an arena in which nothing is held at the end, by whatever count."""
    arena = pf.PhysicalMemory("8 MiB")
    yield arena
    stats = arena.stats()
    assert (stats.used_frames, stats.references, stats.raw_references) == (0, 0, 0)
    with arena.alloc_frames(stats.free_frames, zeroed=False) as everything:
        assert len(np.unique(everything.paddrs)) == stats.free_frames
    arena.close()


@pytest.fixture
def shared():
    """Return a shared arena whose counts and holders agree at the end, and nothing is held."""
    arena = pf.PhysicalMemory.create("8 MiB", f"races-{uuid.uuid4().hex}")
    yield arena
    assert arena.audit().clean
    assert arena.used_frames == 0
    arena.close()


def run_threads(*bodies):
    """Run functions in threads that begin together; the first exception is raised here."""
    errors = []
    barrier = threading.Barrier(len(bodies))

    def run(body):
        try:
            barrier.wait(20)
            body()
        except BaseException as error:
            errors.append(error)
            barrier.abort()

    threads = [threading.Thread(target=run, args=(body,)) for body in bodies]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)
    for error in errors:
        if not isinstance(error, threading.BrokenBarrierError):
            raise error
    assert not errors


def race(make, *acts, judge=None, seconds=0.5):
    """Have each act, in a thread of its own, do something to each of the things of each round.

    An act returns whether it could. Returns how many of them could, round by round.
    """
    things, did, ready, met = [], [0] * len(acts), [], []
    barrier = threading.Barrier(len(acts) + 1)

    def goes_over(number):
        act, order = acts[number], slice(None, None, -1 if number % 2 else 1)

        def body():
            while True:
                barrier.wait(20)
                if not things:
                    return
                ready.append(number)
                late = time.monotonic() + 0.002
                while len(ready) < len(acts) and time.monotonic() < late:
                    pass  # to wake up takes longer than a round
                did[number] = 0
                for place, thing in enumerate(things[order]):
                    did[number] += bool(act(thing))
                    if place % 8 == 7:
                        os.sched_yield()  # others may have the processor to themselves
                barrier.wait(20)

        return body

    def lead():
        begin = time.monotonic()
        while (
            time.monotonic() < begin + seconds
            or len(met) < 4
            or (FREE_THREADED and max(met) < 2 and time.monotonic() < begin + 20)
        ):
            ready.clear()
            things[:] = make()
            barrier.wait(20)
            barrier.wait(20)
            met.append(sum(count > 0 for count in did))
            if judge is not None:
                judge(sum(did))
            things.clear()
        barrier.wait(20)

    def guarded(body):
        def run():
            try:
                body()
            except BaseException:
                barrier.abort()
                raise

        return run

    run_threads(guarded(lead), *[guarded(goes_over(number)) for number in range(len(acts))])
    if FREE_THREADED:
        assert max(met) > 1, "the threads never met"
    return met


def drop(handle):
    try:
        handle.drop()
    except pf.MovedError:
        return False
    return True


def vector(mem):
    return mem.alloc_frames(3)


def unique(mem):
    return mem.alloc_frame(Plain()).try_unique()


def listed(mem):
    items = pf.LinkedList(mem, Item)
    for _ in range(3):
        items.push_back(mem.alloc_frame(Item()).try_unique())
    return items


KINDS = {
    "frame": lambda mem: mem.alloc_frame(),
    "typed": lambda mem: mem.alloc_frame(Counted()),
    "unique": unique,
    "segment": lambda mem: mem.alloc_segment(3),
    "vector": vector,
    "mapping": lambda mem: mem.map(mem.alloc_frames(3)),
    "list": listed,
}


@pytest.mark.parametrize("make", KINDS.values(), ids=KINDS)
def test_a_handle_that_threads_drop_at_once_is_dropped_once(mem, make):
    before = next(Counted.ended)
    rounds = race(
        lambda: [make(mem) for _ in range(MANY)],
        *[drop] * 3,
        judge=lambda did: check_equal(did, MANY),
        seconds=0.3,
    )
    if make is KINDS["typed"]:
        assert next(Counted.ended) - before - 1 == len(rounds) * MANY
    assert mem.used_frames == 0


def check_equal(found, wanted):
    assert found == wanted


def test_one_thread_gets_what_many_want_to_move(mem):
    """Clones aside, one moves a frame; it can't be lost and has one owner."""

    def into_raw(frame):
        try:
            paddr = frame.into_raw()
        except REFUSED:
            return False
        pf.Frame.from_raw(mem, paddr).drop()
        return True

    def into_unique(frame):
        try:
            owned = frame.try_unique()
        except REFUSED:
            return False
        owned.meta.owner = 1
        owned.share().drop()
        return True

    def into_segment(frame):
        try:
            segment = pf.Segment.from_frame(frame)
        except REFUSED:
            return False
        segment.drop()
        return True

    def into_mapping(frame):
        try:
            mapping = mem.map(frame)
        except REFUSED:
            return False
        mapping.drop()
        return True

    def clones(frame):
        try:
            copy = frame.clone()
            assert copy.reference_count >= 1
            vec = pf.FrameVec.from_frames([copy, frame])
        except GONE:
            return False
        assert (vec.reference_counts >= 2).all()
        vec.drop()
        return False

    def look(frame):
        try:
            assert frame.meta_type is Plain
            assert frame == frame
            assert frame.size == PAGE
            frame.meta.hits.fetch_add(1)
            assert hash(frame)
        except GONE:
            assert "moved" in repr(frame)
        return False

    race(
        lambda: [mem.alloc_frame(Plain()) for _ in range(MANY)],
        into_raw,
        into_unique,
        into_segment,
        into_mapping,
        clones,
        look,
        drop,
        judge=lambda did: check_equal((did, mem.used_frames), (MANY, 0)),
        seconds=1.2,
    )


def test_bytes_and_metadata_are_those_of_the_handle_until_it_goes(mem):
    """What is written through a handle never lands in a frame that somebody else has got since."""
    stop = threading.Event()
    seen = [0, 0]

    def bystander():
        """Gets the frames that the others give up, and finds in them what it wrote."""
        number = 1 << 32
        while not stop.is_set():
            number += 1
            with mem.alloc_frames(8, Plain(owner=number, hits=number)) as vec:
                frames = list(vec)
                for frame in frames:
                    frame.writer().write_val("<Q", number)
                for frame in frames:
                    assert frame.meta.owner == number
                    assert int(frame.meta.hits) == number
                    assert frame.reader().read_val("<Q") == number
                    frame.drop()

    def write_meta(owned):
        meta = owned.meta
        for value in range(1, 20):
            meta.owner = value
            meta.hits.fetch_add(1)
            assert 0 < meta.owner < 20

    def write_bytes(owned):
        view = memoryview(owned)
        for value in range(1, 20):
            view[:8] = value.to_bytes(8, "little")
            assert int.from_bytes(view[:8], "little") < 20
        view.release()

    def seen_by(act, number):
        def body(owned):
            try:
                act(owned)
            except GONE:
                return False
            seen[number] += 1
            return True

        return body

    def round_of():
        return [unique(mem) for _ in range(MANY)]

    def races():
        try:
            race(round_of, seen_by(write_meta, 0), drop, seen_by(write_bytes, 1), drop, seconds=1)
        finally:
            stop.set()

    run_threads(races, bystander)
    assert all(seen)


def test_frames_that_threads_push_and_pop_are_in_the_list_or_with_one_of_them(mem):
    items = pf.LinkedList(mem, Item)
    took = [0] * 4
    pushed = [0] * 4

    def works(number):
        def body():
            end = time.monotonic() + 1
            cursor = items.cursor_front()
            while time.monotonic() < end or not took[number]:
                for _ in range(3):
                    owned = mem.alloc_frame(Item(owner=number)).try_unique()
                    (items.push_front if number % 2 else items.push_back)(owned)
                    pushed[number] += 1
                try:
                    cursor.move_next()
                    cursor.move_to_front()
                    if (view := cursor.current_meta) is not None:
                        view.owner = number
                except GONE:
                    cursor = items.cursor_front()
                for _ in range(2 if len(items) < 50 else 5):
                    owned = items.pop_back() if number % 2 else items.pop_front()
                    if owned is not None:
                        assert owned.meta.owner < 4
                        owned.drop()
                        took[number] += 1
                try:
                    owned = cursor.take_current()
                    if owned is not None:
                        took[number] += 1
                        owned.share().drop()
                except GONE:
                    cursor = items.cursor_front()

        return body

    run_threads(*[works(number) for number in range(4)])
    assert all(took)
    assert len(items) == len(list(items)) == sum(pushed) - sum(took) == mem.used_frames
    items.drop()


def test_a_space_and_a_cursor_that_threads_share_show_what_they_hold(mem):
    """Cursors wait for one another, and a cursor of two threads maps each page once."""
    done = [0] * 5
    pages = 16
    kept = []

    def works(space, shared_cursor, number):
        def body():
            try:
                while True:
                    step(space, shared_cursor, number)
                    done[number] += 1
            except pf.SpaceClosedError:
                pass

        return body

    def step(space, shared_cursor, number):
        try:
            if number == 0:
                with space.cursor(0, pages * PAGE, timeout=5) as cursor:
                    cursor.map(mem.alloc_frames(pages // 2))
                    cursor.jump(0)
                    assert cursor.query().frame.reference_count >= 1
                    cursor.unmap(pages * PAGE)
            elif number == 1:
                page = shared_cursor.virt_addr
                if page == 2 * pages * PAGE:
                    shared_cursor.jump(pages * PAGE)
                    shared_cursor.unmap(pages * PAGE)
                    shared_cursor.jump(pages * PAGE)
                else:
                    shared_cursor.map(mem.alloc_frame())
            elif number == 2:
                shared_cursor.jump(pages * PAGE)
                if shared_cursor.find_next() is not None:
                    item = shared_cursor.query()
                    if item is not None:
                        assert item.frame.reference_count >= 1
            elif number == 3:
                with space.view(0, 4 * PAGE) as view:
                    view[:8] = view[8:16]
                    with space.frames(0, 4 * PAGE) as vec:
                        kept.append(vec.clone())
                    view[PAGE] = 1
                if len(kept) > 8:
                    kept.pop().drop()
            else:
                snapshot = space.fork(timeout=0)
                snapshot.close()
        except (
            pf.AddressInUseError,
            pf.NotMappedError,
            pf.OutOfBoundError,
            pf.RangeInUseError,
            pf.RangeLockedError,
        ):
            pass

    for _ in range(3):
        space = pf.VmSpace(mem, "1 MiB")
        shared_cursor = space.cursor(pages * PAGE, 2 * pages * PAGE)
        before = list(done)

        def closes(space=space, before=before):
            begin = time.monotonic()
            while time.monotonic() < begin + 0.4 or (
                any(old == new for old, new in zip(before, done, strict=True))
                and time.monotonic() < begin + 20
            ):
                time.sleep(0.05)
            space.close()

        run_threads(*[works(space, shared_cursor, number) for number in range(5)], closes)
        for vec in kept:
            vec.drop()
        kept.clear()
        assert mem.used_frames == 0
    assert all(done)


def test_a_mapping_lives_until_the_last_of_its_views_whoever_drops_it(mem):
    seen = [0]

    def look(mapping):
        try:
            array = mapping.array()
            mapping.append(mem.alloc_frame())
        except pf.MovedError:
            return False
        array[:] = 7
        again = array[5:]
        del array
        assert (again[:100] == 7).all()
        seen[0] += 1
        return False

    race(
        lambda: [mem.map(mem.alloc_frames(3), reserve="64 KiB") for _ in range(MANY)],
        look,
        drop,
        look,
        drop,
        judge=lambda did: check_equal((did, mem.used_frames), (MANY, 0)),
    )
    assert seen[0]


@pytest.mark.parametrize("kind", ["private", "shared"])
def test_an_arena_is_closed_when_no_thread_holds_anything_and_then_none_gets_anything(kind):
    """A thread that allocates meanwhile has a frame and the arena stays, or has none."""
    refused, denied = [0], [0]

    def allocates(mem):
        def body():
            while True:
                try:
                    with mem.alloc_frame(zeroed=False) as frame:
                        frame.reader()
                        os.sched_yield()
                    mem.alloc_segment(3, zeroed=False).drop()
                except pf.ArenaClosedError:
                    denied[0] += 1  # it may be that it was just looked whether it can be closed
                    if mem.closed:
                        return
                time.sleep(0.001)  # mostly nothing is held

        return body

    def closes(mem):
        def body():
            while not mem.closed:
                try:
                    mem.close()
                except pf.ArenaInUseError:
                    refused[0] += 1
                os.sched_yield()

        return body

    begin = time.monotonic()
    while time.monotonic() < begin + (0.7 if denied[0] else 20):
        if kind == "private":
            mem = pf.PhysicalMemory("1 MiB")
            run_threads(closes(mem), allocates(mem), allocates(mem))
        else:
            name = f"races-{uuid.uuid4().hex}"
            mem = pf.PhysicalMemory.create("1 MiB", name)
            with pf.PhysicalMemory.attach(name) as other:
                run_threads(closes(mem), allocates(mem), allocates(mem))
                assert other.audit().clean
                assert other.used_frames == 0
                with other.alloc_frames(other.free_frames):
                    pass
    assert denied[0], "nobody came too late"
    if FREE_THREADED:
        assert refused[0], "nothing was held when it was to be closed"


def test_types_that_threads_register_at_once_are_registered_once():
    for _ in range(3):
        mem = pf.PhysicalMemory("1 MiB")
        frames = []

        def body(mem=mem, frames=frames):
            for number in range(20):
                cls = type(pf.UntypedFrameMeta)(
                    f"Made{number}", (pf.UntypedFrameMeta,), {"__annotations__": {"owner": pf.u64}}
                )
                frame = mem.alloc_frame(cls(owner=number))
                assert frame.meta.owner == number
                assert frame.meta_type.__name__ == f"Made{number}"
                frames.append(frame)

        run_threads(*[body] * 4)
        assert len(frames) == 80
        assert sum(cls.__name__.startswith("Made") for cls in mem.types.values()) == 20
        for frame in frames:
            frame.drop()
        mem.close()


def test_a_quota_is_never_exceeded_by_threads_together(mem):
    limit = LimitAdaptor(mem, 40 * PAGE)
    refused = [0] * 4

    def works(number):
        def body():
            begin = time.monotonic()
            while time.monotonic() < begin + 0.5 or (
                FREE_THREADED and not any(refused) and time.monotonic() < begin + 20
            ):
                try:
                    with limit.alloc_frames(15) as vec, limit.alloc_frame() as frame:
                        assert limit.used_frames <= 40
                        os.sched_yield()
                        assert len(vec) == 15
                        assert frame.reference_count == 1
                except pf.QuotaExceededError:
                    refused[number] += 1

        return body

    run_threads(*[works(number) for number in range(4)])
    assert limit.used_frames == 0
    with limit.alloc_frames(40):
        pass
    if FREE_THREADED:
        assert sum(refused)


SENT = {
    "frame": lambda mem: mem.alloc_frame(Plain()),
    "segment": lambda mem: mem.alloc_segment(3),
    "vector": lambda mem: pf.FrameVec.from_frames(list(mem.alloc_segment(6))[::2]),
}


@pytest.mark.parametrize("make", SENT.values(), ids=SENT)
def test_a_handle_is_pickled_whole_or_not_at_all_while_others_drop_it(shared, make):
    sent = [0]

    def send(handle):
        try:
            message = pickle.dumps(handle)
        except pf.MovedError:
            return False
        again = pickle.loads(message)
        sent[0] += 1
        again.drop()
        return False

    race(
        lambda: [make(shared) for _ in range(MANY)],
        send,
        drop,
        send,
        drop,
        judge=lambda did: check_equal((did, shared.used_frames), (MANY, 0)),
        seconds=0.4,
    )
    assert sent[0]


def test_one_of_the_threads_that_load_a_message_gets_its_references(shared):
    first, late = [0], [0]

    def load(message):
        try:
            frame = pickle.loads(message)
        except pf.FrameGoneError:
            late[0] += 1
            return False
        frame.drop()
        first[0] += 1
        return True

    def messages():
        frames = [shared.alloc_frame() for _ in range(MANY)]
        return [pickle.dumps(frame) for frame in frames]

    race(messages, load, load, load, judge=lambda did: check_equal(shared.used_frames, 0))
    assert first[0] >= MANY
    assert late[0]
