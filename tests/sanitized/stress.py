# This Source Code Form is subject to the terms of the Mozilla Public
# License, v. 2.0. If a copy of the MPL was not distributed with this
# file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Threads of C (cimport/stress.pyx) and of Python use the same arenas, for ThreadSanitizer.

The threads of C never have the interpreter lock, so it hides nothing that they do.  At the end
nothing may be held, and every rare state must have been reached.  Prints how often each was,
and the seed that draws the same operations.

Run as ``python stress.py --seed 1 --operations 150000``.
"""

import argparse
import contextlib
import os
import pickle
import random
import time
from collections import Counter, deque

from cimport.build import load
from pageframe import (
    Frame,
    FrameBusyError,
    FrameGoneError,
    FrameInUseError,
    FrameMeta,
    FrameUniqueError,
    FrameUnusedError,
    OutOfFramesError,
    PhysicalMemory,
    u64,
)
from processes import LIMIT, assert_quiet, unique_name

EXPECTED = (FrameBusyError, FrameInUseError, FrameUniqueError, FrameUnusedError, OutOfFramesError)

# Threads at a time, and one after another; how the arena is made.
KINDS = {
    "private": (6, 4, {}),
    "more threads than lanes": (80, 2, {}),
    "traced and poisoned": (4, 4, {"debug": "trace,poison"}),
    "accounts": (4, 4, {"limit": 20}),
    "shared": (4, 4, {"clients": 1}),
    "shared, traced and poisoned": (4, 2, {"clients": 1, "debug": "trace,poison"}),
}
# A process can be two clients, which have mapped the arena at two addresses.  What happens at one
# ThreadSanitizer does not relate to what happens at the other: it would report what is ordered.
if os.environ.get("PAGEFRAME_SANITIZE") != "thread":
    KINDS["shared by two clients"] = (3, 4, {"clients": 2})


class Life(FrameMeta):
    number: u64


@contextlib.contextmanager
def arena(clients=0, debug=""):
    """Make an arena; yield its clients, all of this process. It must be empty again at the end."""
    os.environ["PAGEFRAME_DEBUG"] = debug
    name = unique_name()
    made = PhysicalMemory.create("4 MiB", name) if clients else PhysicalMemory("4 MiB")
    mems = [made, *(PhysicalMemory.attach(name) for _ in range(clients - 1))]
    try:
        yield mems
        for mem in mems[1:]:
            mem.close()
        assert made.used_frames == 0, made.stats()
        if clients:
            assert_quiet(made)
        made.close()
    finally:
        if clients and not made.closed:
            PhysicalMemory.unlink(name)


class Main:
    """What the main thread does meanwhile, in Python."""

    def __init__(self, mem, seed):
        self.mem = mem
        self.random = random.Random(seed)
        self.held = []
        self.borrowed = deque(maxlen=50)
        self.messages = deque()
        self.counts = Counter()
        self.operations = [self.take, self.take, self.drop, self.get, self.clone, self.unique]
        self.operations += [self.borrow, self.look]
        self.operations += [self.send, self.audit] if mem.shared else []

    def step(self):
        """Do one thing."""
        operation = self.random.choice(self.operations)
        try:
            operation()
            self.counts[f"Python: {operation.__name__}"] += 1
        except EXPECTED as error:
            self.counts[f"Python: {type(error).__name__}"] += 1

    def take(self):
        """Allocate a frame, a segment or scattered frames."""
        many = self.random.randrange(1, 40)
        how = self.random.choice((self.mem.alloc_frames, self.mem.alloc_segment))
        self.held.append(how(many) if self.random.random() < 0.3 else self.mem.alloc_frame())

    def any(self):
        """Return something that is held."""
        if not self.held:
            self.take()
        return self.random.choice(self.held)

    def drop(self):
        """Drop something, or everything."""
        self.any()
        self.random.shuffle(self.held)
        for _ in range(len(self.held) if len(self.held) > 30 else 1):
            self.held.pop().drop()

    def get(self):
        """Take a reference to any frame, by its number."""
        paddr = self.random.randrange(self.mem.total_frames) * self.mem.page_size
        Frame.from_in_use(self.mem, paddr).drop()

    def clone(self):
        """Take references to frames that are held."""
        self.held.append(self.any().clone())

    def unique(self):
        """Own a frame for a moment."""
        self.held.append(self.mem.alloc_frame())
        self.held.append(self.held.pop().try_unique().share())

    def borrow(self):
        """Take references to frames that were borrowed, and that may be gone; borrow another."""
        for _ in range(len(self.borrowed)):
            ref = self.borrowed.popleft()
            with contextlib.suppress(FrameBusyError, FrameGoneError, FrameUniqueError, FrameUnusedError):
                ref.clone().drop()
                self.borrowed.append(ref)
        frame = self.mem.alloc_frame()
        self.borrowed.append(frame.borrow())
        self.held.append(frame)

    def look(self):
        """Count everything."""
        self.mem.stats()
        self.mem.trim()
        if self.mem.debug:
            self.mem.events()

    def send(self):
        """Send what is held to oneself."""
        if len(self.messages) == 8:
            self.held.append(pickle.loads(self.messages.popleft()))
        self.messages.append(pickle.dumps(self.any()))

    def audit(self):
        """Compare all counts with all holders, and reap."""
        self.counts["Python: audit of what is not quiet"] += not self.mem.audit().quiet
        self.mem.reap()


def stress(kind, seed, operations):
    """Let threads work in an arena; return what they came to."""
    threads, each, options = KINDS[kind]
    limit = options.pop("limit", None)
    counts = Counter()
    with arena(**options) as mems:
        main = Main(mems[0], seed)
        like = [mem.alloc_frame(Life(number=0)) for mem in mems]
        share = max(1, operations // (threads * each * len(mems)))
        teams = [
            load("stress").Threads(mem, frame, threads, each, share, seed, limit)
            for mem, frame in zip(mems, like, strict=True)
        ]
        end = time.monotonic() + 10 * LIMIT
        while any(team.running for team in teams):
            assert time.monotonic() < end, f"{kind}: threads do not end"
            main.step()
            time.sleep(0.002)
        for team in teams:
            counts.update(team.join())
        main.held.extend(pickle.loads(message) for message in main.messages)
        for handle in main.held + like:
            handle.drop()
    return counts + main.counts, threads * each * len(mems)


def main():
    """Run all kinds; print the counters, each of which must be more than 0."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seed", type=int, default=time.time_ns() % 10**6)
    parser.add_argument("--operations", type=int, default=150_000, help="of the threads of C, in each arena")
    parser.add_argument("--kinds", nargs="*", choices=KINDS, default=list(KINDS))
    arguments = parser.parse_args()
    print(f"--seed {arguments.seed} --operations {arguments.operations}", flush=True)
    total = Counter(dict.fromkeys(load("stress").NAMES, 0))
    for kind in arguments.kinds:
        start = time.monotonic()
        counts, threads = stress(kind, arguments.seed, arguments.operations)
        total.update(counts)
        print(f"{kind}: {threads} threads, {counts['operations']} operations, "
              f"{time.monotonic() - start:.1f} s", flush=True)  # fmt: skip
    for name, count in total.items():
        print(f"{count:10} {name}")
    missing = [name for name, count in total.items() if count == 0]
    if arguments.kinds == list(KINDS):
        assert not missing, f"never reached: {missing}"


if __name__ == "__main__":
    main()
