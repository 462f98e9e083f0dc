# This Source Code Form is subject to the terms of the Mozilla Public
# License, v. 2.0. If a copy of the MPL was not distributed with this
# file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Processes that map frames of one shared arena are killed at random moments.

Each works in spaces, mappings and rings of its own, with frames that it shares with the
process that it was forked from.  Once the dead are reaped nothing of theirs is left, the
frames of their page tables included, and what lives on is as it was.
``PAGEFRAME_TEST_SEED`` repeats a run as far as the scheduler lets one.
"""

import gc
import os
import random
import time
from collections import Counter
from contextlib import ExitStack

import pytest

import pageframe as pf
from amount import LONG, chosen_seed
from processes import Forked, shared_arena

PAGE = 4096
SPAN = 512  # pages of an entry of level 2
ROUNDS = 10 * LONG
WORKERS = 3
SEED = chosen_seed(20261)
RO, RW = pf.PageProperty(write=False), pf.PageProperty()


class Worker:
    """What a process does until it is killed."""

    def __init__(self, mem, spaces, handles, seed):
        self.mem, self.spaces, self.handles = mem, spaces, handles
        self.mappings = []
        self.views = []
        self.draw = random.Random(seed)
        self.refused = 0

    def run(self):
        actions = [self.fill, self.fill, self.share, self.unmap, self.protect, self.fork, self.make_writable,
                   self.open, self.close, self.map, self.append, self.ring, self.drop, self.look]  # fmt: skip
        while True:
            try:
                self.draw.choice(actions)()
            except (pf.OutOfFramesError, pf.AddressInUseError, pf.OutOfBoundError, pf.RangeInUseError,
                    pf.CopyOnWriteError, pf.NotMappedError):  # fmt: skip
                self.refused += 1
            del self.views[4:], self.mappings[6:]

    def space(self):
        return self.draw.choice(self.spaces) if self.spaces else self.open()

    def page(self):
        return self.draw.choice((0, 1, 7, SPAN - 1, SPAN, SPAN + 5, 2 * SPAN, self.draw.randrange(4 * SPAN)))

    def open(self):
        if len(self.spaces) >= 4:
            self.close()
        self.spaces.append(pf.VmSpace(self.mem, 4 * SPAN * PAGE))
        return self.spaces[-1]

    def close(self):
        if self.spaces:
            self.spaces.pop(self.draw.randrange(len(self.spaces))).close()

    def frames(self):
        """Frames of its own, of any kind."""
        kind = self.draw.randrange(4)
        if kind == 0:
            return self.mem.alloc_frame()
        if kind == 1:
            return self.mem.alloc_segment(self.draw.randrange(1, 30))
        if kind == 2:
            return self.mem.alloc_frames(self.draw.randrange(1, 30))
        return self.mem.alloc_segment(SPAN, align=SPAN * PAGE, zeroed=False)

    def fill(self):
        with self.space().cursor() as cursor:
            cursor.jump(self.page() * PAGE)
            cursor.map(self.frames())

    def share(self):
        """Map what the parent holds, too."""
        with self.space().cursor() as cursor:
            cursor.jump(self.page() * PAGE)
            cursor.map(self.draw.choice(self.handles).clone(), RO)

    def unmap(self):
        with self.space().cursor(self.page() * PAGE) as cursor:
            left = (cursor.range.stop - cursor.virt_addr) // PAGE
            cursor.unmap(self.draw.choice((1, left // 2, left)) * PAGE)

    def protect(self):
        with self.space().cursor(self.page() * PAGE) as cursor:
            left = (cursor.range.stop - cursor.virt_addr) // PAGE
            cursor.protect(self.draw.choice((1, left // 2, left)) * PAGE, self.draw.choice((RO, RW)))

    def fork(self):
        if len(self.spaces) < 4:
            self.spaces.append(self.space().fork())

    def make_writable(self):
        self.space().make_writable(self.page() * PAGE)

    def map(self):
        self.mappings.insert(0, self.mem.map([self.frames(), self.draw.choice(self.handles).clone()]))

    def append(self):
        growing = [m for m in self.mappings if not isinstance(m, pf.Ring)]
        if growing:
            self.draw.choice(growing).append(self.frames())

    def ring(self):
        self.mappings.insert(0, self.mem.ring(self.draw.randrange(1, 9) * PAGE))

    def drop(self):
        if self.mappings:
            self.mappings.pop(self.draw.randrange(len(self.mappings))).drop()

    def look(self):
        """Keep a view, and write a byte through it if it can be written."""
        with self.space().cursor() as cursor:
            va = cursor.find_next()
            if va is not None:
                view = cursor.space.view(va, va + PAGE)
                if not view.readonly:
                    view[0] = 1
                self.views.insert(0, view)


def work(conn, mem, spaces, handles, seed):
    conn.send(os.getpid())
    Worker(mem, spaces, handles, seed).run()


def parent_holds(mem):
    """Spaces and handles of the parent, which its children are born with, and what lies there."""
    space = pf.VmSpace(mem, 4 * SPAN * PAGE)
    frames = mem.alloc_segment(SPAN + 6, align=SPAN * PAGE, zeroed=False)
    scattered = mem.alloc_frames(5)
    with space.cursor() as cursor:
        cursor.map(frames.clone())
        cursor.jump(3 * SPAN * PAGE)
        cursor.map(scattered.clone(), RO)
    snapshot = pf.VmSpace(mem, 16 * PAGE)
    with snapshot.cursor() as cursor:
        cursor.map(scattered[:3])
    return [space, snapshot, snapshot.fork()], [frames, scattered, frames[:7], frames[3]]


@pytest.mark.parametrize("inherited", [False, True], ids=["no spaces", "spaces of the parent"])
def test_whatever_is_killed_while_it_maps_every_frame_comes_back(inherited):
    print(f"PAGEFRAME_TEST_SEED={SEED}")
    draw = random.Random(SEED + inherited)
    reached = Counter()
    with shared_arena("32 MiB") as mem:
        spaces, handles = parent_holds(mem)
        used, budget = mem.used_frames, pf.map_budget()
        counts = mem.slots["count"].copy()
        types = mem.stats().frames_by_type
        for _ in range(ROUNDS):
            with ExitStack() as stack:
                children = [
                    stack.enter_context(
                        Forked(work, mem, spaces if inherited else [], handles, draw.randrange(2**32))
                    )
                    for _ in range(WORKERS)
                ]
                alive = {child.hear(): child for child in children}
                time.sleep(draw.uniform(0, 0.06))
                # One dies first, and is reaped while the others go on.
                for size in (1, WORKERS - 1):
                    for pid in draw.sample(sorted(alive), size):
                        alive.pop(pid).kill()
                    report = mem.reap()
                    by_type = report.frames_by_type
                    reached["killed"] += size
                    reached["references reaped"] += report.references
                    reached["page-table frames reaped"] += by_type.get("pageframe.PageTableMeta", 0)
                    reached["killed in the midst of an operation"] += report.in_doubt
            mem.reap()
            gc.collect()
            repair = mem.audit(repair=True)
            assert repair.quiet
            # At most one frame for each killed thread is held too long.
            assert len(repair.leaked) + len(repair.miscounted) <= WORKERS, repair
            reached["found by the audit"] += not repair.clean
            assert mem.audit().clean
            assert mem.used_frames == used, (mem.stats(), repair)
            assert mem.stats().frames_by_type == types
            assert (mem.slots["count"] == counts).all()
            assert pf.map_budget() == budget
        shown = bytes(spaces[0].view(0, PAGE))
        assert shown == bytes(memoryview(handles[0])[:PAGE])
        for space in spaces:
            space.close()
        for handle in handles:
            handle.drop()
    print(reached)
    assert reached["killed"] == ROUNDS * WORKERS
    assert reached["page-table frames reaped"] > ROUNDS
    assert reached["references reaped"] > 100 * ROUNDS
