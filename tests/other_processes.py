# This Source Code Form is subject to the terms of the Mozilla Public
# License, v. 2.0. If a copy of the MPL was not distributed with this
# file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Other processes for the tests of shared arenas, and an arena's file seen from outside."""

import mmap
import os
import struct
import subprocess
import sys
import textwrap
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar

from pageframe import PhysicalMemory

TIMEOUT = 60  # seconds: a machine may be slow, but nothing may hang

# What a script begins with: it tells the test how far it is, and waits for the test's word.
PROLOGUE = """
import os, signal, sys, threading, time
import pageframe
from pageframe import *

def tell(*words):
    print(*words, flush=True)

def wait():
    if not sys.stdin.readline():
        os._exit(3)     # the test is gone

NAME, *ARGS = sys.argv[1:]
"""


class Child:
    """A Python process that runs a script; killed at the latest when the ``with`` block ends."""

    def __init__(self, script: str, *args: object, **options: object) -> None:
        command = [sys.executable, "-X", "faulthandler", "-c", PROLOGUE + textwrap.dedent(script)]
        self.process = subprocess.Popen(
            [*command, *map(str, args)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            **options,
        )
        self.pid = self.process.pid

    def __enter__(self) -> "Child":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.kill()

    def hear(self) -> str:
        """Return the next line that the process tells; fail with what it wrote if it has ended."""
        line = self.process.stdout.readline()
        assert line, f"the process ended with {self.process.wait(TIMEOUT)}: {self.process.stderr.read()}"
        return line.rstrip("\n")

    def go_on(self) -> None:
        """Give the word that the process waits for."""
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def kill(self) -> None:
        """End the process at once, if it has not ended, and wait for it."""
        self.process.kill()
        self.process.communicate(timeout=TIMEOUT)

    def finish(self) -> str:
        """Let the process run to its end, which must be a good one; return what else it told."""
        out, errors = self.process.communicate(timeout=TIMEOUT)
        assert self.process.returncode == 0, f"ended with {self.process.returncode}: {out}{errors}"
        assert not errors, errors
        return out.strip()


def run(script: str, *args: object, **options: object) -> str:
    """Run a script to its end, which must be a good one; return what it told."""
    with Child(script, *args, **options) as child:
        return child.finish()


def new_name() -> str:
    """Return the name of an arena that nobody else has."""
    return f"test-{os.getpid()}-{uuid.uuid4().hex[:8]}"


def file_of(name: str) -> Path:
    """Where an arena of a name lies."""
    return Path("/dev/shm") / f"pageframe-{name}"


@contextmanager
def unique_name() -> Iterator[str]:
    """Give a name, whose arena is gone afterwards."""
    name = new_name()
    try:
        yield name
    finally:
        file_of(name).unlink(missing_ok=True)


class ArenaFile:
    """The file of an arena, read and written behind the back of its clients."""

    COUNT, GENERATION, TYPE, LIST, STORAGE = (0, "Q"), (8, "Q"), (16, "I"), (20, "I"), 24
    LANE: ClassVar = {
        "kept": (0, "Q"),
        "hint": (8, "Q"),
        "chunk": (16, "I"),
        "free": (20, "i"),
        "op": (24, "Q"),
    }
    TICKET: ClassVar = {
        "word": (0, "Q"),
        "first": (8, "Q"),
        "count": (16, "Q"),
        "done": (24, "Q"),
        "expires": (32, "Q"),
        "listed": (52, "I"),
    }
    LANES_SIZE = 4096

    def __init__(self, mem: PhysicalMemory, path: Path) -> None:
        self.tables = {name: (paddr, size) for name, paddr, size in mem.layout}
        self.page_size = mem.page_size
        self.slot_size = mem.slot_size
        with path.open("r+b") as file:
            self.map = mmap.mmap(file.fileno(), 0)
        self.capacity = self.read(40 + 4, "I")
        self.area_size = self.tables["areas"][1] // self.capacity

    def __enter__(self) -> "ArenaFile":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.map.close()

    def read(self, offset: int, form: str) -> int:
        return struct.unpack_from("=" + form, self.map, offset)[0]

    def write(self, offset: int, form: str, value: int) -> None:
        struct.pack_into("=" + form, self.map, offset, value)

    def slot(self, paddr: int) -> int:
        """Where the slot of a frame lies."""
        return self.tables["slots"][0] + paddr // self.page_size * self.slot_size

    def set_slot(self, paddr: int, field: tuple[int, str], value: int) -> None:
        self.write(self.slot(paddr) + field[0], field[1], value)

    def slot_field(self, paddr: int, field: tuple[int, str]) -> int:
        return self.read(self.slot(paddr) + field[0], field[1])

    def set_bit(self, paddr: int, taken: bool) -> None:
        """Set or clear the allocator bit of a frame."""
        frame = paddr // self.page_size
        at = self.tables["bits"][0] + frame // 64 * 8
        word = self.read(at, "Q")
        self.write(at, "Q", word | 1 << frame % 64 if taken else word & ~(1 << frame % 64))

    def set_ledger(self, client: int, paddr: int, references: int) -> None:
        """Set how many references a client holds."""
        at = self.tables["areas"][0] + client * self.area_size + self.LANES_SIZE
        self.write(at + paddr // self.page_size * 4, "I", references)

    def set_lane(self, client: int, lane: int, field: str, value: int) -> None:
        offset, form = self.LANE[field]
        self.write(self.tables["areas"][0] + client * self.area_size + 64 * lane + offset, form, value)

    def lane_field(self, client: int, lane: int, field: str) -> int:
        offset, form = self.LANE[field]
        return self.read(self.tables["areas"][0] + client * self.area_size + 64 * lane + offset, form)

    def set_ticket(self, ticket: int, field: str, value: int) -> None:
        offset, form = self.TICKET[field]
        self.write(self.tables["tickets"][0] + 64 * ticket + offset, form, value)

    def ticket_field(self, ticket: int, field: str) -> int:
        offset, form = self.TICKET[field]
        return self.read(self.tables["tickets"][0] + 64 * ticket + offset, form)

    def live_ticket(self) -> int:
        """Return the number of the first ticket that is not free."""
        count = self.tables["tickets"][1] // 64
        return next(i for i in range(count) if self.ticket_field(i, "word") & 0xFF)
