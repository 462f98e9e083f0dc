# This Source Code Form is subject to the terms of the Mozilla Public
# License, v. 2.0. If a copy of the MPL was not distributed with this
# file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""What is measured: operations on frames, and what Python has beside them.

All are timed alike, by `timeit`: a loop over an iterator that costs next to
nothing, whose body is the operation on local names.
"""

import random
from collections import OrderedDict
from timeit import Timer
from typing import NamedTuple

from pageframe import Link, LinkedList, PhysicalMemory, u64

OBJECT = "object()"
PAGES = 1000


class Page(Link):
    inode: u64 = 7


class Workbench:
    """An arena with what the subjects work on."""

    def __init__(self) -> None:
        self.mem = PhysicalMemory("128 MiB", populate=True)
        self.frame = self.mem.alloc_frame(Page)
        self.segment = self.mem.alloc_segment(256)
        self.pages = LinkedList(self.mem, Page)
        for _ in range(PAGES):
            self.pages.push_back(self.mem.alloc_frame(Page).try_unique())
        self.dict = OrderedDict.fromkeys(self.pages)
        # Pages are touched in a random order, the same in every run.
        self.touches = random.Random(1).sample(list(self.dict), PAGES)
        self.held = self.mem.used_frames

    def timer(self, subject: "Subject") -> Timer:
        return Timer(subject.statement, subject.setup, globals={"bench": self})

    def close(self) -> None:
        """Close the arena, which refuses if an operation has left a reference behind."""
        self.pages.drop()
        self.segment.drop()
        self.frame.drop()
        self.mem.close()


class Subject(NamedTuple):
    """An operation and how it is measured.

    Attributes
    ----------
    name
        The operation, as a user writes it.
    group
        Subjects to be looked at side by side.
    statement, setup
        For `timeit`; the setup makes local names from ``bench``.
    size
        Operations in one statement, or frames that it is about: figures are for one of them.
    target
        Highest ratio to reach.
    unit
        What the target is a multiple of: "object" or "pair".
    """

    name: str
    group: str
    statement: str
    setup: str = "pass"
    size: int = 1
    target: float | None = None
    unit: str = "object"


SUBJECTS = [
    Subject(OBJECT, "one frame", "make()", "make = object"),
    Subject(
        "alloc_frame + drop", "one frame", "alloc(zeroed=False)", "alloc = bench.mem.alloc_frame", target=1.2
    ),
    Subject("Frame.clone + drop", "one frame", "clone()", "clone = bench.frame.clone", target=1.2),
    Subject("frame.meta", "metadata", "frame.meta", "frame = bench.frame", target=1.2),
    Subject("meta.field", "metadata", "meta.inode", "meta = bench.frame.meta", target=1.2),
    Subject("frame.meta.field", "metadata", "frame.meta.inode", "frame = bench.frame"),
    Subject(
        "cursor_at + move_to_front",
        "LRU touch",
        "for paddr in touches: cursor_at(paddr).move_to_front()",
        "cursor_at = bench.pages.cursor_at; touches = bench.touches",
        size=PAGES,
        target=1.2,
    ),
    Subject(
        "OrderedDict.move_to_end",
        "LRU touch",
        "for paddr in touches: move_to_end(paddr)",
        "move_to_end = bench.dict.move_to_end; touches = bench.touches",
        size=PAGES,
    ),
    Subject(
        "alloc_segment(16) + drop",
        "many frames",
        "alloc(16, zeroed=False)",
        "alloc = bench.mem.alloc_segment",
        size=16,
    ),
    Subject(
        "alloc_segment(256) + drop",
        "many frames",
        "alloc(256, zeroed=False)",
        "alloc = bench.mem.alloc_segment",
        size=256,
        target=1.5,
        unit="pair",
    ),
    Subject(
        "alloc_frames(10_000) + drop",
        "many frames",
        "alloc(10_000, zeroed=False)",
        "alloc = bench.mem.alloc_frames",
        size=10_000,
        target=2.0,
        unit="pair",
    ),
    Subject(
        "Segment.clone + drop, 256",
        "many frames",
        "clone()",
        "clone = bench.segment.clone",
        size=256,
        target=1.2,
        unit="pair",
    ),
]
