# This Source Code Form is subject to the terms of the Mozilla Public
# License, v. 2.0. If a copy of the MPL was not distributed with this
# file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Shared arenas beside what else shares memory between Python processes, in one run.

Blocks of 4 KiB made, touched and given up; an array of 1 MiB sent to another process
and back; two processes allocating at once; what the ledger costs. Contenders take
turns in short rounds, and a figure is the median over the rounds of the ratio within
the round. A peer that is not installed (``pip install 'pageframe[bench]'``) is left out,
and a line says so.

Run as ``python -m bench.peers``.
"""

from __future__ import annotations

import ctypes
import gc
import mmap
import multiprocessing
import os
import sys
import time
from multiprocessing.shared_memory import SharedMemory
from statistics import median
from timeit import Timer
from typing import TYPE_CHECKING, Any

import numpy as np

from pageframe import PhysicalMemory, readonly

try:
    import posix_ipc
except ImportError:
    posix_ipc = None
try:
    import iceoryx2 as iox2
except ImportError:
    iox2 = None

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

BLOCK = 4096
ITEMS = 1 << 17  # of 8 bytes: 1 MiB
ROUNDS = 60
CONTEXT = multiprocessing.get_context("fork")

Contender = tuple[str, Timer, int]  # name, operation, times in a round


def rounds(contenders: list[Contender], number: int = ROUNDS) -> dict[str, list[float]]:
    """Time contenders in turn; return for each the seconds that one operation took, by round."""
    times: dict[str, list[float]] = {name: [] for name, _, _ in contenders}
    gc.disable()
    try:
        for turn in range(number):
            for i in range(len(contenders)):
                name, operation, count = contenders[(turn + i) % len(contenders)]
                times[name].append(operation.timeit(count) / count)
    finally:
        gc.enable()
    return times


def report(title: str, times: dict[str, list[float]], base: str, lines: list[str]) -> None:
    """Add a table: microseconds, and each contender's time as a multiple of one of them."""
    lines += ["", title]
    for name, seconds in times.items():
        ratio = median(a / b for a, b in zip(seconds, times[base], strict=True))
        lines.append(f"  {name:44} {median(seconds) * 1e6:10.3f} us  {ratio:9.2f} x {base}")


# -- blocks ------------------------------------------------------------------------------------


def blocks(lines: list[str]) -> None:
    """Make, touch and give up a block of 4 KiB."""
    mem = PhysicalMemory.create("64 MiB", populate=True)
    known: dict[str, Any] = {"alloc": mem.alloc_frame, "BLOCK": BLOCK, "SharedMemory": SharedMemory}
    contenders: list[Contender] = [
        ("pageframe", Timer("memoryview(alloc(zeroed=False))[0] = 1", globals=known), 4000),
        (
            "SharedMemory",
            Timer(
                "block = SharedMemory(create=True, size=BLOCK); block.buf[0] = 1; "
                "block.close(); block.unlink()",
                globals=known,
            ),
            20,
        ),
    ]
    if posix_ipc is None:
        lines.append("posix_ipc is not installed: left out")
    else:
        known.update(posix_ipc=posix_ipc, mmap=mmap)
        statement = (
            "memory = posix_ipc.SharedMemory(None, posix_ipc.O_CREX, size=BLOCK); "
            "mapped = mmap.mmap(memory.fd, BLOCK); mapped[0] = 1; "
            "mapped.close(); memory.close_fd(); memory.unlink()"
        )
        contenders.append(("posix_ipc + mmap", Timer(statement, globals=known), 40))
    loans = None
    if iox2 is None:
        lines.append("iceoryx2 is not installed: left out")
    else:
        loans = Iceoryx("pageframe-bench-blocks", ctypes.c_uint8, BLOCK)
        known["loan"] = loans.publisher.loan_slice_uninit
        statement = "sample = loan(BLOCK); sample.payload()[0] = 1; sample.delete()"
        contenders.append(("iceoryx2 loan, touch, drop", Timer(statement, globals=known), 500))
    report("a block of 4 KiB: create, touch, destroy", rounds(contenders), "pageframe", lines)
    mem.close()


class Iceoryx:
    """A publisher and a subscriber of a service."""

    def __init__(self, name: str, item: Any, length: int) -> None:
        iox2.set_log_level(iox2.LogLevel.Error)
        self.node = iox2.NodeBuilder.new().create(iox2.ServiceType.Ipc)
        service = (
            self.node.service_builder(iox2.ServiceName.new(name))
            .publish_subscribe(iox2.Slice[item])
            .open_or_create()
        )
        self.publisher = service.publisher_builder().initial_max_slice_len(length).create()
        self.subscriber = service.subscriber_builder().create()


# -- an array there and back -------------------------------------------------------------------


def echo(pipe: Connection, block: SharedMemory) -> None:
    """Send back what comes, looking at it first as its kind requires."""
    reused = np.ndarray(ITEMS, np.float64, block.buf)
    while (what := pipe.recv()) is not None:
        if isinstance(what, np.ndarray):
            what[0]
        elif isinstance(what, str):
            one = SharedMemory(what)
            np.ndarray(ITEMS, np.float64, one.buf)[0]
            one.close()
        elif isinstance(what, tuple):
            reused[0]
        pipe.send(what)
        del what


def iceoryx_echo(pipe: Connection, there: str, back: str) -> None:
    """Send back samples of one service by another; the pipe says when there is one."""
    samples = Iceoryx(there, ctypes.c_double, ITEMS).subscriber
    answers = Iceoryx(back, ctypes.c_double, ITEMS).publisher
    pipe.send("ready")
    while pipe.recv() is not None:
        sample = samples.receive()
        answer = answers.loan_slice_uninit(ITEMS)
        np.frombuffer(answer.payload().as_memory_view(), np.float64)[0] = np.frombuffer(
            sample.payload().as_memory_view(), np.float64
        )[0]
        answer.assume_init().send()
        sample.delete()
        pipe.send(1)


def arrays(lines: list[str]) -> None:
    """Send an array of 1 MiB to another process and back through a pipe."""
    block = SharedMemory(create=True, size=ITEMS * 8)
    small, large = PhysicalMemory.create("64 MiB"), PhysicalMemory.create("64 MiB", page_size="64 KiB")
    parent, child = CONTEXT.Pipe()
    process = CONTEXT.Process(target=echo, args=(child, block))
    process.start()
    plain = np.arange(ITEMS, dtype=np.float64)

    def there_and_back(what: Any) -> Timer:
        return Timer("send(what); recv()", globals={"send": parent.send, "recv": parent.recv, "what": what})

    def shared_message() -> None:
        one = SharedMemory(create=True, size=ITEMS * 8)
        np.ndarray(ITEMS, np.float64, one.buf)[:] = plain
        parent.send(one.name)
        parent.recv()
        one.close()
        one.unlink()

    contenders: list[Contender] = [
        ("a bare token", there_and_back(1), 50),
        ("pageframe, frames of 64 KiB", there_and_back(large.asarray(plain)), 50),
        ("pageframe, frames of 4 KiB", there_and_back(small.asarray(plain)), 50),
        ("pageframe, read-only, 64 KiB", there_and_back(readonly(large.asarray(plain))), 50),
        ("a reused SharedMemory and a token", there_and_back((1,)), 50),
        ("a SharedMemory a message", Timer(shared_message), 5),
        ("pickle", there_and_back(plain), 5),
    ]
    other = None
    if iox2 is not None:
        other = CONTEXT.Pipe()
        names = f"pageframe-bench-{os.getpid()}-there", f"pageframe-bench-{os.getpid()}-back"
        answering = CONTEXT.Process(target=iceoryx_echo, args=(other[1], *names))
        answering.start()
        other[0].recv()
        mine, answers = Iceoryx(names[0], ctypes.c_double, ITEMS), Iceoryx(names[1], ctypes.c_double, ITEMS)

        def samples() -> None:
            sample = mine.publisher.loan_slice_uninit(ITEMS)
            np.frombuffer(sample.payload().as_memory_view(), np.float64)[0] = 1
            sample.assume_init().send()
            other[0].send(1)
            other[0].recv()
            answers.subscriber.receive().delete()

        contenders.append(("iceoryx2, a sample each way, and a token", Timer(samples), 50))
    report("an array of 1 MiB to another process and back", rounds(contenders, 40), "a bare token", lines)
    parent.send(None)
    process.join()
    if other is not None:
        other[0].send(None)
        answering.join()
    block.close()
    block.unlink()


# -- two processes -----------------------------------------------------------------------------


def allocate(mem: PhysicalMemory, start: float, number: int, pipe: Connection) -> None:
    alloc = mem.alloc_frame
    while time.monotonic() < start:
        pass
    begin = time.perf_counter()
    for _ in range(number):
        alloc(zeroed=False)
    pipe.send(number / (time.perf_counter() - begin))


def rate(mem: PhysicalMemory, processes: int, number: int = 1_000_000) -> float:
    """Allocations and releases a second of so many processes at once."""
    start = time.monotonic() + 0.2
    pipes = [CONTEXT.Pipe() for _ in range(processes)]
    running = [CONTEXT.Process(target=allocate, args=(mem, start, number, sending)) for _, sending in pipes]
    for process in running:
        process.start()
    total: float = sum(receiving.recv() for receiving, _ in pipes)
    for process in running:
        process.join()
    return total


def at_once(lines: list[str]) -> None:
    """Two processes that allocate at once, beside one."""
    with PhysicalMemory.create("256 MiB") as mem:
        pairs = [(rate(mem, 1), rate(mem, 2)) for _ in range(9)]
        mem.reap()
    one, two = (median(rates) for rates in zip(*pairs, strict=True))
    lines += [
        "",
        "allocations at once, millions a second",
        f"  one process {one / 1e6:.1f}, two {two / 1e6:.1f}: {median(b / a for a, b in pairs):.2f} x",
    ]


def ledger(lines: list[str]) -> None:
    """What clients, lanes and ledgers add to an allocation."""
    private, shared = PhysicalMemory("64 MiB"), PhysicalMemory.create("64 MiB")
    contenders: list[Contender] = [
        ("a private arena", Timer("alloc(zeroed=False)", globals={"alloc": private.alloc_frame}), 20_000),
        ("a shared arena", Timer("alloc(zeroed=False)", globals={"alloc": shared.alloc_frame}), 20_000),
    ]
    report("a frame allocated and dropped", rounds(contenders), "a private arena", lines)
    shared.close()
    private.close()


def main() -> None:
    lines = [f"Python {sys.version.split()[0]}, {os.cpu_count()} cores"]
    for part in (blocks, arrays, at_once, ledger):
        part(lines)
    print("\n".join(lines))


if __name__ == "__main__":
    main()
