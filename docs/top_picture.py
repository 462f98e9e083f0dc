# This Source Code Form is subject to the terms of the Mozilla Public
# License, v. 2.0. If a copy of the MPL was not distributed with this
# file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Draw docs/top.svg: the live view of an arena that four processes use.

    python docs/top_picture.py [FILE]

A loader fills pages and sends some of them to two workers, which keep some and drop others; a
fourth process leaks: it keeps every frame that it gets, and is killed in the end.  What the
picture shows is real, so its figures are others each time.
"""

from __future__ import annotations

import asyncio
import math
import multiprocessing
import random
import re
import sys
import time
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

from pageframe import ArenaView, Link, PhysicalMemory, UntypedFrameMeta, u32, u64
from pageframe.observe.live import LiveApp

if TYPE_CHECKING:
    from multiprocessing.queues import Queue
    from multiprocessing.synchronize import Event

SIZE = (140, 45)
LOOKS = 40
FONTS = "DejaVu Sans Mono,Menlo,Consolas,monospace"


class Page(Link, UntypedFrameMeta):
    """A page of a file."""

    inode: u64
    index: u32


class Tensor(UntypedFrameMeta):
    """Part of an array."""

    number: u32


def load(name: str, pages: Queue, stop: Event) -> None:
    """Fill pages; send one in ten to a worker, and forget the oldest."""
    with PhysicalMemory.attach(name) as mem:
        draw = random.Random(1)
        cache: deque = deque()
        tensors = [mem.alloc_segment(n, lambda paddr: Tensor(number=paddr >> 12)) for n in (700, 300, 1200)]
        while not stop.is_set():
            for _ in range(int(draw.randrange(40, 160) * (1.2 + math.sin(time.monotonic())))):
                cache.append(mem.alloc_frame(Page(inode=draw.randrange(100))))
                if draw.random() < 0.1 and pages.qsize() < 30:
                    pages.put(draw.choice(cache))
            while len(cache) > 4000:
                del cache[draw.randrange(len(cache))]
            time.sleep(0.02)
        cache.clear()
        del tensors


def work(name: str, pages: Queue, stop: Event) -> None:
    """Keep the pages that were sent last."""
    with PhysicalMemory.attach(name) as mem:
        kept: deque = deque(maxlen=200)
        while not stop.is_set():
            kept.append(pages.get())
            time.sleep(0.01)
        kept.clear()
        mem.reap()


def leak(name: str) -> None:
    """Keep every frame."""
    with PhysicalMemory.attach(name) as mem:
        kept = []
        while True:
            kept += [mem.alloc_frame() for _ in range(4)]
            time.sleep(0.02)


async def watch(name: str, label: str, leaking: multiprocessing.Process) -> str:
    """Look at the arena some times; return the picture of the last."""
    with ArenaView(name) as view:
        app = LiveApp(view, label, 0.5)
        async with app.run_test(size=SIZE) as pilot:
            await pilot.press(*["up"] * 9)
            while app.looks < LOOKS:
                await pilot.pause(0.05)
                if app.looks == LOOKS - 4:
                    leaking.kill()
            return app.export_screenshot(title=f"pageframe top {label}")


def on_white(picture: str) -> str:
    """Return a picture with a background of its own, and with fonts that need not be fetched."""
    picture = re.sub(r"@font-face \{.*?\}\n", "", picture, flags=re.S)
    picture = picture.replace("Fira Code", FONTS)
    opening = re.search(r'<svg [^>]*viewBox="0 0 (\S+) (\S+)"[^>]*>', picture)
    assert opening is not None
    width, height = opening.groups()
    rect = f'\n<rect width="{width}" height="{height}" fill="#fff"/>'
    return picture[: opening.end()] + rect + picture[opening.end() :]


def main() -> None:
    """Draw the picture."""
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).with_name("top.svg")
    name = f"top-picture-{uuid4().hex[:8]}"
    context = multiprocessing.get_context("spawn")
    with PhysicalMemory.create("64 MiB", name) as mem:
        pages, stop = context.Queue(), context.Event()
        processes = [
            context.Process(target=load, args=(name, pages, stop), name="loader"),
            context.Process(target=work, args=(name, pages, stop), name="worker-1"),
            context.Process(target=work, args=(name, pages, stop), name="worker-2"),
            context.Process(target=leak, args=(name,), name="leaky"),
        ]
        try:
            for process in processes:
                process.start()
            time.sleep(2)
            picture = asyncio.run(watch(name, "images", processes[-1]))
        finally:
            stop.set()
            for process in processes:
                process.join(2)
                process.kill()
                process.join()
        mem.reap()
    path.write_text(on_white(picture))


if __name__ == "__main__":
    main()
