# This Source Code Form is subject to the terms of the Mozilla Public
# License, v. 2.0. If a copy of the MPL was not distributed with this
# file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Frames with bytes that tell which frame, in which life, they belong to; and what a process holds."""

import hashlib
import itertools
import os
from collections import Counter
from typing import ClassVar

from pageframe import FrameInUseError, FrameMeta, Link, LinkedList, UniqueFrame, UntypedFrameMeta, u64

counter = itertools.count(1)


def new_number() -> int:
    """Return a number that no other frame of the campaign gets."""
    return os.getpid() << 32 | next(counter)


class Page(Link, UntypedFrameMeta):
    """Untyped; can be in a list."""

    number: u64


class Node(FrameMeta):
    """Typed."""

    number: u64


class Told(Link, UntypedFrameMeta):
    """Writes down that it has ended, in whatever process that happens."""

    number: u64
    log: ClassVar[int] = -1

    def on_drop(self, reader):
        os.write(Told.log, f"{self.number}\n".encode())


def late_type():
    """Define a type that other processes have not, unless they do the same."""

    class Late(UntypedFrameMeta):
        number: u64

        def on_drop(self, reader):
            Told.on_drop(self, reader)

    return Late


def pattern(paddr: int, generation: int, number: int) -> bytes:
    """Return the 4096 bytes of a frame."""
    return hashlib.blake2b(f"{paddr} {generation} {number}".encode()).digest() * 64


class Life:
    """A frame in one of its lives, as whoever holds it expects it to be."""

    def __init__(self, paddr: int, generation: int, number: int, typed: bool) -> None:
        self.paddr, self.generation, self.number, self.typed = paddr, generation, number, typed

    @classmethod
    def begin(cls, frame, number: int) -> "Life":
        """Mark a new frame."""
        typed = not issubclass(frame.meta_type, UntypedFrameMeta)
        life = cls(frame.start_paddr, frame.generation, number, typed)
        if not typed:
            with memoryview(frame) as view:
                view[:] = pattern(life.paddr, life.generation, number)
        return life

    def check(self, frame) -> None:
        """Raise unless the frame is the same, with the same bytes."""
        found = (frame.start_paddr, frame.generation)
        assert found == (self.paddr, self.generation), f"{frame!r} is {found}, not {vars(self)}"
        if not self.typed:
            with memoryview(frame) as view:
                assert view == pattern(self.paddr, self.generation, self.number), f"{vars(self)}: other bytes"
        if frame.meta_type in (Page, Node, Told):
            assert frame.meta.number == self.number, f"{frame.meta.number} instead of {vars(self)}"


class Holding:
    """A handle, and the lives of its frames in their order."""

    def __init__(self, handle, lives: list[Life]) -> None:
        self.handle, self.lives = handle, lives

    def check(self) -> None:
        """Raise unless all frames are as they were."""
        if isinstance(self.handle, LinkedList):
            assert list(self.handle) == [life.paddr for life in self.lives]
            cursor = self.handle.cursor_front()
            for life in self.lives:
                assert cursor.current_meta.number == life.number
                cursor.move_next()
            return
        frames = self.handle if hasattr(self.handle, "__len__") else [self.handle]
        assert len(frames) == len(self.lives)
        for frame, life in zip(frames, self.lives, strict=True):
            life.check(frame)

    @property
    def alone(self) -> bool:
        """Whether the frames have one owner."""
        return isinstance(self.handle, (UniqueFrame, LinkedList))


def make(mem, meta=Page, zeroed=True) -> Holding:
    """Allocate and mark a frame."""
    number = new_number()
    frame = mem.alloc_frame(meta(number=number), zeroed=zeroed)
    return Holding(frame, [Life.begin(frame, number)])


def make_segment(mem, count: int, meta=Page) -> Holding:
    """Allocate and mark a segment."""
    numbers = [new_number() for _ in range(count)]
    source = iter(numbers)
    segment = mem.alloc_segment(count, lambda paddr: meta(number=next(source)))
    return Holding(segment, [Life.begin(f, n) for f, n in zip(segment, numbers, strict=True)])


def make_vector(mem, count: int, meta=Page) -> Holding:
    """Allocate and mark a vector."""
    numbers = [new_number() for _ in range(count)]
    source = iter(numbers)
    vector = mem.alloc_frames(count, lambda paddr: meta(number=next(source)))
    return Holding(vector, [Life.begin(f, n) for f, n in zip(vector, numbers, strict=True)])


def make_unique(mem, meta=Page) -> Holding:
    """Allocate and mark a unique frame."""
    while True:
        holding = make(mem, meta)
        try:
            holding.handle = holding.handle.try_unique()
        except FrameInUseError:  # somebody has just taken a reference to it, by its address
            holding.handle.drop()
        else:
            return holding


def make_list(mem, count: int) -> Holding:
    """Make a list of marked frames."""
    frames = LinkedList(mem, Page)
    lives = []
    for _ in range(count):
        one = make_unique(mem)
        lives += one.lives
        frames.push_back(one.handle)
    return Holding(frames, lives)


def references(holdings: list[Holding]) -> Counter:
    """Count what is held: paddr -> references, those of sole owners included."""
    return Counter(life.paddr for holding in holdings for life in holding.lives)
