# This Source Code Form is subject to the terms of the Mozilla Public
# License, v. 2.0. If a copy of the MPL was not distributed with this
# file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""What it costs to map frames, beside what the kernel takes and what else makes arrays grow.

Every round times each subject once, one after another; a figure is the median over the
rounds, a ratio the median of the ratios within a round.  ``python -m bench.spaces [rounds]``

The floor of mapping is the kernel's own work for the same pages: `mmap` and `munmap` of the
run, or one `mmap` with MAP_FIXED a page, called by ctypes.  Pages are not touched, so
unmapping finds none to take out of the processor's tables.
"""

from __future__ import annotations

import ctypes
import gc
import mmap
import os
import random
import sys
import time
from statistics import median
from typing import TYPE_CHECKING

import numpy as np

from pageframe import Mapping, PhysicalMemory, USegment, VmSpace

if TYPE_CHECKING:
    from collections.abc import Callable

    from pageframe import FrameVec

MIB = 1 << 20
RUN = 64 * MIB
SCATTERED = 4096
GROWN = 1024 * MIB  # what an append is made to
APPENDS = 8  # in one round
QUERIES = 2000

PROT_NONE, MAP_FIXED, MAP_NORESERVE = 0, 0x10, 0x4000
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [
    ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long,
]  # fmt: skip
libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]

READ_WRITE = mmap.PROT_READ | mmap.PROT_WRITE
SHOWN = mmap.MAP_SHARED | MAP_NORESERVE


def timed(function: Callable[[], object]) -> float:
    begin = time.perf_counter()
    function()
    return time.perf_counter() - begin


class Figures:
    """Times of subjects, a list each with one time a round."""

    def __init__(self) -> None:
        self.times: dict[str, list[float]] = {}

    def add(self, name: str, seconds: float) -> None:
        self.times.setdefault(name, []).append(seconds)

    def show(self, name: str, unit: str, scale: float, floor: str | None = None) -> None:
        line = f"{name:58} {median(self.times[name]) * scale:12,.2f} {unit}"
        if floor:
            ratio = median(a / b for a, b in zip(self.times[name], self.times[floor], strict=True))
            line += f"   {ratio:8.3g} x {floor}"
        print(line)


def scattered(mem: PhysicalMemory, count: int) -> FrameVec:
    """Frames of which no two are neighbours in a row, in an order that has no pattern."""
    frames = mem.alloc_frames(count)
    order = list(range(count))
    random.Random(1).shuffle(order)
    chosen = [frames[i] for i in order]
    frames.drop()
    return type(frames).from_frames(chosen)


# -- mapping -----------------------------------------------------------------------------------


def measure_run(figures: Figures, mem: PhysicalMemory, space: VmSpace, run: USegment) -> None:
    """Map and unmap a contiguous run."""
    moved = run.clone()
    with space.cursor(0, RUN) as cursor:
        figures.add("map a run of 64 MiB", timed(lambda: cursor.map(moved)))
        cursor.jump(0)
        figures.add("unmap it", timed(lambda: cursor.unmap(RUN)))
    fd = os.memfd_create("floor")
    os.ftruncate(fd, RUN)
    address = libc.mmap(None, RUN, PROT_NONE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0)
    figures.add(
        "mmap of 64 MiB", timed(lambda: libc.mmap(address, RUN, READ_WRITE, SHOWN | MAP_FIXED, fd, 0))
    )
    figures.add("munmap of 64 MiB", timed(lambda: libc.munmap(address, RUN)))
    os.close(fd)


def measure_scattered(figures: Figures, mem: PhysicalMemory, space: VmSpace, frames: FrameVec) -> None:
    """Map and unmap frames each of which takes a kernel mapping."""
    offsets = [int(paddr) for paddr in frames.paddrs]
    moved = frames.clone()
    size = frames.size
    with space.cursor(0, size) as cursor:
        figures.add("map 4,096 scattered frames", timed(lambda: cursor.map(moved)))
        cursor.jump(0)
        figures.add("query", timed(lambda: [cursor.query() for _ in range(QUERIES)]) / QUERIES)
        figures.add("object()", timed(lambda: [object() for _ in range(QUERIES)]) / QUERIES)
        figures.add("unmap them", timed(lambda: cursor.unmap(size)))
    fd = os.memfd_create("floor")
    os.ftruncate(fd, mem.size)
    address = libc.mmap(None, size, PROT_NONE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0)

    def one_by_one() -> None:
        for i, offset in enumerate(offsets):
            libc.mmap(address + i * 4096, 4096, READ_WRITE, SHOWN | MAP_FIXED, fd, offset)

    figures.add("mmap of 4,096 pages", timed(one_by_one))
    figures.add("munmap of 4,096 pages", timed(lambda: libc.munmap(address, size)))
    os.close(fd)


def mapping(figures: Figures, rounds: int) -> None:
    with PhysicalMemory("256 MiB") as mem, VmSpace(mem, "1 GiB") as space:
        with mem.alloc_segment(RUN // 4096, align="2 MiB") as run, scattered(mem, SCATTERED) as frames:
            for _ in range(rounds):
                measure_run(figures, mem, space, run)
                measure_scattered(figures, mem, space, frames)
        space.close()
    figures.show("map a run of 64 MiB", "µs", 1e6, "mmap of 64 MiB")
    figures.show("unmap it", "µs", 1e6, "munmap of 64 MiB")
    figures.show("map 4,096 scattered frames", "µs", 1e6, "mmap of 4,096 pages")
    figures.show("unmap them", "µs", 1e6, "munmap of 4,096 pages")
    figures.show("query", "ns", 1e9, "object()")


# -- growing -----------------------------------------------------------------------------------


def growing(figures: Figures, rounds: int) -> None:
    """Append 1 MiB to 1 GiB."""
    extra = MIB * APPENDS * rounds
    block = bytes(MIB)
    with PhysicalMemory(GROWN + extra + 64 * MIB, page_size="64 KiB", populate=True) as mem:
        grown: Mapping = mem.map(mem.alloc_segment(GROWN >> 16))
        more = [mem.alloc_frames(16, zeroed=False) for _ in range(APPENDS * rounds)]
        plain = np.zeros(GROWN, np.uint8)
        plain[::4096] = 1
        piece = np.zeros(MIB, np.uint8)
        growing_bytes = bytearray(GROWN)
        for _ in range(rounds):
            for _ in range(APPENDS):
                frames = more.pop()
                figures.add(
                    "append 1 MiB to a mapping of 1 GiB", timed(lambda frames=frames: grown.append(frames))
                )
            together = timed(lambda: np.concatenate([plain, piece]))
            for _ in range(APPENDS):
                figures.add("np.concatenate", together)
                figures.add("bytearray.extend", timed(lambda: growing_bytes.extend(block)))
        grown.drop()
    blocks = [bytes(1) for _ in range(GROWN // MIB)]
    for _ in range(rounds * APPENDS):
        figures.add("list.append (of a reference to a block)", timed(lambda: blocks.append(block)))
    name = "append 1 MiB to a mapping of 1 GiB"
    figures.show(name, "µs", 1e6, "np.concatenate")
    for peer in ("np.concatenate", "bytearray.extend", "list.append (of a reference to a block)"):
        figures.show(peer, "µs", 1e6)


# -- reading -----------------------------------------------------------------------------------


def reading(figures: Figures, rounds: int) -> None:
    """Sum 1 GiB of float64 over scattered frames of 64 KiB, and a plain array of the same numbers."""
    with PhysicalMemory(GROWN + 64 * MIB, page_size="64 KiB") as mem:
        numbers = np.random.default_rng(1).random(GROWN // 8)
        mapped = mem.map(scattered(mem, GROWN >> 16), reserve=GROWN)
        array = mapped.array(dtype=float)
        array[:] = numbers
        for _ in range(rounds):
            figures.add("sum of 1 GiB over scattered 64 KiB frames", timed(array.sum))
            figures.add("sum of a plain array", timed(numbers.sum))
        if array.sum() != numbers.sum():
            raise SystemExit("the sums differ")
        print(f"{mapped.kernel_mappings:,} kernel mappings for {len(mapped.frames):,} scattered frames")
        del array
        mapped.drop()
    figures.show("sum of 1 GiB over scattered 64 KiB frames", "ms", 1e3, "sum of a plain array")


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 15
    gc.disable()
    figures = Figures()
    mapping(figures, rounds)
    growing(figures, max(1, rounds // 3))
    reading(figures, rounds)


if __name__ == "__main__":
    main()
